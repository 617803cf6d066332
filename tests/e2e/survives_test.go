package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A witness is a workload that must not notice what happens to podo: two pods behind
// a Service, and a connection to one of them that is never closed.
type witness struct {
	*scene
	vip    string
	names  []string
	before map[string]string
	conn   *held
}

func witnesses(t *testing.T) *witness {
	t.Helper()
	w := &witness{scene: scenario(t)}
	w.apply(servers)
	w.rolledOut("deployment/web")
	w.podReady("client")
	w.know()
	svc, err := w.CoreV1().Services(w.ns).Get(w.ctx, "web", metav1.GetOptions{})
	w.ok(err)
	w.vip = svc.Spec.ClusterIP
	w.answers("http://"+w.vip+"/hostname", w.names...)
	w.conn = hold(t, net.JoinHostPort(w.vip, "80"))
	w.within(20*time.Second, "the witnesses are in place", w.works)
	w.before = w.containers()
	return w
}

// know takes the names of the pods that there are now.
func (w *witness) know() {
	w.Helper()
	w.names = nil
	for _, p := range w.pods("app=web") {
		w.names = append(w.names, p.Name)
	}
}

// containers tells every container of the cluster by pod, with how often it was
// restarted, since when it runs, and its process.
func (w *witness) containers() map[string]string {
	w.Helper()
	list, err := w.CoreV1().Pods("").List(w.ctx, metav1.ListOptions{})
	w.ok(err)
	pids := map[string]int{}
	for _, p := range contained() {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.pid))
		for line := range strings.Lines(string(text)) {
			id := line[strings.LastIndexAny(line, "/-")+1:]
			id = strings.TrimSuffix(strings.TrimSpace(id), ".scope")
			if _, seen := pids[id]; !seen {
				pids[id] = p.pid
			}
		}
	}
	out := map[string]string{}
	for _, p := range list.Items {
		if p.Namespace != w.ns && p.Namespace != "kube-system" || p.DeletionTimestamp != nil {
			continue
		}
		for _, c := range p.Status.ContainerStatuses {
			_, id, _ := strings.Cut(c.ContainerID, "://")
			if pids[id] == 0 {
				w.Errorf("no process runs in %s of %s", c.Name, p.Name)
			}
			var since metav1.Time
			if c.State.Running != nil {
				since = c.State.Running.StartedAt
			}
			out[p.Name+"/"+c.Name] = fmt.Sprintf("%s restarted %d times, process %d, since %s", id, c.RestartCount, pids[id], since.UTC().Format(time.TimeOnly))
		}
	}
	return out
}

// A held connection is never closed, and pages are asked for on it.
type held struct {
	net.Conn
	reader *bufio.Reader
}

func hold(t *testing.T, address string) *held {
	t.Helper()
	c, err := dial(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &held{c, bufio.NewReader(c)}
}

// says sends a request, and reads the answer.
func (h *held) says() (string, error) {
	_ = h.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := fmt.Fprintf(h, "GET /hostname HTTP/1.1\r\nHost: web\r\n\r\n"); err != nil {
		return "", err
	}
	res, err := http.ReadResponse(h.reader, nil)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return strings.TrimSpace(string(body)), err
}

// flows asks on the connection that is held open.
func (w *witness) flows() error {
	name, err := w.conn.says()
	if err == nil && !slices.Contains(w.names, name) {
		err = fmt.Errorf("the held connection says %q", name)
	}
	return err
}

// works is everything that pods need while podo is away.
func (w *witness) works() error {
	if err := w.flows(); err != nil {
		return fmt.Errorf("the connection held open: %w", err)
	}
	if body, err := get("http://" + w.vip + "/hostname"); err != nil || !slices.Contains(w.names, strings.TrimSpace(body)) {
		return fmt.Errorf("a new connection to the service: %q, %w", body, err)
	}
	return resolves("kubernetes.default.svc.cluster.local.", "10.43.0.1")
}

// resolves asks the cluster's DNS from this machine.
func resolves(name, want string) error {
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, "10.43.0.10:53")
	}}
	ctx, stop := context.WithTimeout(context.Background(), 3*time.Second)
	defer stop()
	addrs, err := resolver.LookupHost(ctx, name)
	if err != nil || !slices.Contains(addrs, want) {
		return fmt.Errorf("the cluster's DNS says %v of %s: %w", addrs, name, err)
	}
	return nil
}

// noticedNothing compares every container with what it was.
func (w *witness) noticedNothing() {
	w.Helper()
	w.ok(w.works())
	after := w.containers()
	for name, was := range w.before {
		if after[name] != was {
			w.Errorf("%s was %s, and is %s", name, was, after[name])
		}
	}
}

func survivesStop(t *testing.T) {
	clusterRuns(t)
	w := witnesses(t)
	took := theCluster.stop(t)
	t.Logf("the stop took %s", took.Round(10*time.Millisecond))
	if took > 8*time.Second { // a part that does not stop is given up after ten
		t.Errorf("the stop took %s", took)
	}
	always(t, 3*time.Second, "the pods work while podo is away", w.works)
	startCluster(t)
	w.noticedNothing()
	w.kubectl("scale", "deployment/web", "--replicas=3") // and it is obeyed again
	w.rolledOut("deployment/web")

	// CoreDNS looks for the API less and less often while that is away, in the end every 30
	// to 60 s (client-go's back-off). It remembers what it did not find, too, so that each
	// try needs a name of its own.
	n := 0
	w.within(90*time.Second, "DNS knows a service that came later", func() error {
		n++
		name := fmt.Sprintf("later-%d", n)
		w.kubectl("expose", "deployment/web", "--name="+name, "--port=80", "--target-port=8080")
		later, err := w.CoreV1().Services(w.ns).Get(w.ctx, name, metav1.GetOptions{})
		w.ok(err)
		<-time.After(500 * time.Millisecond)
		return resolves(name+"."+w.ns+".svc.cluster.local.", later.Spec.ClusterIP)
	})
}

func survivesKill(t *testing.T) {
	clusterRuns(t)
	w := witnesses(t)
	theCluster.crash(t)
	always(t, 3*time.Second, "the pods work while podo is away", w.works)
	startCluster(t)
	began := time.Now()
	w.noticedNothing()
	w.within(60*time.Second, "it tells again what pods use", func() error {
		r := w.try("top", "pods", "--no-headers")
		if r.code != 0 || strings.TrimSpace(r.out) == "" {
			return errors.New(r.String())
		}
		return nil
	})
	t.Attr("figure", fmt.Sprintf("kubectl top after a kill\t%.1f\ts", time.Since(began).Seconds()))

	// Once more, in the middle of work.
	w.kubectl("scale", "deployment/web", "--replicas=5")
	theCluster.crash(t)
	startCluster(t)
	w.rolledOut("deployment/web")
	w.know()
	w.noticedNothing()
}

func survivesContainerdDeath(t *testing.T) {
	clusterRuns(t)
	w := witnesses(t)
	old := theCluster.containerd(t)
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	nodeReady := func() error {
		for _, c := range w.node().Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
				return errors.New(c.Message)
			}
		}
		return nil
	}
	always(t, 5*time.Second, "the pods work and the node is Ready while containerd comes back", func() error {
		return errors.Join(w.works(), nodeReady())
	})
	within(t, 20*time.Second, "containerd is back", func() error {
		for _, p := range processes() {
			if p.parent == theCluster.pid() && strings.HasSuffix(p.exe, "/containerd") && p.pid != old {
				return nil
			}
		}
		return errors.New("it is not")
	})
	if !theCluster.running() {
		t.Fatalf("podo ended with containerd:\n%s", theCluster.tail(20))
	}
	within(t, 20*time.Second, "podo status tells of it", func() error {
		return contains(must(t, "status"), "restarted once, the last time after: containerd ended: signal: killed")
	})
	w.kubectl("run", "afterwards", "--image="+pause, "--image-pull-policy=Never")
	w.podReady("afterwards")
	w.noticedNothing()
	if err := nodeReady(); err != nil {
		t.Errorf("the node is not Ready: %v", err)
	}
}

func refusesSecondServer(t *testing.T) {
	began := time.Now()
	second := boot(t)
	code := second.ended(t, 10*time.Second)
	if err := contains(second.written(), "in use by another podo", "/var/lib/podo", "podo status"); code != 1 || err != nil {
		t.Errorf("exit code %d, %v", code, err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("the refusal took %s", took)
	}
	must(t, "status")
}
