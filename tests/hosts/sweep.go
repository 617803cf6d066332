package hosts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/machine"
)

// The folder of a network is on a disk, since layers of containers come to lie there.
// Its name tells whose it is: prefix, number space of processes, process, start of the
// process, and something random.
const (
	rooms  = "/var/tmp"
	prefix = "podo-t-"
)

func makeRoom() (string, error) {
	began, err := startOf(os.Getpid())
	if err != nil {
		return "", err
	}
	space, err := pidSpace()
	if err != nil {
		return "", err
	}
	room, err := os.MkdirTemp(rooms, fmt.Sprintf("%s%d-%d-%s-", prefix, space, os.Getpid(), began))
	if err != nil {
		return "", err
	}
	return room, os.Chmod(room, 0o755)
}

// Sweep removes what networks of processes that are gone have left. Those of running
// processes it does not touch, nor does it judge the processes of another container.
func Sweep() error {
	space, err := pidSpace()
	if err != nil {
		return err
	}
	left, err := filepath.Glob(filepath.Join(rooms, prefix+"*"))
	if err != nil || len(left) == 0 {
		return err
	}
	g, err := machine.FindGroups()
	if err != nil {
		return err
	}
	var errs []error
	for _, room := range left {
		id := filepath.Base(room)
		if whose, pid, alive := owner(id); whose != space || pid == 0 || alive {
			continue
		}
		for _, pid := range g.Processes(id) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		errs = append(errs, g.Remove(id), os.RemoveAll(room))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove what an earlier test left: %w", err)
	}
	return nil
}

// owner reads the name of a network: whose number space it is from, the process, and
// whether that one still runs, which is true only of processes in the same space.
func owner(id string) (space uint64, pid int, alive bool) {
	parts := strings.Split(strings.TrimPrefix(id, prefix), "-")
	if len(parts) != 4 {
		return 0, 0, false
	}
	space, err := strconv.ParseUint(parts[0], 10, 64)
	if err != nil {
		return 0, 0, false
	}
	if pid, err = strconv.Atoi(parts[1]); err != nil {
		return 0, 0, false
	}
	began, err := startOf(pid)
	return space, pid, err == nil && began == parts[2]
}

// pidSpace tells pid namespaces apart.
func pidSpace() (uint64, error) {
	var info unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &info); err != nil {
		return 0, fmt.Errorf("look at /proc/self/ns/pid: %w", err)
	}
	return info.Ino, nil
}

// startOf is when a process started, in ticks since the machine did.
func startOf(pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	i := strings.LastIndexByte(string(text), ')')
	fields := strings.Fields(string(text[i+1:]))
	if i < 0 || len(fields) < 20 {
		return "", fmt.Errorf("/proc/%d/stat: not as documented in proc(5)", pid)
	}
	return fields[19], nil
}
