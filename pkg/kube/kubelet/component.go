// Package kubelet runs the kubelet in this process.
//
// It is configured by a typed KubeletConfiguration rather than flags wherever
// both exist, and its clients dial through the gate, so that it does its local
// start-up work while the API server starts. It is ready when its own health
// endpoint answers. Pods are left running when it stops. On a node whose servers are
// elsewhere it remembers its pods, so that it can start them when none answers.
package kubelet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/cmd/kubelet/app"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	upstream "k8s.io/kubernetes/pkg/kubelet"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/gate"
	"github.com/podo-dev/podo/pkg/kube"
	"github.com/podo-dev/podo/pkg/kube/offline"
	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/plan"
)

// Kubelet is the node agent.
type Kubelet struct {
	plan   plan.Kubelet
	server *options.KubeletServer
	gate   *gate.Gate
	ending *Ending
	log    *slog.Logger
}

// Options are what podo and the user tell the kubelet.
func Options(p plan.Kubelet) (*options.KubeletServer, error) {
	c, err := options.NewKubeletConfiguration()
	if err != nil {
		return nil, err
	}
	if err := configure(c, p); err != nil {
		return nil, err
	}
	f := flags(p)
	if err := parse(f, c, p.Args); err != nil {
		return nil, err
	}
	return &options.KubeletServer{KubeletFlags: *f, KubeletConfiguration: *c}, nil
}

// New checks the flags of p. Clients dial through g. Where no logind is, its pods can be
// ended by e, which may be nil.
func New(p plan.Kubelet, g *gate.Gate, e *Ending, log *slog.Logger) (*Kubelet, error) {
	s, err := Options(p)
	if err != nil {
		return nil, err
	}
	errs := append(impossible(&s.KubeletConfiguration, utilfeature.DefaultFeatureGate), kube.Each(options.ValidateKubeletFlags(&s.KubeletFlags))...)
	for i, e := range errs {
		errs[i] = fmt.Errorf("kubelet-arg: %w", e)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return &Kubelet{plan: p, server: s, gate: g, ending: e, log: log}, nil
}

// Name is the component's name.
func (k *Kubelet) Name() string { return "kubelet" }

// MaxPods is how many pods it takes.
func (k *Kubelet) MaxPods() int { return int(k.server.MaxPods) }

// Run runs the kubelet until ctx ends. Upstream leaves goroutines behind when it
// returns, so nothing may assume that its ports are free again.
func (k *Kubelet) Run(ctx context.Context, ready func()) error {
	for _, dir := range []string{k.plan.Paths.StaticPods(), paths.PodLogs} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if len(k.plan.Nameservers) > 0 {
		var text strings.Builder
		for _, a := range k.plan.Nameservers {
			fmt.Fprintf(&text, "nameserver %s\n", a)
		}
		if err := atomicfile.Write(k.plan.ResolvConf, []byte(text.String()), 0o644); err != nil {
			return err
		}
	}
	// Upstream exits the process when it cannot listen; say why before it does.
	for name, port := range map[string]int{"kubelet": int(k.server.Port), "kubelet health": int(k.server.HealthzPort)} {
		if err := portFree(port); err != nil {
			return fmt.Errorf("%s port: %w; is another kubelet running here?", name, err)
		}
	}
	if k.ending != nil && !k.plan.Logind {
		systemBus = func() (logind, error) { return inhibitor{k.ending}, nil }
	}
	deps, err := app.UnsecuredDependencies(ctx, k.server, utilfeature.DefaultFeatureGate)
	if err != nil {
		return err
	}
	var memory *offline.Memory
	if k.plan.Offline {
		if memory, err = offline.Open(ctx, k.plan.Paths.Offline(), k.Name(), k.log); err != nil {
			return err
		}
		defer memory.Close()
	}
	if err := k.connect(deps, memory); err != nil {
		return err
	}
	go waitHealthy(ctx, int(k.server.HealthzPort), ready)
	return app.Run(ctx, k.server, deps, utilfeature.DefaultFeatureGate)
}

// connect makes the three clients that upstream would make from a kubeconfig. The
// first, by which the kubelet learns what to run, may have a memory.
func (k *Kubelet) connect(deps *upstream.Dependencies, memory *offline.Memory) error {
	base, err := kubeconfig.Client(k.plan.Paths.AgentKubeconfig("kubelet"), k.gate.Dial)
	if err != nil {
		return err
	}
	clientset := func(base *rest.Config, qps float32, burst int, timeout time.Duration) (*kubernetes.Clientset, error) {
		c := rest.AddUserAgent(rest.CopyConfig(base), "kubelet")
		c.QPS, c.Burst, c.Timeout = qps, burst, timeout
		return kubernetes.NewForConfig(c)
	}
	cfg := k.server.KubeletConfiguration
	remembering := rest.CopyConfig(base)
	if memory != nil {
		memory.Serve(remembering)
	}
	main, err := clientset(remembering, float32(cfg.KubeAPIQPS), int(cfg.KubeAPIBurst), 0)
	if err != nil {
		return err
	}
	events, err := clientset(base, float32(cfg.EventRecordQPS), int(cfg.EventBurst), 0)
	if err != nil {
		return err
	}
	// Heartbeats must neither queue behind other requests nor wait for ever.
	patience := min(cfg.NodeStatusUpdateFrequency.Duration, time.Duration(cfg.NodeLeaseDurationSeconds)*time.Second)
	beating := rest.CopyConfig(base)
	beating.Wrap(func(next http.RoundTripper) http.RoundTripper { return &starting{next: next, node: k.plan.Name} })
	heartbeat, err := clientset(beating, -1, 0, patience)
	if err != nil {
		return err
	}
	deps.KubeClient, deps.EventClient, deps.HeartbeatClient = main, events.CoreV1(), heartbeat
	deps.OnHeartbeatFailure = func() {}
	return nil
}

func portFree(port int) error {
	if port <= 0 {
		return nil
	}
	l, err := net.Listen("tcp", ":"+strconv.Itoa(port))
	if err != nil {
		return err
	}
	return l.Close()
}

// waitHealthy calls ready when the kubelet's health endpoint answers, or returns
// when ctx ends.
func waitHealthy(ctx context.Context, port int, ready func()) {
	client := &http.Client{Timeout: time.Second}
	url := "http://127.0.0.1:" + strconv.Itoa(port) + "/healthz"
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return
		}
		if res, err := client.Do(req); err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				ready()
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}
