package plan

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/host"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/pki"
)

// Batteries are the addons in the binary, in the order they are applied. Each has
// a manifest and can be left out by --disable.
func Batteries() []string {
	return []string{"coredns", "local-storage", "metrics-server", "gateway-api", "traefik"}
}

// later are the ones that wait until the machine's own start is over: their kinds are
// large, and take as long as all that comes before them.
func later() []string { return []string{"gateway-api", "traefik"} }

// New decides. Environ is the environment of the process, of which the children
// get the search path and the proxies.
func New(cfg config.Server, facts host.Facts, known Known, environ []string) (Plan, error) {
	d := decision{cfg: cfg, cluster: ClusterOf(cfg), known: known, facts: facts, environ: environ, paths: paths.New(cfg.DataDir)}
	d.name()
	d.addresses()
	d.datastore()
	d.gates()
	if err := errors.Join(d.errs...); err != nil {
		return Plan{}, err
	}
	p := Plan{Gates: d.gateSet, Server: d.server()}
	if !cfg.Components.NoAgent {
		p.Node = d.node()
		// Servers dial each other, but not each other's pods.
		if e := cfg.Network.Egress; d.etcd && (e == "pod" || e == "cluster") {
			p.Node.Tunnels = d.tunnels(d.ips)
			if p.Server.APIServer != nil {
				p.Node.Tunnels.Self = netip.AddrPortFrom(d.advertise(), uint16(cfg.Listener.Port)).String()
			}
		}
	}
	return p, nil
}

// Join decides how a machine asks to be let in.
func Join(cfg config.Node, facts host.Facts) (Joining, error) {
	d := decision{cfg: config.Server{Node: cfg}, facts: facts}
	d.name()
	id := Identity{Name: d.nodeName, Addresses: cfg.IP}
	if len(id.Addresses) == 0 {
		for _, route := range []host.Route{facts.Network.V4, facts.Network.V6} {
			if route.Addr.IsValid() {
				id.Addresses = append(id.Addresses, route.Addr)
			}
		}
	}
	if len(id.Addresses) == 0 {
		d.wrong("node-ip: no interface of this host has an address that other nodes can reach; connect it or give --node-ip")
	}
	return Joining{Paths: paths.New(cfg.DataDir), Identity: id, Server: cfg.Join.Server, Token: cfg.Token, Unpinned: cfg.Unpinned}, errors.Join(d.errs...)
}

// NewAgent decides for a machine that joins a cluster.
func NewAgent(cfg config.Node, facts host.Facts, cluster Cluster, environ []string) (Plan, error) {
	d := decision{cfg: config.Server{Node: cfg}, cluster: cluster, facts: facts, environ: environ, paths: paths.New(cfg.DataDir)}
	joining, err := Join(cfg, facts)
	if err != nil {
		return Plan{}, err
	}
	d.name()
	d.addresses()
	d.gates()
	if err := errors.Join(d.errs...); err != nil {
		return Plan{}, err
	}
	a := &Agent{
		Paths:   d.paths,
		Joining: joining,
		API:     cfg.Join.Server,
	}
	if cluster.Egress != "disabled" {
		a.Tunnels = d.tunnels(joining.Identity.Addresses)
	}
	if !cfg.NoBalancer {
		a.Listen = d.balancer()
		a.API = "https://" + a.Listen.String()
	}
	node := d.node()
	node.Kubelet.Offline = true
	if node.Proxy != nil {
		node.Proxy.Offline = true
	}
	if node.Network != nil {
		node.Network.Offline = true
	}
	return Plan{Gates: d.gateSet, Agent: a, Node: node}, nil
}

// ClusterOf is what a server tells nodes of its cluster.
func ClusterOf(cfg config.Server) Cluster {
	n := cfg.Network
	c := Cluster{
		PodCIDR:        n.ClusterCIDR,
		ServiceCIDR:    n.ServiceCIDR,
		DNS:            n.ClusterDNS,
		Domain:         n.ClusterDomain,
		FlannelBackend: n.FlannelBackend,
		FlannelIPv6NAT: n.FlannelIPv6NAT,
		LocalStorage:   cfg.Components.LocalStorage,
		SystemRegistry: cfg.Components.SystemRegistry,
		KubeProxy:      !cfg.Components.NoKubeProxy,
		NetworkPolicy:  !cfg.Components.NoNetworkPolicy && !slices.Contains(cfg.Components.Disable, "network-policy"),
		ExternalCloud:  cfg.Components.NoCloud,
		Egress:         n.Egress,
	}
	if len(c.DNS) == 0 {
		c.DNS = each(n.ServiceCIDR, 10)
	}
	return c
}

type decision struct {
	cfg     config.Server // of an agent, only what any node has
	cluster Cluster
	known   Known
	facts   host.Facts
	environ []string
	paths   paths.Paths

	nodeName string
	ips      []netip.Addr // of the node, one a family, first is primary
	link     host.Link    // that carries the pod network
	gateSet  map[string]bool
	etcd     bool // several servers keep the state
	remote   bool // all of them others
	external *config.Endpoint
	alone    bool // this is the only server, and will stay so
	errs     []error
}

func (d *decision) wrong(format string, args ...any) {
	d.errs = append(d.errs, fmt.Errorf(format, args...))
}

// name is what the cluster calls this machine: what was said, or the host name as
// Kubernetes allows it.
func (d *decision) name() {
	d.nodeName = d.cfg.Name
	if d.nodeName == "" {
		d.nodeName = strings.ToLower(strings.TrimSpace(d.facts.Hostname))
	}
	if problems := validation.IsDNS1123Subdomain(d.nodeName); len(problems) > 0 {
		d.wrong("node-name: %q cannot name a node: %s; give another with --node-name", d.nodeName, problems[0])
	}
}

// addresses are the node's, of the families that the cluster has.
func (d *decision) addresses() {
	n := d.cluster
	if len(d.cfg.IP) > 0 {
		d.ips = d.cfg.IP
	} else {
		for _, c := range n.PodCIDR {
			route, family := d.facts.Network.V4, "IPv4"
			if c.Addr().Is6() {
				route, family = d.facts.Network.V6, "IPv6"
			}
			if !route.Addr.IsValid() {
				d.wrong("node-ip: no interface of this host has an %s address, which cluster-cidr %s needs; connect it or give --node-ip", family, c)
				continue
			}
			d.ips = append(d.ips, route.Addr)
		}
	}
	if len(d.ips) == 0 {
		return
	}
	if name := d.cfg.FlannelIface; name != "" {
		link, ok := d.facts.Network.Link(name)
		if !ok {
			d.wrong("flannel-iface: no interface called %q is up on this host", name)
		}
		d.link = link
	} else if link, ok := d.facts.Network.LinkOf(d.ips[0]); ok {
		d.link = link
	} else {
		d.wrong("node-ip: no interface of this host has the address %s", d.ips[0])
	}
	for _, link := range d.facts.Network.Links {
		if ours(link.Name) || d.cfg.Network.FlannelBackend == "none" && host.Virtual(link.Name) {
			continue
		}
		for _, own := range link.Addrs {
			for _, said := range []struct {
				setting string
				ranges  []netip.Prefix
			}{{"cluster-cidr", n.PodCIDR}, {"service-cidr", n.ServiceCIDR}} {
				for _, r := range said.ranges {
					if r.Overlaps(own) {
						d.wrong("%[1]s: %s overlaps %s on this host's interface %s; choose another range with --%[1]s", said.setting, r, own.Masked(), link.Name)
					}
				}
			}
		}
	}
}

// ours reports whether podo made a link of this name in an earlier run.
func ours(link string) bool { return link == "cni0" || strings.HasPrefix(link, "flannel") }

func (d *decision) gates() {
	d.gateSet = map[string]bool{}
	for name, text := range d.cfg.FeatureGates {
		on, err := strconv.ParseBool(text)
		if err != nil {
			d.wrong("feature-gates: %s=%s: want true or false", name, text)
		}
		d.gateSet[name] = on
	}
	// The first, and APIServerIdentity, renew leases every ten seconds so that several
	// servers find each other. The second asks every resource for its keys as of this
	// moment, and waits three seconds for each that had no news; a stop then waits for it.
	off := []string{"UnknownVersionInteroperabilityProxy", "SizeBasedListCostEstimate"}
	if !d.gated("StorageVersionAPI") && !d.gateSet["UnknownVersionInteroperabilityProxy"] { // which stand on it
		off = append(off, "APIServerIdentity")
	}
	if d.alone || d.external != nil && d.external.Kind != "etcd" {
		// So does, and then fails, a watch that names no revision, where kine is between.
		// Without this it begins with what is cached.
		off = append(off, "WatchList")
	}
	for _, name := range off {
		if _, said := d.gateSet[name]; !said {
			d.gateSet[name] = false
		}
	}
}

// gated reports whether a user turns an alpha feature on, by its name or with all others.
func (d *decision) gated(alpha string) bool {
	if on, said := d.gateSet[alpha]; said {
		return on
	}
	return d.gateSet["AllAlpha"]
}

func (d *decision) server() *Server {
	c, p, n := d.cfg, d.paths, d.cfg.Network
	s := &Server{
		Paths: p,
		Certificates: Certificates{
			Paths: p,
			Names: pki.Names{
				Node:          d.nodeName,
				HostName:      d.facts.Hostname,
				NodeIPs:       d.ips,
				ServiceIPs:    each(n.ServiceCIDR, 1),
				ClusterDomain: n.ClusterDomain,
				ExtraSANs:     d.extraSANs(),
				Etcd:          d.etcd,
			},
			Token: c.Token,
			Agent: c.Agents.Token,
		},
		Storage: d.storage(),
		Addons:  d.addons(),
		Kubeconfig: Kubeconfig{
			Path:   c.Kubeconfig.Path,
			Mode:   fileMode(c.Kubeconfig.Mode),
			Group:  c.Kubeconfig.Group,
			Name:   c.Kubeconfig.Name,
			Server: d.url(),
		},
		API:       d.url(),
		Cluster:   d.cluster,
		Shared:    config.Shared(c),
		Provision: !slices.Contains(c.Components.Disable, "local-storage"),
		Egress:    Egress{Mode: n.Egress},
		Election:  d.etcd || d.external != nil,
	}
	if c.Components.NoAPIServer {
		s.Elsewhere = &Elsewhere{Bind: d.bind(), Port: c.Listener.Port, Balancer: d.balancer(), First: d.joined(0)}
	} else {
		if n.Egress != "disabled" {
			s.Egress.Config, s.Egress.Socket = p.EgressConfig(), p.Socket("egress")
		}
		s.APIServer = d.apiServer(s.Storage, s.Egress)
		s.Metrics = !d.disabled("metrics-server")
		s.Helm = !c.Components.NoHelm
		if !d.disabled("servicelb") {
			s.LoadBalancer = d.loadBalancer()
		}
	}
	if !c.Components.NoAgent {
		s.NodeName = d.nodeName
	}
	if !c.Components.NoControllers {
		s.ControllerManager = &ControllerManager{Paths: p, PodCIDR: n.ClusterCIDR, ServiceCIDR: n.ServiceCIDR, Args: c.Components.ControllerManagerArgs}
	}
	if !c.Components.NoScheduler {
		s.Scheduler = &Scheduler{Paths: p, Args: c.Components.SchedulerArgs}
	}
	return s
}

func (d *decision) apiServer(s Storage, e Egress) *APIServer {
	c, n := d.cfg, d.cfg.Network
	return &APIServer{
		Paths:         d.paths,
		Storage:       s.Client(),
		Bind:          d.bind(),
		Port:          c.Listener.Port,
		Advertise:     d.advertise(),
		ServiceCIDR:   n.ServiceCIDR,
		NodePortRange: n.NodePortRange,
		Several:       d.etcd || d.external != nil,
		Issuer:        "https://kubernetes.default.svc." + n.ClusterDomain,
		EgressConfig:  e.Config,
		Args:          c.Components.APIServerArgs,
	}
}

// joined is the server that this one was told to join, by the host of its URL and a
// port: that of the URL for 0.
func (d *decision) joined(port int) []string {
	u, err := url.Parse(d.cfg.Join.Server)
	if err != nil || u.Host == "" {
		return nil
	}
	at := cmp.Or(u.Port(), "443")
	if port != 0 {
		at = strconv.Itoa(port)
	}
	return []string{net.JoinHostPort(u.Hostname(), at)}
}

func (d *decision) node() *Node {
	c, p, n := d.cfg.Node, d.paths, d.cluster
	systemd := d.facts.Cgroup.Driver == "systemd"
	node := &Node{
		Paths: p,
		Name:  d.nodeName,
		Registries: Registries{
			Paths:     p,
			File:      filepath.Clean(c.Images.Registries),
			Named:     c.Images.Registries != config.Default().Images.Registries,
			NoDefault: c.Images.NoDefault,
			Listen:    d.loopback(),
		},
		Containerd: Containerd{
			Paths:             p,
			Snapshotter:       c.Snapshotter,
			PauseImage:        n.pauseImage(c.PauseImage),
			SystemdCgroup:     systemd,
			RestrictOOMScore:  d.facts.Privilege.UserNamespace || !d.facts.Privilege.Caps.Has(host.CapSysResource),
			DisableAppArmor:   !d.facts.Security.AppArmor,
			UnprivilegedPorts: d.facts.Kernel.AtLeast(4, 11),
			CNIConfig:         p.CNIConfig(),
			CNIPrograms:       []string{p.Bin()},
			LogLevel:          "info",
			Env:               d.childEnv(),
		},
		Kubelet: Kubelet{
			Paths:         p,
			Name:          d.nodeName,
			IPs:           d.ips,
			ClusterDNS:    n.DNS,
			ClusterDomain: n.Domain,
			ResolvConf:    d.resolvConf(),
			Nameservers:   d.nameservers(),
			Labels:        c.Labels,
			Taints:        c.Taints,
			SystemdCgroup: systemd,
			CgroupV1:      d.facts.Cgroup.Mode != host.CgroupV2,
			ExternalCloud: n.ExternalCloud,
			ProtectKernel: c.ProtectKernelDefaults,
			LeaseSeconds:  d.leaseSeconds(),
			ShutdownWait:  45, // Kubernetes' default for who wants one
			Logind:        d.facts.Logind,
			ProviderDir:   c.Images.ProviderDir,
			Providers:     c.Images.ProviderConfig,
			Args:          c.KubeletArgs,
		},
	}
	node.Volumes = Volumes{Paths: p, Name: d.nodeName, Root: cmp.Or(n.LocalStorage, p.Storage())}
	if c.Snapshotter == "overlayfs" {
		node.Containerd.Snapshotter = d.facts.Storage.Snapshotter()
	}
	if n.KubeProxy {
		node.Proxy = &Proxy{Paths: p, Name: d.nodeName, IPs: d.ips, PodCIDR: n.PodCIDR, Args: c.KubeProxyArgs}
	}
	if n.FlannelBackend != "none" {
		node.Network = &Network{
			Paths:     p,
			NodeName:  d.nodeName,
			Backend:   n.FlannelBackend,
			PodCIDR:   n.PodCIDR,
			IPs:       d.ips,
			Interface: d.link.Name,
			MTU:       d.link.MTU - overhead(n.FlannelBackend, d.ips),
			IPv6NAT:   n.FlannelIPv6NAT,
		}
		if n.NetworkPolicy {
			node.Policy = &Policy{Paths: p, PodCIDR: n.PodCIDR}
		}
	} else {
		node.Containerd.CNIConfig, node.Containerd.CNIPrograms = paths.UserCNIConfig, []string{paths.UserCNIPrograms, p.Bin()}
	}
	return node
}

// leaseSeconds is how long a node's lease lasts. Beside the only control plane nobody
// is left to notice when that machine dies, and each renewal costs the disk some
// 45 KB, so it is renewed every thirty seconds instead of Kubernetes' ten. The
// controllers call a node unreachable after fifty.
func (d *decision) leaseSeconds() int32 {
	if d.alone {
		return 120
	}
	return 40
}

// datastore decides where the state is kept. What the server has goes on; only one
// without any has a choice, or one that leaves SQLite for an etcd of its own.
func (d *decision) datastore() {
	c, has := d.cfg, d.known.Datastore
	if c.Datastore.Endpoint != "" {
		e, err := config.ParseEndpoint(c.Datastore.Endpoint)
		if err != nil {
			d.wrong("datastore-endpoint: %w", err)
			return
		}
		d.external = &e
		if has != "" && has != "external" {
			d.wrong("datastore-endpoint: this server has a cluster already, in %[1]s; take it over with podo datastore migrate --from %[1]s --to ENDPOINT, or run podo uninstall to give it up", has)
		}
		return
	}
	d.etcd = has == "etcd" || has == "remote" || has != "external" && (c.Datastore.Init || c.Join.Server != "")
	d.remote = d.etcd && c.Components.NoEtcd
	d.alone = !d.etcd
	switch {
	case has == "external":
		d.wrong("datastore-endpoint: is missing; this server's cluster is in a datastore elsewhere: give its endpoint, or run podo uninstall to give the cluster up")
	case has == "etcd" && d.remote && len(d.known.Members) == 0:
		d.wrong("disable-etcd: this server runs a member of etcd and has its share of the data; take it out first, with podo etcd member-remove %s on another server that runs etcd", d.nodeName)
	case has == "remote" && !d.remote && len(d.known.Members) == 0:
		d.wrong("server: is missing; this server has run without etcd, and to run a member now it must join the others: give the URL of one of them, or give disable-etcd")
	case !d.etcd && c.Components.NoAPIServer:
		d.wrong("disable-apiserver: this server keeps its state in SQLite, which no API server but its own could reach; begin a cluster of several servers with --cluster-init, or join one with --server")
	case has == "sqlite" && c.Join.Server != "":
		d.wrong("server: this server has a cluster of its own, in SQLite; leave server out to keep it, or run podo uninstall first to give it up and join another")
	case !d.etcd && len(c.Datastore.EtcdArgs) > 0:
		d.wrong("etcd-arg: this server keeps its state in SQLite and runs no etcd, so nothing would read it; remove it")
	case !d.etcd && c.Datastore.ExposeMetrics:
		d.wrong("etcd-expose-metrics: this server keeps its state in SQLite and runs no etcd; remove it")
	case !d.etcd && c.Datastore.Reset:
		d.wrong("cluster-reset: this server keeps its state in SQLite, so there are no other servers that could be lost; remove it")
	}
}

// etcdPort is where the members of etcd serve clients, and where a server without one
// has its balancer over them, and etcdPeerPort where they serve each other.
const (
	etcdPort     = 2379
	etcdPeerPort = 2380
)

func (d *decision) storage() Storage {
	p, c := d.paths, d.cfg.Datastore
	own := &SQLite{DB: p.StateDB(), Socket: p.Socket("kine")}
	switch {
	case d.external != nil:
		return Storage{External: &External{
			Endpoint: *d.external, CA: c.CAFile, Files: paths.Pair{Cert: c.CertFile, Key: c.KeyFile},
			Socket: p.Socket("kine"), Marker: p.DatastoreKind(),
		}}
	case !d.etcd:
		return Storage{SQLite: own}
	case d.remote:
		return Storage{Remote: &Remote{
			Listen: netip.AddrPortFrom(d.loopback(), etcdPort),
			File:   p.EtcdMembers(),
			Marker: p.DatastoreKind(),
			First:  d.joined(etcdPort),
			Join:   d.known.Members,
			CA:     p.CA(pki.EtcdCA).Cert,
			Caller: p.ServerLeaf("etcd-client"),
		}}
	}
	metrics := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if c.ExposeMetrics {
		metrics = netip.IPv6Unspecified()
	}
	s := Storage{Etcd: &Etcd{
		Node:    d.nodeName,
		Dir:     p.EtcdData(),
		Socket:  p.Socket("etcd"),
		Peer:    netip.AddrPortFrom(d.ips[0], etcdPeerPort),
		Client:  netip.AddrPortFrom(d.ips[0], etcdPort),
		Metrics: []netip.AddrPort{netip.AddrPortFrom(metrics, 2381)},
		CA:      p.CA(pki.EtcdCA).Cert,
		Server:  p.ServerLeaf("etcd-server"),
		Member:  p.ServerLeaf("etcd-peer"),
		Caller:  p.ServerLeaf("etcd-client"),
		Init:    c.Init,
		Join:    d.known.Members,
		Args:    c.EtcdArgs,
	}}
	if d.known.Datastore == "sqlite" {
		s.From = own
	}
	return s
}

// overhead is what a packet grows by on its way to another node, in bytes: an
// outer IP, UDP and VXLAN header around an Ethernet frame, or WireGuard's.
func overhead(backend string, ips []netip.Addr) int {
	v6 := 0
	if slices.ContainsFunc(ips, netip.Addr.Is6) {
		v6 = 20
	}
	switch backend {
	case "vxlan":
		return 50 + v6
	case "wireguard-native":
		return 60 + v6
	}
	return 0
}

func (d *decision) addons() Addons {
	var addrs, families []string
	for _, ip := range d.cluster.DNS {
		addrs = append(addrs, strconv.Quote(ip.String()))
		if ip.Is4() {
			families = append(families, "IPv4")
		} else {
			families = append(families, "IPv6")
		}
	}
	policy := "SingleStack"
	if len(families) > 1 {
		policy = "RequireDualStack"
	}
	a := Addons{Values: map[string]string{
		"CLUSTER_DOMAIN":   d.cfg.Network.ClusterDomain,
		"CLUSTER_DNS":      d.cluster.DNS[0].String(),
		"CLUSTER_DNS_ALL":  strings.Join(addrs, ", "),
		"IP_FAMILIES":      strings.Join(families, ", "),
		"IP_FAMILY_POLICY": policy,
		"DNS_UPSTREAM":     d.upstream(),
	}}
	a.Disabled = slices.Clone(d.cfg.Components.Disable)
	a.Enabled = append(a.Enabled, "podo-addons", "podo-node")
	if !d.cfg.Components.NoHelm {
		a.Enabled = append(a.Enabled, "podo-helm")
	}
	// Nobody else serves what podo brings of the Gateway API.
	if d.disabled("traefik") && !d.disabled("gateway-api") {
		a.Disabled = append(a.Disabled, "gateway-api")
	}
	for _, name := range Batteries() {
		if !slices.Contains(a.Disabled, name) {
			a.Enabled = append(a.Enabled, name)
			if slices.Contains(later(), name) {
				a.Later = append(a.Later, name)
			}
		}
	}
	return a
}

func (d *decision) disabled(part string) bool {
	return slices.Contains(d.cfg.Components.Disable, part)
}

// loadBalancer knows the ports that no Service may have: kube-proxy would lead them away
// from podo itself.
func (d *decision) loadBalancer() *LoadBalancer {
	b := &LoadBalancer{Servers: []Port{{int32(d.cfg.Listener.Port), "TCP"}}}
	if d.etcd {
		b.Servers = append(b.Servers, Port{etcdPort, "TCP"}, Port{etcdPeerPort, "TCP"})
	}
	switch d.cluster.FlannelBackend {
	case "vxlan":
		b.Nodes = []Port{{8472, "UDP"}}
	case "wireguard-native":
		b.Nodes = []Port{{51820, "UDP"}, {51821, "UDP"}}
	}
	return b
}

// upstream is CoreDNS's line for names outside the cluster. A host without a
// resolver has none, and CoreDNS would not start with an empty one.
func (d *decision) upstream() string {
	if d.resolvConf() == "" {
		return "# this host has no resolver for names outside the cluster"
	}
	return "forward . /etc/resolv.conf"
}

func (d *decision) resolvConf() string {
	switch r := d.facts.Resolver; {
	case d.cfg.ResolvConf != "":
		return d.cfg.ResolvConf
	case r.File != "":
		return r.File
	case len(r.Servers) > 0:
		return d.paths.ResolvConf()
	}
	return ""
}

// nameservers are for the resolver file that podo writes where the host's own
// names a server on loopback, which is somebody else inside a pod.
func (d *decision) nameservers() []netip.Addr {
	if d.resolvConf() == d.paths.ResolvConf() {
		return d.facts.Resolver.Servers
	}
	return nil
}

func (d *decision) bind() netip.Addr {
	switch {
	case d.cfg.Listener.BindAddress.IsValid():
		return d.cfg.Listener.BindAddress
	case slices.ContainsFunc(d.ips, netip.Addr.Is6):
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

func (d *decision) advertise() netip.Addr {
	if d.cfg.Listener.AdvertiseAddress.IsValid() {
		return d.cfg.Listener.AdvertiseAddress
	}
	return d.ips[0]
}

func (d *decision) loopback() netip.Addr {
	if d.ips[0].Is6() {
		return netip.IPv6Loopback()
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

func (d *decision) tunnels(addresses []netip.Addr) *Tunnels {
	return &Tunnels{Paths: d.paths, Mode: d.cluster.Egress, PodCIDR: d.cluster.PodCIDR, Addresses: addresses}
}

// balancer is where the API servers of others are reached.
func (d *decision) balancer() netip.AddrPort {
	return netip.AddrPortFrom(d.loopback(), uint16(d.cfg.BalancerPort))
}

// url is how this machine reaches the API.
func (d *decision) url() string {
	if d.cfg.Components.NoAPIServer {
		return "https://" + d.balancer().String()
	}
	ip := d.loopback()
	if b := d.bind(); !b.IsUnspecified() {
		ip = b
	}
	return "https://" + netip.AddrPortFrom(ip, uint16(d.cfg.Listener.Port)).String()
}

func (d *decision) extraSANs() []string {
	sans := slices.Clone(d.cfg.Listener.TLSSANs)
	if a := d.cfg.Listener.AdvertiseAddress; a.IsValid() {
		sans = append(sans, a.String())
	}
	if a := d.bind(); !a.IsUnspecified() {
		sans = append(sans, a.String())
	}
	return sans
}

// childEnv is the environment of children: our programs first on the search path,
// whatever reaches an image registry, and a garbage collector that prefers memory
// to speed, as the engine has little to do once pods run.
func (d *decision) childEnv() []string {
	path, out := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", []string{"GOGC=40"}
	for _, kv := range d.environ {
		name, value, _ := strings.Cut(kv, "=")
		switch strings.ToUpper(name) {
		case "PATH":
			path = value
		case "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "GOGC":
			out = append(out, kv)
		}
	}
	return append(out, "PATH="+d.paths.Bin()+":"+path)
}

// each is the nth address of every range.
func each(ranges []netip.Prefix, nth int) []netip.Addr {
	var out []netip.Addr
	for _, r := range ranges {
		a := r.Masked().Addr()
		for range nth {
			a = a.Next()
		}
		out = append(out, a)
	}
	return out
}

func fileMode(octal string) fs.FileMode {
	n, _ := strconv.ParseUint(octal, 8, 32) // config.Validate refused what is none
	return fs.FileMode(n)
}
