// Package atomicfile writes files that are either the old one or the new one.
//
// A reader, a crash or a power cut never meets half a file: content goes to a
// temporary file in the same folder, is synced, renamed into place, and the folder
// is synced. Temporary files that a killed writer left are swept by the next write.
package atomicfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// An Option changes who owns a written file, or how soon it is safe.
type Option func(*owner)

type owner struct {
	uid, gid int // -1 leaves the writer's own
	keep     bool
	unsynced bool
}

// Read returns what is in a file that somebody wrote by hand, of at most a number of bytes.
// What is no file is refused: a named pipe would have the reader wait for ever.
func Read(path string, most int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case info.IsDir():
		return nil, fmt.Errorf("%s: is a folder, not a file", path)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s: is not a regular file", path)
	case info.Size() > most:
		return nil, fmt.Errorf("%s: has %d bytes, and may have %d", path, info.Size(), most)
	}
	return io.ReadAll(io.LimitReader(f, most))
}

// Group gives the file to a group; a negative gid changes nothing.
func Group(gid int) Option { return func(o *owner) { o.gid = gid } }

// Owner gives the file to a user; a negative uid changes nothing.
func Owner(uid int) Option { return func(o *owner) { o.uid = uid } }

// KeepOwner gives the file to whoever owns the one it replaces, if there is one.
func KeepOwner() Option { return func(o *owner) { o.keep = true } }

// Unsynced leaves it to the kernel when the file reaches the disk. It is for files
// that can be made again: readers still never meet half of one, but after a power
// cut it may be the old one or empty.
func Unsynced() Option { return func(o *owner) { o.unsynced = true } }

// stale is how old a temporary file must be before it is taken for abandoned.
const stale = time.Minute

// Write replaces path with data. The file has exactly mode, whatever the umask.
// The folder must exist.
func Write(path string, data []byte, mode fs.FileMode, opts ...Option) (err error) {
	own := ownerOf(path, opts)
	dir, base := filepath.Split(filepath.Clean(path))
	if dir == "" {
		dir = "."
	}
	sweep(dir, base)

	f, err := os.CreateTemp(dir, prefix(base)+"*"+suffix)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if own.uid >= 0 || own.gid >= 0 {
		if err := f.Chown(own.uid, own.gid); err != nil {
			return err
		}
	}
	// After chown, which clears the set-id bits, and before any secret is in it.
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if !own.unsynced {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	if own.unsynced {
		return nil
	}
	return SyncDir(dir)
}

// WriteIfChanged writes unless path already has this content, mode and owner,
// and reports whether it wrote.
func WriteIfChanged(path string, data []byte, mode fs.FileMode, opts ...Option) (bool, error) {
	if same(path, data, mode, ownerOf(path, opts)) {
		return false, nil
	}
	if err := Write(path, data, mode, opts...); err != nil {
		return false, err
	}
	return true, nil
}

// EnsureDir makes a folder and its parents with exactly mode for the folder
// itself, and syncs what it made. A folder that exists is left as it is.
func EnsureDir(path string, mode fs.FileMode) error {
	info, err := os.Stat(path)
	if err == nil {
		if !info.IsDir() {
			return fmt.Errorf("make folder %s: %w", path, syscall.ENOTDIR)
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("make folder: %w", err)
	}
	parent := filepath.Dir(path)
	if parent != path {
		// A parent holds nothing itself, but must not be narrower than a service
		// running as another user may need to reach what lies below.
		if err := EnsureDir(parent, mode|0o111); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, mode); err != nil {
		if errors.Is(err, fs.ErrExist) { // someone else was faster
			return nil
		}
		return fmt.Errorf("make folder: %w", err)
	}
	if err := os.Chmod(path, mode); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	return SyncDir(parent)
}

// SyncDir makes renames and new names in a folder survive a power cut.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	// Some network and FUSE file systems cannot sync a folder and say EINVAL.
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

const suffix = ".tmp"

func prefix(base string) string { return "." + base + "." }

// sweep removes what writers of the same file left when they were killed.
func sweep(dir, base string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // the write itself will say why
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), prefix(base)) || !strings.HasSuffix(e.Name(), suffix) {
			continue
		}
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() && time.Since(info.ModTime()).Abs() > stale {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

func ownerOf(path string, opts []Option) owner {
	o := owner{uid: -1, gid: -1}
	for _, opt := range opts {
		opt(&o)
	}
	if !o.keep {
		return o
	}
	if info, err := os.Stat(path); err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			o.uid, o.gid = int(st.Uid), int(st.Gid)
		}
	}
	return o
}

func same(path string, data []byte, mode fs.FileMode, own owner) bool {
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != mode || info.Size() != int64(len(data)) {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || own.uid >= 0 && int(st.Uid) != own.uid || own.gid >= 0 && int(st.Gid) != own.gid {
		return false
	}
	old, err := os.ReadFile(path)
	return err == nil && bytes.Equal(old, data)
}
