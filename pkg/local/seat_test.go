package local

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSeat: who has the file is known as long as that process lives, and no longer. One
// that does not listen to a signal is killed.
func TestSeat(t *testing.T) {
	s := seat(filepath.Join(t.TempDir(), "pid"))
	if s.pid() != 0 {
		t.Error("a process has a seat that is not there")
	}
	start := func(script string) *exec.Cmd {
		held, err := s.take()
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		cmd := exec.Command("sh", "-c", script)
		cmd.ExtraFiles = []*os.File{held}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if err := note(held, cmd.Process.Pid); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	for what, script := range map[string]string{"polite": "echo on; while :; do sleep 0.1 3>&-; done", "deaf": "trap '' TERM; echo on; while :; do sleep 0.1 3>&-; done"} {
		t.Run(what, func(t *testing.T) {
			cmd := start(script)
			if got := s.pid(); got != cmd.Process.Pid {
				t.Errorf("pid %d, want %d", got, cmd.Process.Pid)
			}
			if _, err := s.take(); err == nil {
				t.Error("two have the seat")
			}
			if err := s.end(t.Context(), unix.SIGTERM, 300*time.Millisecond); err != nil {
				t.Error(err)
			}
			_ = cmd.Wait()
			// What the shell was about to run has the file for a moment longer.
			for end := time.Now().Add(5 * time.Second); s.pid() != 0; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("pid %d after the end", s.pid())
				}
			}
		})
	}
	// To ask takes nothing from who is to have it, also while processes are started.
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		for range 50 {
			_ = exec.Command("true").Run()
		}
	}()
	for {
		s.pid()
		held, err := s.take()
		if err != nil {
			t.Fatal(err)
		}
		_ = unix.Flock(int(held.Fd()), unix.LOCK_UN)
		held.Close()
		select {
		case <-asked:
		default:
			continue
		}
		break
	}
	// Who is to have it waits until others have asked.
	asking, err := os.Open(string(s))
	if err != nil {
		t.Fatal(err)
	}
	defer asking.Close()
	if err := unix.Flock(int(asking.Fd()), unix.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(100*time.Millisecond, func() { _ = unix.Flock(int(asking.Fd()), unix.LOCK_UN) })
	free, err := s.take()
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	// Who has it now is not who had it before, and is waited for until it says its number.
	if err := os.WriteFile(string(s), []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	held, err := s.take()
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if s.pid() != 0 {
		t.Fatalf("process %d has a seat that is only being taken", s.pid())
	}
	other := exec.Command("sleep", "60")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(100*time.Millisecond, func() { _ = note(held, other.Process.Pid) })
	if err := s.end(t.Context(), unix.SIGTERM, time.Second); err != nil {
		t.Error(err)
	}
	_ = other.Process.Kill()
	if err := other.Wait(); err == nil || err.Error() != "signal: terminated" {
		t.Errorf("what was starting ended with %v", err)
	}
	held.Close()
	// A number that was somebody's once is nobody's now.
	if err := os.WriteFile(string(s), []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s.pid() != 0 {
		t.Error("a number in the file is taken for a process")
	}
	if err := s.end(t.Context(), unix.SIGKILL, time.Second); err != nil {
		t.Error(err)
	}
}
