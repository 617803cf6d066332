package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/nodes"
	"github.com/podo-dev/podo/pkg/paths"
)

// client is one of the cluster's API, at the port that the host has for it.
func (s Site) client(c Cluster) (kubernetes.Interface, error) {
	rc, err := kubeconfig.Client(s.admin(c), nil)
	if err != nil {
		return nil, err
	}
	rc.Host, rc.QPS, rc.Timeout = c.URL(), -1, 0
	rc.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil } // it is on this machine
	return kubernetes.NewForConfig(rc)
}

// admin is the kubeconfig that the first server wrote for itself.
func (s Site) admin(c Cluster) string {
	return s.on(c.Name, c.servers()[0].Name, paths.New(paths.DefaultData).AdminKubeconfig())
}

// URL is where the host has the cluster's API.
func (c Cluster) URL() string {
	a := c.API.Addr()
	switch {
	case a == a.Unmap() && a.Is4() && a.IsUnspecified():
		return fmt.Sprintf("https://127.0.0.1:%d", c.API.Port())
	case a.IsUnspecified():
		return fmt.Sprintf("https://[::1]:%d", c.API.Port())
	}
	return fmt.Sprintf("https://%s", c.API)
}

// patience is how long a control plane may take to answer when it starts, and attention how
// long one that runs may.
const (
	patience  = 3 * time.Minute
	attention = 20 * time.Second
)

// answers waits until the API of a cluster does, as long as a server of it lives.
func (s Site) answers(ctx context.Context, c Cluster, n Node, patience time.Duration) error {
	ctx, end := context.WithTimeoutCause(ctx, patience, fmt.Errorf("no answer within %s", patience))
	defer end()
	before := s.history(c, n)
	var client kubernetes.Interface
	for {
		var err error
		if client == nil {
			client, err = s.client(c) // reads a file that podo has yet to write
		}
		if err == nil {
			err = client.Discovery().RESTClient().Get().AbsPath("/readyz").Timeout(2 * time.Second).Do(ctx).Error()
		}
		if err == nil {
			return nil
		}
		if dead := errors.Join(s.lives(c, n), s.stumbles(c, n, before)); dead != nil {
			return dead
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w%s", context.Cause(ctx), err, s.said(c, n))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// agrees reports whether the API can read its datastore, which takes a majority of servers:
// one that has just lost the others calls itself ready for some seconds more.
func (s Site) agrees(ctx context.Context, c Cluster) error {
	client, err := s.client(c)
	if err != nil {
		return err
	}
	ctx, end := context.WithTimeout(ctx, attention)
	defer end()
	_, err = client.CoreV1().Namespaces().Get(ctx, metav1.NamespaceSystem, metav1.GetOptions{})
	if apierrors.IsNotFound(err) { // it is made a moment after the start
		return nil
	}
	return err
}

// await waits until the API has nodes that are as wanted, which what is a word for.
func (s Site) await(ctx context.Context, c Cluster, list []Node, what string, wait time.Duration, wanted func(*corev1.Node) bool) error {
	client, err := s.client(c)
	if err != nil {
		return err
	}
	ctx, end := context.WithTimeoutCause(ctx, wait, fmt.Errorf("not %s within %s", what, wait))
	defer end()
	return s.each(list, func(n Node) error {
		ctx, end := context.WithCancelCause(ctx)
		defer end(nil)
		before := s.history(c, n)
		go func() {
			for ctx.Err() == nil {
				if dead := errors.Join(s.lives(c, n), s.stumbles(c, n, before)); dead != nil {
					end(dead)
				}
				time.Sleep(200 * time.Millisecond)
			}
		}()
		_, err := nodes.Await(ctx, client, n.Name, wanted)
		if err == nil {
			return nil
		}
		if dead := errors.Join(s.lives(c, n), s.stumbles(c, n, before)); dead != nil {
			return dead
		}
		if why := context.Cause(ctx); why != nil {
			err = why
		}
		return fmt.Errorf("%w%s", err, s.said(c, n))
	})
}

// isReady reports whether a kubelet that runs since then has called its node Ready. It
// reports at its start, by whole seconds.
func isReady(n *corev1.Node, since time.Time) bool {
	for _, condition := range n.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return condition.Status == corev1.ConditionTrue && !condition.LastHeartbeatTime.Time.Before(since.Truncate(time.Second))
		}
	}
	return false
}

// lives is an error if a node is off, with the last that podo said there.
func (s Site) lives(c Cluster, n Node) error {
	if s.seat(c.Name, n.Name).pid() != 0 {
		return nil
	}
	console, _ := os.ReadFile(s.node(c.Name, n.Name, "console"))
	if strings.Contains(tail(string(console), 1), errNever.Error()) {
		text, _ := os.ReadFile(s.on(c.Name, n.Name, podoLog))
		return Unfit{fmt.Errorf("podo refuses what the file asks for:%s", refusedBy(string(text)))}
	}
	return fmt.Errorf("its machine is off%s", s.said(c, n))
}

// falls is how often podo may end on a node that others wait for: it comes back each time,
// and a control plane that joins may have to.
const falls = 4

// A history is what a node has behind it: how often podo ended there, and how much it said.
type history struct{ ends, said int }

func (s Site) history(c Cluster, n Node) history {
	log, _ := os.ReadFile(s.on(c.Name, n.Name, podoLog))
	return history{s.ends(c, n), len(log)}
}

func (s Site) ends(c Cluster, n Node) int {
	console, _ := os.ReadFile(s.node(c.Name, n.Name, "console"))
	_, words, _ := strings.Cut(ended, "%s")
	return strings.Count(string(console), words)
}

// stumbles is an error if podo has ended on a node again and again since then, with the
// reason.
func (s Site) stumbles(c Cluster, n Node, before history) error {
	if s.ends(c, n)-before.ends < falls {
		return nil
	}
	log, _ := os.ReadFile(s.on(c.Name, n.Name, podoLog))
	return fmt.Errorf("podo starts there and ends, again and again:%s", refusedBy(string(log[min(before.said, len(log)):])))
}

// refusedBy is what a node's podo said when it ended, in the words of a cluster's file.
func refusedBy(log string) string {
	const begins = "\npodo: "
	_, last, ok := cutLast("\n"+log, begins)
	if !ok {
		return tail(log, 5)
	}
	if next := regexp.MustCompile(`(?m)^(\d{4}-\d\d-\d\dT| +\d+\.\ds  )`).FindStringIndex(last); next != nil {
		last = last[:next[0]] // another start has begun
	}
	place := regexp.MustCompile("^" + regexp.QuoteMeta(paths.New(paths.DefaultData).ConfigFile()) + `:\d+: `)
	out := ""
	for line := range strings.Lines(last) {
		line = strings.ReplaceAll(strings.TrimSpace(line), "kubelet-arg: "+kubeletFile, "the KubeletConfiguration of kubeadmConfigPatches")
		line = place.ReplaceAllString(line, "")
		told := fielded(line)
		if part, said, ok := strings.Cut(line, ": "); ok && told == line { // it may begin with who says so
			told = part + ": " + fielded(said)
		}
		out += "\n  " + told
	}
	return out
}

// cutLast is strings.Cut at the last sep.
func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// said is the last that podo said on a node.
func (s Site) said(c Cluster, n Node) string {
	text, _ := os.ReadFile(s.on(c.Name, n.Name, podoLog))
	return tail(string(text), 5)
}

// Kubeconfig is how the host's users reach the cluster.
func (s Site) Kubeconfig(c Cluster) (kubeconfig.Config, error) {
	admin, err := kubeconfig.Client(s.admin(c), nil)
	if errors.Is(err, fs.ErrNotExist) {
		err = unfinished(c.Name)
	}
	if err != nil {
		return kubeconfig.Config{}, err
	}
	return kubeconfig.Config{
		Name: c.Context(), Server: c.URL(),
		CA: admin.CAData, CAFile: admin.CAFile, Cert: admin.CertData, CertFile: admin.CertFile, Key: admin.KeyData, KeyFile: admin.KeyFile,
	}, nil
}

// Context is what the cluster is called in a kubeconfig.
func (c Cluster) Context() string { return ContextOf(c.Name) }

// ContextOf is Context by the cluster's name.
func ContextOf(name string) string { return "podo-" + name }
