// Package plan decides what this node will run, and with what.
//
// New takes what a user said and what is true of the host, works out every default
// that depends on something, and returns a Plan that nothing changes afterwards.
// It does no I/O, so a golden file can show a decision and its reasons side by side.
package plan

import (
	"io/fs"
	"net/netip"

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
	Datastore string   // kind that this server has on its disk: sqlite or etcd; empty if none
	Members   []string // client URLs of the etcd members whose cluster this start has joined
}

// Server is the control plane.
type Server struct {
	Paths             paths.Paths
	Certificates      Certificates
	Storage           Storage
	APIServer         APIServer
	ControllerManager ControllerManager
	Scheduler         *Scheduler // nil: none
	Addons            Addons
	Kubeconfig        Kubeconfig
	API               string // URL of the API server as this machine reaches it
	NodeName          string // of the node in this process; empty if there is none
	Cluster           Cluster
	Shared            map[string]string // settings that all servers must have the same, by name
	Egress            Egress
	Election          bool // several servers: only one has controllers and a scheduler at work
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
	Egress  string         // mode
	PodCIDR []netip.Prefix
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

// Storage is the datastore: one of the two.
type Storage struct {
	SQLite *SQLite
	Etcd   *Etcd
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
	Storage       string // URL of the datastore
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
	Enabled  []string          // names of manifests to apply
	Disabled []string          // names of manifests whose objects are removed
	Values   map[string]string // for ${NAME} in a manifest
}

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
	Containerd Containerd
	Kubelet    Kubelet
	Proxy      *Proxy   // nil: none
	Network    *Network // nil: the user brings a pod network
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
	Offline       bool     // remember what is read, for a start while no server answers
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
