package server

import (
	"context"
	"crypto/x509"
	"errors"
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
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/gate"
	"github.com/podo-dev/podo/pkg/join"
	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/pki"
	"github.com/podo-dev/podo/pkg/plan"
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
	owners join.Owners            // likewise
	pods   cache.Indexer          // by address; nil in a mode that needs none
}

func newSupervisor(p plan.Server, t *keyring, store Store, g *gate.Gate, log *slog.Logger) *supervisor {
	s := &supervisor{plan: p, trust: t, gate: g, store: store, log: log}
	s.hub = tunnel.NewHub(tunnel.Mode(p.Egress.Mode), s.owner, log)
	return s
}

// front puts podo's own paths before the Kubernetes API.
func (s *supervisor) front(next http.Handler) http.Handler {
	next = static("/static/charts/", s.plan.Paths.StaticCharts(), next)
	return join.Handler(join.Options{
		Cluster:     s.plan.Cluster,
		Authorities: s.trust.authorities,
		Tokens:      s.trust.forAgents,
		Records:     s.records,
		Owners:      s.identities,
		Servers:     s.servers,
		Tunnel:      s.hub.Accept,
		Peers: join.Peers{
			Token:    s.trust.forServers,
			Bundle:   s.trust.bundle,
			Settings: s.plan.Shared,
			Members:  s.members,
			Live:     s.live,
			Apart:    s.plan.APIServer == nil,
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
		client, err := kubeconfig.Clientset(s.plan.Paths.ServerKubeconfig("podo"), s.gate.Dial)
		if err != nil {
			return err
		}
		factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(addressesOnly))
		lister := factory.Core().V1().Nodes().Lister()
		if store, ok := s.store.(members); ok {
			l := newLeavers(store.Admin, func(address string) bool { return stands(lister, address) }, s.log)
			if _, err := factory.Core().V1().Nodes().Informer().AddEventHandler(l.hear()); err != nil {
				return err
			}
			go l.run(ctx)
		}
		var pods cache.Indexer
		if s.plan.APIServer != nil && tunnel.Mode(s.plan.Egress.Mode) == tunnel.ModeCluster {
			known := factory.Core().V1().Pods().Informer()
			if err := known.AddIndexers(cache.Indexers{byAddress: addressesOf}); err != nil {
				return err
			}
			pods = known.GetIndexer()
		}
		factory.StartWithContext(ctx)
		defer factory.Shutdown()
		factory.WaitForCacheSyncWithContext(ctx)
		owners, err := join.WatchOwners(ctx, client)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if s.plan.APIServer == nil {
			// The server that let this one in has judged whether the name is free.
			free := func(context.Context, string) (bool, error) { return false, nil }
			if err := s.claim(ctx, client, free); err != nil {
				return err
			}
		}
		s.mu.Lock()
		s.client, s.nodes, s.owners, s.pods = client, lister, owners, pods
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

// settle notes that this server's node is this machine, before the kubelet may say so.
// If the name is that of another machine which is at work, it returns a *join.Refusal.
func (s *supervisor) settle(ctx context.Context, rc *rest.Config) error {
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return err
	}
	return s.claim(ctx, client, func(ctx context.Context, node string) (bool, error) {
		return s.atWork(ctx, client, node)
	})
}

func (s *supervisor) claim(ctx context.Context, client kubernetes.Interface, atWork func(context.Context, string) (bool, error)) error {
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
		err := join.NewRecords(client).ClaimServer(ctx, s.plan.NodeName, public, atWork)
		if _, refused := errors.AsType[*join.Refusal](err); err == nil || refused {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		s.log.Debug("own name not claimed yet", "component", "supervisor", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// atWork watches a node until it is certain that it is at work, since its lease is
// renewed, or that it is not, since that ends.
func (s *supervisor) atWork(ctx context.Context, client kubernetes.Interface, node string) (bool, error) {
	var first *metav1.MicroTime
	for {
		live, renewed, err := alive(ctx, client, node)
		if err != nil || !live {
			return false, err
		}
		switch {
		case renewed == nil:
		case first == nil:
			first = renewed
			s.log.Info("waiting to see whether another machine works under this name", "component", "supervisor", "node", node)
		case !renewed.Equal(first):
			return true, nil
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// members are the client URLs of the datastore's members.
func (s *supervisor) members(ctx context.Context) ([]string, error) {
	store, ok := s.store.(members)
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

// newNode is how long a node's kubelet may take to its first lease, which it tries for ever
// more rarely while no API server answers (Kubernetes 1.36: every seven seconds).
const newNode = 30 * time.Second

// live reports whether a node has renewed its lease lately, or is too new to have one.
func (s *supervisor) live(ctx context.Context, node string) (bool, error) {
	client, _, err := s.api()
	if err != nil {
		return false, err
	}
	live, _, err := alive(ctx, client, node)
	return live, err
}

// alive reports whether a node has been heard of lately, and when it renewed its lease.
func alive(ctx context.Context, client kubernetes.Interface, node string) (bool, *metav1.MicroTime, error) {
	lease, err := client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, node, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		n, err := client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return false, nil, nil
		}
		return err == nil && time.Since(n.CreationTimestamp.Time) < newNode, nil, err
	}
	if err != nil {
		return false, nil, err
	}
	renewed := lease.Spec.RenewTime
	if renewed == nil || lease.Spec.LeaseDurationSeconds == nil {
		return false, renewed, nil
	}
	return time.Since(renewed.Time) < time.Duration(*lease.Spec.LeaseDurationSeconds)*time.Second, renewed, nil
}

// addressesOnly keeps of a node or a pod what owner asks for; the rest would be memory.
func addressesOnly(object any) (any, error) {
	switch o := object.(type) {
	case *corev1.Node:
		return &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion},
			Spec:       corev1.NodeSpec{PodCIDRs: o.Spec.PodCIDRs},
			Status:     corev1.NodeStatus{Addresses: o.Status.Addresses, DaemonEndpoints: o.Status.DaemonEndpoints},
		}, nil
	case *corev1.Pod:
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion},
			Spec:       corev1.PodSpec{NodeName: o.Spec.NodeName, HostNetwork: o.Spec.HostNetwork},
			Status:     corev1.PodStatus{Phase: o.Status.Phase, PodIPs: o.Status.PodIPs},
		}, nil
	}
	return object, nil
}

// byAddress finds pods by their addresses.
const byAddress = "address"

// addressesOf are those that no other pod can have: a pod on its node's network has
// none, and one that has ended gave them back.
func addressesOf(object any) ([]string, error) {
	p, ok := object.(*corev1.Pod)
	if !ok || p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return nil, nil
	}
	var out []string
	for _, a := range p.Status.PodIPs {
		out = append(out, a.IP)
	}
	return out, nil
}

func (s *supervisor) api() (kubernetes.Interface, corelisters.NodeLister, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client == nil {
		return nil, nil, join.ErrStarting
	}
	return s.client, s.nodes, nil
}

// known lists the nodes of the cluster.
func (s *supervisor) known() ([]*corev1.Node, error) {
	_, lister, err := s.api()
	if err != nil {
		return nil, err
	}
	return lister.List(labels.Everything())
}

// kubelets is how the control plane asks kubelets: as the API server does, by the
// tunnels.
func (s *supervisor) kubelets() *rest.Config {
	caller := s.plan.Paths.ServerLeaf("kube-apiserver-kubelet")
	return &rest.Config{
		TLSClientConfig: rest.TLSClientConfig{CAFile: s.plan.Paths.CA(pki.KubeletCA).Cert, CertFile: caller.Cert, KeyFile: caller.Key},
		Dial:            s.hub.DialBy(s.named),
	}
}

func (s *supervisor) records() (*join.Records, error) {
	client, _, err := s.api()
	if err != nil {
		return nil, err
	}
	return join.NewRecords(client), nil
}

func (s *supervisor) identities() (join.Owners, error) {
	_, _, err := s.api()
	return s.owners, err // written once, before the API counts as ready
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

// named is the node of a name. Only who means a node asks for it: a node may be called like
// anything that API servers connect to.
func (s *supervisor) named(name string) (tunnel.Place, bool) {
	_, lister, err := s.api()
	if err != nil {
		return tunnel.Place{}, false
	}
	n, err := lister.Get(name)
	if err != nil {
		return tunnel.Place{}, false
	}
	return s.place(n), true
}

// owner says which node an address is of: one that has it itself, before one that says so of
// a pod. Nothing keeps two nodes behind two routers from having the same address; one that
// several claim is nobody's, and is dialled.
func (s *supervisor) owner(host string) (tunnel.Place, bool) {
	_, lister, err := s.api()
	if err != nil {
		return tunnel.Place{}, false
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return tunnel.Place{}, false
	}
	all, err := lister.List(labels.Everything())
	if err != nil {
		return tunnel.Place{}, false
	}
	var found, ranges []tunnel.Place
	for _, n := range all {
		p := s.place(n)
		switch {
		case slices.ContainsFunc(n.Status.Addresses, func(a corev1.NodeAddress) bool { return a.Address == host }):
			found = append(found, p)
		case slices.ContainsFunc(n.Spec.PodCIDRs, func(c string) bool { return contains(c, ip) }):
			p.Pod = true
			p.Addr = "" // a pod is not dialled at its node's address
			ranges = append(ranges, p)
		}
	}
	if len(found) == 0 {
		if node := s.home(host); node != "" {
			return tunnel.Place{Node: node, Pod: true}, node != s.plan.NodeName
		}
		found = ranges
	}
	if len(found) != 1 || found[0].Node == s.plan.NodeName {
		return tunnel.Place{}, false
	}
	return found[0], true
}

// home is the node of the one pod that has an address, as its object says: a pod network
// that podo did not make need not keep to the nodes' ranges. It is empty if the mode
// does not ask for it, or if there is no such pod.
func (s *supervisor) home(address string) string {
	s.mu.Lock()
	pods := s.pods
	s.mu.Unlock()
	if pods == nil {
		return ""
	}
	found, err := pods.ByIndex(byAddress, address)
	if err != nil || len(found) != 1 {
		return ""
	}
	return found[0].(*corev1.Pod).Spec.NodeName
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

// stands reports whether some node has an address.
func stands(nodes corelisters.NodeLister, address string) bool {
	all, err := nodes.List(labels.Everything())
	return err == nil && slices.ContainsFunc(all, func(n *corev1.Node) bool {
		return slices.ContainsFunc(n.Status.Addresses, func(a corev1.NodeAddress) bool { return a.Address == address })
	})
}
