// Package process runs one child process as a component.
//
// The child dies with podo, however podo dies, gets its output read line by line,
// and is asked to stop before it is made to. Its own children are never touched:
// they may be meant to outlive it. Nothing here restarts; decorate for that. KeepFiles is
// for whoever starts programs that do outlive it.
package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// A Command is a program and how to run it.
type Command struct {
	Name string // of the component
	Path string // of the program, absolute
	Args []string
	Env  []string // the whole environment: nothing is inherited
	Dir  string

	// Output receives both of the child's streams, one whole line a call with its
	// newline, never two calls at once. Nil drops them.
	Output io.Writer
	// Probe blocks until the child serves. Nil means it does once it has started.
	Probe func(context.Context) error
	// Grace is how long the child may take to stop; ten seconds if zero.
	Grace time.Duration
}

// A Process is a lifecycle.Component that runs a Command.
type Process struct {
	cmd Command
	log *slog.Logger
}

// New returns a component that runs cmd. Nothing starts before Run.
func New(cmd Command, log *slog.Logger) *Process {
	if cmd.Grace == 0 {
		cmd.Grace = 10 * time.Second
	}
	return &Process{cmd: cmd, log: log.With("component", cmd.Name)}
}

// An ExitError says how a child ended and the last it had to say.
type ExitError struct {
	Name     string
	State    *os.ProcessState
	LastLine string
}

func (e *ExitError) Error() string {
	msg := e.Name + " ended: " + e.State.String()
	if e.LastLine != "" {
		msg += ": " + e.LastLine
	}
	return msg
}

// Name is the component's name.
func (p *Process) Name() string { return p.cmd.Name }

// Run starts the child and returns when it has ended: nil after ctx asked it to,
// an *ExitError if it ended by itself.
func (p *Process) Run(ctx context.Context, ready func()) error {
	out := newLines(p.cmd.Output)
	child, err := p.start(out)
	if err != nil {
		return fmt.Errorf("start %s: %w", p.cmd.Path, err)
	}
	p.log.Debug("child started", "pid", child.pid, "path", p.cmd.Path)

	probing, stopProbing := context.WithCancel(ctx)
	defer stopProbing()
	probed := make(chan error, 1)
	go func() {
		if p.cmd.Probe == nil {
			probed <- nil
			return
		}
		probed <- p.cmd.Probe(probing)
	}()

	for {
		select {
		case <-child.exited:
			return &ExitError{Name: p.cmd.Name, State: child.state(), LastLine: out.last()}
		case <-ctx.Done():
			p.stop(child)
			return nil
		case err := <-probed:
			if err == nil {
				ready()
				probed = nil
				continue
			}
			if ctx.Err() != nil {
				p.stop(child)
				return nil
			}
			p.stop(child)
			if last := out.last(); last != "" {
				return fmt.Errorf("%s: %w (it last said: %s)", p.cmd.Name, err, last)
			}
			return fmt.Errorf("%s: %w", p.cmd.Name, err)
		}
	}
}

type child struct {
	pid    int
	cmd    *exec.Cmd
	exited chan struct{}
}

// state may be asked for once exited is closed.
func (c *child) state() *os.ProcessState { return c.cmd.ProcessState }

// start forks the child from a thread that stays until the child has ended: the
// kernel sends Pdeathsig when the forking thread dies, not the process.
func (p *Process) start(out *lines) (*child, error) {
	cmd := exec.Command(p.cmd.Path, p.cmd.Args...)
	cmd.Dir = p.cmd.Dir
	cmd.Env = append([]string{}, p.cmd.Env...) // nil would inherit
	cmd.Stdout = out.stream(false)
	cmd.Stderr = out.stream(true)
	// Grandchildren may hold the streams open for ever.
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL,
		Setpgid:   true, // Ctrl-C on the terminal is for podo alone
	}
	c := &child{cmd: cmd, exited: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		c.pid = cmd.Process.Pid
		started <- nil
		cmd.Wait() // how it ended is in ProcessState
		out.flush()
		close(c.exited)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return c, nil
}

// stop asks, waits, and then insists. It signals the child alone, not its group.
func (p *Process) stop(c *child) {
	began := time.Now()
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.log.Warn("child cannot be signalled", "pid", c.pid, "err", err)
	}
	grace := time.NewTimer(p.cmd.Grace)
	defer grace.Stop()
	select {
	case <-c.exited:
	case <-grace.C:
		p.log.Warn("child did not stop in time and is killed", "pid", c.pid, "grace", p.cmd.Grace)
		c.cmd.Process.Kill()
		<-c.exited
	}
	p.log.Debug("child stopped", "pid", c.pid, "took", time.Since(began), "status", strings.TrimSpace(c.state().String()))
}
