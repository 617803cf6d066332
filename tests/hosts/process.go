package hosts

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/machine"
)

// A Command is a program to run on a host, as root, in /root.
type Command struct {
	Args    []string
	Env     []string // beside PATH and HOME
	Stdin   string
	Timeout time.Duration // two minutes if zero; not for Start
}

// A Process runs on a host until it ends or the host does.
type Process struct {
	host  *Host
	line  *line
	id    int
	args  []string
	log   string
	born  chan error
	pid   int // on the host
	ended chan struct{}
	code  int
}

// An ExitError says how a command failed.
type ExitError struct {
	Args   []string
	Code   int // 128 and the signal's number if one ended it
	Stderr string
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("%s: exit code %d: %s", strings.Join(e.Args, " "), e.Code, strings.TrimSpace(e.Stderr))
}

// Start runs a program in the background. What it writes goes to a file, the end of
// which is shown if the test fails.
func (h *Host) Start(args ...string) *Process {
	h.net.t.Helper()
	return h.StartCommand(Command{Args: args})
}

// StartCommand is Start with more to say.
func (h *Host) StartCommand(c Command) *Process {
	h.net.t.Helper()
	number := h.net.logs.Add(1)
	log := filepath.Join(h.net.opts.Logs, fmt.Sprintf("%s-%02d-%s.log", h.name, number, filepath.Base(c.Args[0])))
	out, err := os.OpenFile(log, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		h.net.t.Fatal(err)
	}
	defer out.Close()
	p, err := h.launch(c, out, out)
	if err != nil {
		h.net.t.Fatalf("start %s on %s: %v", c.Args[0], h.name, err)
	}
	p.log = log
	h.mu.Lock()
	defer h.mu.Unlock()
	h.started = append(h.started, p)
	return p
}

// Run runs a program to its end and returns what it printed. An error is an ExitError
// if the program ran.
func (h *Host) Run(args ...string) (string, error) { return h.RunCommand(Command{Args: args}) }

// Kubectl runs podo kubectl.
func (h *Host) Kubectl(args ...string) (string, error) {
	return h.Run(append([]string{"podo", "kubectl"}, args...)...)
}

// Apply hands manifests to podo kubectl apply.
func (h *Host) Apply(manifests string) (string, error) {
	return h.RunCommand(Command{Args: []string{"podo", "kubectl", "apply", "-f", "-"}, Stdin: manifests})
}

// RunCommand is Run with more to say.
func (h *Host) RunCommand(c Command) (string, error) {
	out, err := memory("out")
	if err != nil {
		return "", err
	}
	defer out.Close()
	errs, err := memory("err")
	if err != nil {
		return "", err
	}
	defer errs.Close()
	p, err := h.launch(c, out, errs)
	if err != nil {
		return "", fmt.Errorf("%s on %s: %w", strings.Join(c.Args, " "), h.name, err)
	}
	if c.Timeout == 0 {
		c.Timeout = 2 * time.Minute
	}
	late := ""
	select {
	case <-p.ended:
	case <-time.After(c.Timeout):
		late = fmt.Sprintf("\nended after %s", c.Timeout)
		_ = p.line.say(request{ID: p.id, Signal: int(unix.SIGKILL), Group: true}, nil)
		<-p.ended
	}
	said := contents(out)
	if p.code != 0 {
		return said, &ExitError{Args: c.Args, Code: p.code, Stderr: contents(errs) + late}
	}
	return said, nil
}

func (h *Host) launch(c Command, out, errs *os.File) (*Process, error) {
	if !h.Running() {
		return nil, errors.New("the host is off")
	}
	in, err := memory("in")
	if err != nil {
		return nil, err
	}
	defer in.Close()
	if _, err := in.WriteString(c.Stdin); err != nil {
		return nil, err
	}
	if _, err := in.Seek(0, 0); err != nil {
		return nil, err
	}
	p := &Process{host: h, line: h.line, args: c.Args, born: make(chan error, 1), ended: make(chan struct{})}
	c.Env = slices.Concat(h.net.opts.Env, c.Env)
	return p, h.line.start(p, c, in, out, errs)
}

// PID is the process's number on this machine, and 0 once it has ended.
func (p *Process) PID() int {
	if !p.Running() {
		return 0
	}
	its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", p.host.first.Process.Pid))
	if err != nil {
		return 0
	}
	for _, pid := range allPIDs() {
		ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
		if err != nil || ns != its {
			continue
		}
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		for line := range strings.Lines(string(status)) {
			numbers := strings.Fields(line)
			if len(numbers) > 2 && numbers[0] == "NSpid:" && numbers[len(numbers)-1] == strconv.Itoa(p.pid) {
				return pid
			}
		}
	}
	return 0
}

// Signal sends one to the process.
func (p *Process) Signal(s syscall.Signal) error {
	return p.line.say(request{ID: p.id, Signal: int(s)}, nil)
}

// Running reports whether the process has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// Ended is closed when the process has.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Wait returns the exit code: 128 and its number if a signal ended the process, -1 if
// it ended with its host. It is an error if the process still runs after patience.
func (p *Process) Wait(patience time.Duration) (int, error) {
	select {
	case <-p.ended:
	case <-time.After(patience):
	}
	if p.Running() {
		return -1, fmt.Errorf("%s on %s still runs after %s", p.args[0], p.host.name, patience)
	}
	return p.code, nil
}

// Log is what the process has written so far.
func (p *Process) Log() string {
	text, _ := os.ReadFile(p.log)
	return string(text)
}

// Tail is the last n lines of Log.
func (p *Process) Tail(n int) string {
	lines := strings.Split(strings.TrimRight(p.Log(), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// A line leads to the first process of a host that is on.
type line struct {
	conn  *net.UnixConn
	ready chan struct{}
	gone  chan struct{}

	mu        sync.Mutex
	last      int
	processes map[int]*Process
}

func openLine(f *os.File) (*line, error) {
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	l := &line{conn: c.(*net.UnixConn), ready: make(chan struct{}), gone: make(chan struct{}), processes: map[int]*Process{}}
	go l.listen()
	return l, nil
}

// begin lets the host boot, and returns when it has.
func (l *line) begin(s machine.Spec) error {
	if err := s.Tell(l.conn); err != nil {
		return err
	}
	select {
	case <-l.ready:
		return nil
	case <-l.gone:
		return errors.New("its first process ended")
	case <-time.After(30 * time.Second):
		return errors.New("its first process takes longer than 30s")
	}
}

func (l *line) start(p *Process, c Command, files ...*os.File) error {
	l.mu.Lock()
	l.last++
	p.id = l.last
	l.processes[p.id] = p
	l.mu.Unlock()
	if err := l.say(request{ID: p.id, Args: c.Args, Env: c.Env}, files); err != nil {
		return err
	}
	select {
	case err := <-p.born:
		return err
	case <-l.gone:
		return errors.New("the host ended")
	}
}

func (l *line) say(r request, files []*os.File) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	var numbers []int
	for _, f := range files {
		numbers = append(numbers, int(f.Fd()))
	}
	var rights []byte
	if numbers != nil {
		rights = unix.UnixRights(numbers...)
	}
	_, _, err = l.conn.WriteMsgUnix(text, rights, nil)
	return err
}

// listen notes what becomes of processes, until the host is off; then they ended too.
func (l *line) listen() {
	buf := make([]byte, 1<<16)
	for {
		n, err := l.conn.Read(buf)
		if err != nil || n == 0 {
			break
		}
		var r reply
		if err := json.Unmarshal(buf[:n], &r); err != nil {
			break
		}
		if r.ID == 0 {
			close(l.ready)
			continue
		}
		l.mu.Lock()
		p := l.processes[r.ID]
		switch {
		case p == nil:
		case r.Err != "":
			p.born <- errors.New(r.Err)
			delete(l.processes, r.ID)
			p.end(-1)
		case r.Ended:
			code := r.Status.ExitStatus()
			if r.Status.Signaled() {
				code = 128 + int(r.Status.Signal())
			}
			delete(l.processes, r.ID)
			p.end(code)
		default:
			p.pid = r.PID
			p.born <- nil
		}
		l.mu.Unlock()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.gone)
	for id, p := range l.processes {
		delete(l.processes, id)
		p.end(-1)
	}
}

func (p *Process) end(code int) {
	p.code = code
	close(p.ended)
}

// close hangs up, and returns when all processes are known to have ended.
func (l *line) close() {
	_ = l.conn.Close()
	<-l.gone
}

// memory is a file that nobody has to remove.
func memory(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func contents(f *os.File) string {
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	text := make([]byte, info.Size())
	n, _ := f.ReadAt(text, 0)
	return string(text[:n])
}

func allPIDs() []int {
	entries, _ := os.ReadDir("/proc")
	var out []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			out = append(out, pid)
		}
	}
	slices.Sort(out)
	return out
}
