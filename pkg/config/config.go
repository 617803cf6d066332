// Package config is the one description of what a user can ask for.
//
// Every setting is one tagged field with one name, spelled three ways: --cluster-cidr,
// cluster-cidr: and PODO_CLUSTER_CIDR. The package reads no files and knows no flags
// library; it imports only the standard library, so anything may import it.
package config

import (
	"log/slog"
	"net/netip"
	"strconv"
)

// Server is everything a server can be told. A server is also a node.
type Server struct {
	Node
	Agents     Agents     `section:"Joining a cluster"`
	Listener   Listener   `section:"API server"`
	Datastore  Datastore  `section:"Datastore"`
	Network    Network    `section:"Network of the cluster"`
	Kubeconfig Kubeconfig `section:"Administrator's kubeconfig"`
	Components Components `section:"Parts"`
}

// Node is everything any node can be told.
type Node struct {
	_ struct{} `section:"This node"` // for agents, who are told nothing else

	Logging Logging `section:"Configuration and logging"`

	DataDir string `name:"data-dir" alias:"d" help:"folder for state that must survive" placeholder:"DIR"`
	Join    `section:"Joining a cluster"`

	Name   string       `name:"node-name" help:"name of this node (default: the host name at the first start)" placeholder:"NAME"`
	IP     []netip.Addr `name:"node-ip" alias:"i" help:"address of this node, one per IP family (default: from the default route)" split:"true" placeholder:"IP"`
	Labels []string     `name:"node-label" help:"label to register the node with" placeholder:"KEY=VALUE"`
	Taints []string     `name:"node-taint" help:"taint to register the node with" placeholder:"KEY=VALUE:EFFECT"`

	ResolvConf   string `name:"resolv-conf" help:"resolver file that pods inherit (default: the host's, without loopback servers)" placeholder:"FILE"`
	PauseImage   string `name:"pause-image" help:"image of the pod sandbox" placeholder:"IMAGE"`
	Snapshotter  string `name:"snapshotter" help:"containerd snapshotter: overlayfs or native" placeholder:"NAME"`
	FlannelIface string `name:"flannel-iface" help:"interface that carries the pod network (default: that of the node's address)" placeholder:"NAME"`

	Images `section:"Images"`

	ProtectKernelDefaults bool `name:"protect-kernel-defaults" help:"fail instead of setting kernel parameters that the kubelet needs"`

	FeatureGates  map[string]string `name:"feature-gates" help:"Kubernetes feature gates, for every component at once" placeholder:"NAME=BOOL" section:"Flags for Kubernetes' own parts"`
	KubeletArgs   []string          `name:"kubelet-arg" help:"flag for the kubelet, without its dashes" placeholder:"NAME=VALUE" args:"true" section:"Flags for Kubernetes' own parts"`
	KubeProxyArgs []string          `name:"kube-proxy-arg" help:"flag for kube-proxy, without its dashes" placeholder:"NAME=VALUE" args:"true" section:"Flags for Kubernetes' own parts"`
}

// Images is where images come from.
type Images struct {
	Registries     string `name:"private-registry" help:"file about image registries: their mirrors, credentials and certificates" placeholder:"FILE"`
	NoDefault      bool   `name:"disable-default-registry-endpoint" help:"never ask a registry itself that has mirrors in that file"`
	ProviderDir    string `name:"image-credential-provider-bin-dir" help:"folder of the programs that tell the kubelet credentials of registries" placeholder:"DIR"`
	ProviderConfig string `name:"image-credential-provider-config" help:"file that says which of them tells those of which images" placeholder:"FILE"`
}

// Join is how a machine finds its cluster, and is let in.
type Join struct {
	Server    string `name:"server" alias:"s,url" help:"URL of a server of the cluster to join, such as https://10.0.0.1:6443" placeholder:"URL"`
	Token     Secret `name:"token" alias:"t" placeholder:"SECRET" help:"secret that lets machines join; a server makes one on its first start if none is given"`
	TokenFile string `name:"token-file" help:"file that holds the token" placeholder:"FILE"`
	Unpinned  bool   `name:"insecure-trust-server" help:"join with a token that does not name the cluster's CA, trusting whatever answers"`

	BalancerPort int  `name:"lb-server-port" help:"port on loopback by which the parts of an agent reach the servers" placeholder:"PORT"`
	NoBalancer   bool `name:"disable-apiserver-lb" help:"reach the API by the URL of --server alone, which must then be highly available itself"`
}

// Agents is how agents are let in, and no other server.
type Agents struct {
	Token     Secret `name:"agent-token" placeholder:"SECRET" help:"secret that lets machines join as agents and as nothing else; made on the first start if not given"`
	TokenFile string `name:"agent-token-file" help:"file that holds the agent token" placeholder:"FILE"`
}

// Logging says what is written about the run, and where.
type Logging struct {
	Config          string `name:"config" alias:"c" env:"CONFIG_FILE" help:"configuration file; drop-ins are in FILE.d" placeholder:"FILE"`
	Debug           bool   `name:"debug" help:"log everything, instead of one progress line a step"`
	Verbosity       int    `name:"v" help:"verbosity of Kubernetes' own log lines, 0 to 10" placeholder:"N"`
	VModule         string `name:"vmodule" help:"verbosity by source file" placeholder:"FILE=N,..."`
	File            string `name:"log" alias:"l" help:"log to a file instead of the terminal" placeholder:"FILE"`
	AlsoLogToStderr bool   `name:"alsologtostderr" help:"with --log, log to the terminal too"`
}

// Listener is where the API is served.
type Listener struct {
	BindAddress      netip.Addr `name:"bind-address" help:"address to listen on (default: all)" placeholder:"IP"`
	Port             int        `name:"https-listen-port" help:"port of the Kubernetes API" placeholder:"PORT"`
	AdvertiseAddress netip.Addr `name:"advertise-address" help:"address that pods reach the API at (default: the node's)" placeholder:"IP"`
	TLSSANs          []string   `name:"tls-san" help:"further host name or address that the API's certificate is valid for" split:"true" placeholder:"NAME"`
}

// Network is the shape of the cluster's addresses. Every server must agree on it.
type Network struct {
	ClusterCIDR    []netip.Prefix `name:"cluster-cidr" help:"addresses given to pods, one range per IP family" shared:"true" split:"true" placeholder:"CIDR"`
	ServiceCIDR    []netip.Prefix `name:"service-cidr" help:"addresses given to services, one range per IP family" shared:"true" split:"true" placeholder:"CIDR"`
	NodePortRange  string         `name:"service-node-port-range" help:"ports given to NodePort services" shared:"true" placeholder:"FIRST-LAST"`
	ClusterDNS     []netip.Addr   `name:"cluster-dns" help:"address of the cluster's DNS service (default: the tenth of each service range)" shared:"true" split:"true" placeholder:"IP"`
	ClusterDomain  string         `name:"cluster-domain" help:"DNS domain of the cluster" shared:"true" placeholder:"DOMAIN"`
	FlannelBackend string         `name:"flannel-backend" help:"pod network between nodes: vxlan, host-gw, wireguard-native or none" shared:"true" placeholder:"NAME"`
	FlannelIPv6NAT bool           `name:"flannel-ipv6-masq" help:"masquerade pods' IPv6 traffic too" shared:"true"`
	Egress         string         `name:"egress-selector-mode" help:"how API servers reach other nodes: agent (kubelets through a tunnel that the node dials), pod or cluster (pods and services too), or disabled" shared:"true" placeholder:"MODE"`
}

// Datastore is where the cluster's state is kept: in SQLite on one server, in an etcd
// that runs in each of several servers, or in a database that others look after.
type Datastore struct {
	Endpoint Secret `name:"datastore-endpoint" help:"keep the state in a datastore elsewhere, which several servers may share: https://HOST:2379,... (etcd), postgres://, mysql:// or nats://" placeholder:"URL"`
	CAFile   string `name:"datastore-cafile" help:"CA that the datastore's certificate must be of" placeholder:"FILE"`
	CertFile string `name:"datastore-certfile" help:"certificate to show the datastore" placeholder:"FILE"`
	KeyFile  string `name:"datastore-keyfile" help:"its key" placeholder:"FILE"`

	Init          bool     `name:"cluster-init" help:"begin a cluster of several servers, with embedded etcd; further servers join it with --server"`
	Reset         bool     `name:"cluster-reset" help:"make this server's data a cluster of one server again, after the others were lost for good; then stop"`
	ExposeMetrics bool     `name:"etcd-expose-metrics" help:"serve etcd's metrics on all addresses, at port 2381, instead of loopback alone"`
	EtcdArgs      []string `name:"etcd-arg" help:"flag for embedded etcd, without its dashes" placeholder:"NAME=VALUE" args:"true" section:"Flags for Kubernetes' own parts"`
}

// Kubeconfig is how the administrator's kubeconfig is written.
type Kubeconfig struct {
	Path  string `name:"write-kubeconfig" alias:"o" env:"KUBECONFIG_OUTPUT" help:"where to write the administrator's kubeconfig" placeholder:"FILE"`
	Mode  string `name:"write-kubeconfig-mode" env:"KUBECONFIG_MODE" help:"its file mode, in octal" placeholder:"MODE"`
	Group string `name:"write-kubeconfig-group" env:"KUBECONFIG_GROUP" help:"its group" placeholder:"GROUP"`
	Name  string `name:"write-kubeconfig-name" help:"name of its cluster, user and context" placeholder:"NAME"`
}

// Components switches parts off and passes flags through to them.
type Components struct {
	Disable []string `name:"disable" help:"part to leave out: coredns, gateway-api, local-storage, metrics-server, network-policy, servicelb, traefik, or a manifest of your own by the name of its file; objects it made earlier are removed" split:"true" shared:"true" order:"any" placeholder:"PART"`

	LocalStorage string `name:"default-local-storage-path" help:"folder of each node for volumes of the class local-path (default: storage in the data directory)" shared:"true" placeholder:"DIR"`

	SystemRegistry string `name:"system-default-registry" help:"registry that the images of podo's own pods come from, instead of its own file" shared:"true" placeholder:"HOST"`

	NoAPIServer     bool `name:"disable-apiserver" help:"run no API server, as on a server for etcd alone; those of other servers are used"`
	NoControllers   bool `name:"disable-controller-manager" help:"run no controller manager"`
	NoScheduler     bool `name:"disable-scheduler" help:"run no scheduler"`
	NoEtcd          bool `name:"disable-etcd" help:"run no etcd; that of the servers that --server leads to is used"`
	NoCloud         bool `name:"disable-cloud-controller" help:"leave node addresses and provider IDs to a cloud controller of your own" shared:"true"`
	NoKubeProxy     bool `name:"disable-kube-proxy" help:"run no kube-proxy on any node" shared:"true"`
	NoNetworkPolicy bool `name:"disable-network-policy" help:"leave network policies unheeded" shared:"true"`
	NoHelm          bool `name:"disable-helm-controller" help:"leave HelmCharts to a controller of your own" shared:"true"`
	NoAgent         bool `name:"disable-agent" help:"run the control plane alone, without a node"`

	APIServerArgs         []string `name:"kube-apiserver-arg" help:"flag for kube-apiserver, without its dashes" placeholder:"NAME=VALUE" args:"true" section:"Flags for Kubernetes' own parts"`
	ControllerManagerArgs []string `name:"kube-controller-manager-arg" alias:"kube-controller-arg" help:"flag for kube-controller-manager, without its dashes; with bind-address or secure-port it listens, at port 10257 if no other is given" placeholder:"NAME=VALUE" args:"true" section:"Flags for Kubernetes' own parts"`
	SchedulerArgs         []string `name:"kube-scheduler-arg" help:"flag for kube-scheduler, without its dashes; with bind-address or secure-port it listens, at port 10259 if no other is given" placeholder:"NAME=VALUE" args:"true" section:"Flags for Kubernetes' own parts"`
}

// Default is what a server does when told nothing.
func Default() Server {
	return Server{
		Node: Node{
			Logging:      Logging{Config: "/etc/podo/config.yaml"},
			Join:         Join{BalancerPort: 6444},
			DataDir:      "/var/lib/podo",
			PauseImage:   "podo.local/pause:3.10",
			Snapshotter:  "overlayfs",
			Images:       Images{Registries: "/etc/podo/registries.yaml"},
			FeatureGates: map[string]string{},
		},
		Listener: Listener{Port: 6443},
		Network: Network{
			ClusterCIDR:    []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
			ServiceCIDR:    []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
			NodePortRange:  "30000-32767",
			ClusterDomain:  "cluster.local",
			FlannelBackend: "vxlan",
			Egress:         "agent",
		},
		Kubeconfig: Kubeconfig{Path: "/etc/podo/podo.yaml", Mode: "0600", Name: "default"},
	}
}

// Secret is a string that does not print.
type Secret string

func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "[redacted]"
}

// GoString keeps secrets out of %#v, MarshalText out of JSON and YAML.
func (s Secret) GoString() string             { return strconv.Quote(s.String()) }
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue keeps secrets out of logs however they are passed.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }
