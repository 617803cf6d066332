package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A seat is a file that a process locks for as long as it lives, with its number in it. It
// tells whether that one runs, also when numbers were given to others after a reboot.
type seat string

// take locks the file for a process that is about to be started, and is to be given it. Who
// had it before is forgotten: that number may be anybody's by now. Others lock it for an
// instant to ask who has it.
func (s seat) take() (*os.File, error) {
	f, err := os.OpenFile(string(s), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(time.Second); ; time.Sleep(10 * time.Millisecond) {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(end) {
			break
		}
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", s, err)
	}
	return f, nil
}

// note writes down who was given the file.
func note(f *os.File, pid int) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt(fmt.Appendln(nil, pid), 0)
	return err
}

// pid is the process that has the file, and 0 if none has or it is being started.
func (s seat) pid() int {
	pid, _ := s.holder()
	return pid
}

// holder is the process that has the file, if one has. Its number is 0 until it is noted.
func (s seat) holder() (pid int, held bool) {
	f, err := os.Open(string(s))
	if err != nil {
		return 0, false
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil {
		// A process that is being started right now has the file too, for a moment longer.
		_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
		return 0, false
	}
	text := make([]byte, 32)
	n, _ := f.Read(text)
	pid, _ = strconv.Atoi(strings.TrimSpace(string(text[:n])))
	return pid, true
}

// end sends a signal to the process and waits until it, and with the first process of a
// machine all others there, has ended. One that has not after patience is killed.
func (s seat) end(ctx context.Context, signal unix.Signal, patience time.Duration) error {
	pid, held := s.holder()
	for end := time.Now().Add(3 * time.Second); held && pid == 0; pid, held = s.holder() {
		if time.Now().After(end) {
			return fmt.Errorf("%s: a process has this file and does not say which it is; look for it with: fuser %[1]s", s)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if !held {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if s.pid() != pid {
		return nil // it ended before it could be held
	}
	deadline := time.Now().Add(patience)
	for {
		if err := unix.PidfdSendSignal(fd, signal, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("process %d: %w", pid, err)
		}
		for time.Now().Before(deadline) && ctx.Err() == nil {
			set := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			if n, err := unix.Poll(set, 100); err == nil && n > 0 {
				return nil
			}
		}
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("wait for process %d: %w", pid, context.Cause(ctx))
		case signal == unix.SIGKILL:
			return fmt.Errorf("process %d does not end", pid)
		}
		signal, deadline = unix.SIGKILL, time.Now().Add(10*time.Second)
	}
}
