package volumes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
)

// Of linux/quota.h, linux/dqblk_xfs.h and linux/fs.h.
const (
	projectQuota = 2
	getQuota     = 0x800007
	setQuota     = 0x800008
	getState     = 'X'<<8 + 8
	enforced     = 1 << 5 // of projects
	limits       = 1      // are what is set
	block        = 1024   // bytes

	getAttributes = 0x801c581f
	setAttributes = 0x401c5820
	inherited     = 0x200
)

// attributes are a file's, beyond those of all file systems: struct fsxattr.
type attributes struct {
	flags, extent, extents, project, copyExtent uint32
	_                                           [8]byte
}

// limit is struct if_dqblk.
type limit struct {
	hard, soft, used                uint64 // the first two in blocks, the last in bytes
	filesHard, filesSoft, files     uint64
	secondsOfBlocks, secondsOfFiles uint64
	valid                           uint32
	_                               uint32
}

func quotactl(dir *os.File, command int, project uint32, data unsafe.Pointer) error {
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, dir.Fd(), uintptr(command<<8|projectQuota), uintptr(project), uintptr(data), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// quotas reports why the file system of a folder holds no project to a size, or nil if
// it does.
func quotas(dir *os.File) error {
	var state [512]byte
	state[0] = 1 // version
	switch err := quotactl(dir, getState, 0, unsafe.Pointer(&state)); {
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ESRCH):
		return errors.New("its file system is not mounted with project quotas")
	case err != nil:
		return fmt.Errorf("ask for its project quotas: %w", err)
	case binary.NativeEndian.Uint16(state[2:4])&enforced == 0:
		return errors.New("its file system is not mounted with project quotas")
	}
	// To set them takes more than to ask.
	var l limit
	if err := quotactl(dir, getQuota, firstProject, unsafe.Pointer(&l)); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("read its project quotas: %w", err)
	}
	return nil
}

// Projects of volumes have numbers from here on, far from those that people and the
// kubelet use.
const firstProject = 1 << 30

// project is the number for a volume: the same each time it is asked for, and none
// that is taken.
func project(uid types.UID, taken func(uint32) bool) uint32 {
	h := fnv.New32a()
	h.Write([]byte(uid))
	for n := h.Sum32() % firstProject; ; n = (n + 1) % firstProject {
		if !taken(firstProject + n) {
			return firstProject + n
		}
	}
}

// projectOf is the project that a folder belongs to, 0 if none.
func projectOf(dir *os.File) uint32 {
	var a attributes
	if err := ioctl(dir, getAttributes, unsafe.Pointer(&a)); err != nil {
		return 0
	}
	return a.project
}

// assign makes a folder, and what will be made in it, part of a project.
func assign(dir *os.File, project uint32) error {
	var a attributes
	if err := ioctl(dir, getAttributes, unsafe.Pointer(&a)); err != nil {
		return &os.PathError{Op: "read project", Path: dir.Name(), Err: err}
	}
	a.project, a.flags = project, a.flags|inherited
	if err := ioctl(dir, setAttributes, unsafe.Pointer(&a)); err != nil {
		return &os.PathError{Op: "set project", Path: dir.Name(), Err: err}
	}
	return nil
}

// restrict holds a project of the file system that dir is on to a size, or to none
// for 0.
func restrict(dir *os.File, project uint32, bytes int64) error {
	blocks := uint64(bytes+block-1) / block
	l := limit{hard: blocks, soft: blocks, valid: limits}
	if err := quotactl(dir, setQuota, project, unsafe.Pointer(&l)); err != nil {
		return &os.PathError{Op: "set quota", Path: dir.Name(), Err: err}
	}
	return nil
}

func ioctl(f *os.File, request uint, data unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(request), uintptr(data)); errno != 0 {
		return errno
	}
	return nil
}
