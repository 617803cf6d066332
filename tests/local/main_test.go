// Package local tests clusters that podo cluster makes on this machine, by the commands
// that people type.
//
// One file holds one promise, and each test begins and ends with a machine on which
// nothing of a cluster is. They need PODO_E2E=1, which make test sets: go test alone is to
// start nothing.
package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// images are those of the tests, as archives and by name.
const (
	agnhost = "podo.local/agnhost:2.63"
	busybox = "podo.local/busybox:1.35"
)

// A scene is a machine on which clusters are made.
type scene struct {
	*testing.T
	podo       string
	dist       string
	kubeconfig string
	before     ledger
}

func begin(t *testing.T) *scene {
	t.Helper()
	if os.Getenv("PODO_E2E") != "1" {
		t.Skip("makes clusters on this machine; set PODO_E2E=1 to allow that")
	}
	if os.Geteuid() != 0 {
		t.Fatal("making clusters needs root")
	}
	dist, err := filepath.Abs("../../dist")
	if err != nil {
		t.Fatal(err)
	}
	s := &scene{T: t, podo: filepath.Join(dist, "podo"), dist: dist, kubeconfig: filepath.Join(t.TempDir(), "kubeconfig")}
	s.before = look(t)
	had := " " + strings.ReplaceAll(s.run("cluster", "get", "clusters"), "\n", " ") + " "
	t.Cleanup(func() {
		if t.Failed() {
			s.blame()
		}
		for _, name := range strings.Fields(s.run("cluster", "get", "clusters")) {
			if !strings.Contains(had, " "+name+" ") { // those of the machine's owner stay
				s.run("cluster", "delete", "--name", name)
			}
		}
		if left := look(t).beside(s.before); len(left) > 0 {
			t.Errorf("left on the machine:\n%s", strings.Join(left, "\n"))
		}
	})
	return s
}

// blame shows the end of what nodes logged.
func (s *scene) blame() {
	logs, _ := filepath.Glob("/var/lib/podo-clusters/*/nodes/*/root/var/log/podo.log")
	for _, log := range logs {
		text, _ := os.ReadFile(log)
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		s.Logf("%s:\n%s", log, strings.Join(lines[max(0, len(lines)-15):], "\n"))
	}
}

// try runs podo and returns what it prints, with all that it says if it fails. What podo
// leaves running must not have files that we had open.
func (s *scene) try(stdin string, args ...string) (string, error) {
	ctx, end := context.WithTimeout(context.WithoutCancel(s.Context()), 8*time.Minute)
	defer end()
	cmd := exec.CommandContext(ctx, s.podo, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+s.kubeconfig)
	cmd.Stdin = strings.NewReader(stdin)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	ours, theirs, err := os.Pipe()
	if err != nil {
		s.Fatal(err)
	}
	defer ours.Close()
	cmd.ExtraFiles = []*os.File{theirs}
	err = cmd.Run()
	theirs.Close()
	_ = ours.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, open := io.ReadAll(ours); open != nil {
		s.Errorf("podo %s left something running that has our files: %v", strings.Join(args, " "), open)
	}
	if err != nil {
		return out.String(), fmt.Errorf("podo %s: %w\n%s", strings.Join(args, " "), err, said.String())
	}
	return strings.TrimSpace(out.String()), nil
}

// run is try for what must work.
func (s *scene) run(args ...string) string {
	s.Helper()
	out, err := s.try("", args...)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

// refused is run for what must not, with an exit code and with words that say why.
func (s *scene) refused(code int, stdin string, args []string, words ...string) {
	s.Helper()
	_, err := s.try(stdin, args...)
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.ExitCode() != code {
		s.Errorf("podo %s: %v, want exit code %d", strings.Join(args, " "), err, code)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			s.Errorf("nothing of %q in: %v", w, err)
		}
	}
}

// create makes a cluster of a file, or of one node if there is none, and says how long
// that took.
func (s *scene) create(name, file string, args ...string) *cluster {
	s.Helper()
	if file != "" && !strings.Contains(file, "\n") {
		args = append(args, "--config", file)
		file = ""
	} else if file != "" {
		args = append(args, "--config", "-")
	}
	began := time.Now()
	if _, err := s.try(file, append([]string{"cluster", "create", "--name", name}, args...)...); err != nil {
		s.Fatal(err)
	}
	c := &cluster{scene: s, name: name, took: time.Since(began)}
	c.connect()
	s.Logf("cluster %s of %d made in %s", name, len(c.nodes()), c.took.Round(10*time.Millisecond))
	return c
}

// A cluster is one that was made.
type cluster struct {
	*scene
	name   string
	took   time.Duration
	client kubernetes.Interface
}

// connect takes the cluster's entry from the kubeconfig, as kubectl would.
func (c *cluster) connect() {
	c.Helper()
	rc, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{ExplicitPath: c.kubeconfig},
		&clientcmd.ConfigOverrides{CurrentContext: "podo-" + c.name}).ClientConfig()
	if err != nil {
		c.Fatal(err)
	}
	rc.QPS, rc.Timeout = -1, 10*time.Second
	if c.client, err = kubernetes.NewForConfig(rc); err != nil {
		c.Fatal(err)
	}
}

// kubectl runs kubectl against the cluster.
func (c *cluster) kubectl(args ...string) string {
	c.Helper()
	return c.run(append([]string{"kubectl", "--context", "podo-" + c.name}, args...)...)
}

// apply applies manifests, in which $AGNHOST and $BUSYBOX are the images of the tests.
func (c *cluster) apply(manifest string) {
	c.Helper()
	manifest = strings.NewReplacer("$AGNHOST", agnhost, "$BUSYBOX", busybox).Replace(manifest)
	if _, err := c.try(manifest, "kubectl", "--context", "podo-"+c.name, "apply", "-f", "-"); err != nil {
		c.Fatal(err)
	}
}

// load brings the images of the tests into the nodes.
func (c *cluster) load() {
	c.Helper()
	for _, name := range []string{"agnhost.tar", "busybox.tar"} {
		began := time.Now()
		c.run("cluster", "load", "archive", "--name", c.name, filepath.Join(c.dist, "images", name))
		c.Logf("%s loaded in %s", name, time.Since(began).Round(10*time.Millisecond))
	}
}

// exec runs a program on a node.
func (c *cluster) exec(node string, args ...string) string {
	c.Helper()
	return c.run(append([]string{"cluster", "node", "exec", "--name", c.name, node, "--"}, args...)...)
}

// A member is a node as podo cluster get nodes tells of it.
type member struct {
	Name    string
	Role    string
	IPs     []string
	Running bool
}

func (c *cluster) members() []member {
	c.Helper()
	var out []member
	if err := json.Unmarshal([]byte(c.run("cluster", "get", "nodes", "--name", c.name, "-o", "json")), &out); err != nil {
		c.Fatal(err)
	}
	return out
}

// nodes are those of the cluster's API, by name.
func (c *cluster) nodes() map[string]corev1.Node {
	c.Helper()
	list, err := c.client.CoreV1().Nodes().List(c.Context(), metav1.ListOptions{})
	if err != nil {
		c.Fatal(err)
	}
	out := map[string]corev1.Node{}
	for _, n := range list.Items {
		out[n.Name] = n
	}
	return out
}

// ready reports whether a node is Ready.
func ready(n corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// within tries until it works, and ends the test with the last error if it does not.
func (s *scene) within(limit time.Duration, what string, try func() error) {
	s.Helper()
	began := time.Now()
	for {
		err := try()
		if err == nil {
			return
		}
		past := time.Since(began)
		if past > limit {
			s.Fatalf("%s: not within %s: %v", what, limit, err)
		}
		time.Sleep(min(100*time.Millisecond+past/10, time.Second)) // asking costs others their turn
	}
}

// available waits until a deployment has all of its pods.
func (c *cluster) available(name string) {
	c.Helper()
	c.kubectl("rollout", "status", "deployment/"+name, "--timeout=120s")
}

// get fetches a page.
func get(address string) (string, error) {
	client := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
	}}
	res, err := client.Get("http://" + address)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, text)
	}
	return string(text), err
}

// page waits until an address serves a page, and returns it.
func (s *scene) page(address string) string {
	s.Helper()
	var text string
	s.within(30*time.Second, "http://"+address, func() (err error) {
		text, err = get(address)
		return err
	})
	return text
}
