package hosts

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// apart is set for a test process that has a view of its own of what is mounted.
const apart = "PODO_TEST_APART"

// standApart has what this process mounts be seen by its hosts alone, and go with it. What
// podo and other tests have mounted on the machine at this moment is let go of, so that
// they can unmount it. Where no hosts are made there is nothing to hide.
func standApart() error {
	if os.Geteuid() != 0 || os.Getenv("PODO_E2E") != "1" || os.Getenv(apart) != "" {
		return os.Unsetenv(apart)
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return err
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		for _, theirs := range []string{"/run/podo", "/run/netns", "/var/lib/podo", "/var/lib/kubelet", os.TempDir() + "/podo-"} {
			if at := strings.Fields(line)[1]; strings.HasPrefix(at, theirs) {
				_ = unix.Unmount(at, unix.MNT_DETACH) // it may be gone
			}
		}
	}
	return syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), apart+"=1"))
}

// enough is how much memory, in bytes, has to be free for hosts to keep their files there:
// each may come to some 500 MB of them, beside what its processes take.
const enough = 12 << 30

// intoMemory has a folder's files in memory, if there is enough.
func intoMemory(dir string) error {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return err
	}
	_, rest, _ := strings.Cut(string(text), "MemAvailable:")
	var kilobytes int
	if _, err := fmt.Sscan(rest, &kilobytes); err != nil {
		return fmt.Errorf("read /proc/meminfo: %w", err)
	}
	if kilobytes*1024 < enough {
		return nil
	}
	return unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755")
}

// outOfMemory undoes intoMemory.
func outOfMemory(dir string) error {
	if err := unix.Unmount(dir, unix.MNT_DETACH); !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil // the folder is on the disk
}
