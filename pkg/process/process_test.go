package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/podo-dev/podo/pkg/lifecycle/lifecycletest"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func shell(script string) Command {
	return Command{Name: "child", Path: "/bin/sh", Args: []string{"-c", script}}
}

// record remembers each write, which must be one line.
type record struct {
	mu    sync.Mutex
	lines []string
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, string(p))
	return len(p), nil
}

func (r *record) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.lines, "")
}

func TestContract(t *testing.T) { lifecycletest.Check(t, New(shell("exec sleep 60"), quiet())) }

func TestEndsByItself(t *testing.T) {
	tests := map[string]struct{ script, want string }{
		"fails":            {"echo working; echo 'it broke' >&2; exit 3", "child ended: exit status 3: it broke"},
		"succeeds":         {"echo bye", "child ended: exit status 0: bye"},
		"silent":           {"exit 1", "child ended: exit status 1"},
		"killed":           {"kill -9 $$", "child ended: signal: killed"},
		"no newline":       {"printf 'last words' >&2; exit 1", "child ended: exit status 1: last words"},
		"blank lines last": {"printf 'reason\\n\\n \\n' >&2; exit 1", "child ended: exit status 1: reason"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := New(shell(tt.script), quiet()).Run(t.Context(), func() {})
			var exit *ExitError
			if !errors.As(err, &exit) || err.Error() != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
	if err := New(Command{Name: "x", Path: "/nonexistent"}, quiet()).Run(t.Context(), func() {}); err == nil || !strings.Contains(err.Error(), "/nonexistent") {
		t.Errorf("a missing program gave %v", err)
	}
}

func TestOutputComesInWholeLines(t *testing.T) {
	out := &record{}
	c := shell("printf 'a\\nb'; sleep 0.05; printf 'c\\n'; echo err >&2; head -c 100000 /dev/zero | tr '\\0' x; echo; printf end")
	c.Output = out
	New(c, quiet()).Run(t.Context(), func() {})
	for _, l := range out.lines {
		if strings.Count(l, "\n") != 1 || !strings.HasSuffix(l, "\n") {
			t.Errorf("%.40q... of %d bytes is not one line", l, len(l))
		}
	}
	for _, want := range []string{"a\n", "bc\n", "err\n", "end\n"} {
		if !strings.Contains(out.text(), want) {
			t.Errorf("%q is missing", want)
		}
	}
	if n := strings.Count(out.text(), "x"); n != 100000 {
		t.Errorf("%d bytes of a long line, want 100000", n)
	}
}

func TestNothingIsInherited(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/leak")
	out := &record{}
	c := Command{Name: "env", Path: "/usr/bin/env", Output: out}
	New(c, quiet()).Run(t.Context(), func() {})
	c.Env = []string{"GIVEN=1"}
	New(c, quiet()).Run(t.Context(), func() {})
	if got := out.text(); got != "GIVEN=1\n" {
		t.Errorf("environment was %q, want GIVEN=1 alone", got)
	}
}

func TestStopAsksFirst(t *testing.T) {
	out := &record{}
	c := shell("trap 'echo stopping; exit 0' TERM; echo up; while :; do sleep 0.01; done")
	c.Output = out
	stop := started(t, c, out)
	if err := stop(); err != nil || !strings.Contains(out.text(), "stopping") {
		t.Errorf("stop returned %v after %q", err, out.text())
	}
}

func TestStopInsists(t *testing.T) {
	out := &record{}
	c := shell("trap '' TERM; echo up; while :; do sleep 0.01; done")
	c.Output, c.Grace = out, 50*time.Millisecond
	stop := started(t, c, out)
	if err := stop(); err != nil {
		t.Errorf("stop returned %v", err)
	}
}

// started runs c until it has said something, and returns what ends it.
func started(t *testing.T, c Command, out *record) (stop func() error) {
	t.Helper()
	c.Probe = func(ctx context.Context) error {
		for out.text() == "" {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			time.Sleep(time.Millisecond)
		}
		return nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- New(c, quiet()).Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("ended with %v before it was ready", err)
	}
	return func() error { cancel(); return <-done }
}

func TestProbe(t *testing.T) {
	c := shell("echo cannot serve >&2; exec sleep 60")
	c.Probe = func(ctx context.Context) error {
		time.Sleep(100 * time.Millisecond)
		return errors.New("socket never came")
	}
	err := New(c, quiet()).Run(t.Context(), func() { t.Error("ready though the probe failed") })
	if err == nil || !strings.Contains(err.Error(), "socket never came") || !strings.Contains(err.Error(), "cannot serve") {
		t.Errorf("got %v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	c.Probe = func(ctx context.Context) error { cancel(); <-ctx.Done(); return ctx.Err() }
	if err := New(c, quiet()).Run(ctx, func() {}); err != nil {
		t.Errorf("stopped while probing: %v, want nil", err)
	}
}

func TestGrandchildrenAreLeftAlone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	out := &record{}
	c := shell("sleep 60 & echo $! >" + file + "; echo up; wait")
	c.Output = out
	stop := started(t, c, out)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	text, _ := os.ReadFile(file)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(pid, syscall.SIGKILL)
	if err := syscall.Kill(pid, 0); err != nil {
		t.Errorf("the child's child is gone: %v", err)
	}
}

// TestChildDiesWithUs kills a process that runs a child, which must not survive.
func TestChildDiesWithUs(t *testing.T) {
	if os.Getenv("PROCESS_TEST_PARENT") != "" {
		New(Command{Name: "child", Path: "/bin/sh", Args: []string{"-c", "echo $$; exec sleep 60"}, Output: os.Stdout}, quiet()).Run(t.Context(), func() {})
		return
	}
	parent := exec.Command(os.Args[0], "-test.run=^TestChildDiesWithUs$")
	parent.Env = append(os.Environ(), "PROCESS_TEST_PARENT=1")
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	parent.Process.Kill()
	io.Copy(io.Discard, out)
	parent.Wait()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || bytes.Contains(stat, []byte(") Z ")) {
			return
		}
		if time.Now().After(deadline) {
			syscall.Kill(pid, syscall.SIGKILL)
			t.Fatal("the child outlived its parent")
		}
	}
}
