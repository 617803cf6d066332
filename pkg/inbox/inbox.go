// Package inbox notices what people put into a folder, once it is whole.
//
// The kernel tells of every change, so nothing is looked at again and again. A file
// counts as whole when it was left alone for a moment, going by a time that no program
// can set, and when nobody has it open to write. What the files hold is for others to read.
package inbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// Settle is how long a file must be left alone before it is taken for whole.
const Settle = 500 * time.Millisecond

// Unsettled reports whether a file was changed a moment ago, by the time that the kernel
// sets on any change.
func Unsettled(info fs.FileInfo) bool {
	return time.Since(Changed(info)).Abs() < Settle
}

// Changed is when the kernel last saw a file change, its name, owner and mode included.
func Changed(info fs.FileInfo) time.Time {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return time.Time{}
	}
	return time.Unix(st.Ctim.Unix())
}

// Written reports whether somebody has a file open to write, as one who copies it slowly
// does. Of a file system that cannot tell it is not known, and the answer is no.
func Written(f *os.File) bool {
	_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	if err == nil {
		// Whoever opens it to write from here on waits for no longer than this takes.
		_, _ = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
	}
	return errors.Is(err, unix.EAGAIN) && !remote(f)
}

// remote reports whether a file is on a server that this kernel only asks: such a file
// system refuses a lease whenever the server gave it none.
func remote(f *os.File) bool {
	var on unix.Statfs_t
	if unix.Fstatfs(int(f.Fd()), &on) != nil {
		return false
	}
	switch uint32(on.Type) {
	case unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC:
		return true
	}
	return false
}

// errMoved means that the folder itself went away.
var errMoved = errors.New("the folder was moved or deleted")

// Watch calls changed whenever anything in the folder at dir or below it changes, and
// before that once, until ctx ends. Ensure makes the folder if it is not there. Where the
// kernel has no watch to spare, Watch asks again, and calls changed each time.
func Watch(ctx context.Context, dir string, ensure func() error, changed func(), log *slog.Logger) {
	trouble := false
	for ctx.Err() == nil {
		err := ensure()
		if err == nil {
			err = watch(ctx, dir, changed)
		}
		pause := Settle
		if err != nil && !errors.Is(err, errMoved) {
			if !trouble {
				log.Warn("changes of the folder are noticed late", "err", err)
			}
			trouble, pause = true, 15*time.Second
		}
		changed()
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// watch calls changed until ctx ends or the kernel can no longer tell.
func watch(ctx context.Context, dir string, changed func()) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", dir, err)
	}
	defer w.Close()
	if err := watchBelow(w, dir, dir); err != nil {
		return err
	}
	changed()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-w.Errors:
			if !errors.Is(err, fsnotify.ErrEventOverflow) {
				return fmt.Errorf("watch %s: %w", dir, err)
			}
			return errMoved // what was missed may be a new folder
		case e := <-w.Events:
			if e.Name == dir && (e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename)) {
				return errMoved
			}
			if e.Has(fsnotify.Create) {
				if err := watchBelow(w, dir, e.Name); err != nil {
					return err
				}
			}
			changed()
		}
	}
}

// watchBelow adds folders to a watch. What appears in one before it is watched is
// found by the look that its own appearance leads to.
func watchBelow(w *fsnotify.Watcher, dir, path string) error {
	return filepath.WalkDir(path, func(path string, e fs.DirEntry, err error) error {
		if err == nil && (e.IsDir() || path == dir) {
			err = w.Add(path)
		}
		if errors.Is(err, fs.ErrNotExist) && path != dir {
			return nil
		}
		if err != nil {
			return fmt.Errorf("watch %s: %w", path, err)
		}
		return nil
	})
}
