// Package up tests what a newcomer types first: make up and make down, on this machine.
//
// It needs a machine without podo, with dist/podo built, and PODO_E2E=1, which make test
// sets: go test alone is to start nothing.
package up

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A checkout is the repository.
type checkout struct {
	*testing.T
	dir string
}

func begin(t *testing.T) checkout {
	t.Helper()
	if os.Getenv("PODO_E2E") != "1" {
		t.Skip("runs a cluster on this machine; set PODO_E2E=1 to allow that")
	}
	if os.Geteuid() != 0 {
		t.Fatal("running a cluster needs root")
	}
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	c := checkout{t, dir}
	if out, err := c.try("dist/podo", "uninstall", "--verify"); err != nil {
		t.Fatalf("this machine has podo already: %v\n%s", err, out)
	}
	return c
}

// environment is that of a newcomer, who has set none of podo's variables.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "PODO_") })
}

// try runs a program in the checkout and returns all that it says.
func (c checkout) try(args ...string) (string, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = c.dir
	cmd.Env = environment()
	// What it leaves running has the output too, and is not waited for.
	log, err := os.CreateTemp(c.TempDir(), "said")
	if err != nil {
		return "", err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	err = cmd.Run()
	text, _ := os.ReadFile(log.Name())
	return string(text), err
}

func (c checkout) run(args ...string) string {
	c.Helper()
	out, err := c.try(args...)
	if err != nil {
		c.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (c checkout) says(text string, words ...string) {
	c.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			c.Errorf("nothing of %q in:\n%s", w, text)
		}
	}
}

// pid is the process that podo status tells of.
func (c checkout) pid() (int, error) {
	out, err := c.try("dist/podo", "status", "-o", "json")
	_, rest, ok := strings.Cut(out, `"pid": `)
	if !ok {
		return 0, fmt.Errorf("no pid in %q (%v)", out, err)
	}
	digits, _, _ := strings.Cut(rest, ",")
	return strconv.Atoi(digits)
}

// TestUp: a cluster comes up, stays up, is brought back when it is killed, and goes without
// a trace.
func TestUp(t *testing.T) {
	c := begin(t)
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if out, err := c.try("scripts/down"); err != nil {
			t.Errorf("down: %v\n%s", err, out)
		}
		if out, err := c.try("dist/podo", "uninstall", "--verify"); err != nil {
			t.Errorf("left by down: %v\n%s", err, out)
		}
	})
	c.says(c.run("make", "up"), "is Ready", "The cluster is Ready, DNS answers",
		"dist/podo kubectl get nodes,pods -A\n", "dist/podo kubectl create deployment hello --image=podo.local/pause:3.10 --replicas=3\n", "make down")
	c.says(c.run("dist/podo", "kubectl", "--kubeconfig", filepath.Join(me.HomeDir, ".kube", "config"), "--context", "podo", "get", "nodes"), " Ready ")
	c.run("dist/podo", "kubectl", "create", "deployment", "hello", "--image=podo.local/pause:3.10", "--replicas=3")
	c.run("dist/podo", "kubectl", "rollout", "status", "deployment/hello", "--timeout=60s")
	began := func() string {
		return c.run("dist/podo", "kubectl", "get", "pods", "-l", "app=hello", "-o", "jsonpath={.items[*].status.containerStatuses[*].containerID}")
	}
	before := began()
	first, err := c.pid()
	if err != nil {
		t.Fatal(err)
	}
	c.says(c.run("make", "up"), "podo is running already")
	if again, err := c.pid(); err != nil || again != first {
		t.Errorf("a second make up replaced process %d by %d (%v), though nothing had changed", first, again, err)
	}

	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		if second, err := c.pid(); err == nil && second != first {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nobody brought podo back")
		}
		time.Sleep(200 * time.Millisecond)
	}
	c.run("dist/podo", "status", "--wait=60s")
	if after := began(); after != before {
		t.Errorf("containers before %s, and after podo was killed %s", before, after)
	}

	// Built anew, which gives another file, it takes over from the old one.
	killed, err := c.pid()
	if err != nil {
		t.Fatal(err)
	}
	c.run("cp", "-p", "dist/podo", "dist/podo.anew")
	c.run("mv", "dist/podo.anew", "dist/podo")
	c.says(c.run("make", "up"), "restarting podo, which has been built anew", "The cluster is Ready")
	if newer, err := c.pid(); err != nil || newer == killed {
		t.Errorf("after a build there is process %d, and before it was %d (%v)", newer, killed, err)
	}
	if after := began(); after != before {
		t.Errorf("containers before %s, and after a build %s", before, after)
	}

	// Told to end, it stays away.
	c.run("dist/podo", "kill")
	time.Sleep(4 * time.Second)
	if pid, err := c.pid(); err == nil {
		t.Errorf("after podo kill, process %d came", pid)
	}
	c.says(c.run("make", "up"), "The cluster is Ready")

	// Down does nothing while podo is what other clusters would be removed with.
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	c.run("dist/podo", "cluster", "create", "--name", "beside", "--kubeconfig", kubeconfig)
	t.Cleanup(func() { c.run("dist/podo", "cluster", "delete", "--name", "beside", "--kubeconfig", kubeconfig) })
	if out, err := c.try("make", "down"); err == nil || !strings.Contains(out, "beside; first: sudo dist/podo cluster delete --all") {
		t.Errorf("down beside a cluster: %v\n%s", err, out)
	}
	if _, err := c.pid(); err != nil {
		t.Errorf("down has stopped podo, and not removed it: %v", err)
	}
	c.run("dist/podo", "cluster", "delete", "--name", "beside", "--kubeconfig", kubeconfig)
	c.says(c.run("make", "down"), "nothing is left of podo")
	if text, err := os.ReadFile(filepath.Join(me.HomeDir, ".kube", "config")); err == nil && strings.Contains(string(text), "name: podo\n") {
		t.Errorf("the user's kubeconfig still has the cluster:\n%s", text)
	}
}

// TestAnotherPodo: a podo that make up has not started is neither taken over nor removed,
// whether it runs or not.
func TestAnotherPodo(t *testing.T) {
	c := begin(t)
	other := filepath.Join(t.TempDir(), "podo")
	c.run("cp", "dist/podo", other)
	cmd := exec.Command(other, "server", "--disable", "traefik,coredns")
	cmd.Env = environment()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end := func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}
	t.Cleanup(func() {
		end()
		c.run(other, "uninstall", "--yes", "--purge")
	})
	c.run("dist/podo", "status", "--wait=60s")
	for _, script := range []string{"scripts/down", "scripts/up"} {
		out, err := c.try(script)
		if err == nil {
			t.Errorf("%s beside another podo is content:\n%s", script, out)
		}
		c.says(out, other)
	}
	if pid, err := c.pid(); err != nil || pid != cmd.Process.Pid {
		t.Errorf("process %d was there, and now %d, %v", cmd.Process.Pid, pid, err)
	}
	end()
	if out, err := c.try("scripts/up"); err == nil || !strings.Contains(out, "the state of another podo") {
		t.Errorf("scripts/up on another's state: %v\n%s", err, out)
	}
	c.says(c.run("scripts/down"), "has started nothing here")
	if _, err := os.Stat("/var/lib/podo/server/db/state.db"); err != nil {
		t.Errorf("what another podo had: %v", err)
	}
}

// TestSaysWhatIsMissing: what a bare machine lacks is named before anything is installed.
func TestSaysWhatIsMissing(t *testing.T) {
	bin := t.TempDir()
	// That a machine has it is all that install-deps -n wants of it: it ends with a failure.
	if err := os.WriteFile(filepath.Join(bin, "apt-get"), []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"bash", "dirname", "sed", "uname", "id", "gcc", "go", "dpkg", "dpkg-architecture", "pkg-config", "make", "git"} {
		if path, err := exec.LookPath(name); err == nil {
			if err := os.Symlink(path, filepath.Join(bin, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	cmd := exec.Command("scripts/install-deps", "-n")
	cmd.Dir, cmd.Env = filepath.Join("..", ".."), []string{"PATH=" + bin, "HOME=" + os.Getenv("HOME")}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if line := string(out); !strings.HasPrefix(line, "install-deps: the build needs these Debian packages: ") || !strings.Contains(line, " binutils") || !strings.Contains(line, " zstd") || strings.Count(line, "\n") != 1 {
		t.Errorf("without readelf and zstd it says %q", line)
	}
}
