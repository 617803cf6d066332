// Package e2e keeps podo's promises honest: it runs the real binary on this machine,
// as root, one cluster at a time, and looks at what a user would see.
//
// TestPodo lists the promises in the order they are tested. TestMain runs them in a
// child process and afterwards removes whatever is left of podo, however the child
// ended, and compares the machine with what it was before.
//
// PODO_E2E=1 switches the tests on, PODO_BINARY names the binary (dist/podo),
// PODO_E2E_KEEP=1 leaves the cluster and the logs in place.
package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/podo-dev/podo/pkg/paths"
)

const (
	enabled  = "PODO_E2E"
	keep     = "PODO_E2E_KEEP"
	workRoom = "PODO_E2E_RUN" // set for the child: the folder for all its files
)

func TestMain(m *testing.M) {
	if os.Getenv(enabled) != "1" || os.Getenv(workRoom) != "" {
		os.Exit(m.Run())
	}
	code, err := supervise()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// supervise runs the tests in a child, so that neither a panic nor a time-out keeps
// the machine from being cleaned.
func supervise() (int, error) {
	told := make(chan os.Signal, 4)
	signal.Notify(told, os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP)

	binary, err := findBinary()
	if err != nil {
		return 1, err
	}
	if err := machineIsFree(); err != nil {
		return 1, err
	}
	room, err := os.MkdirTemp("", "podo-e2e-")
	if err != nil {
		return 1, err
	}
	if err := os.Chmod(room, 0o755); err != nil { // a test runs podo as somebody else
		return 1, err
	}
	if err := copyFile(binary, filepath.Join(room, "podo"), 0o755); err != nil {
		return 1, err
	}
	before, err := lookAtMachine()
	if err != nil {
		return 1, err
	}
	if err := before.save(filepath.Join(room, "before")); err != nil {
		return 1, err
	}

	exited := make(chan int, 1)
	child := make(chan *os.Process, 1)
	go func() {
		runtime.LockOSThread() // the child dies with this thread
		cmd := exec.Command("/proc/self/exe", append(slices.Clone(os.Args[1:]), parallel(os.Args)...)...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, os.Stdout, os.Stderr
		cmd.Env = append(os.Environ(), workRoom+"="+room)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			exited <- 1
			return
		}
		child <- cmd.Process
		err := cmd.Wait()
		var failed *exec.ExitError
		switch {
		case err == nil:
			exited <- 0
		case errors.As(err, &failed) && failed.ExitCode() > 0:
			exited <- failed.ExitCode()
		default:
			exited <- 1
		}
	}()

	code := 0
	select {
	case code = <-exited:
	case s := <-told:
		fmt.Fprintf(os.Stderr, "e2e: %s: cleaning up\n", s)
		select {
		case p := <-child:
			_ = syscall.Kill(-p.Pid, syscall.SIGKILL)
			<-exited
		default:
		}
		code = 1
	}
	if os.Getenv(keep) != "" {
		fmt.Fprintf(os.Stderr, "e2e: the cluster stays; logs are in %s\n", room)
		return code, nil
	}
	return clean(room, before, code)
}

// parallel is how many workloads are tested at once, unless somebody said otherwise.
func parallel(args []string) []string {
	if slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "-test.parallel") }) {
		return nil
	}
	return []string{"-test.parallel=4"}
}

// clean removes what is left of podo and of the tests, and says what could not be.
func clean(room string, before machine, code int) (int, error) {
	began := time.Now()
	var errs []error
	for _, p := range processes() {
		if strings.HasPrefix(p.exe, filepath.Join(room, "podo")) {
			_ = syscall.Kill(p.pid, syscall.SIGKILL)
		}
	}
	for _, dir := range usedDataDirs(room) {
		if r := podoIn(room, "uninstall", "--yes", "--purge", "--data-dir", dir); r.code != 0 {
			errs = append(errs, fmt.Errorf("podo uninstall --data-dir %s: %s", dir, r))
		}
	}
	if err := unmountBelow(room); err != nil {
		errs = append(errs, err)
	}
	var left []string
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		after, err := lookAtMachine()
		if err != nil {
			return 1, err
		}
		if left = before.changes(after); len(left) == 0 || time.Now().After(deadline) {
			break
		}
	}
	verdict := "--- PASS"
	if len(left) > 0 {
		verdict, code = "--- FAIL", max(code, 1)
	}
	fmt.Printf("%s: the machine is as it was before the tests (%.2fs)\n", verdict, time.Since(began).Seconds())
	for _, l := range left {
		fmt.Println("    " + l)
	}
	if code != 0 || len(errs) > 0 {
		fmt.Printf("logs are in %s\n", room)
		_ = os.Remove(filepath.Join(room, "podo"))
		return max(code, 1), errors.Join(errs...)
	}
	return code, os.RemoveAll(room)
}

// machineIsFree refuses to test beside a podo that somebody uses.
func machineIsFree() error {
	if os.Geteuid() != 0 {
		return errors.New("must run as root: the tests start a node on this machine")
	}
	if os.Getenv(keep) != "" {
		return nil
	}
	for _, p := range processes() {
		if p.near && p.isServer() {
			return fmt.Errorf("podo runs already (pid %d: %s); stop it with podo uninstall first", p.pid, p.cmdline)
		}
	}
	for _, dir := range []string{paths.DefaultData, paths.DefaultEtc, paths.DefaultRun, paths.KubeletRoot} {
		entries, err := os.ReadDir(dir)
		if err == nil && len(entries) > 0 {
			return fmt.Errorf("%s exists: the tests would remove it; save what you need and run podo uninstall", dir)
		}
	}
	return nil
}

func findBinary() (string, error) {
	path := os.Getenv("PODO_BINARY")
	if path == "" {
		path = filepath.Join(repository(), "dist", "podo")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w; build it with make build, or name another in PODO_BINARY", err)
	}
	return path, nil
}

// repository is the root of the source tree.
func repository() string {
	dir, err := os.Getwd() // go test runs in the folder of the package
	if err != nil {
		return "."
	}
	return filepath.Dir(filepath.Dir(dir))
}

func copyFile(from, to string, mode os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// room is the folder of this run. It is gone afterwards, if all went well.
func room() string { return os.Getenv(workRoom) }

// usedDataDirs are the data directories that servers of this run were started on.
func usedDataDirs(room string) []string {
	text, _ := os.ReadFile(filepath.Join(room, "datadirs"))
	dirs := strings.Fields(string(text))
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

func rememberDataDir(dir string) error {
	f, err := os.OpenFile(filepath.Join(room(), "datadirs"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fmt.Fprintln(f, dir)
	return err
}

// podoIn runs the binary of a run with an environment of its own.
func podoIn(room string, args ...string) result {
	ctx, stop := context.WithTimeout(context.Background(), 2*time.Minute)
	defer stop()
	return run(command(ctx, room, args...))
}

func command(ctx context.Context, room string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(room, "podo"), args...)
	cmd.Env = environment(room)
	cmd.Dir = room
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// environment is this process's without anything that podo or kubectl would take
// for a setting, and with a home of its own.
func environment(room string) []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return strings.HasPrefix(name, "PODO_") || strings.HasPrefix(name, "K3S_") ||
			slices.Contains([]string{"HOME", "KUBECONFIG", "NOTIFY_SOCKET", "GOGC", "GOFLAGS"}, name)
	})
	return append(env, "HOME="+filepath.Join(room, "home"))
}

// A result is what a command said and how it ended.
type result struct {
	args     []string
	out, err string
	code     int
}

func (r result) String() string {
	return fmt.Sprintf("%s: exit code %s\n%s%s", strings.Join(r.args, " "), strconv.Itoa(r.code), r.out, r.err)
}

func run(cmd *exec.Cmd) result {
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	r := result{args: append([]string{"podo"}, cmd.Args[1:]...), out: out.String(), err: errs.String()}
	var failed *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &failed):
		r.code = failed.ExitCode()
	default:
		r.code, r.err = -1, r.err+err.Error()
	}
	return r
}
