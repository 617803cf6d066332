// Package release tests podo as it is handed out: as a container image, and as what
// make release makes.
//
// The image needs PODO_E2E=1, which make test sets, and Debian's podman and buildah. The
// release needs PODO_RELEASE=1, which make test-release sets, and takes make release,
// a quarter of an hour or more.
package release

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/tests/hosts"
)

func TestMain(m *testing.M) {
	hosts.Main()
	os.Exit(m.Run())
}

func checkout(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// An engine runs containers on a host.
type engine struct {
	*testing.T
	host *hosts.Host
	runc string
}

func (e engine) try(patience time.Duration, program string, args ...string) (string, error) {
	return e.host.RunCommand(hosts.Command{
		Args:    append([]string{program, "--storage-driver=vfs"}, args...),
		Timeout: patience,
	})
}

func (e engine) podman(args ...string) string {
	e.Helper()
	out, err := e.try(3*time.Minute, "podman", append([]string{"--cgroup-manager=cgroupfs", "--runtime=" + e.runc}, args...)...)
	if err != nil {
		e.Fatalf("podman %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// run starts podo as docs/release.md says.
func (e engine) run() {
	e.Helper()
	args := []string{"run", "--detach", "--rm", "--name=podo", "--privileged", "--cgroupns=private", "--network=host",
		"--tmpfs=/run", "--volume=podo:/var/lib/podo"}
	// podman asks for more than a machine may be allowed to give.
	for name, what := range map[string]int{"nofile": unix.RLIMIT_NOFILE, "nproc": unix.RLIMIT_NPROC} {
		var l unix.Rlimit
		if err := unix.Getrlimit(what, &l); err != nil {
			e.Fatal(err)
		}
		most := int64(min(l.Max, 1<<20))
		args = append(args, fmt.Sprintf("--ulimit=%s=%d:%d", name, most, most))
	}
	e.podman(append(args, "localhost/podo")...)
}

// ready waits until the cluster's node is.
func (e engine) ready() {
	e.Helper()
	out, err := e.try(3*time.Minute, "podman", "--cgroup-manager=cgroupfs", "--runtime="+e.runc,
		"exec", "podo", "podo", "status", "--wait=2m")
	if err != nil {
		log, _ := e.try(time.Minute, "podman", "logs", "podo")
		e.Fatalf("podo did not get ready in a container: %v\n%s\n%s", err, out, log)
	}
	if out := e.podman("exec", "podo", "kubectl", "wait", "node", "--all", "--for=condition=Ready", "--timeout=60s"); !strings.Contains(out, "condition met") {
		e.Errorf("no node is Ready:\n%s", out)
	}
}

// TestContainer builds the image with the Dockerfile, without a base, and has a cluster
// in it that outlives the container.
func TestContainer(t *testing.T) {
	if os.Getenv("PODO_E2E") != "1" {
		t.Skip("makes a machine on this one; set PODO_E2E=1 to allow that")
	}
	for _, name := range []string{"podman", "buildah"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("needs Debian's %s, which is not installed", name)
		}
	}
	root := checkout(t)
	if out, err := exec.Command(filepath.Join(root, "scripts/build-rootfs")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	n := hosts.NewNetwork(t, hosts.Options{Share: []string{root}, Logs: os.Getenv("PODO_E2E_LOGS")})
	e := engine{t, n.Host("box"), filepath.Join(root, "dist/payload/runc")}
	if out, err := e.try(2*time.Minute, "buildah", "bud", "--quiet", "--isolation=chroot", "--tag=podo", root); err != nil {
		t.Fatalf("buildah: %v\n%s", err, out)
	}

	began := time.Now()
	e.run()
	e.ready()
	t.Logf("Ready %.1fs after the container was started", time.Since(began).Seconds())
	if out := e.podman("exec", "podo", "kubectl", "wait", "deployment/coredns", "--namespace=kube-system", "--for=condition=Available", "--timeout=60s"); !strings.Contains(out, "condition met") {
		t.Errorf("no pod runs in the container:\n%s", out)
	}
	e.podman("exec", "podo", "kubectl", "create", "configmap", "kept")

	e.podman("stop", "--time=30", "podo")
	e.run()
	e.ready()
	e.podman("exec", "podo", "kubectl", "get", "configmap", "kept")
	e.podman("stop", "--time=30", "podo")
}
