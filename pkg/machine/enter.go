package machine

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Enter puts this process into the groups of the machine whose first process is pid, and
// then calls start in the machine's namespaces: what that starts is one of the machine's
// processes, and has this one's terminal. Whoever calls it has little left to do.
func (g Groups) Enter(name string, pid int, start func() error) error {
	if g.unified() {
		name += "/" + innermost
	}
	if err := g.Join(name, os.Getpid()); err != nil {
		return fmt.Errorf("enter control groups: %w", err)
	}
	return aside(func() error {
		// The folder that this thread is in is its own from here on.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("part from other threads: %w", err)
		}
		kinds := []struct {
			name string
			flag int
		}{
			{"cgroup", unix.CLONE_NEWCGROUP}, {"ipc", unix.CLONE_NEWIPC}, {"uts", unix.CLONE_NEWUTS},
			{"net", unix.CLONE_NEWNET}, {"pid", unix.CLONE_NEWPID}, {"mnt", unix.CLONE_NEWNS},
		}
		var files []*os.File
		for _, k := range kinds {
			f, err := os.Open(filepath.Join("/proc", fmt.Sprint(pid), "ns", k.name))
			if err != nil {
				return err
			}
			defer f.Close()
			files = append(files, f)
		}
		for i, k := range kinds {
			if err := unix.Setns(int(files[i].Fd()), k.flag); err != nil {
				return fmt.Errorf("enter namespace %s: %w", k.name, err)
			}
		}
		runtime.KeepAlive(files)
		return start()
	})
}
