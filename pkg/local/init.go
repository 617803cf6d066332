package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/machine"
)

// The names that podo is called by as the first process of a node: while its machine is
// yet to be made, and then.
const (
	MachineName = "podo-machine"
	InitName    = "podo-init"
)

// seatFile is the descriptor of the node's seat.
const seatFile = 4

// errNever is the last word of a node whose podo would refuse its settings again and again.
var errNever = errors.New("podo was asked for something that can never be")

// ended is what a node's first process says of podo there, by its verb and its exit code.
const ended = "podo %s ended with"

// refusal is how long podo may take to see that it can never do what it was asked for.
const refusal = 20 * time.Second

// Init is the life of a node's first process: it keeps podo running and buries the dead.
// When ctx ends it lets pods and podo end, and returns; the node ends with the process.
// Environ is what the process was given, and gives podo.
func Init(ctx context.Context, role Role, environ []string) error {
	unix.CloseOnExec(seatFile)
	line := machine.Theirs()
	unix.CloseOnExec(int(line.Fd()))
	if err := unix.Chdir("/root"); err != nil {
		return err
	}
	if _, err := line.WriteString("stands"); err != nil {
		return err
	}
	line.Close()
	debug.FreeOSMemory() // what this program made of itself at its start; every node has it once more
	verb := "server"
	if role == Worker {
		verb = "agent"
	}
	for ctx.Err() == nil {
		began := time.Now()
		code, err := run(ctx, environ, verb)
		if err != nil {
			return err
		}
		if ctx.Err() == nil {
			fmt.Fprintf(os.Stderr, ended+" %d\n", verb, code)
			if code == 2 && time.Since(began) < refusal { // later it is how Go ends a program that broke down
				return errNever
			}
			time.Sleep(time.Second)
		}
	}
	_, err := run(context.WithoutCancel(ctx), environ, "kill", "--grace=10s")
	return err
}

// run runs podo to its end, which ctx asks it to come to. Meanwhile it buries others.
func run(ctx context.Context, environ []string, args ...string) (code int, err error) {
	log, err := os.OpenFile(podoLog, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	podo := filepath.Join(programs, "podo")
	pid, err := syscall.ForkExec(podo, append([]string{podo}, args...), &syscall.ProcAttr{
		Dir: "/root", Env: environ, Files: []uintptr{0, log.Fd(), log.Fd()},
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", podo, err)
	}
	defer context.AfterFunc(ctx, func() { _ = unix.Kill(pid, unix.SIGTERM) })()
	for {
		var status syscall.WaitStatus
		dead, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return 0, fmt.Errorf("wait for podo: %w", err)
		case dead == pid:
			return status.ExitStatus(), nil
		}
	}
}
