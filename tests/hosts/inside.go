package hosts

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/paths"
)

// marker is set for a host's first process: to what the host looks like, and once it
// looks so, to ready.
const (
	marker   = "PODO_TEST_HOST"
	ready    = "ready"
	lineFile = 3 // the descriptor that the first process is spoken to through
)

// A machineSpec is what a host's first process makes around itself.
type machineSpec struct {
	Name   string
	Dir    string // with upper, work, root, varlib and vartmp
	Share  []string
	Groups groups
	Files  map[string]string
}

// Main turns a process that was started to be the first of a host into that, and does
// not return in it. Elsewhere it does nothing. It comes first in TestMain.
func Main() {
	what := os.Getenv(marker)
	switch {
	case what == "" || os.Getpid() != 1:
		return
	case what == ready:
		serve()
	default:
		fmt.Fprintln(os.Stderr, "become a host:", become(what))
	}
	os.Exit(1)
}

// become makes the files of the machine and executes this program again in them: the
// namespace of control groups holds for one thread only until then.
func become(what string) error {
	runtime.LockOSThread()
	var m machineSpec
	if err := json.Unmarshal([]byte(what), &m); err != nil {
		return err
	}
	if n, err := unix.Read(lineFile, make([]byte, 64)); n <= 0 {
		return fmt.Errorf("wait for the network: %w", err)
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("unshare control groups: %w", err)
	}
	if err := unix.Sethostname([]byte(m.Name)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	if err := m.mount(); err != nil {
		return err
	}
	if err := m.fill(); err != nil {
		return err
	}
	if err := m.Groups.settle(); err != nil {
		return err
	}
	return unix.Exec("/proc/self/exe", []string{"host " + m.Name}, append(baseEnv(), marker+"="+ready))
}

// mount makes the machine's tree of files and moves into it.
func (m machineSpec) mount() error {
	at := func(path string) string { return filepath.Join(m.Dir, "root", path) }
	bind := func(from, to string) mount { return mount{from: from, to: at(to), flags: unix.MS_BIND} }
	fresh := func(kind, to, data string) mount { return mount{from: kind, to: at(to), kind: kind, data: data} }
	mounts := []mount{
		{to: "/", flags: unix.MS_REC | unix.MS_PRIVATE},
		fresh("overlay", "", fmt.Sprintf("lowerdir=/,upperdir=%s/upper,workdir=%s/work", m.Dir, m.Dir)),
		bind(filepath.Join(m.Dir, "varlib"), "/var/lib"), // an overlay cannot hold the layers of another
		bind(filepath.Join(m.Dir, "vartmp"), "/var/tmp"),
		fresh("proc", "/proc", ""),
		fresh("sysfs", "/sys", ""),
		{from: "/dev", to: at("/dev"), flags: unix.MS_BIND | unix.MS_REC},
		fresh("tmpfs", "/dev/shm", "mode=1777"),
		fresh("tmpfs", "/run", "mode=755"),
		fresh("tmpfs", "/tmp", "mode=1777"),
	}
	for _, dir := range m.Share {
		mounts = append(mounts, bind(dir, dir), mount{to: at(dir), flags: unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY})
	}
	for _, c := range m.Groups.mounts() {
		c.to = at(c.to)
		mounts = append(mounts, c)
	}
	for _, c := range mounts {
		if err := c.do(); err != nil {
			return err
		}
	}
	for from, to := range m.Groups.Links {
		if err := os.Symlink(to, at(from)); err != nil {
			return err
		}
	}
	// The old root is stacked on the new one for a moment, then let go.
	if err := unix.Chdir(at("")); err != nil {
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
	return mount{to: "/", flags: unix.MS_REC | unix.MS_SHARED}.do()
}

// fill writes what is this machine's own, and on its first start takes away what the
// copied one may have of podo.
func (m machineSpec) fill() error {
	born := "/var/lib/.host"
	if _, err := os.Stat(born); err != nil {
		for _, path := range []string{paths.DefaultEtc, paths.PodLogs, paths.ContainerLogs, "/etc/cni", "/etc/kubernetes", "/opt/cni", "/root/.kube", "/usr/libexec/kubernetes"} {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
		if err := os.WriteFile(born, nil, 0o644); err != nil {
			return err
		}
	}
	for path, text := range m.Files {
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) { // it may be a link to nowhere
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return mount{from: "/run/boot_id", to: "/proc/sys/kernel/random/boot_id", flags: unix.MS_BIND}.do()
}

// A mount is the arguments of the system call.
type mount struct {
	from, to, kind, data string
	flags                uintptr
}

// do makes the place if need be: a file for a file, and not where a link leads.
func (m mount) do() error {
	if info, err := os.Lstat(m.to); err == nil && info.Mode()&os.ModeSymlink != 0 {
		if err := os.Remove(m.to); err != nil {
			return err
		}
	}
	if _, err := os.Stat(m.to); err != nil {
		info, statErr := os.Stat(m.from)
		if m.flags&unix.MS_BIND != 0 && statErr == nil && !info.IsDir() {
			if err := os.MkdirAll(filepath.Dir(m.to), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(m.to, nil, 0o755); err != nil {
				return err
			}
		} else if err := os.MkdirAll(m.to, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount(m.from, m.to, m.kind, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s%s at %s: %w", m.kind, m.from, m.to, err)
	}
	return nil
}

// A request has a process started, or signalled if it has an id of one.
type request struct {
	ID     int
	Args   []string
	Env    []string
	Signal int
	Group  bool // signal the whole process group
}

// A reply tells that a process was started, that it could not be, or how it ended.
type reply struct {
	ID     int
	PID    int
	Err    string
	Ended  bool
	Status syscall.WaitStatus
}

// children are the processes that were asked for.
type children struct {
	sync.Mutex
	ids  map[int]int // by pid
	pids map[int]int // by id
}

// serve is the life of a host's first process: it starts what it is told to, buries
// the dead, and ends when nobody can speak to it any more. Then the host is off.
func serve() {
	_ = os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin") // for LookPath
	unix.CloseOnExec(lineFile)
	_ = unix.Chdir("/root")
	// Handled rather than ignored: what is ignored stays so in children.
	rest := make(chan os.Signal, 8)
	signal.Notify(rest, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT)
	deaths := make(chan os.Signal, 1)
	signal.Notify(deaths, unix.SIGCHLD)
	c := &children{ids: map[int]int{}, pids: map[int]int{}}
	go func() {
		for range deaths {
			c.bury()
		}
	}()
	answer(reply{})
	buf, rights := make([]byte, 1<<18), make([]byte, unix.CmsgSpace(3*4))
	for {
		n, oobn, _, _, err := unix.Recvmsg(lineFile, buf, rights, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			os.Exit(0)
		}
		var files []int
		if messages, err := unix.ParseSocketControlMessage(rights[:oobn]); err == nil && len(messages) > 0 {
			files, _ = unix.ParseUnixRights(&messages[0])
		}
		var r request
		if err := json.Unmarshal(buf[:n], &r); err != nil {
			answer(reply{ID: r.ID, Err: err.Error()})
		} else if r.Signal != 0 {
			c.signal(r)
		} else {
			c.start(r, files)
		}
		for _, f := range files {
			_ = unix.Close(f)
		}
	}
}

// start holds the lock until the process is known, so that its death is not missed.
func (c *children) start(r request, files []int) {
	c.Lock()
	defer c.Unlock()
	path, err := exec.LookPath(r.Args[0])
	if err != nil || len(files) != 3 {
		answer(reply{ID: r.ID, Err: fmt.Sprintf("%v (%d files)", err, len(files))})
		return
	}
	pid, err := syscall.ForkExec(path, r.Args, &syscall.ProcAttr{
		Dir: "/root", Env: append(baseEnv(), r.Env...),
		Files: []uintptr{uintptr(files[0]), uintptr(files[1]), uintptr(files[2])},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		answer(reply{ID: r.ID, Err: fmt.Sprintf("%s: %v", path, err)})
		return
	}
	c.ids[pid], c.pids[r.ID] = r.ID, pid
	answer(reply{ID: r.ID, PID: pid})
}

func (c *children) signal(r request) {
	c.Lock()
	defer c.Unlock()
	if pid, ok := c.pids[r.ID]; ok {
		if r.Group {
			pid = -pid
		}
		_ = unix.Kill(pid, unix.Signal(r.Signal))
	}
}

func (c *children) bury() {
	c.Lock()
	defer c.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if id, ok := c.ids[pid]; ok {
			delete(c.ids, pid)
			delete(c.pids, id)
			answer(reply{ID: id, Ended: true, Status: status})
		}
	}
}

// answer is one message: concurrent ones do not mix.
func answer(r reply) {
	text, _ := json.Marshal(r)
	for unix.Send(lineFile, text, unix.MSG_NOSIGNAL) == unix.EINTR {
	}
}
