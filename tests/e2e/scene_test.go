package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/podo-dev/podo/pkg/paths"
)

// The images of the tests. Manifests call them $AGNHOST, $BUSYBOX and $PAUSE.
const (
	agnhost = "podo.local/agnhost:2.63"
	busybox = "podo.local/busybox:1.35"
	pause   = "podo.local/pause:3.10"
)

// A scene is one test's namespace, and the hands that act in it. Whatever goes wrong
// ends the test there, so that a scenario reads without a word on errors.
type scene struct {
	*testing.T
	ns string
	kubernetes.Interface
	ctx context.Context
}

// scenario opens a namespace named after the test. Its pods' state is told if the
// test fails.
func scenario(t *testing.T) *scene {
	t.Helper()
	name := t.Name()[strings.LastIndexByte(t.Name(), '/')+1:]
	name = strings.Trim(regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(name), "-"), "-")
	s := &scene{T: t, ns: name[:min(len(name), 40)], Interface: client(t), ctx: t.Context()}
	s.ns = strings.TrimRight(s.ns, "-")
	_, err := s.CoreV1().Namespaces().Create(s.ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.ns}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	s.within(20*time.Second, "the namespace gets its service account", func() error {
		_, err := s.CoreV1().ServiceAccounts(s.ns).Get(s.ctx, "default", metav1.GetOptions{})
		return err
	})
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(podo("kubectl", "-n", s.ns, "get", "all,events", "-o", "wide"))
		}
		// Nobody waits for it: the next test has another.
		_ = s.CoreV1().Namespaces().Delete(context.Background(), s.ns, metav1.DeleteOptions{})
	})
	return s
}

func restConfig(t *testing.T) *rest.Config {
	t.Helper()
	cfg, err := clientcmd.BuildConfigFromFlags("", paths.New(paths.DefaultData).AdminKubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	cfg.QPS, cfg.Burst = 200, 400
	cfg.Timeout = 30 * time.Second
	return cfg
}

func client(t *testing.T) kubernetes.Interface {
	t.Helper()
	c, err := kubernetes.NewForConfig(restConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (s *scene) within(patience time.Duration, what string, check func() error) {
	s.Helper()
	within(s.T, patience, what, check)
}

// ok ends the scene on an error.
func (s *scene) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func images(manifest string) string {
	return strings.NewReplacer("$AGNHOST", agnhost, "$BUSYBOX", busybox, "$PAUSE", pause).Replace(manifest)
}

// apply hands a manifest to kubectl.
func (s *scene) apply(manifest string) {
	s.Helper()
	s.applyIn(s.ns, manifest)
}

func (s *scene) applyIn(namespace, manifest string) {
	s.Helper()
	if r := podoWith(images(manifest), nil, "kubectl", "-n", namespace, "apply", "-f", "-"); r.code != 0 {
		s.Fatal(r)
	}
}

// kubectl runs podo kubectl in the scene's namespace and returns what it printed.
func (s *scene) kubectl(args ...string) string {
	s.Helper()
	return must(s.T, append([]string{"kubectl", "-n", s.ns}, args...)...)
}

// try is kubectl for what may fail.
func (s *scene) try(args ...string) result {
	return podo(append([]string{"kubectl", "-n", s.ns}, args...)...)
}

// background starts podo kubectl and stops it at the end of the test.
func (s *scene) background(in io.Reader, args ...string) (*exec.Cmd, io.Reader) {
	s.Helper()
	ctx, stop := context.WithCancel(context.Background())
	cmd := command(ctx, room(), append([]string{"kubectl", "-n", s.ns}, args...)...)
	cmd.Stdin = in
	out, w, err := os.Pipe()
	s.ok(err)
	cmd.Stdout, cmd.Stderr = w, w
	s.ok(cmd.Start())
	w.Close()
	s.Cleanup(func() {
		stop()
		_ = cmd.Wait()
		out.Close()
	})
	return cmd, out
}

// sh runs a line of shell in a pod's first container.
func (s *scene) sh(pod, line string) string {
	s.Helper()
	return s.kubectl("exec", pod, "--", "sh", "-c", line)
}

func (s *scene) pod(name string) *corev1.Pod {
	s.Helper()
	p, err := s.CoreV1().Pods(s.ns).Get(s.ctx, name, metav1.GetOptions{})
	s.ok(err)
	return p
}

func (s *scene) pods(selector string) []corev1.Pod {
	s.Helper()
	list, err := s.CoreV1().Pods(s.ns).List(s.ctx, metav1.ListOptions{LabelSelector: selector})
	s.ok(err)
	return list.Items
}

// podReady waits until the named pods are Ready.
func (s *scene) podReady(names ...string) {
	s.Helper()
	for _, name := range names {
		s.within(90*time.Second, "pod "+name+" becomes Ready", func() error {
			p, err := s.CoreV1().Pods(s.ns).Get(s.ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			return readyError(p)
		})
	}
}

// podPhase waits until a pod has come to the end that is wanted.
func (s *scene) podPhase(name string, want corev1.PodPhase) *corev1.Pod {
	s.Helper()
	var p *corev1.Pod
	s.within(90*time.Second, fmt.Sprintf("pod %s comes to %s", name, want), func() (err error) {
		if p, err = s.CoreV1().Pods(s.ns).Get(s.ctx, name, metav1.GetOptions{}); err != nil {
			return err
		}
		if p.Status.Phase != want {
			return fmt.Errorf("it is %s: %s", p.Status.Phase, describe(p))
		}
		return nil
	})
	return p
}

func (s *scene) podGone(name string, patience time.Duration) {
	s.Helper()
	s.within(patience, "pod "+name+" goes", func() error {
		_, err := s.CoreV1().Pods(s.ns).Get(s.ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("it is still there (%v)", err)
	})
}

func readyError(p *corev1.Pod) error {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return nil
		}
	}
	return errors.New(describe(p))
}

// describe says where the containers of a pod stand.
func describe(p *corev1.Pod) string {
	words := []string{string(p.Status.Phase), p.Status.Reason, p.Status.Message}
	for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		switch {
		case c.State.Waiting != nil:
			words = append(words, c.Name+": "+c.State.Waiting.Reason+" "+c.State.Waiting.Message)
		case c.State.Terminated != nil:
			words = append(words, fmt.Sprintf("%s: %s %d", c.Name, c.State.Terminated.Reason, c.State.Terminated.ExitCode))
		default:
			words = append(words, fmt.Sprintf("%s: ready %t", c.Name, c.Ready))
		}
	}
	return strings.Join(words, "; ")
}

// rolledOut waits for a deployment, stateful set or daemon set.
func (s *scene) rolledOut(what string) {
	s.Helper()
	s.kubectl("rollout", "status", what, "--timeout=100s")
}

// logs waits until a pod's log has what is wanted in it.
func (s *scene) logs(patience time.Duration, args []string, want string) string {
	s.Helper()
	var out string
	s.within(patience, "the log of "+strings.Join(args, " ")+" tells "+want, func() error {
		r := s.try(append([]string{"logs"}, args...)...)
		if out = r.out; r.code != 0 || !strings.Contains(out, want) {
			return errors.New(r.String())
		}
		return nil
	})
	return out
}

// get asks a URL from this machine.
func get(url string) (string, error) {
	c := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s: %s", url, res.Status, body)
	}
	return string(body), err
}

// answers waits until a URL, asked from this machine, is answered by one of names.
func (s *scene) answers(target string, names ...string) {
	s.Helper()
	s.within(20*time.Second, target+" answers", func() error {
		body, err := get(target)
		if err != nil {
			return err
		}
		for _, n := range names {
			if strings.HasPrefix(body, n) {
				return nil
			}
		}
		return fmt.Errorf("it says %q, not one of %v", body, names)
	})
}

// answersIn is the same, asked from a pod: one of agnhost's, listening on port 8080,
// asks for us.
func (s *scene) answersIn(pod, target string, names ...string) {
	s.Helper()
	u, err := url.Parse(target)
	s.ok(err)
	port := u.Port()
	if port == "" {
		port = "80"
	}
	ask := "http://" + net.JoinHostPort(s.pod(pod).Status.PodIP, "8080") + "/dial?" + url.Values{
		"host": {u.Hostname()}, "port": {port}, "protocol": {"http"}, "request": {strings.TrimPrefix(u.Path, "/")},
	}.Encode()
	s.within(30*time.Second, target+" answers in "+pod, func() error {
		body, err := get(ask)
		var said struct{ Responses, Errors []string }
		if err == nil {
			err = json.Unmarshal([]byte(body), &said)
		}
		for _, n := range names {
			if err == nil && len(said.Responses) > 0 && strings.HasPrefix(said.Responses[0], n) {
				return nil
			}
		}
		return fmt.Errorf("it says %q (%v)", body, err)
	})
}

// nodeAddress is the first address of the one node.
func (s *scene) nodeAddress() string {
	s.Helper()
	for _, a := range s.node().Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			return a.Address
		}
	}
	s.Fatal("the node has no address")
	return ""
}

func (s *scene) node() *corev1.Node {
	s.Helper()
	list, err := s.CoreV1().Nodes().List(s.ctx, metav1.ListOptions{})
	s.ok(err)
	if len(list.Items) != 1 {
		s.Fatalf("the cluster has %d nodes", len(list.Items))
	}
	return &list.Items[0]
}

// hostFolder is an empty folder of this machine that a hostPath volume may name.
func (s *scene) hostFolder() string {
	s.Helper()
	dir := filepath.Join(room(), "host-"+s.ns)
	s.ok(os.MkdirAll(dir, 0o777))
	s.ok(os.Chmod(dir, 0o777))
	return dir
}

// dial opens a TCP connection from this machine.
func dial(addr string) (net.Conn, error) { return net.DialTimeout("tcp", addr, 2*time.Second) }
