// Package tree removes folders with all they hold, whatever somebody put there.
//
// No symbolic link is followed and no mounted file system is entered, bind mounts of
// the same one included: what is removed lies below the folder that was named, and
// a mount point is an error that leaves the rest removed. Flags that keep files from
// being removed are taken away, and a tree may be of any depth.
package tree

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrStopped means that a removal was cut short. Another goes on where it was.
var ErrStopped = errors.New("stopped before all was removed")

const (
	// deepest is how many folders are held open at once. What lies deeper is moved to
	// the top, and removed from there.
	deepest = 64
	// batch is how many names of a folder are read at once.
	batch = 1024
	// told is how many errors of one folder are reported.
	told = 8

	// From linux/fs.h.
	immutable  = 0x10
	appendOnly = 0x20
)

// inside opens what is really in a folder: neither a link nor a mount.
const inside = unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_BENEATH

// Open opens the folder at a path relative to dir. Nothing on the way to it is a link,
// a mount point or a step upwards.
func Open(dir *os.File, path string) (*os.File, error) {
	whole := filepath.Join(dir.Name(), path)
	fd, err := unix.Openat2(int(dir.Fd()), path, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: inside})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: whole, Err: err}
	}
	return os.NewFile(uintptr(fd), whole), nil
}

// Empty removes everything in the folder at path and reports how many entries it had.
// A folder that is not there has none.
func Empty(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	if err != nil {
		return 0, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	top := os.NewFile(uintptr(fd), path)
	defer top.Close()
	w := walk{top: top}
	return w.all()
}

// Remove removes the entry of a folder that has this name, which may be gone already.
// It ends early, with ErrStopped, when stop is closed.
func Remove(dir *os.File, name string, stop <-chan struct{}) error {
	w := walk{stop: stop}
	return w.remove(dir, name)
}

// A walk empties one folder.
type walk struct {
	top   *os.File // none yet: what is removed is the top
	depth int
	moved int
	stop  <-chan struct{}
}

// all empties the top, until nothing is moved there any more.
func (w *walk) all() (int, error) {
	for count := -1; ; {
		before := w.moved
		n, err := w.empty(w.top)
		if count < 0 {
			count = n
		}
		if w.moved == before || errors.Is(err, ErrStopped) {
			return count, err
		}
		if _, err := w.top.Seek(0, io.SeekStart); err != nil {
			return count, err
		}
	}
}

// empty removes what is in an open folder and reports how many entries it had.
func (w *walk) empty(dir *os.File) (int, error) {
	count := 0
	var errs []error
	for {
		names, err := dir.Readdirnames(batch)
		for _, name := range names {
			err := w.remove(dir, name)
			if errors.Is(err, ErrStopped) {
				return count, err
			}
			if err != nil && len(errs) < told {
				errs = append(errs, err)
			}
		}
		count += len(names)
		if err != nil && !errors.Is(err, io.EOF) {
			errs = append(errs, err)
		}
		if err != nil {
			return count, errors.Join(errs...)
		}
	}
}

// remove removes one entry of an open folder.
func (w *walk) remove(dir *os.File, name string) error {
	select {
	case <-w.stop:
		return fmt.Errorf("%s: %w", dir.Name(), ErrStopped)
	default:
	}
	fd, path := int(dir.Fd()), filepath.Join(dir.Name(), name)
	err := unix.Unlinkat(fd, name, 0)
	if errors.Is(err, unix.EPERM) && unlock(dir, name) {
		err = unix.Unlinkat(fd, name, 0)
	}
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EISDIR), errors.Is(err, unix.EPERM):
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s is a mount point; unmount it first", path)
	default:
		return &fs.PathError{Op: "remove", Path: path, Err: err}
	}
	sub, openErr := Open(dir, name)
	switch {
	case errors.Is(openErr, unix.EXDEV):
		return fmt.Errorf("%s is a mounted file system; unmount it first", path)
	case errors.Is(openErr, unix.ENOTDIR): // a file that may not be removed
		return &fs.PathError{Op: "remove", Path: path, Err: err}
	case openErr != nil:
		return openErr
	}
	defer sub.Close()
	if w.depth == deepest && w.lift(dir, name) {
		return nil
	}
	if err := w.within(sub); err != nil {
		return err
	}
	if err := unix.Unlinkat(fd, name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "remove", Path: path, Err: err}
	}
	return nil
}

// within empties a folder below the one that is being emptied. The first is the top.
func (w *walk) within(sub *os.File) error {
	if w.top == nil {
		w.top = sub
		_, err := w.all()
		return err
	}
	w.depth++
	defer func() { w.depth-- }()
	_, err := w.empty(sub)
	return err
}

// lift moves a folder to the top. It reports false for one that cannot be moved.
func (w *walk) lift(dir *os.File, name string) bool {
	err := unix.Renameat2(int(dir.Fd()), name, int(w.top.Fd()), ".podo-"+rand.Text(), unix.RENAME_NOREPLACE)
	if err != nil {
		return false
	}
	w.moved++
	return true
}

// unlock takes away the flags that keep an entry from being removed, and reports
// whether there were any: its own, if it is a file or a folder, or its folder's.
func unlock(dir *os.File, name string) bool {
	had := clearFlags(int(dir.Fd()))
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return had
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return had
	}
	fd, err := unix.Openat2(int(dir.Fd()), name, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC, Resolve: inside})
	if err != nil {
		return had
	}
	defer unix.Close(fd)
	return clearFlags(fd) || had
}

func clearFlags(fd int) bool {
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if err != nil || flags&(immutable|appendOnly) == 0 {
		return false
	}
	return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags&^(immutable|appendOnly)) == nil
}
