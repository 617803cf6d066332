// Package machine makes machines out of namespaces.
//
// A machine has its own processes, files, host name, control groups and network: a
// process in it that looks around finds a machine. Underneath is one kernel, so the
// clock, loaded modules and most kernel parameters are shared. Each is one process tree,
// and ends with the first process of it.
//
// Whoever makes a machine starts its first process (First), gives that its control groups
// (Groups.Join) and its network, and then tells it what the machine is like (Spec.Tell).
// What the first process executes then, how long it lives and what it is connected to, is
// the maker's affair.
package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Spec is what a machine's first process makes around itself.
type Spec struct {
	Name   string            // the host name
	Root   string            // folder that becomes /
	Mounts []Mount           // in order, below the new root
	Links  map[string]string // symbolic links, by place
	Remove []string          // files and folders that are not to be there
	Files  map[string]string // text by place
	Groups Groups

	// Args and Env are what the first process becomes, in the same program.
	Args []string
	Env  []string
}

// line is the descriptor that a first process is told its Spec through, and that it has
// when it becomes another: it may be spoken to further.
const line = 3

// First is a command that, once started, waits to be told of its machine on the other end
// of the line. It is this program again, which must call Become in it, and which knows by
// the first of args or by the environment that it has to. Its network has no links but a
// loopback that is down.
func First(args []string, theirs *os.File, more ...*os.File) *exec.Cmd {
	first := exec.Command("/proc/self/exe")
	first.Args = args
	first.ExtraFiles = append([]*os.File{theirs}, more...)
	first.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET,
	}
	return first
}

// Line returns both ends of a line, which keeps messages apart.
func Line() (ours, theirs *os.File, err error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a pair of sockets: %w", err)
	}
	return os.NewFile(uintptr(ends[0]), "line"), os.NewFile(uintptr(ends[1]), "line"), nil
}

// Theirs is the line as a first process has it.
func Theirs() *os.File { return os.NewFile(line, "line") }

// Tell lets the first process make the machine.
func (s Spec) Tell(w io.Writer) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}

// Become makes the machine that this process is told of, and executes this program again
// in it: the namespace of control groups holds for one thread only until then. It returns
// only if it cannot.
func Become() error {
	runtime.LockOSThread()
	text := make([]byte, 1<<18)
	n, err := unix.Read(line, text)
	if err != nil || n <= 0 {
		return errors.Join(errors.New("nobody tells what the machine is like"), err)
	}
	var s Spec
	if err := json.Unmarshal(text[:n], &s); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("unshare control groups: %w", err)
	}
	if err := unix.Sethostname([]byte(s.Name)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	if err := s.mount(); err != nil {
		return err
	}
	if err := s.fill(); err != nil {
		return err
	}
	if err := s.Groups.settle(); err != nil {
		return err
	}
	return unix.Exec("/proc/self/exe", s.Args, s.Env)
}

// mount makes the machine's tree of files and moves into it.
func (s Spec) mount() error {
	// What is to follow the mounts of the maker must be taken before all others part
	// from them.
	for i := range s.Mounts {
		if err := s.Mounts[i].open(); err != nil {
			return err
		}
	}
	mounts := []Mount{
		{To: "/", Flags: unix.MS_REC | unix.MS_PRIVATE},
		{From: s.Root, To: s.Root, Flags: unix.MS_BIND},
	}
	for _, m := range append(s.Mounts, s.Groups.mounts()...) {
		m.To = filepath.Join(s.Root, m.To)
		mounts = append(mounts, m)
	}
	for _, m := range mounts {
		if err := m.do(); err != nil {
			return err
		}
	}
	for _, links := range []map[string]string{s.Links, s.Groups.Links} {
		for from, to := range links {
			if err := link(filepath.Join(s.Root, from), to); err != nil {
				return err
			}
		}
	}
	// The old root is stacked on the new one for a moment, then let go.
	if err := unix.Chdir(s.Root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot into the new root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the old root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	// Volumes propagate to pods, as on a machine whose init is systemd.
	return Mount{To: "/", Flags: unix.MS_REC | unix.MS_SHARED}.do()
}

func link(from, to string) error {
	if old, err := os.Readlink(from); err == nil && old == to {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(from), 0o755); err != nil {
		return err
	}
	if err := os.Remove(from); err != nil && !os.IsNotExist(err) {
		return err
	}
	return os.Symlink(to, from)
}

// removeAll is os.RemoveAll where what lies below may change meanwhile: the files of the
// machine that this one is made on.
func removeAll(path string) (err error) {
	for range 20 {
		if err = os.RemoveAll(path); !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

// fill writes what is this machine's own. It boots each time that it is made.
func (s Spec) fill() error {
	for _, path := range s.Remove {
		if err := removeAll(path); err != nil {
			return err
		}
	}
	boot, err := uuid()
	if err != nil {
		return err
	}
	const bootID = "/run/boot_id"
	if err := write(bootID, boot+"\n"); err != nil {
		return err
	}
	for path, text := range s.Files {
		if err := write(path, text); err != nil {
			return err
		}
	}
	return Mount{From: bootID, To: "/proc/sys/kernel/random/boot_id", Flags: unix.MS_BIND}.do()
}

func write(path, text string) error {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) { // it may be a link to nowhere
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

// uuid is a random one, as the kernel writes them.
func uuid() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	return strings.TrimSpace(string(text)), err
}
