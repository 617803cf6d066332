package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// traces lists what is in the kernel because of podo: processes, mounts, links,
// tables, groups and network namespaces.
func traces(t *testing.T) []string {
	t.Helper()
	m, err := lookAtMachine()
	if err != nil {
		t.Fatal(err)
	}
	before, err := savedMachine(filepath.Join(room(), "before"))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for what := range m {
		if before[what] {
			continue
		}
		kind, name, _ := strings.Cut(what, " ")
		switch kind {
		case "process":
			if !strings.HasPrefix(strings.SplitN(name, " ", 2)[1], room()) {
				out = append(out, what)
			}
		case "mount":
			for _, dir := range []string{"/var/lib/podo", "/var/lib/kubelet", "/run/podo", "/run/netns", "/run/containerd", "/var/log/pods"} {
				if strings.HasPrefix(name, dir) {
					out = append(out, what)
				}
			}
		case "link":
			if name == "cni0" || strings.HasPrefix(name, "flannel") {
				out = append(out, what)
			}
		case "table":
			if strings.Contains(name, "kube-proxy") || strings.Contains(name, "cni") || strings.Contains(name, "flannel") || strings.Contains(name, "podo") {
				out = append(out, what)
			}
		case "cgroup":
			if strings.Contains(name, "kubepods") {
				out = append(out, what)
			}
		}
	}
	return out
}

func killLeavesNoPod(t *testing.T) {
	clusterRuns(t)
	w := witnesses(t)
	if len(traces(t)) < 10 {
		t.Fatalf("a cluster with pods leaves few traces: %v", traces(t))
	}
	w.conn.Close()
	began := time.Now()
	out := must(t, "kill")
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("podo kill took %s", took)
	}
	if err := contains(out, "pods", "stopped"); err != nil {
		t.Error(err)
	}
	theCluster.ended(t, 5*time.Second)
	if left := traces(t); len(left) > 0 {
		t.Errorf("podo kill left:\n%s", strings.Join(left, "\n"))
	}
	must(t, "kill") // and again, where nothing is left

	// On disk everything stays, and so the workloads come back.
	startCluster(t)
	w.within(60*time.Second, "the workload is back", func() error {
		list, err := w.CoreV1().Pods(w.ns).List(w.ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, p := range list.Items {
			if err := readyError(&p); err != nil {
				return err
			}
		}
		return nil
	})
	names := []string{}
	for _, p := range w.pods("app=web") {
		names = append(names, p.Name)
	}
	w.answers("http://"+w.vip+"/hostname", names...)
}

// killWaitsForHooks has a pod that takes ten seconds to end, and then one that takes a
// minute, which it has not.
func killWaitsForHooks(t *testing.T) {
	if _, err := os.Stat("/run/systemd/inhibit"); err == nil {
		t.Skip("systemd-logind runs here, and the kubelet ends pods at its word alone")
	}
	clusterRuns(t)
	s := scenario(t)
	dir := s.hostFolder()
	ends := func(name string, seconds int) string {
		return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 90
      volumes: [{name: host, hostPath: {path: %[3]s}}]
      containers:
      - name: main
        image: $BUSYBOX
        command: [sh, -c, "trap 'echo term >> /host/%[1]s; exit 0' TERM; echo up >> /host/%[1]s; while :; do sleep 0.1; done"]
        lifecycle: {preStop: {exec: {command: [sh, -c, "echo hook >> /host/%[1]s; sleep %[2]d; echo hooked >> /host/%[1]s"]}}}
        volumeMounts: [{name: host, mountPath: /host}]
`, name, seconds, dir)
	}
	story := func(name, want string) {
		t.Helper()
		s.within(30*time.Second, "the story of "+name, func() error {
			text, err := os.ReadFile(filepath.Join(dir, name))
			if got := strings.Join(strings.Fields(string(text)), " "); err == nil && got != want {
				err = fmt.Errorf("it is %q, want %q", got, want)
			}
			return err
		})
	}
	kill := func(grace string, least, most time.Duration, says string) {
		t.Helper()
		began := time.Now()
		out := must(t, "kill", "--grace="+grace)
		if took := time.Since(began); took < least || took > most {
			t.Errorf("podo kill --grace=%s took %s, want between %s and %s", grace, took, least, most)
		}
		if err := contains(out, says); err != nil {
			t.Error(err)
		}
		theCluster.ended(t, 5*time.Second)
		if left := traces(t); len(left) > 0 {
			t.Errorf("it left:\n%s", strings.Join(left, "\n"))
		}
	}

	s.apply(ends("patient", 10))
	s.rolledOut("deployment/patient")
	story("patient", "up")
	kill("30s", 10*time.Second, 35*time.Second, "hooks included") // critical pods end after it
	story("patient", "up hook hooked term")

	// Its Deployment has another one when podo is back.
	startCluster(t)
	story("patient", "up hook hooked term up")
	s.kubectl("delete", "deployment", "patient", "--wait=false")
	s.apply(ends("endless", 60))
	s.rolledOut("deployment/endless")
	story("endless", "up")
	kill("6s", 4*time.Second, 25*time.Second, "did not end in time")
	story("endless", "up hook term") // told at the last, without its hook
	startCluster(t)
	s.rolledOut("deployment/endless")
}

func uninstallsWithoutTrace(t *testing.T) {
	clusterRuns(t)
	r := podo("uninstall", "--verify")
	if err := contains(r.out, "process", "mount", "link", "table", "cgroup", "file"); r.code == 0 || err != nil {
		t.Errorf("--verify beside a running cluster: exit code %d, %v", r.code, err)
	}
	must(t, "status") // which it leaves alone
	out := must(t, "uninstall", "--yes", "--purge")
	if err := contains(out, "nothing is left of podo"); err != nil {
		t.Error(err)
	}
	theCluster.ended(t, 5*time.Second)
	must(t, "uninstall", "--verify")
	if left := traces(t); len(left) > 0 {
		t.Errorf("podo uninstall left:\n%s", strings.Join(left, "\n"))
	}
	for _, dir := range []string{"/var/lib/podo", "/etc/podo", "/run/podo", "/var/lib/kubelet", "/var/log/pods", "/var/log/containers", "/var/lib/cni", "/run/flannel"} {
		if _, err := os.Lstat(dir); err == nil {
			t.Errorf("podo uninstall left %s", dir)
		}
	}
	must(t, "uninstall", "--yes", "--purge") // again, where nothing is
}

// verifyTellsWhatStayed plants what an uninstall might leave, a piece at a time.
func verifyTellsWhatStayed(t *testing.T) {
	plants := map[string]func() (undo func()){
		"mount /run/podo/stray": func() func() {
			dir := "/run/podo/stray"
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
				t.Fatal(err)
			}
			return func() { _ = unix.Unmount(dir, 0); _ = os.RemoveAll("/run/podo") }
		},
		"link cni0": func() func() {
			link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "cni0"}}
			if err := netlink.LinkAdd(link); err != nil {
				t.Fatal(err)
			}
			return func() { _ = netlink.LinkDel(link) }
		},
		"file /var/lib/podo/server": func() func() {
			if err := os.MkdirAll("/var/lib/podo/server", 0o755); err != nil {
				t.Fatal(err)
			}
			return func() { _ = os.RemoveAll("/var/lib/podo") }
		},
		"cgroup ": func() func() {
			dir := "/sys/fs/cgroup/kubepods"
			if _, err := os.Stat("/sys/fs/cgroup/pids"); err == nil {
				dir = "/sys/fs/cgroup/pids/kubepods"
			}
			dir = filepath.Join(dir, "burstable", "pod11111111-2222-3333-4444-555555555555")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			return func() {
				for range 3 {
					_ = os.Remove(dir)
					dir = filepath.Dir(dir)
				}
			}
		},
	}
	for what, plant := range plants {
		undo := plant()
		r := podo("uninstall", "--verify")
		if err := contains(r.out, what); r.code != 1 || err != nil {
			t.Errorf("with %s planted: exit code %d, %v", what, r.code, err)
		}
		undo()
	}
	if r := podo("uninstall", "--verify"); r.code != 0 {
		t.Errorf("with nothing planted: %s", r)
	}
	// And an uninstall removes them.
	undo := plants["link cni0"]()
	must(t, "uninstall", "--yes", "--purge")
	if _, err := net.InterfaceByName("cni0"); err == nil {
		undo()
		t.Error("podo uninstall left cni0")
	}
}
