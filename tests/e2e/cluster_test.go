package e2e

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// theCluster is the server that most tests share.
var theCluster struct {
	*server
	notices *notices
	flags   []string
	environ []string
}

// withCluster starts the shared server, has the tests run, and removes it.
func withCluster(t *testing.T, tests func(*testing.T)) {
	t.Helper()
	address := outwardAddress(t)
	upstream(t, address)
	resolv := filepath.Join(room(), "resolv.conf")
	write(t, resolv, "nameserver "+address+"\noptions timeout:1\n")
	config := filepath.Join(room(), "config.yaml")
	write(t, config, "# of the end-to-end tests\nnode-label: [e2e/from=file]\nkube-controller-manager-arg: [node-cidr-mask-size=23]\n")
	theCluster.notices = listenForNotices(t)
	theCluster.flags = []string{"--config", config, "--resolv-conf", resolv, "--kubelet-arg", "max-pods=250"}
	theCluster.environ = []string{"NOTIFY_SOCKET=" + theCluster.notices.path, "PODO_TLS_SAN=e2e.example.org"}
	startCluster(t)
	t.Cleanup(func() {
		if os.Getenv(keep) == "" {
			podo("uninstall", "--yes", "--purge")
		}
	})
	importImages(t)
	tests(t)
}

// startCluster starts the shared server, again if it has run before.
func startCluster(t *testing.T) {
	t.Helper()
	theCluster.server = bootWith(t, theCluster.environ, theCluster.flags...).ready(t)
}

// clusterRuns starts the shared server if the test before left none behind.
func clusterRuns(t *testing.T) {
	t.Helper()
	if theCluster.server == nil || !theCluster.running() {
		startCluster(t)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// outwardAddress is this machine's address on its default route, or the first that
// is not a loopback.
func outwardAddress(t *testing.T) string {
	t.Helper()
	if c, err := net.Dial("udp4", "198.51.100.1:9"); err == nil {
		defer c.Close()
		return c.LocalAddr().(*net.UDPAddr).IP.String()
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() {
			return n.IP.String()
		}
	}
	t.Fatal("this machine has no address")
	return ""
}

// notices are what a service manager would have been told.
type notices struct {
	path string
	mu   sync.Mutex
	got  []string
	last time.Time // when the last came
}

func listenForNotices(t *testing.T) *notices {
	t.Helper()
	n := &notices{path: filepath.Join(room(), "notify.sock")}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: n.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			size, err := c.Read(buf)
			if err != nil {
				return
			}
			n.mu.Lock()
			n.last = time.Now()
			n.got = append(n.got, string(bytes.Clone(buf[:size])))
			n.mu.Unlock()
		}
	}()
	return n
}

func (n *notices) count(line string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	times := 0
	for _, text := range n.got {
		for l := range strings.SplitSeq(text, "\n") {
			if l == line {
				times++
			}
		}
	}
	return times
}

func tellsServiceManagerOnce(t *testing.T) {
	within(t, 5*time.Second, "the service manager is told", func() error {
		if n := theCluster.notices.count("READY=1"); n != 1 {
			return fmt.Errorf("READY=1 came %d times: %q", n, theCluster.notices.got)
		}
		return nil
	})
	theCluster.notices.mu.Lock()
	told := theCluster.notices.last
	theCluster.notices.mu.Unlock()
	node, err := client(t).CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil || len(node.Items) != 1 {
		t.Fatal(node, err)
	}
	for _, c := range node.Items[0].Status.Conditions {
		// The API keeps whole seconds of it.
		if c.Type == corev1.NodeReady && told.Before(c.LastTransitionTime.Time) {
			t.Errorf("the last notice came at %s, and the node was Ready at %s", told, c.LastTransitionTime)
		}
	}
}

func bootsInFewWords(t *testing.T) {
	text := theCluster.written()
	if lines := strings.Count(text, "\n"); lines >= 40 {
		t.Errorf("the first boot took %d lines:\n%s", lines, text)
	}
	if err := contains(text, "Kubernetes v1.36.4+podo", "certificates", "API answering", "is Ready", "podo kubectl"); err != nil {
		t.Error(err)
	}
	for _, step := range []string{"certificates", "API answering", "is Ready"} {
		if !regexp.MustCompile(`(?m)^ +\d+\.\ds  .*` + step).MatchString(text) {
			t.Errorf("no time before %q in:\n%s", step, text)
		}
	}
}
