package cluster

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

const mounted = `kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes:
- role: control-plane
- role: worker
  extraMounts:
  - {hostPath: /srv/private, containerPath: /private}
  - {hostPath: /srv/follows, containerPath: /follows, propagation: HostToContainer}
  - {hostPath: /srv/both, containerPath: /both, propagation: Bidirectional}
  - {hostPath: /srv/sealed, containerPath: /sealed, readOnly: true}
`

const diary = `apiVersion: v1
kind: Pod
metadata: {name: diary}
spec:
  nodeName: podo-worker
  containers:
  - {name: c, image: $BUSYBOX, command: [sh, -c, "echo x >> /data/starts; sleep 10000"], volumeMounts: [{name: data, mountPath: /data}]}
  volumes: [{name: data, hostPath: {path: /srv/data, type: DirectoryOrCreate}}]
`

// TestLocalClusterOutlivesABoot: the power of a machine fails on which podo cluster has made
// a cluster. Start brings back the same one: its nodes, their addresses, and what pods
// wrote. Meanwhile folders of the machine were the nodes' too, as far as they were to be.
func TestLocalClusterOutlivesABoot(t *testing.T) {
	s := begin(t)
	l := local{s, s.net.Host("box")}
	l.write("/root/kind.yaml", mounted)
	l.run("sh", "-ec", "mkdir -p /srv/sealed/disk; mount -t tmpfs disk /srv/sealed/disk; touch /srv/sealed/disk/there")
	// As it is where Docker or ufw runs.
	_, err := exec.LookPath("iptables")
	firewall := err == nil
	if firewall {
		l.run("iptables", "-P", "FORWARD", "DROP")
		l.run("iptables", "-A", "FORWARD", "-i", "other", "-m", "comment", "--comment", "podo cluster podo2", "-j", "DROP")
	}
	l.run("podo", "cluster", "create", "--config", "/root/kind.yaml", "--registry")

	l.run("sh", "-ec", "for d in private follows; do mkdir /srv/$d/later; mount -t tmpfs later /srv/$d/later; touch /srv/$d/later/host; done")
	l.node("sh", "-ec", "mkdir /both/later; mount -t tmpfs later /both/later; touch /both/later/node")
	if out := l.node("sh", "-c", "ls /private/later /follows/later"); out != "/follows/later:\nhost\n\n/private/later:" {
		t.Errorf("the worker has of what was mounted later:\n%s", out)
	}
	if out := l.run("ls", "/srv/both/later"); out != "node" {
		t.Errorf("the machine has %q of what the worker mounted", out)
	}

	if out := l.node("sh", "-c", "ls /sealed/disk; touch /sealed/new /sealed/disk/new 2>/dev/null; true"); out != "there" || l.run("ls", "/srv/sealed", "/srv/sealed/disk") != "/srv/sealed:\ndisk\n\n/srv/sealed/disk:\nthere" {
		t.Errorf("a worker writes where it may only read: %s", out)
	}

	t.Run("images of podman's", func(t *testing.T) {
		if _, err := exec.LookPath("podman"); err != nil {
			t.Skip("needs Debian's podman, which is not installed")
		}
		l := l
		l.scene = &scene{T: t, net: s.net, stock: s.stock}
		l.write("/etc/containers/storage.conf", "[storage]\ndriver = \"vfs\"\nrunroot = \"/run/containers\"\ngraphroot = \"/var/lib/containers\"\n")
		archive, err := filepath.Abs("../../dist/images/busybox.tar")
		if err != nil {
			t.Fatal(err)
		}
		l.run("podman", "load", "--quiet", "--input", archive)
		l.run("podman", "tag", "podo.local/busybox:1.35", "images.example.test/mine:1")
		l.run("podo", "cluster", "load", "image", "images.example.test/mine:1")
		l.run("podman", "push", "--quiet", "--tls-verify=false", "images.example.test/mine:1", "localhost:5000/ours:1")
		l.apply(`apiVersion: v1
kind: Pod
metadata: {name: mine}
spec:
  containers:
  - {name: loaded, image: "images.example.test/mine:1", command: [sleep, "10000"]}
  - {name: pushed, image: "localhost:5000/ours:1", command: [sleep, "10000"]}
`)
		l.kubectl("wait", "--for=condition=Ready", "pod/mine", "--timeout=90s")
		l.kubectl("delete", "pod", "mine", "--now")
	})

	archive, err := filepath.Abs("../../dist/images/busybox.tar")
	if err != nil {
		t.Fatal(err)
	}
	l.run("podo", "cluster", "load", "archive", archive)
	l.apply(images(diary))
	l.kubectl("wait", "--for=condition=Ready", "pod/diary", "--timeout=90s")
	before := l.members()
	l.Reboot()
	if firewall {
		l.run("iptables", "-P", "FORWARD", "DROP")
		l.run("iptables", "-A", "FORWARD", "-i", "other", "-m", "comment", "--comment", "podo cluster podo2", "-j", "DROP")
	}
	if out := l.run("podo", "cluster", "list"); !strings.Contains(out, "0 of 2 run") {
		t.Errorf("after the boot:\n%s", out)
	}
	l.run("podo", "cluster", "start")
	if after := l.members(); after != before {
		t.Errorf("the nodes are\n%s, they were\n%s", after, before)
	}
	l.within(90*time.Second, "the pod runs again", func() error {
		out, err := l.try("podo", "kubectl", "--context", "podo-podo", "exec", "diary", "--", "cat", "/data/starts")
		if err == nil && out != "x\nx" {
			err = fmt.Errorf("it wrote %q", out)
		}
		return err
	})
	l.run("podo", "cluster", "delete")
	for _, left := range []string{"/var/lib/podo-clusters", "/sys/class/net/podo-c0"} {
		if _, err := os.Lstat(l.Path(left)); err == nil {
			t.Errorf("%s is left", left)
		}
	}
	if firewall {
		if out := l.run("iptables", "-S", "FORWARD"); strings.Count(out, "-A ") != 1 || !strings.Contains(out, "podo2") {
			t.Errorf("of iptables there is, where another cluster's rule was:\n%s", out)
		}
	}
}

// local is a machine with a cluster of podo cluster's, called podo.
type local struct {
	*scene
	*hosts.Host
}

func (l local) try(args ...string) (string, error) {
	out, err := l.RunCommand(hosts.Command{Args: args, Timeout: 4 * time.Minute})
	out = strings.TrimSpace(out)
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return out, err
}

func (l local) run(args ...string) string {
	l.Helper()
	out, err := l.try(args...)
	if err != nil {
		l.Fatal(err)
	}
	return out
}

// node runs a program on the worker.
func (l local) node(args ...string) string {
	l.Helper()
	return l.run(append([]string{"podo", "cluster", "node", "exec", "podo-worker", "--"}, args...)...)
}

func (l local) kubectl(args ...string) string {
	l.Helper()
	return l.run(append([]string{"podo", "kubectl", "--context", "podo-podo"}, args...)...)
}

func (l local) apply(manifest string) {
	l.Helper()
	l.write("/root/manifest.yaml", manifest)
	l.kubectl("apply", "-f", "/root/manifest.yaml")
}

func (l local) write(path, text string) {
	l.Helper()
	if err := os.MkdirAll(l.Path(filepath.Dir(path)), 0o755); err != nil {
		l.Fatal(err)
	}
	if err := os.WriteFile(l.Path(path), []byte(text), 0o644); err != nil {
		l.Fatal(err)
	}
}

// members are the nodes, with their addresses.
func (l local) members() string {
	l.Helper()
	var list []struct {
		Name string
		IPs  []string
	}
	if err := json.Unmarshal([]byte(l.run("podo", "cluster", "get", "nodes", "-o", "json")), &list); err != nil {
		l.Fatal(err)
	}
	return fmt.Sprint(list)
}
