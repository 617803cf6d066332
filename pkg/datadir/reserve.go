package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	// reserve is what a start needs on a disk that is full: containerd writes the state of
	// each container anew when it takes it over, and one that it cannot write is lost to it.
	reserve = 16 << 20

	// plenty is how much must be free for a reserve to be made.
	plenty = 512 << 20
)

// Reserve keeps some of the disk for a start on a full one, if there is plenty and the file
// system can.
func (c *Claim) Reserve() error {
	path := c.paths.Reserve()
	if info, err := os.Lstat(path); err == nil && info.Size() >= reserve {
		return nil
	}
	if free, _, err := Room(c.paths.Data); err != nil || free < plenty {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	err = unix.EINTR
	for errors.Is(err, unix.EINTR) {
		err = unix.Fallocate(int(f.Fd()), 0, 0, reserve)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		return nil
	}
	if err = errors.Join(err, os.Remove(path)); errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return fmt.Errorf("reserve %s: %w", path, err)
}

// spend gives the reserve back to a disk that has no more than that.
func (c *Claim) spend() error {
	if free, _, err := Room(c.paths.Data); err != nil || free >= reserve {
		return err
	}
	if err := os.Remove(c.paths.Reserve()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Room is how many bytes are free in the file system of a folder, or of the one above it
// that is there, and how many it has.
func Room(dir string) (free, total int64, err error) {
	var st unix.Statfs_t
	err = unix.Statfs(dir, &st)
	if errors.Is(err, fs.ErrNotExist) && filepath.Dir(dir) != dir {
		return Room(filepath.Dir(dir))
	}
	if err != nil {
		return 0, 0, fmt.Errorf("free space of %s: %w", dir, err)
	}
	block := int64(st.Bsize) // it is an int32 on some
	return int64(st.Bavail) * block, int64(st.Blocks) * block, nil
}
