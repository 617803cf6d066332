package server

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/gate"
	"github.com/podo-dev/podo/pkg/join"
	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/pki"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/storage/etcd"
	"github.com/podo-dev/podo/pkg/tunnel"
)

// supervisor is podo's own side of the API port: it lets machines join, and keeps
// the tunnels by which their kubelets are reached.
type supervisor struct {
	plan  plan.Server
	trust *keyring
	gate  *gate.Gate
	hub   *tunnel.Hub
	store Store
	log   *slog.Logger

	mu     sync.Mutex
	client kubernetes.Interface   // nil until the API is ready
	nodes  corelisters.NodeLister // likewise
}

func newSupervisor(p plan.Server, t *keyring, store Store, g *gate.Gate, log *slog.Logger) *supervisor {
	s := &supervisor{plan: p, trust: t, gate: g, store: store, log: log}
	s.hub = tunnel.NewHub(tunnel.Mode(p.Egress.Mode), s.owner, log)
	return s
}

// front puts podo's own paths before the Kubernetes API.
func (s *supervisor) front(next http.Handler) http.Handler {
	return join.Handler(join.Options{
		Cluster:     s.plan.Cluster,
		Authorities: s.trust.authorities,
		Tokens:      s.trust.forAgents,
		Records:     s.records,
		Servers:     s.servers,
		Tunnel:      s.hub.Accept,
		Peers: join.Peers{
			Token:    s.trust.forServers,
			Bundle:   s.trust.bundle,
			Settings: s.plan.Shared,
			Members:  s.members,
			Live:     s.live,
		},
		Now: time.Now,
		Log: s.log,
	}, next)
}

// egress serves the API server's connections to nodes, and tells it so.
func (s *supervisor) egress() lifecycle.Component {
	e := s.plan.Egress
	connect := tunnel.Connect(s.hub, e.Socket)
	return lifecycle.Func(connect.Name(), func(ctx context.Context, ready func()) error {
		if err := atomicfile.Write(e.Config, tunnel.EgressConfig(tunnel.Mode(e.Mode), e.Socket), 0o600); err != nil {
			return err
		}
		return connect.Run(ctx, ready)
	})
}

// component knows the cluster's nodes, once the API is there to tell.
func (s *supervisor) component() lifecycle.Component {
	return lifecycle.Func("supervisor", func(ctx context.Context, ready func()) error {
		rc, err := kubeconfig.Client(s.plan.Paths.ServerKubeconfig("podo"), s.gate.Dial)
		if err != nil {
			return err
		}
		client, err := kubernetes.NewForConfig(rc)
		if err != nil {
			return err
		}
		factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(addressesOnly))
		lister := factory.Core().V1().Nodes().Lister()
		factory.StartWithContext(ctx)
		defer factory.Shutdown()
		factory.WaitForCacheSyncWithContext(ctx)
		// No agent may take the name of this server's own node.
		if err := s.claim(ctx, client); err != nil {
			return err
		}
		s.mu.Lock()
		s.client, s.nodes = client, lister
		s.mu.Unlock()
		ready()
		s.count(ctx)
		<-ctx.Done()
		return nil
	})
}

// count warns of a cluster that is worse off than with one server.
func (s *supervisor) count(ctx context.Context) {
	if list, err := s.members(ctx); err == nil && len(list) == 2 {
		s.log.Warn("two servers are worth less than one: the loss of either stops the cluster; add a third", "component", "supervisor")
	}
}

// claim notes that this server's node is this machine. A server holds the keys of
// the cluster, so nobody's word counts more.
func (s *supervisor) claim(ctx context.Context, client kubernetes.Interface) error {
	if s.plan.NodeName == "" {
		return nil
	}
	key, err := pki.EnsureKey(s.plan.Paths.Identity())
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	for {
		if err = join.NewRecords(client).Claim(ctx, s.plan.NodeName, public, true); err == nil || ctx.Err() != nil {
			return nil
		}
		s.log.Debug("own name not claimed yet", "component", "supervisor", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// members are the client URLs of the datastore's members.
func (s *supervisor) members(ctx context.Context) ([]string, error) {
	store, ok := s.store.(*etcd.Store)
	if !ok {
		return nil, join.ErrAlone
	}
	admin, err := store.Admin()
	if err != nil {
		return nil, err
	}
	list, err := admin.Members(ctx)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, m := range list {
		if m.Client != "" && !m.Learner {
			out = append(out, m.Client)
		}
	}
	return out, nil
}

// live reports whether a node has renewed its lease lately.
func (s *supervisor) live(ctx context.Context, node string) (bool, error) {
	client, _, err := s.api()
	if err != nil {
		return false, err
	}
	lease, err := client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, node, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && (lease.Spec.RenewTime == nil || lease.Spec.LeaseDurationSeconds == nil) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return time.Since(lease.Spec.RenewTime.Time) < time.Duration(*lease.Spec.LeaseDurationSeconds)*time.Second, nil
}

// addressesOnly keeps of a node what owner asks for; the rest would be memory.
func addressesOnly(object any) (any, error) {
	n, ok := object.(*corev1.Node)
	if !ok {
		return object, nil
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion},
		Spec:       corev1.NodeSpec{PodCIDRs: n.Spec.PodCIDRs},
		Status:     corev1.NodeStatus{Addresses: n.Status.Addresses, DaemonEndpoints: n.Status.DaemonEndpoints},
	}, nil
}

func (s *supervisor) api() (kubernetes.Interface, corelisters.NodeLister, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client == nil {
		return nil, nil, join.ErrStarting
	}
	return s.client, s.nodes, nil
}

func (s *supervisor) records() (*join.Records, error) {
	client, _, err := s.api()
	if err != nil {
		return nil, err
	}
	return join.NewRecords(client), nil
}

// servers are the addresses that the API servers have published of themselves.
func (s *supervisor) servers(ctx context.Context) ([]string, error) {
	client, _, err := s.api()
	if err != nil {
		return nil, err
	}
	list, err := client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=kubernetes"})
	if err != nil {
		return nil, err
	}
	return join.Addresses(list.Items), nil
}

// owner says which node a name or an address is of. Nothing keeps two nodes behind two
// routers from having the same address; one that several claim is nobody's, and is
// dialled.
func (s *supervisor) owner(host string) (tunnel.Place, bool) {
	_, lister, err := s.api()
	if err != nil {
		return tunnel.Place{}, false
	}
	if n, err := lister.Get(host); err == nil {
		return s.place(n), true
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return tunnel.Place{}, false
	}
	all, err := lister.List(labels.Everything())
	if err != nil {
		return tunnel.Place{}, false
	}
	var found []tunnel.Place
	for _, n := range all {
		p := s.place(n)
		switch {
		case slices.ContainsFunc(n.Status.Addresses, func(a corev1.NodeAddress) bool { return a.Address == host }):
			found = append(found, p)
		case slices.ContainsFunc(n.Spec.PodCIDRs, func(c string) bool { return contains(c, ip) }):
			p.Pod = true
			p.Addr = "" // a pod is not dialled at its node's address
			found = append(found, p)
		}
	}
	if len(found) != 1 || found[0].Node == s.plan.NodeName {
		return tunnel.Place{}, false
	}
	return found[0], true
}

// place is where a node's kubelet is.
func (s *supervisor) place(n *corev1.Node) tunnel.Place {
	p := tunnel.Place{Node: n.Name, KubeletPort: uint16(n.Status.DaemonEndpoints.KubeletEndpoint.Port)}
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			p.Addr = a.Address
			break
		}
	}
	return p
}

func contains(cidr string, ip netip.Addr) bool {
	p, err := netip.ParsePrefix(cidr)
	return err == nil && p.Contains(ip)
}
