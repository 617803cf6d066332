package machine

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A Mount is the arguments of the system call.
type Mount struct {
	From, To, Kind, Data string
	Flags                uintptr

	// Follow is for a bind mount that shows what is mounted below it later: MS_SLAVE
	// for what the maker mounts, MS_SHARED for what either side does.
	Follow uintptr
	tree   int // a copy of From, once open
}

// open takes a copy of what is to follow the maker's mounts.
func (m *Mount) open() error {
	if m.Follow == 0 {
		return nil
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, m.From, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("copy the mounts at %s: %w", m.From, err)
	}
	m.tree = tree
	return nil
}

// do makes the place if need be: a file for a file, and not where a link leads.
func (m Mount) do() error {
	if info, err := os.Lstat(m.To); err == nil && info.Mode()&os.ModeSymlink != 0 {
		if err := os.Remove(m.To); err != nil {
			return err
		}
	}
	if _, err := os.Stat(m.To); err != nil {
		if err := m.place(); err != nil {
			return err
		}
	}
	err := m.attach()
	if err == nil && m.Flags&unix.MS_BIND != 0 && m.Flags&unix.MS_RDONLY != 0 {
		err = m.seal()
	}
	if err != nil {
		return fmt.Errorf("mount %s%s at %s: %w", m.Kind, m.From, m.To, err)
	}
	return nil
}

// seal makes a bind mount read-only, which takes a second call, with all that is mounted
// below it.
func (m Mount) seal() error {
	if m.Flags&unix.MS_REC == 0 && m.Follow == 0 {
		return unix.Mount("", m.To, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
	return unix.MountSetattr(unix.AT_FDCWD, m.To, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}

func (m Mount) attach() error {
	if m.Follow == 0 {
		return unix.Mount(m.From, m.To, m.Kind, m.Flags, m.Data)
	}
	defer unix.Close(m.tree)
	if err := unix.MoveMount(m.tree, "", unix.AT_FDCWD, m.To, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return err
	}
	return unix.Mount("", m.To, "", m.Follow|unix.MS_REC, "")
}

func (m Mount) place() error {
	info, err := os.Stat(m.From)
	if m.Flags&unix.MS_BIND != 0 && err == nil && !info.IsDir() {
		if err := os.MkdirAll(filepath.Dir(m.To), 0o755); err != nil {
			return err
		}
		return os.WriteFile(m.To, nil, 0o755)
	}
	return os.MkdirAll(m.To, 0o755)
}
