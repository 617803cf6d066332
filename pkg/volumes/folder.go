package volumes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/tree"
)

// openRoot opens a root, where links and mounts are the administrator's.
func openRoot(root string) (*os.File, error) {
	return os.OpenFile(root, os.O_RDONLY|unix.O_DIRECTORY, 0)
}

// look is what a node says of a root, which it makes if need be. Only the node's own
// users are kept out of it: what is below is open to pods of any user.
func look(path string) Root {
	r := Root{Path: path}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		r.Problem = err.Error()
		return r
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		r.Problem = err.Error()
		return r
	}
	dir, err := openRoot(path)
	if err != nil {
		r.Problem = err.Error()
		return r
	}
	defer dir.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		r.Problem = (&os.PathError{Op: "statfs", Path: path, Err: err}).Error()
		return r
	}
	r.Bytes, r.Quota = int64(st.Blocks)*int64(st.Bsize), quotas(dir) == nil
	return r
}

// parent opens the folder that holds a volume's. With create, folders on the way are made.
func parent(root *os.File, rel string, create bool) (*os.File, error) {
	dir, err := tree.Open(root, ".")
	if err != nil {
		return nil, err
	}
	way := path.Dir(rel)
	if way == "." {
		return dir, nil
	}
	for part := range strings.SplitSeq(way, "/") {
		if create {
			if err := unix.Mkdirat(int(dir.Fd()), part, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
				dir.Close()
				return nil, &fs.PathError{Op: "make", Path: filepath.Join(dir.Name(), part), Err: err}
			}
		}
		next, err := tree.Open(dir, part)
		dir.Close()
		if err != nil {
			return nil, err
		}
		dir = next
	}
	return dir, nil
}

// create makes the folder of a volume, open to all pods, and hands it to prepare
// before anybody can see it by its name. One that is there already is taken as it is,
// and fresh is false.
func create(root *os.File, rel, volume string, prepare func(*os.File) error) (fresh bool, err error) {
	dir, err := parent(root, rel, true)
	if err != nil {
		return false, err
	}
	defer dir.Close()
	if there, err := tree.Open(dir, path.Base(rel)); err == nil {
		return false, there.Close()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	// The name is the same each time, so that a start that was killed leaves nothing.
	early := "." + volume
	if err := unix.Mkdirat(int(dir.Fd()), early, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return false, &fs.PathError{Op: "make", Path: filepath.Join(dir.Name(), early), Err: err}
	}
	made, err := tree.Open(dir, early)
	if err != nil {
		return false, err
	}
	defer made.Close()
	if err := made.Chmod(0o777); err != nil {
		return false, err
	}
	if err := prepare(made); err != nil {
		return false, err
	}
	if err := rename(int(dir.Fd()), early, path.Base(rel), unix.Renameat2); err != nil {
		return false, &fs.PathError{Op: "name", Path: filepath.Join(dir.Name(), path.Base(rel)), Err: err}
	}
	return true, dir.Sync()
}

// rename gives a folder a name that nothing has. File systems that cannot promise that (NFS,
// FUSE, older ZFS) rename without: root alone writes there, and nothing had the name.
func rename(dir int, from, to string, renameat2 func(int, string, int, string, uint) error) error {
	err := renameat2(dir, from, dir, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) {
		return renameat2(dir, from, dir, to, 0)
	}
	return err
}

// destroy removes the folder of a volume with all it holds, and those on the way to
// it that are empty then.
func destroy(root *os.File, rel, volume string, stop <-chan struct{}) error {
	dir, err := parent(root, rel, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	for _, name := range []string{path.Base(rel), "." + volume} {
		if err := tree.Remove(dir, name, stop); err != nil {
			return fmt.Errorf("remove folder: %w", err)
		}
	}
	for way := path.Dir(rel); way != "."; way = path.Dir(way) {
		above, err := parent(root, way, false)
		if err != nil {
			return err
		}
		err = unix.Unlinkat(int(above.Fd()), path.Base(way), unix.AT_REMOVEDIR)
		above.Close()
		if err != nil {
			return nil // others are in it
		}
	}
	return nil
}
