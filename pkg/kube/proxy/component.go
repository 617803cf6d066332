// Package proxy runs kube-proxy in this process.
//
// Flags go through upstream's own options, so every flag means what its
// documentation says. In nftables mode, the default, the proxy is assembled from
// upstream's exported parts: with a client of our own, and without the clean-up
// that calls iptables, ipset and modprobe. In iptables mode upstream's Run is used
// as it is, and the host must have iptables. What it programmed stays in the
// kernel when it stops. On a node whose servers are elsewhere the nftables proxy
// remembers services, so that it can set them up when none answers.
package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/kubernetes/cmd/kube-proxy/app"
	upstream "k8s.io/kubernetes/pkg/proxy"
	"k8s.io/kubernetes/pkg/proxy/apis/config"
	"k8s.io/kubernetes/pkg/proxy/apis/config/scheme"
	"k8s.io/kubernetes/pkg/proxy/conntrack"
	"k8s.io/kubernetes/pkg/proxy/healthcheck"
	"k8s.io/kubernetes/pkg/proxy/nftables"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"

	"github.com/podo-dev/podo/pkg/gate"
	"github.com/podo-dev/podo/pkg/host"
	"github.com/podo-dev/podo/pkg/kube"
	"github.com/podo-dev/podo/pkg/kube/offline"
	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/plan"
)

// Proxy is kube-proxy.
type Proxy struct {
	plan    plan.Proxy
	flags   []string
	options *app.Options
	gate    *gate.Gate
	log     *slog.Logger
}

// New checks the flags of p. Clients dial through g.
func New(p plan.Proxy, g *gate.Gate, log *slog.Logger) (*Proxy, error) {
	flags, o, err := Options(p)
	if err != nil {
		return nil, err
	}
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("kube-proxy-arg: %w", err)
	}
	return &Proxy{plan: p, flags: flags, options: o, gate: g, log: log}, nil
}

// Options are what podo and the user tell kube-proxy, as flags and as it reads them.
func Options(p plan.Proxy) ([]string, *app.Options, error) {
	set, err := Args(p)
	if err != nil {
		return nil, nil, err
	}
	o, err := parse(set.Flags())
	return set.Flags(), o, err
}

func parse(flags []string) (*app.Options, error) {
	o := app.NewOptions()
	fs := pflag.NewFlagSet("kube-proxy-arg", pflag.ContinueOnError)
	fs.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	o.AddFlags(fs)
	if err := kube.ParseSet(fs, flags); err != nil {
		return nil, err
	}
	return o, o.Complete(fs)
}

// Name is the component's name.
func (p *Proxy) Name() string { return "kube-proxy" }

// Run programmes the kernel until ctx ends. Upstream's Run does not hear ctx, so
// its goroutines are left behind.
func (p *Proxy) Run(ctx context.Context, ready func()) error {
	c, err := p.configuration(ctx)
	if err != nil {
		return err
	}
	p.tune(ctx, c)
	run := p.options.Run
	if c.Mode == config.ProxyModeNFTables {
		var memory *offline.Memory
		if p.plan.Offline {
			if memory, err = offline.Open(ctx, p.plan.Paths.Offline(), p.Name(), p.log); err != nil {
				return err
			}
			defer memory.Close()
			if err := memory.Watch(p.plan.Name, p.plan.Paths.Socket("containerd")); err != nil {
				return err
			}
		}
		server, err := p.assemble(ctx, c, memory)
		if err != nil {
			return err
		}
		run = server.Run
	}
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	p.gate.Announce(ctx, ready)
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return nil
	}
}

// configuration is what upstream's options made of the flags. They keep it to
// themselves but can write it to a file.
func (p *Proxy) configuration(ctx context.Context) (*config.KubeProxyConfiguration, error) {
	file := filepath.Join(p.plan.Paths.Run, "kube-proxy.yaml")
	o, err := parse(append([]string{"--write-config-to=" + file}, p.flags...))
	if err != nil {
		return nil, err
	}
	if err := o.Run(ctx); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	c := &config.KubeProxyConfiguration{}
	if _, _, err := scheme.Codecs.UniversalDecoder().Decode(text, nil, c); err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return c, nil
}

// tune sets what upstream's Run would set, so that it goes into the machine's ledger. Limits
// of connection tracking are the host's; where they cannot be set, as in a container, the
// nftables proxy works all the same.
func (p *Proxy) tune(ctx context.Context, c *config.KubeProxyConfiguration) {
	ledger := host.NewLedger(p.plan.Paths.Parameters())
	if err := ledger.Change(host.ProxyParameters(), func() error { return conntrack.SetSysctls(ctx, &c.Linux.Conntrack) }); err != nil {
		p.log.Warn("connection tracking limits left as they are, or not noted", "component", p.Name(), "err", err)
	}
	loopback := proxyutil.NewNodePortAddresses(corev1.IPv4Protocol, c.NodePortAddresses).ContainsIPv4Loopback()
	if c.Mode != config.ProxyModeIPTables || !loopback || c.IPTables.LocalhostNodePorts == nil || !*c.IPTables.LocalhostNodePorts {
		return
	}
	if err := ledger.Change([]string{host.LocalNodePorts()}, func() error { return os.WriteFile(host.LocalNodePorts(), []byte("1"), 0o644) }); err != nil {
		p.log.Warn("node ports on loopback are not prepared, or that is not noted", "component", p.Name(), "err", err)
	}
}

// assemble builds the nftables proxy. Memory may be nil.
func (p *Proxy) assemble(ctx context.Context, c *config.KubeProxyConfiguration, memory *offline.Memory) (*app.ProxyServer, error) {
	rc, err := kubeconfig.Client(p.plan.Paths.AgentKubeconfig("kube-proxy"), p.gate.Dial)
	if err != nil {
		return nil, err
	}
	if memory != nil {
		memory.Serve(rc)
	}
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(rc, "kube-proxy"))
	if err != nil {
		return nil, err
	}
	nodes, err := upstream.NewNodeManager(ctx, client, c.ConfigSyncPeriod.Duration, p.plan.Name, false)
	if err != nil {
		return nil, err
	}
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: client.EventsV1()})
	recorder := broadcaster.NewRecorder(scheme.Scheme, p.Name())
	health := healthcheck.NewProxyHealthServer(c.HealthzBindAddress, 2*c.SyncPeriod.Duration, nodes)
	ips, primary := p.nodeIPs()
	detectors := map[corev1.IPFamily]proxyutil.LocalTrafficDetector{
		corev1.IPv4Protocol: proxyutil.NewNoOpLocalDetector(),
		corev1.IPv6Protocol: proxyutil.NewNoOpLocalDetector(),
	}
	for family, cidrs := range proxyutil.MapCIDRsByIPFamily(c.DetectLocal.ClusterCIDRs) {
		detectors[family] = proxyutil.NewDetectLocalByCIDR(cidrs[0].String())
	}
	proxier, err := nftables.NewDualStackProxier(ctx, c.SyncPeriod.Duration, c.MinSyncPeriod.Duration,
		c.Linux.MasqueradeAll, int(*c.NFTables.MasqueradeBit), detectors, p.plan.Name, ips,
		recorder, health, c.NodePortAddresses, false)
	if err != nil {
		return nil, err
	}
	return &app.ProxyServer{
		Config:          c,
		Client:          client,
		Broadcaster:     broadcaster,
		Recorder:        recorder,
		HealthzServer:   health,
		NodeName:        p.plan.Name,
		NodeRef:         &corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: p.plan.Name},
		NodeManager:     nodes,
		PrimaryIPFamily: primary,
		NodeIPs:         ips,
		Proxier:         proxier,
	}, nil
}

// nodeIPs gives upstream an address for each family; the unspecified one stands
// for a family that the node does not have.
func (p *Proxy) nodeIPs() (ips map[corev1.IPFamily]net.IP, primary corev1.IPFamily) {
	ips = map[corev1.IPFamily]net.IP{corev1.IPv4Protocol: net.IPv4zero, corev1.IPv6Protocol: net.IPv6zero}
	for i, a := range p.plan.IPs {
		family := corev1.IPv6Protocol
		if a.Is4() {
			family = corev1.IPv4Protocol
		}
		ips[family] = a.AsSlice()
		if i == 0 {
			primary = family
		}
	}
	return ips, primary
}
