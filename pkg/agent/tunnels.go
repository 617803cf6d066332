package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"github.com/podo-dev/podo/pkg/gate"
	"github.com/podo-dev/podo/pkg/join"
	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/pki"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/tunnel"
)

// Tunnels are the ways to the node of a server from the other servers, for modes in
// which those reach more of it than they could dial.
func Tunnels(p plan.Tunnels, doors *gate.Gate, log *slog.Logger) lifecycle.Component {
	return lifecycle.Func("tunnel", func(ctx context.Context, ready func()) error {
		var mu sync.Mutex
		var others []string
		changed := make(chan struct{}, 1)
		o := tunnelOptions(p, log)
		o.Changed = func() <-chan struct{} { return changed }
		o.Servers = func() []string {
			mu.Lock()
			defer mu.Unlock()
			return others
		}
		follow, err := published(p.Paths, doors, func(list []string) {
			mu.Lock()
			others = slices.DeleteFunc(list, func(addr string) bool { return addr == p.Self })
			mu.Unlock()
			select {
			case changed <- struct{}{}:
			default:
			}
		})
		if err != nil {
			return err
		}
		var following sync.WaitGroup
		defer following.Wait()
		following.Go(func() { follow(ctx) })
		return tunnel.NewAgent(o).Run(ctx, ready)
	})
}

// tunnelOptions are what a node's tunnels need to know, but for the servers.
func tunnelOptions(p plan.Tunnels, log *slog.Logger) tunnel.AgentOptions {
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if p.Addresses[0].Is6() {
		loopback = netip.IPv6Loopback()
	}
	o := tunnel.AgentOptions{
		Dial:    func(ctx context.Context, addr string) (net.Conn, error) { return dial(ctx, p.Paths, addr, true) },
		Kubelet: net.JoinHostPort(loopback.String(), "10250"),
		Log:     log,
	}
	switch tunnel.Mode(p.Mode) {
	case tunnel.ModePod:
		o.Reach = func() []netip.Prefix { return p.PodCIDR }
	case tunnel.ModeCluster:
		reach := slices.Clone(p.PodCIDR)
		for _, a := range p.Addresses {
			reach = append(reach, netip.PrefixFrom(a, a.BitLen()))
		}
		o.Reach = func() []netip.Prefix { return reach }
	}
	return o
}

// published returns what calls set with the API servers that the cluster publishes, and
// again whenever they change, until its context ends.
func published(p paths.Paths, doors *gate.Gate, set func([]string)) (follow func(context.Context), err error) {
	client, err := kubeconfig.Clientset(p.AgentKubeconfig("podo-node"), doors.Dial)
	if err != nil {
		return nil, err
	}
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(metav1.NamespaceDefault),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = discoveryv1.LabelServiceName + "=kubernetes" }))
	informer := factory.Discovery().V1().EndpointSlices().Informer()
	tell := func(any) {
		var list []discoveryv1.EndpointSlice
		for _, o := range informer.GetStore().List() {
			list = append(list, *o.(*discoveryv1.EndpointSlice))
		}
		set(join.Addresses(list))
	}
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: tell, DeleteFunc: tell, UpdateFunc: func(_, o any) { tell(o) },
	}); err != nil {
		return nil, err
	}
	return func(ctx context.Context) {
		factory.StartWithContext(ctx)
		<-ctx.Done()
		factory.Shutdown()
	}, nil
}

// dial connects to one server with TLS, as this node if it is to be known.
func dial(ctx context.Context, p paths.Paths, addr string, known bool) (net.Conn, error) {
	ca, err := os.ReadFile(p.AgentCA(pki.ServerCA))
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	c := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: host, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	c.RootCAs.AppendCertsFromPEM(ca)
	if known {
		leaf := p.AgentLeaf("kubelet")
		cert, err := tls.LoadX509KeyPair(leaf.Cert, leaf.Key)
		if err != nil {
			return nil, err
		}
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	}
	return (&tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: c}).DialContext(ctx, "tcp", addr)
}
