// Package loadbalancer gives Services of type LoadBalancer the addresses of nodes.
//
// It writes those into a Service's status, and that is all: kube-proxy has rules on
// every node for each address it finds there, and they carry the traffic. So there are
// no pods and no processes to pass a packet through, and what was published goes on
// while podo is away.
//
// Decide is the whole of the judgement and touches nothing. The controller around it
// watches, writes what was decided, and says in events what could not be had.
package loadbalancer

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/podo-dev/podo/pkg/plan"
)

// Class is the loadBalancerClass that asks for nodes' addresses. So does a Service
// without any.
const Class = "podo.dev/node"

// Condition is the type of the condition that says on a Service what became of it. It
// is also what tells a Service that this package looks after from others.
const Condition = "podo.dev/Published"

// Labels that choose nodes, with the names that users of ServiceLB know. Ours count
// where both are there.
const (
	enableLabel    = "podo.dev/load-balancer"
	enableLabelK3s = "svccontroller.k3s.cattle.io/enablelb"
	poolLabel      = "podo.dev/load-balancer-pool"
	poolLabelK3s   = "svccontroller.k3s.cattle.io/lbpool"
)

// Roles of the nodes that servers run on, as package server labels them.
const (
	serverLabel = "node-role.kubernetes.io/control-plane"
	etcdLabel   = "node-role.kubernetes.io/etcd"
)

// Reasons of the condition.
const (
	reasonPublished = "Published"
	reasonTaken     = "PortTaken"
	reasonEndpoints = "NoEndpoints"
	reasonNodes     = "NoNodes"
)

// Cluster is what a decision is made from.
type Cluster struct {
	Services []*corev1.Service
	Nodes    []*corev1.Node
	Slices   []*discoveryv1.EndpointSlice
	Pods     []*corev1.Pod // at least those with ports of the host
	Ports    plan.LoadBalancer
}

// A Verdict is what becomes of one Service.
type Verdict struct {
	Service *corev1.Service
	Ingress []corev1.LoadBalancerIngress
	Status  metav1.ConditionStatus
	Reason  string
	Message string
}

// Ours reports whether a Service asks for addresses of nodes.
func Ours(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.DeletionTimestamp == nil &&
		(s.Spec.LoadBalancerClass == nil || *s.Spec.LoadBalancerClass == Class)
}

// port is one that something on a node answers at.
type port struct {
	number   int32
	protocol corev1.Protocol
}

func (p port) String() string { return fmt.Sprintf("%d/%s", p.number, p.protocol) }

// holder is whom a port of a node belongs to.
type holder struct {
	service types.NamespacedName // if it is one
	text    string
}

// Decide says for each Service that is ours at which nodes it is published.
//
// A node's address is published with all ports of a Service or not at all, since
// kube-proxy takes it for all. What the node itself needs goes first: its own parts,
// ports of the host that pods have, node ports. Then come Services that have a port
// already, then the older ones. So a Service never loses a port to another, and two
// runs on the same cluster decide the same.
func Decide(c Cluster) []Verdict {
	d := &decision{Cluster: c, everywhere: nodePorts(c.Services), endpoints: endpoints(c.Slices)}
	d.Nodes = slices.SortedFunc(slices.Values(c.Nodes), func(a, b *corev1.Node) int { return cmp.Compare(a.Name, b.Name) })
	for _, s := range slices.SortedFunc(slices.Values(c.Services), older) {
		if Ours(s) {
			d.claims = append(d.claims, d.claim(s))
		}
	}
	for _, n := range d.Nodes {
		d.share(n)
	}
	var out []Verdict
	for _, c := range d.claims {
		out = append(out, c.verdict())
	}
	return out
}

func older(a, b *corev1.Service) int {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

type decision struct {
	Cluster
	everywhere map[port]holder                          // taken on all nodes
	endpoints  map[types.NamespacedName]map[string]bool // names of nodes with ready ones, by Service
	claims     []*claim
}

// share gives the ports of a node to the Services that ask for it.
func (d *decision) share(n *corev1.Node) {
	var asking []*claim
	at := addressesOf(n)
	for _, c := range d.claims {
		if c.nodes[n.Name] && len(at.of(c.service.Spec.IPFamilies)) > 0 {
			asking = append(asking, c)
		}
	}
	if len(asking) == 0 {
		return
	}
	taken := d.taken(n)
	for _, c := range asking {
		if !publishes(c.service, n) {
			continue
		}
		for _, p := range c.ports {
			if _, held := taken[p]; !held && had(c.service, p) {
				taken[p] = c.holder()
			}
		}
	}
	for _, c := range asking {
		c.settle(n, at.of(c.service.Spec.IPFamilies), taken)
	}
}

// taken are the ports of a node that are not to be had.
func (d *decision) taken(n *corev1.Node) map[port]holder {
	out := map[port]holder{}
	for _, p := range reported(n) {
		out[p] = holder{text: "a program of the machine"}
	}
	for p, h := range d.everywhere {
		out[p] = h
	}
	for _, pod := range d.Pods {
		if pod.Spec.NodeName != n.Name {
			continue
		}
		for _, p := range hostPorts(pod, n) {
			out[p] = holder{text: "pod " + pod.Namespace + "/" + pod.Name}
		}
	}
	own := slices.Clone(d.Ports.Nodes)
	_, server := n.Labels[serverLabel]
	_, member := n.Labels[etcdLabel]
	if server || member {
		own = append(own, d.Ports.Servers...)
	}
	if kubelet := n.Status.DaemonEndpoints.KubeletEndpoint.Port; kubelet != 0 {
		own = append(own, plan.Port{Number: kubelet, Protocol: "TCP"})
	}
	for _, p := range own {
		out[port{p.Number, corev1.Protocol(p.Protocol)}] = holder{text: "podo itself"}
	}
	return out
}

// nodePorts are those that kube-proxy answers at on every node.
func nodePorts(services []*corev1.Service) map[port]holder {
	out := map[port]holder{}
	for _, s := range services {
		h := holder{service: name(s), text: "the node port of Service " + name(s).String()}
		for _, p := range s.Spec.Ports {
			if p.NodePort != 0 {
				out[port{p.NodePort, p.Protocol}] = h
			}
		}
		if p := s.Spec.HealthCheckNodePort; p != 0 {
			out[port{p, corev1.ProtocolTCP}] = holder{text: "the health check of Service " + name(s).String()}
		}
	}
	return out
}

// hostPorts are the ports of its node that a pod has. Those of a pod on the node's
// network are the ones that it declares.
func hostPorts(pod *corev1.Pod, n *corev1.Node) []port {
	if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return nil
	}
	var out []port
	for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for _, c := range list {
			for _, p := range c.Ports {
				if p.HostPort != 0 && reaches(p.HostIP, n) {
					out = append(out, port{p.HostPort, p.Protocol})
				}
			}
		}
	}
	return out
}

// reaches reports whether a port on hostIP is in the way of one on a node's addresses.
func reaches(hostIP string, n *corev1.Node) bool {
	ip, err := netip.ParseAddr(hostIP)
	return err != nil || ip.IsUnspecified() ||
		slices.ContainsFunc(n.Status.Addresses, func(a corev1.NodeAddress) bool { return a.Address == ip.String() })
}

// claim is one Service's, on the nodes that may publish it.
type claim struct {
	service   *corev1.Service
	ports     []port
	nodes     map[string]bool
	local     bool // it is for want of endpoints that there are no nodes
	addresses []netip.Addr
	refused   []string
}

func (d *decision) claim(s *corev1.Service) *claim {
	c := &claim{service: s, nodes: map[string]bool{}}
	for _, p := range s.Spec.Ports {
		c.ports = append(c.ports, port{p.Port, p.Protocol})
	}
	nodes := d.fit(s)
	if s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		ready := d.endpoints[name(s)]
		c.local = len(nodes) > 0
		nodes = slices.DeleteFunc(nodes, func(n *corev1.Node) bool { return !ready[n.Name] })
	}
	for _, n := range nodes {
		c.nodes[n.Name] = true
	}
	return c
}

// fit are the nodes that a Service may be published at. A node has to be ready to begin
// with. Later, what its kubelet has to say against it does not change what its kernel
// does with a packet, so only one that is no longer heard of is withdrawn, and that
// only if another is left.
func (d *decision) fit(s *corev1.Service) []*corev1.Node {
	pool := d.pool(s)
	fit := filter(pool, func(n *corev1.Node) bool {
		r := ready(n)
		return r == corev1.ConditionTrue || r == corev1.ConditionFalse && publishes(s, n)
	})
	if len(fit) > 0 {
		return fit
	}
	return filter(pool, func(n *corev1.Node) bool { return publishes(s, n) })
}

// pool are the nodes that people chose for a Service by labels.
func (d *decision) pool(s *corev1.Service) []*corev1.Node {
	enabled := func(n *corev1.Node) string { return label(n.Labels, enableLabel, enableLabelK3s) }
	chosen := slices.ContainsFunc(d.Nodes, func(n *corev1.Node) bool { return enabled(n) == "true" })
	pool := label(s.Labels, poolLabel, poolLabelK3s)
	return filter(d.Nodes, func(n *corev1.Node) bool {
		_, excluded := n.Labels[corev1.LabelNodeExcludeBalancers]
		switch {
		case excluded, n.DeletionTimestamp != nil, enabled(n) == "false", chosen && enabled(n) != "true":
			return false
		}
		return pool == "" || pool == label(n.Labels, poolLabel, poolLabelK3s)
	})
}

func (c *claim) holder() holder {
	return holder{service: name(c.service), text: "Service " + name(c.service).String()}
}

// settle publishes the Service at n, which has these addresses, if its ports are to be
// had there.
func (c *claim) settle(n *corev1.Node, at []netip.Addr, taken map[port]holder) {
	for _, p := range c.ports {
		if by, held := taken[p]; held && by.service != name(c.service) {
			c.refused = append(c.refused, fmt.Sprintf("port %s of node %s belongs to %s", p, n.Name, by.text))
			return
		}
	}
	for _, p := range c.ports {
		taken[p] = c.holder()
	}
	for _, a := range at {
		if !slices.Contains(c.addresses, a) {
			c.addresses = append(c.addresses, a)
		}
	}
}

// many is how many refusals a message spells out.
const many = 5

func (c *claim) verdict() Verdict {
	v := Verdict{Service: c.service, Status: metav1.ConditionTrue, Reason: reasonPublished, Message: "at the addresses of nodes"}
	var ports []corev1.PortStatus
	for _, p := range c.ports {
		ports = append(ports, corev1.PortStatus{Port: p.number, Protocol: p.protocol})
	}
	for _, a := range c.addresses {
		v.Ingress = append(v.Ingress, corev1.LoadBalancerIngress{IP: a.String(), IPMode: ptr.To(corev1.LoadBalancerIPModeVIP), Ports: ports})
	}
	if len(c.addresses) == 0 {
		v.Status = metav1.ConditionFalse
	}
	switch {
	case len(c.refused) > 0:
		v.Reason, v.Message = reasonTaken, strings.Join(c.refused[:min(len(c.refused), many)], "; ")
		if more := len(c.refused) - many; more > 0 {
			v.Message += fmt.Sprintf("; and %d more", more)
		}
	case len(c.addresses) > 0:
	case c.local:
		v.Reason, v.Message = reasonEndpoints, "externalTrafficPolicy is Local, and no node has a ready endpoint"
	default:
		v.Reason, v.Message = reasonNodes, "no node is ready that labels allow and that has an address of the Service's families"
	}
	return v
}

// endpoints are the names of the nodes on which each Service has ready ones.
func endpoints(all []*discoveryv1.EndpointSlice) map[types.NamespacedName]map[string]bool {
	out := map[types.NamespacedName]map[string]bool{}
	for _, s := range all {
		service := types.NamespacedName{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
		for _, e := range s.Endpoints {
			if e.NodeName == nil || !ptr.Deref(e.Conditions.Ready, true) {
				continue
			}
			if out[service] == nil {
				out[service] = map[string]bool{}
			}
			out[service][*e.NodeName] = true
		}
	}
	return out
}

// addresses are a node's, by family.
type addresses map[corev1.IPFamily][]netip.Addr

// addressesOf are what a node is reached by from outside, or failing that from the
// other nodes.
func addressesOf(n *corev1.Node) addresses {
	out := addresses{}
	for _, f := range []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol} {
		of := func(kind corev1.NodeAddressType) (found []netip.Addr) {
			for _, a := range n.Status.Addresses {
				if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == kind && ip.Is4() == (f == corev1.IPv4Protocol) {
					found = append(found, ip)
				}
			}
			return found
		}
		if out[f] = of(corev1.NodeExternalIP); len(out[f]) == 0 {
			out[f] = of(corev1.NodeInternalIP)
		}
	}
	return out
}

// of are those of some families, in their order.
func (a addresses) of(families []corev1.IPFamily) []netip.Addr {
	if len(families) == 1 {
		return a[families[0]]
	}
	var out []netip.Addr
	for _, f := range families {
		out = append(out, a[f]...)
	}
	return out
}

// publishes reports whether a Service is published at n as of now.
func publishes(s *corev1.Service, n *corev1.Node) bool {
	return slices.ContainsFunc(s.Status.LoadBalancer.Ingress, func(i corev1.LoadBalancerIngress) bool {
		return slices.ContainsFunc(n.Status.Addresses, func(a corev1.NodeAddress) bool { return a.Address == i.IP })
	})
}

// had reports whether p is one of the ports that a Service was published with.
func had(s *corev1.Service, p port) bool {
	return slices.ContainsFunc(s.Status.LoadBalancer.Ingress, func(i corev1.LoadBalancerIngress) bool {
		return slices.ContainsFunc(i.Ports, func(q corev1.PortStatus) bool { return port{q.Port, q.Protocol} == p })
	})
}

func ready(n *corev1.Node) corev1.ConditionStatus {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status
		}
	}
	return corev1.ConditionUnknown
}

func label(labels map[string]string, ours, theirs string) string {
	if v, ok := labels[ours]; ok {
		return v
	}
	return labels[theirs]
}

func name(s *corev1.Service) types.NamespacedName {
	return types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
}

func filter[T any](in []T, keep func(T) bool) []T {
	var out []T
	for _, x := range in {
		if keep(x) {
			out = append(out, x)
		}
	}
	return out
}
