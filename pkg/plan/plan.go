// Package plan decides what this node will run, and with what.
//
// New takes what a user said and what is true of the host, works out every default
// that depends on something, and returns a Plan that nothing changes afterwards.
// It does no I/O, so a golden file can show a decision and its reasons side by side.
package plan

import (
	"io/fs"
	"net/netip"
	"strconv"
	"strings"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/pki"
)

// A Plan is what one podo process runs. A nil part is not run.
type Plan struct {
	Server *Server
	Agent  *Agent // on a machine whose servers are others
	Node   *Node

	// Gates are Kubernetes feature gates. They are one set for the whole process.
	Gates map[string]bool
}

// Known is what the disk and the cluster say before anything is decided.
type Known struct {
	Datastore string   // kind that this server has: sqlite, etcd, remote or external; empty if none
	Members   []string // client URLs of the etcd members whose cluster this start has joined
}

// Server is the control plane.
type Server struct {
	Paths             paths.Paths
	Certificates      Certificates
	Storage           Storage
	APIServer         *APIServer         // nil: those of other servers are used
	Elsewhere         *Elsewhere         // how, in that case
	ControllerManager *ControllerManager // nil: none
	Scheduler         *Scheduler         // nil: none
	Addons            Addons
	Metrics           bool          // its API server tells what nodes and pods use
	LoadBalancer      *LoadBalancer // nil: none
	Kubeconfig        Kubeconfig
	API               string // URL of the API as this machine reaches it
	NodeName          string // of the node in this process; empty if there is none
	Cluster           Cluster
	Shared            map[string]string // settings that all servers must have the same, by name
	Egress            Egress
	Election          bool // several servers: only one has controllers and a scheduler at work
	Provision         bool // claims of the class local-path are granted
	Helm              bool // HelmCharts are installed
}

// Elsewhere is what a server without an API server does with its port, and how it
// reaches the API servers of others.
type Elsewhere struct {
	Bind     netip.Addr // of the port by which machines join
	Port     int
	Balancer netip.AddrPort // leads to the API servers
	First    []string       // host:port of the servers that may run one, to begin with
}

// Egress is how the API server reaches other nodes.
type Egress struct {
	Mode   string // agent, pod, cluster or disabled
	Config string // file that tells the API server; empty if it is to dial by itself
	Socket string // where it asks for connections
}

// An Agent is a node's tie to its servers.
type Agent struct {
	Paths   paths.Paths
	Joining Joining
	API     string         // URL by which the node's parts reach the API
	Listen  netip.AddrPort // of the balancer; invalid if there is none
	Tunnels *Tunnels       // to every server; nil: none
}

// Tunnels are the ways from API servers to a node.
type Tunnels struct {
	Paths     paths.Paths
	Mode      string         // agent, pod or cluster
	PodCIDR   []netip.Prefix // of the cluster
	Addresses []netip.Addr   // of the node
	Self      string         // host:port of the API server in this process; empty if there is none
}

// Joining is how a machine asks to be let in. It is decided before the rest, since
// what a node runs depends on the answer.
type Joining struct {
	Paths    paths.Paths
	Identity Identity
	Server   string // URL
	Token    config.Secret
	Unpinned bool
}

// An Identity is who a machine will be: its name, and every address it may be known
// by in a cluster whose IP families are not known yet.
type Identity struct {
	Name      string
	Addresses []netip.Addr
}

// Certificates is what the PKI issues for this process, and the join token.
type Certificates struct {
	Paths paths.Paths
	Names pki.Names
	Token config.Secret // as given; empty means make one
	Agent config.Secret // the agents' token, likewise
}

// Storage is the datastore: one of the four.
type Storage struct {
	SQLite   *SQLite
	Etcd     *Etcd
	Remote   *Remote
	External *External

	// From is the datastore whose content the etcd takes over before its first start.
	From *SQLite
}

// Client is how the datastore is reached once it runs.
func (s Storage) Client() EtcdClient {
	switch x := s.External; {
	case s.SQLite != nil:
		return EtcdClient{URLs: []string{"unix://" + s.SQLite.Socket}}
	case s.Etcd != nil:
		return EtcdClient{URLs: []string{"unix://" + s.Etcd.Socket}}
	case s.Remote != nil:
		return EtcdClient{URLs: []string{"https://" + s.Remote.Listen.String()}, CA: s.Remote.CA, Files: s.Remote.Caller}
	case x.Kind == "etcd":
		return EtcdClient{URLs: strings.Split(string(x.URL), ","), CA: x.CA, Files: x.Files}
	default:
		return EtcdClient{URLs: []string{"unix://" + x.Socket}}
	}
}

// EtcdClient is how something that speaks the etcd protocol is reached. A URL of a
// unix socket needs no files.
type EtcdClient struct {
	URLs  []string
	CA    string
	Files paths.Pair
}

// Remote is the etcd whose members are all on other servers of the cluster.
type Remote struct {
	Listen netip.AddrPort // on loopback, of a balancer over the members
	File   string         // keeps the list of them
	Marker string         // file that says which datastore the server has
	First  []string       // host:port to try where no member of the list answers
	Join   []string       // client URLs of the members, if this start has joined their cluster
	CA     string         // certificate of the authority that signs for members and callers
	Caller paths.Pair     // shown to members
}

// External is a datastore that others look after, and servers may share.
type External struct {
	config.Endpoint
	CA     string     // that its certificate must be of; empty: the machine's
	Files  paths.Pair // shown to it; empty: none
	Socket string     // where one that is no etcd is made to speak its protocol
	Marker string     // file that says which datastore the server has
}

// SQLite is one file, of one server.
type SQLite struct {
	DB     string
	Socket string // where it speaks the etcd protocol
}

// Etcd is one member of a datastore that several servers share.
type Etcd struct {
	Node    string           // name of the node; the member's name begins with it
	Dir     string           // holds the data, and nothing else
	Socket  string           // unix socket for this machine's API server; root's alone
	Peer    netip.AddrPort   // where the other members reach this one
	Client  netip.AddrPort   // where other servers reach it; loopback has the same port
	Metrics []netip.AddrPort // plain HTTP, figures and health only

	CA     string     // certificate of the authority that signs for members and callers
	Server paths.Pair // shown to callers
	Member paths.Pair // shown to members, as server and as client
	Caller paths.Pair // shown to members when this server asks them

	Init bool     // begin a cluster if there is none on the disk
	Join []string // client URLs of members to join if there is none on the disk
	Args []string // etcd's own flags as NAME=VALUE
}

// APIServer configures kube-apiserver.
type APIServer struct {
	Paths         paths.Paths
	Storage       EtcdClient
	Bind          netip.Addr
	Port          int
	Advertise     netip.Addr
	ServiceCIDR   []netip.Prefix
	NodePortRange string
	Several       bool // servers may be up at the same time
	Issuer        string
	EgressConfig  string   // file; empty means that every node is dialled
	Args          []string // from the user
}

// ControllerManager configures kube-controller-manager.
type ControllerManager struct {
	Paths       paths.Paths
	PodCIDR     []netip.Prefix
	ServiceCIDR []netip.Prefix
	Args        []string // from the user
}

// Scheduler configures kube-scheduler.
type Scheduler struct {
	Paths paths.Paths
	Args  []string // from the user
}

// Addons is what is deployed into the cluster from the binary.
type Addons struct {
	Enabled  []string          // names of manifests to apply, in this order
	Later    []string          // of these, the ones that nobody waits for
	Disabled []string          // names of manifests whose objects are removed, people's own among them
	Values   map[string]string // for ${NAME} in a manifest
}

// LoadBalancer is what gives Services of type LoadBalancer addresses of nodes.
type LoadBalancer struct {
	Servers []Port // that podo has on machines with a server
	Nodes   []Port // that it has on every node
}

// Port is one that something answers at.
type Port struct {
	Number   int32
	Protocol string // TCP or UDP
}

func (p Port) String() string { return strconv.Itoa(int(p.Number)) + "/" + p.Protocol }

// Kubeconfig is how the administrator's kubeconfig is written.
type Kubeconfig struct {
	Path   string
	Mode   fs.FileMode
	Group  string
	Name   string
	Server string // URL
}

// Node is what every node runs.
type Node struct {
	Paths      paths.Paths
	Name       string
	Registries Registries
	Containerd Containerd
	Kubelet    Kubelet
	Proxy      *Proxy   // nil: none
	Network    *Network // nil: the user brings a pod network
	Policy     *Policy  // nil: network policies are not enforced, or by the user's pod network
	Volumes    Volumes
	Tunnels    *Tunnels // to the other servers, if this is one; nil: they dial it
}

// Registries is how images are got.
type Registries struct {
	Paths     paths.Paths
	File      string     // that people write
	Named     bool       // somebody said which, so it has to be there
	NoDefault bool       // a registry with mirrors is not asked itself
	Listen    netip.Addr // of the proxy that the engine asks
}

// Containerd configures the container engine.
type Containerd struct {
	Paths             paths.Paths
	Snapshotter       string
	PauseImage        string
	SystemdCgroup     bool
	RestrictOOMScore  bool // the kernel refuses a negative oom_score_adj
	DisableAppArmor   bool
	UnprivilegedPorts bool     // pods may bind low ports and ping without a capability
	CNIConfig         string   // folder of CNI network lists
	CNIPrograms       []string // folders of CNI programs, first come first
	LogLevel          string   // of the child
	Env               []string // whole environment of the child
}

// Kubelet configures the kubelet.
type Kubelet struct {
	Paths         paths.Paths
	Name          string
	IPs           []netip.Addr
	ClusterDNS    []netip.Addr
	ClusterDomain string
	ResolvConf    string
	Nameservers   []netip.Addr // to be written into ResolvConf; none if that exists
	Labels        []string
	Taints        []string
	SystemdCgroup bool
	CgroupV1      bool
	ExternalCloud bool // a cloud controller of the user's sets addresses and provider ID
	ProtectKernel bool
	LeaseSeconds  int32    // of the node's lease; it is renewed four times in that
	ShutdownWait  int32    // seconds that pods have to end when logind shuts the machine down; elsewhere critical ones have a third
	Logind        bool     // tells of that; otherwise podo does
	Offline       bool     // remember what is read, for a start while no server answers
	ProviderDir   string   // of programs that tell credentials of registries; empty: none
	Providers     string   // file about them
	Args          []string // from the user
}

// Proxy configures kube-proxy.
type Proxy struct {
	Paths   paths.Paths
	Name    string
	IPs     []netip.Addr
	PodCIDR []netip.Prefix
	Offline bool     // as the kubelet's
	Args    []string // from the user
}

// Volumes is where a node keeps the volumes of the class local-path.
type Volumes struct {
	Paths paths.Paths
	Name  string
	Root  string // of those that are made where nobody named a folder
}

// Network is this node's end of the pod network.
type Network struct {
	Paths     paths.Paths
	NodeName  string
	Backend   string // vxlan, host-gw or wireguard-native
	PodCIDR   []netip.Prefix
	IPs       []netip.Addr
	Interface string
	MTU       int // of the pods' bridge
	IPv6NAT   bool
	Offline   bool // as the kubelet's
}

// Policy is what holds this node's pods to network policies.
type Policy struct {
	Paths   paths.Paths
	PodCIDR []netip.Prefix
}
