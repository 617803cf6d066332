package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/podo-dev/podo/pkg/paths"
)

// A server is a podo server that a test started.
type server struct {
	cmd   *exec.Cmd
	log   string // file with what it wrote
	began time.Time
	dir   paths.Paths

	done chan struct{}
	end  error // of the process, once done is closed
}

// boot starts podo server with flags, and without Traefik, and returns at once.
func boot(t *testing.T, flags ...string) *server {
	t.Helper()
	return bootWith(t, []string{"PODO_DISABLE=traefik"}, flags...)
}

// bootWith adds variables to the server's environment.
func bootWith(t *testing.T, environ []string, flags ...string) *server {
	t.Helper()
	s := &server{dir: paths.New(dataDirOf(flags)), done: make(chan struct{})}
	if err := rememberDataDir(s.dir.Data); err != nil {
		t.Fatal(err)
	}
	// Not in the test's own folder: that is gone when somebody wants to read it.
	f, err := os.CreateTemp(room(), "server-"+strings.ReplaceAll(t.Name(), "/", "-")+"-*.log")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s.log = f.Name()
	s.cmd = command(context.Background(), room(), append([]string{"server"}, flags...)...)
	s.cmd.Env = append(s.cmd.Env, environ...)
	s.cmd.Stdout, s.cmd.Stderr = f, f
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	s.began = time.Now()
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		s.end = s.cmd.Wait()
		close(s.done)
	}()
	return s
}

func dataDirOf(flags []string) string {
	if i := slices.Index(flags, "--data-dir"); i >= 0 && i+1 < len(flags) {
		return flags[i+1]
	}
	return paths.DefaultData
}

func (s *server) pid() int { return s.cmd.Process.Pid }

func (s *server) running() bool {
	select {
	case <-s.done:
		return false
	default:
		return true
	}
}

// ready waits until everything runs and the node takes pods.
func (s *server) ready(t *testing.T) *server {
	t.Helper()
	var last result
	for deadline := time.Now().Add(90 * time.Second); s.running() && time.Now().Before(deadline); {
		last = podo("status", "--wait=3s", "--data-dir", s.dir.Data)
		if last.code == 0 {
			return s
		}
	}
	t.Fatalf("the server did not become ready: %s\nits log ends with:\n%s", last, s.tail(40))
	return nil
}

// stop asks the server to end, as a service manager does, and tells how long it took.
func (s *server) stop(t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatalf("stop the server: %v\n%s", err, s.tail(20))
	}
	s.ended(t, 40*time.Second)
	if s.end != nil {
		t.Errorf("the server was told to stop and ended with %v:\n%s", s.end, s.tail(20))
	}
	return time.Since(began)
}

// crash ends the server as a bug or the kernel would.
func (s *server) crash(t *testing.T) {
	t.Helper()
	_ = s.cmd.Process.Kill()
	s.ended(t, 10*time.Second)
}

// ended waits for the server's own end and returns its exit code.
func (s *server) ended(t *testing.T, within time.Duration) int {
	t.Helper()
	select {
	case <-s.done:
		return s.cmd.ProcessState.ExitCode()
	case <-time.After(within):
		t.Fatalf("the server still runs after %s; its log ends with:\n%s", within, s.tail(40))
		return -1
	}
}

// written is what the server has told so far, on its terminal.
func (s *server) written() string {
	text, _ := os.ReadFile(s.log)
	return string(text)
}

func (s *server) tail(n int) string {
	lines := strings.Split(strings.TrimRight(s.written(), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// containerd is the engine's process.
func (s *server) containerd(t *testing.T) int {
	t.Helper()
	for _, p := range processes() {
		if p.parent == s.pid() && filepath.Base(p.exe) == "containerd" {
			return p.pid
		}
	}
	t.Fatalf("podo (pid %d) has no containerd beside it", s.pid())
	return 0
}

// podo runs a verb to its end.
func podo(args ...string) result { return podoIn(room(), args...) }

// must runs a verb that has to succeed, and returns what it printed.
func must(t *testing.T, args ...string) string {
	t.Helper()
	r := podo(args...)
	if r.code != 0 {
		t.Fatal(r)
	}
	return r.out
}

// podoWith runs a verb with text on its input and variables in its environment.
func podoWith(input string, environ []string, args ...string) result {
	ctx, stop := context.WithTimeout(context.Background(), 2*time.Minute)
	defer stop()
	cmd := command(ctx, room(), args...)
	cmd.Env = append(cmd.Env, environ...)
	cmd.Stdin = strings.NewReader(input)
	return run(cmd)
}

// as runs podo as another user.
func as(uid uint32, args ...string) result {
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	cmd := command(ctx, room(), args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	return run(cmd)
}

// within asks check again and again until it has no complaint.
func within(t *testing.T, patience time.Duration, what string, check func() error) {
	t.Helper()
	var err error
	for began := time.Now(); time.Since(began) < patience; time.Sleep(min(100*time.Millisecond+time.Since(began)/10, time.Second)) {
		if err = check(); err == nil { // to ask often takes from others what they need
			return
		}
	}
	t.Fatalf("%s, within %s: %v", what, patience, err)
}

// always fails if check ever complains during d.
func always(t *testing.T, d time.Duration, what string, check func() error) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if err := check(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// contains reports which of words text lacks.
func contains(text string, words ...string) error {
	var missing []string
	for _, w := range words {
		if !strings.Contains(text, w) {
			missing = append(missing, fmt.Sprintf("%q", w))
		}
	}
	if missing != nil {
		return fmt.Errorf("%s missing in:\n%s", strings.Join(missing, " and "), text)
	}
	return nil
}

// importImages brings the images of the tests into the engine.
func importImages(t *testing.T) {
	t.Helper()
	for _, name := range []string{"agnhost", "busybox"} {
		archive := filepath.Join(repository(), "dist", "images", name+".tar")
		must(t, "images", "import", archive)
	}
}

// uninstall removes podo and fails if it says that anything stayed.
func uninstall(t *testing.T) {
	t.Helper()
	must(t, "uninstall", "--yes", "--purge")
}

// unchanged remembers files and returns a check that they are still the same.
func unchanged(t *testing.T, files ...string) func() {
	t.Helper()
	before := map[string][]byte{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		before[f] = text
	}
	return func() {
		t.Helper()
		for _, f := range files {
			if text, err := os.ReadFile(f); err != nil || !bytes.Equal(text, before[f]) {
				t.Errorf("%s changed (%v)", f, err)
			}
		}
	}
}
