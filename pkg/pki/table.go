package pki

import (
	"crypto/x509"
	"net/netip"
	"slices"

	"github.com/podo-dev/podo/pkg/paths"
)

// The certificate authorities. Kubernetes demands that those of clients and of the
// aggregation layer differ: one who may speak for others must not be taken for a
// user of his own. Kubelets have one of their own so that no certificate a node can
// obtain, whatever names are in it, is ever taken for an API server's.
const (
	ServerCA        = "server"         // signs what API servers present
	KubeletCA       = "kubelet"        // signs what kubelets present
	ClientCA        = "client"         // signs what callers present
	RequestHeaderCA = "request-header" // signs what the aggregation layer presents
	EtcdCA          = "etcd"           // signs what members of the datastore and their callers present
)

// FrontProxy is the only common name that the aggregation layer is trusted by.
const FrontProxy = "front-proxy-client"

// Usage is what a certificate may be shown for.
type Usage int

// The usages of leaf certificates.
const (
	Client Usage = iota
	Serving
	Both
)

// A Leaf is one row of the table: a certificate that some component presents.
type Leaf struct {
	Name  string // of its files, without ending
	CA    string
	CN    string
	Orgs  []string
	Usage Usage
	DNS   []string
	IPs   []netip.Addr
	Node  bool // presented by a node; otherwise by the control plane

	Holder string // whom it was given to, as whoever checks that tells them apart
}

// Names is what the table's names depend on.
type Names struct {
	Node          string
	HostName      string
	NodeIPs       []netip.Addr // external ones included
	ServiceIPs    []netip.Addr // first address of each service range
	ClusterDomain string
	ExtraSANs     []string // host names or addresses
	Etcd          bool     // this server runs a member of the datastore
}

// Table lists every leaf certificate of a server and of the node on it.
func Table(n Names) []Leaf {
	apiNames, apiIPs := n.apiServer()
	hostNames, hostIPs := n.host()
	masters := []string{"system:masters"}
	var members []Leaf
	if n.Etcd {
		members = []Leaf{
			{Name: "etcd-server", CA: EtcdCA, CN: "etcd-server", Usage: Serving, DNS: hostNames, IPs: hostIPs},
			{Name: "etcd-peer", CA: EtcdCA, CN: "etcd-peer", Usage: Both, DNS: hostNames, IPs: hostIPs},
			{Name: "etcd-client", CA: EtcdCA, CN: "etcd-client"},
		}
	}
	return append([]Leaf{
		{Name: "kube-apiserver", CA: ServerCA, CN: "kube-apiserver", Usage: Serving, DNS: apiNames, IPs: apiIPs},
		{Name: "kube-apiserver-kubelet", CA: ClientCA, CN: "system:kube-apiserver-kubelet", Orgs: masters},
		{Name: "front-proxy", CA: RequestHeaderCA, CN: FrontProxy},
		{Name: "admin", CA: ClientCA, CN: "system:admin", Orgs: masters},
		{Name: "podo", CA: ClientCA, CN: "system:podo", Orgs: masters},
		{Name: "kube-controller-manager", CA: ClientCA, CN: "system:kube-controller-manager"},
		{Name: "kube-scheduler", CA: ClientCA, CN: "system:kube-scheduler"},

		{Name: "kubelet", CA: ClientCA, CN: "system:node:" + n.Node, Orgs: []string{"system:nodes"}, Node: true},
		{Name: "kubelet-serving", CA: KubeletCA, CN: "system:node:" + n.Node, Orgs: []string{"system:nodes"}, Usage: Serving, DNS: hostNames, IPs: hostIPs, Node: true},
		// Flannel reads every node, which a kubelet's identity may not.
		{Name: "podo-node", CA: ClientCA, CN: "system:podo-node:" + n.Node, Orgs: []string{"system:podo-nodes"}, Node: true},
		{Name: "kube-proxy", CA: ClientCA, CN: "system:kube-proxy", Node: true},
	}, members...)
}

// NodeTable lists the rows that a node presents.
func NodeTable(n Names) []Leaf {
	return slices.DeleteFunc(Table(n), func(l Leaf) bool { return !l.Node })
}

// Files is where a leaf's certificate and key are kept.
func (l Leaf) Files(p paths.Paths) paths.Pair {
	if l.Node {
		return p.AgentLeaf(l.Name)
	}
	return p.ServerLeaf(l.Name)
}

func (l Leaf) extUsage() []x509.ExtKeyUsage {
	switch l.Usage {
	case Serving:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	case Both:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	return []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
}

// apiServer is every name the API is reached by.
func (n Names) apiServer() (dns []string, ips []netip.Addr) {
	dns = []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc"}
	if n.ClusterDomain != "" {
		dns = append(dns, "kubernetes.default.svc."+n.ClusterDomain)
	}
	hostNames, hostIPs := n.host()
	dns = append(dns, hostNames...)
	ips = append(slices.Clone(n.ServiceIPs), hostIPs...)
	for _, san := range n.ExtraSANs {
		if ip, err := netip.ParseAddr(san); err == nil {
			ips = append(ips, ip)
		} else {
			dns = append(dns, san)
		}
	}
	return distinct(dns), distinctIPs(ips)
}

// host is every name this machine is reached by.
func (n Names) host() (dns []string, ips []netip.Addr) {
	dns = distinct([]string{"localhost", n.Node, n.HostName})
	ips = append([]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, n.NodeIPs...)
	return dns, distinctIPs(ips)
}

// distinct drops empty and repeated names and keeps the order.
func distinct(in []string) []string {
	var out []string
	for _, s := range in {
		if s != "" && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

func distinctIPs(in []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, ip := range in {
		if ip = ip.Unmap().WithZone(""); ip.IsValid() && !slices.Contains(out, ip) {
			out = append(out, ip)
		}
	}
	return out
}
