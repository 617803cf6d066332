// Package paths says where everything lives on disk, and nothing else.
//
// There are three roots: etc holds what people write, data what must survive and
// run what may vanish at any time. Paths are methods, so a Paths is never half
// filled in, and renaming a file is one edit here. No function touches the disk.
package paths

import "path/filepath"

// The default roots. Etc and Run are the same for every node of a machine: two
// nodes on one machine live in mount namespaces of their own.
const (
	DefaultEtc  = "/etc/podo"
	DefaultData = "/var/lib/podo"
	DefaultRun  = "/run/podo"
)

// Places outside the roots that Kubernetes and its ecosystem expect by these
// names, whatever the data directory is called.
const (
	// KubeletRoot is where storage drivers look for pods' volumes.
	KubeletRoot = "/var/lib/kubelet"
	// PodLogs is where log collectors look, with links to it in ContainerLogs.
	PodLogs       = "/var/log/pods"
	ContainerLogs = "/var/log/containers"
	// UserCNIConfig and UserCNIPrograms are where pod networks that podo did not bring
	// put what they bring.
	UserCNIConfig   = "/etc/cni/net.d"
	UserCNIPrograms = "/opt/cni/bin"
)

// Paths locates the files of one node.
type Paths struct {
	Etc  string
	Data string
	Run  string
}

// New returns the paths of a node that keeps its state in data.
func New(data string) Paths { return Paths{Etc: DefaultEtc, Data: data, Run: DefaultRun} }

// A Pair is a certificate and its private key.
type Pair struct{ Cert, Key string }

// ConfigFile is the main configuration file; drop-ins live in ConfigFile+".d".
func (p Paths) ConfigFile() string { return filepath.Join(p.Etc, "config.yaml") }

// Registries describes image registries and their mirrors.
func (p Paths) Registries() string { return filepath.Join(p.Etc, "registries.yaml") }

// DataDirs lists the data directories that podo was given on this machine, one a line.
func (p Paths) DataDirs() string { return filepath.Join(p.Etc, "data-dirs") }

// Parameters says what kernel parameters were before podo changed them.
func (p Paths) Parameters() string { return filepath.Join(p.Etc, "kernel-parameters") }

// AdminKubeconfig is the default place of the administrator's kubeconfig.
func (p Paths) AdminKubeconfig() string { return filepath.Join(p.Etc, "podo.yaml") }

// Layout holds one integer: the version of the data directory's layout.
func (p Paths) Layout() string { return filepath.Join(p.Data, "layout") }

// Kubernetes holds the version of Kubernetes that last ran on the data directory.
func (p Paths) Kubernetes() string { return filepath.Join(p.Data, "kubernetes") }

// Reserve is room on the disk for a start that finds none.
func (p Paths) Reserve() string { return filepath.Join(p.Data, "reserve") }

// Outside lists the files that podo was told to write elsewhere.
func (p Paths) Outside() string { return filepath.Join(p.Data, "outside") }

// Shape holds the settings that a cluster keeps for life.
func (p Paths) Shape() string { return filepath.Join(p.Data, "server", "shape.json") }

// NodeName holds the name that the cluster knows this machine by.
func (p Paths) NodeName() string { return filepath.Join(p.Data, "agent", "node-name") }

// Lock is held by the one podo that owns the data directory.
func (p Paths) Lock() string { return filepath.Join(p.Data, "lock") }

// RunLock is held by the one podo that owns the run directory.
func (p Paths) RunLock() string { return filepath.Join(p.Run, "lock") }

// Payload is the folder of unpacked payloads, one per content hash.
func (p Paths) Payload() string { return filepath.Join(p.Data, "bin") }

// Bin is the unpacked payload in use: binaries, with images below images/.
func (p Paths) Bin() string { return filepath.Join(p.Payload(), "current") }

// Program is the path of a payload binary, such as "containerd".
func (p Paths) Program(name string) string { return filepath.Join(p.Bin(), name) }

// PayloadImages is the folder of image archives that came with the payload.
func (p Paths) PayloadImages() string { return filepath.Join(p.Bin(), "images") }

// Token is the secret that lets a node join.
func (p Paths) Token() string { return filepath.Join(p.Data, "server", "token") }

// AgreedTokens is what the servers of a cluster last agreed upon, concealed.
func (p Paths) AgreedTokens() string { return filepath.Join(p.Data, "server", "tokens.agreed") }

// CA is a named certificate authority: "server", "kubelet", "client" or
// "request-header".
func (p Paths) CA(name string) Pair { return pair(p.Data, "server", "tls", "ca", name) }

// ServiceAccountKey signs service-account tokens.
func (p Paths) ServiceAccountKey() string {
	return filepath.Join(p.Data, "server", "tls", "service-account.key")
}

// ServerLeaf is the certificate of a server-side component, by component name.
func (p Paths) ServerLeaf(name string) Pair { return pair(p.Data, "server", "tls", name) }

// ServerKubeconfig is the kubeconfig of a server-side component, by component name.
func (p Paths) ServerKubeconfig(name string) string {
	return filepath.Join(p.Data, "server", "kubeconfig", name+".yaml")
}

// DB is the folder of the datastore; StateDB the SQLite file in it.
func (p Paths) DB() string      { return filepath.Join(p.Data, "server", "db") }
func (p Paths) StateDB() string { return filepath.Join(p.DB(), "state.db") }

// EtcdData is the folder of embedded etcd. DatastoreKind says which datastore the
// server has: sqlite, etcd, remote if etcd is on other servers alone, or external if
// it is nothing of podo's.
func (p Paths) EtcdData() string      { return filepath.Join(p.DB(), "etcd") }
func (p Paths) DatastoreKind() string { return p.DB() + ".kind" }

// DatastoreNote says the same, for a server that loses what lies beside its datastore
// together with it.
func (p Paths) DatastoreNote() string { return filepath.Join(p.Data, "datastore") }

// EtcdMembers is the list of etcd's members that a server knows which runs none.
func (p Paths) EtcdMembers() string { return filepath.Join(p.Data, "server", "etcd-members.json") }

// Manifests is where people put manifests to deploy. AgreedManifests notes which of them
// all servers have.
func (p Paths) Manifests() string       { return filepath.Join(p.Data, "server", "manifests") }
func (p Paths) AgreedManifests() string { return filepath.Join(p.Data, "server", "manifests.agreed") }

// Charts keeps the Helm charts that were fetched. StaticCharts are those of people's that are
// served to everyone.
func (p Paths) Charts() string       { return filepath.Join(p.Data, "server", "charts") }
func (p Paths) StaticCharts() string { return filepath.Join(p.Data, "server", "static", "charts") }

// AgentToken is the secret that lets a machine join as an agent, and no more.
func (p Paths) AgentToken() string { return filepath.Join(p.Data, "server", "agent-token") }

// Identity is the key that a node keeps its name by.
func (p Paths) Identity() string { return filepath.Join(p.Data, "agent", "identity.key") }

// Membership is what the cluster told this node when it joined.
func (p Paths) Membership() string { return filepath.Join(p.Data, "agent", "membership.json") }

// Servers is the list of API servers that this node's balancer knows.
func (p Paths) Servers() string { return filepath.Join(p.Data, "agent", "servers.json") }

// Offline is what a node remembers of its cluster, for a start while no server answers.
func (p Paths) Offline() string { return filepath.Join(p.Data, "agent", "offline") }

// AgentLeaf is a certificate that a node presents, by component name.
func (p Paths) AgentLeaf(name string) Pair { return pair(p.Data, "agent", "tls", name) }

// AgentCA is a node's copy of a CA certificate; a node holds no CA key.
func (p Paths) AgentCA(name string) string {
	return filepath.Join(p.Data, "agent", "tls", "ca", name+".crt")
}

// AgentKubeconfig is the kubeconfig of a node component, by component name.
func (p Paths) AgentKubeconfig(name string) string {
	return filepath.Join(p.Data, "agent", "kubeconfig", name+".yaml")
}

// StaticPods is watched by the kubelet for pod manifests.
func (p Paths) StaticPods() string { return filepath.Join(p.Data, "agent", "pod-manifests") }

// Storage is where a node keeps the volumes of the class local-path.
func (p Paths) Storage() string { return filepath.Join(p.Data, "storage") }

// Images is where people put image archives to import. ImportedImages notes what became
// of them.
func (p Paths) Images() string         { return filepath.Join(p.Data, "agent", "images") }
func (p Paths) ImportedImages() string { return filepath.Join(p.Data, "agent", "images.imported") }

// ContainerdRoot holds containerd's images and snapshots.
func (p Paths) ContainerdRoot() string { return filepath.Join(p.Data, "agent", "containerd") }

// ContainerdState holds containerd's sockets, mounts and network namespaces.
func (p Paths) ContainerdState() string { return filepath.Join(p.Run, "containerd") }

// ContainerdConfig is the configuration that podo renders at each start.
func (p Paths) ContainerdConfig() string { return filepath.Join(p.Run, "containerd.toml") }

// RegistryHosts is where people put hosts.toml files for containerd. Those that podo
// renders from Registries are in RegistryRoutes, and the one about all registries that
// have none is in RegistryRest.
func (p Paths) RegistryHosts() string  { return filepath.Join(p.Data, "agent", "registry.d") }
func (p Paths) RegistryRoutes() string { return filepath.Join(p.Run, "registry.d") }
func (p Paths) RegistryRest() string   { return filepath.Join(p.RegistryRoutes(), "_rest") }

// RegistryRoots are these three in the order in which containerd looks: the first that has
// a file about a registry, or else one about all, counts.
func (p Paths) RegistryRoots() []string {
	return []string{p.RegistryRoutes(), p.RegistryHosts(), p.RegistryRest()}
}

// EgressConfig tells the API server how to reach other nodes.
func (p Paths) EgressConfig() string { return filepath.Join(p.Run, "egress.yaml") }

// ResolvConf is the resolver file that pods inherit where the host's does not suit.
func (p Paths) ResolvConf() string { return filepath.Join(p.Run, "resolv.conf") }

// RuncState is runc's state folder.
func (p Paths) RuncState() string { return filepath.Join(p.Run, "runc") }

// CNIConfig is the folder of CNI network lists, CNIData that of address leases.
func (p Paths) CNIConfig() string { return filepath.Join(p.Data, "agent", "cni", "net.d") }
func (p Paths) CNIData() string   { return filepath.Join(p.Data, "agent", "cni", "networks") }

// Socket is a listening socket, by the name of the process that serves it:
// "containerd", "kine", "etcd", "egress" or "podo".
func (p Paths) Socket(name string) string { return filepath.Join(p.Run, name+".sock") }

func pair(elem ...string) Pair {
	base := filepath.Join(elem...)
	return Pair{Cert: base + ".crt", Key: base + ".key"}
}
