package hosts

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/machine"
)

// marker is set for a host's first process: to born while its machine is yet to be made,
// and then to ready.
const (
	marker   = "PODO_TEST_HOST"
	born     = "born"
	ready    = "ready"
	lineFile = 3 // the descriptor that the first process is spoken to through
)

// Main turns a process that was started to be the first of a host into that, and does
// not return in it. Elsewhere it sets the process apart from the machine. It comes first in
// TestMain.
func Main() {
	what := os.Getenv(marker)
	switch {
	case what == "" || os.Getpid() != 1:
		if err := standApart(); err != nil {
			fmt.Fprintln(os.Stderr, "mount nothing where others see it:", err)
			break
		}
		return
	case what == ready:
		serve()
	default:
		fmt.Fprintln(os.Stderr, "become a host:", machine.Become())
	}
	os.Exit(1)
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
