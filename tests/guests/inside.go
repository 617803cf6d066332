package guests

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

// marker is set, by the unit of the guests' image, for the process that runs what the
// tests ask for.
const marker = "PODO_TEST_GUEST"

// port is where that process listens, on every address.
const port = "7000"

// An answer is what became of a command.
type answer struct {
	Out, Errs string
	Code      int    // 128 and the signal's number if one ended it
	Problem   string // why it did not run
}

// Main makes a process in a guest the one that runs commands there, and does not return in
// it. Elsewhere it is hosts.Main. It comes first in TestMain.
func Main() {
	if os.Getenv(marker) == "" {
		hosts.Main()
		return
	}
	fmt.Fprintln(os.Stderr, "run what the tests ask for:", serve())
	os.Exit(1)
}

func serve() error {
	// A child of it is to find programs, and to begin without what marks this process.
	if err := errors.Join(os.Unsetenv(marker), os.Setenv("HOME", "/root")); err != nil {
		return err
	}
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			var asked hosts.Command
			if err := json.NewDecoder(c).Decode(&asked); err == nil {
				_ = json.NewEncoder(c).Encode(run(asked, c))
			}
		}()
	}
}

// run runs a command until it ends or whoever asked for it hangs up.
func run(asked hosts.Command, line io.Reader) answer {
	var out, errs bytes.Buffer
	cmd := exec.Command(asked.Args[0], asked.Args[1:]...)
	cmd.Dir, cmd.Env = "/root", append(os.Environ(), asked.Env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewBufferString(asked.Stdin), &out, &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = time.Second // something of it may go on in the background
	if err := cmd.Start(); err != nil {
		return answer{Problem: err.Error()}
	}
	go func() {
		_, _ = io.Copy(io.Discard, line)
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}()
	err := cmd.Wait()
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	code := status.ExitStatus()
	if status.Signaled() {
		code = 128 + int(status.Signal())
	}
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
		return answer{Problem: err.Error()}
	}
	return answer{Out: out.String(), Errs: errs.String(), Code: code}
}
