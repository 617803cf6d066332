package local

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/configfile"
	"github.com/podo-dev/podo/pkg/payload"
	"github.com/podo-dev/podo/pkg/version"
)

// serverTaint keeps pods off control planes where there are workers to run them.
const serverTaint = "node-role.kubernetes.io/control-plane=:NoSchedule"

// decide makes a cluster of a file. It looks at this machine and changes nothing.
func (s Site) decide(name string, f File) (Cluster, error) {
	c := Cluster{Name: name, Search: f.Networking.DNSSearch, Patches: f.KubeadmPatches, Shared: Settings{}, Common: Settings{}, Hosts: usualHosts}
	families := map[string][]bool{"": {false}, "ipv4": {false}, "ipv6": {true}, "dual": {false, true}}[f.Networking.Family]
	var errs []error
	blame := func(place string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s%w", place, err))
		}
	}
	pods, services, err := ranges(f.Networking, families)
	blame("", unfit(err))
	fitting := err == nil
	c.Shared.add("cluster-cidr", texts(pods)...)
	c.Shared.add("service-cidr", texts(services)...)
	if slices.Contains(families, true) {
		c.Shared["flannel-ipv6-masq"] = true
	}
	if f.Networking.NoCNI {
		c.Shared["flannel-backend"] = "none"
	}
	switch f.Networking.ProxyMode {
	case "none":
		c.Shared["disable-kube-proxy"] = true
	case "iptables":
		c.Common.add("kube-proxy-arg", "proxy-mode=iptables")
	}
	for gate, on := range f.FeatureGates {
		c.Common.gate(gate, strconv.FormatBool(on))
	}
	if len(f.RuntimeConfig) > 0 {
		c.Shared.add("kube-apiserver-arg", "runtime-config="+pairs(f.RuntimeConfig))
	}
	blame("", unfit(c.trust(f.ContainerdPatches)))
	address := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if slices.Equal(families, []bool{true}) {
		address = netip.IPv6Loopback()
	}
	if a := f.Networking.APIAddress; a != "" {
		address, _ = netip.ParseAddr(a)
	}
	c.API, err = listen(address, f.Networking.APIPort, "tcp")
	blame("networking."+placed(err, "apiServerPort", "apiServerAddress")+": ", err)
	if !address.IsLoopback() && !address.IsUnspecified() {
		c.Shared.add("tls-san", address.String())
	}
	blame("", s.populate(&c, f))
	blame("", c.apart())
	blame("", c.uncovered())
	if fitting && len(c.servers()) > 0 { // else their settings tell of nothing new
		blame("", c.cramped())
		c.Index, c.Ranges, err = s.choose(families, slices.Concat(pods, services))
		blame("", err)
		if err == nil {
			blame("", s.verify(c, c.Nodes))
		}
	}
	if len(errs) > 0 {
		errs = append(errs, s.promised(c))
	}
	return c, errors.Join(errs...)
}

// hasProxy says why nodes could not run kube-proxy in a mode.
func hasProxy(mode string) error {
	switch mode {
	case "", "nftables", "none": // nft is podo's own
	case "iptables":
		if _, err := exec.LookPath("iptables"); err != nil {
			return errors.New("iptables: this machine does not have the program, which nodes would run; install it, or leave the line out for nftables")
		}
	case "ipvs":
		return errors.New("ipvs: podo does not have it; leave the line out for nftables, which came to replace it")
	default:
		return fmt.Errorf("%q, want nftables, iptables or none", mode)
	}
	return nil
}

// apart says which ports of the host were given away twice.
func (c Cluster) apart() error {
	type door struct {
		where, protocol string
		at              netip.AddrPort
	}
	doors := []door{{"networking.apiServerPort", "tcp", c.API}}
	if c.Registry != 0 {
		for _, at := range c.doors() {
			doors = append(doors, door{"--registry-port", "tcp", at})
		}
	}
	for i, n := range c.Nodes {
		for j, p := range n.Ports {
			doors = append(doors, door{fmt.Sprintf("nodes[%d].extraPortMappings[%d].hostPort", i, j), p.Protocol, p.Listen})
		}
	}
	var errs []error
	for i, d := range doors {
		for _, other := range doors[:i] {
			here, there := d.at.Addr().Unmap(), other.at.Addr().Unmap()
			everywhere := here.Is4() == there.Is4() && (here.IsUnspecified() || there.IsUnspecified())
			if d.protocol == other.protocol && d.at.Port() == other.at.Port() && (everywhere || here == there) {
				errs = append(errs, fmt.Errorf("%s: %s port %s is that of %s too; choose another", d.where, strings.ToUpper(d.protocol), d.at, other.where))
			}
		}
	}
	return unfit(errors.Join(errs...))
}

// promised says which ports of the host are those of other clusters, which may be off.
func (s Site) promised(c Cluster) error {
	names, err := s.Names()
	if err != nil {
		return err
	}
	for _, name := range names {
		other, err := s.Load(name)
		if err != nil || name == c.Name {
			continue
		}
		theirs := Node{Ports: []Port{{Listen: other.API, Protocol: "tcp"}}}
		if other.Registry != 0 {
			for _, at := range other.doors() {
				theirs.Ports = append(theirs.Ports, Port{Listen: at, Protocol: "tcp"})
			}
		}
		for _, n := range other.Nodes {
			theirs.Ports = append(theirs.Ports, n.Ports...)
		}
		var both []string
		for _, p := range theirs.Ports {
			with := c
			with.Nodes = append(slices.Clone(c.Nodes), Node{Ports: []Port{p}})
			if c.apart() == nil && with.apart() != nil {
				both = append(both, p.Listen.String())
			}
		}
		if len(both) > 0 {
			return fmt.Errorf("cluster %s, which is there too, has ports of this host that this one asks for: %s; choose others, or remove that cluster with: podo cluster delete --name %[1]s", name, strings.Join(both, ", "))
		}
	}
	return nil
}

// registryAt is where the host has a cluster's registry.
func (c Cluster) registryAt() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), c.Registry)
}

// uncovered says which mounts would hide what podo itself reads.
func (c Cluster) uncovered() error {
	var errs []error
	for i, n := range c.Nodes {
		for j, m := range n.Mounts {
			if c.Hosts != "" && (m.To == c.Hosts || strings.HasPrefix(c.Hosts, m.To+"/")) {
				errs = append(errs, fmt.Errorf("nodes[%d].extraMounts[%d].containerPath: %s is where nodes have all registries described, and cannot be covered; mount single registries below %s, such as %[4]s/HOST", i, j, m.To, c.Hosts))
			}
			if slices.ContainsFunc(c.mirrors(), func(r Registry) bool { at := c.Hosts + "/" + r.folder(); return m.To == at || m.To == at+"/hosts.toml" }) {
				errs = append(errs, fmt.Errorf("nodes[%d].extraMounts[%d].containerPath: %s: would hide where nodes have this registry by containerdConfigPatches or --registry; leave one of the two out", i, j, m.To))
			}
		}
	}
	return unfit(errors.Join(errs...))
}

// verify has podo judge the settings of nodes, as it would when it starts there. What
// several nodes have is complained about once.
func (s Site) verify(c Cluster, nodes []Node) error {
	var errs []error
	seen := map[string]bool{}
	for i, n := range nodes {
		if slices.ContainsFunc(nodes[:i], func(o Node) bool { return o.Name == n.Name }) {
			continue // which is a mistake by itself
		}
		for _, line := range s.judge(c, n) {
			if !seen[line] {
				errs, seen[line] = append(errs, fmt.Errorf("node %s: %s", n.Name, line)), true
			}
		}
	}
	return unfit(errors.Join(errs...))
}

// judge has podo, and through it Kubernetes, tell the mistakes in the settings of a node.
func (s Site) judge(c Cluster, n Node) []string {
	cfg, err := c.config(n)
	err = errors.Join(err, c.torn(n))
	if s.Judge != nil && n.Podo == s.Exe { // another podo has flags of its own, and judges them when it starts
		kubelet, e := n.kubelet(c.gates(n))
		err = errors.Join(err, e, s.Judge(cfg, kubelet))
	}
	if err == nil {
		return nil
	}
	var out []string
	for line := range strings.SplitSeq(err.Error(), "\n") {
		out = append(out, fielded(line))
	}
	return out
}

// config is what podo reads on a node.
func (c Cluster) config(n Node) (config.Server, error) {
	cfg := config.Default()
	text, err := yaml.Marshal(map[string]any(c.settings(n, c.servers()[0])))
	if err != nil {
		return cfg, err
	}
	settings, err := configfile.Parse(n.Name, text)
	for i := range settings {
		settings[i].Origin = ""
	}
	var wrong error
	if n.Role == ControlPlane {
		_, wrong = config.Resolve(&cfg, settings)
	} else {
		_, wrong = config.ResolveAgent(&cfg.Node, settings)
		cfg.Components.NoAPIServer = true
		cfg.Components.NoKubeProxy = true // whose flags, those of all nodes, the servers judge
	}
	return cfg, errors.Join(err, wrong)
}

// cramped says that pods' ranges do not go round. A network of somebody else's may not need
// them.
func (c Cluster) cramped() error {
	cfg, err := c.config(c.servers()[0])
	if err != nil || cfg.Network.FlannelBackend == "none" {
		return nil // the settings' mistakes are told as such
	}
	var errs []error
	for _, p := range cfg.Network.ClusterCIDR {
		mask := cfg.NodeMask(p.Addr().Is4())
		room := mask - p.Bits()
		if room < 0 || room > 16 || 1<<room >= len(c.Nodes) { // what is no range for any node is told already
			continue
		}
		least := mask
		for 1<<(mask-least) < len(c.Nodes) {
			least--
		}
		flag := "node-cidr-mask-size"
		if len(cfg.Network.ClusterCIDR) > 1 {
			flag += map[bool]string{true: "-ipv4", false: "-ipv6"}[p.Addr().Is4()]
		}
		errs = append(errs, fmt.Errorf("networking.podSubnet: %s has room for %s, and there are to be %d: each takes a /%d of it; make the cluster with a /%d or larger, or have nodes take less of it, with %s in controllerManager.extraArgs", p, plural(1<<room, "node"), len(c.Nodes), mask, least, flag))
	}
	return unfit(errors.Join(errs...))
}

// torn says which feature gates of a control plane's own are not the cluster's: its kubelet
// and the cluster's parts are one process.
func (c Cluster) torn(n Node) error {
	common, _ := c.Common["feature-gates"].(map[string]string)
	own, _ := n.Settings["feature-gates"].(map[string]string)
	var errs []error
	for _, gate := range slices.Sorted(maps.Keys(own)) {
		if other, ok := common[gate]; ok && other != own[gate] && n.Role == ControlPlane {
			errs = append(errs, fmt.Errorf("featureGates: %s is %s for the cluster and %s for the kubelet, which is one process with the control plane here; say the same of both", gate, other, own[gate]))
		}
	}
	return errors.Join(errs...)
}

// fielded names the field of a file beside the setting of podo's that it was turned into,
// with which line begins.
func fielded(line string) string {
	setting, rest, _ := strings.Cut(line, ": ")
	field, ok := fields()[setting]
	if strings.HasPrefix(rest, "runtime-config") {
		field = "runtimeConfig, or runtime-config of apiServer.extraArgs"
	}
	if !ok {
		return line
	}
	return fmt.Sprintf("%s (podo's %s): %s", field, setting, inFile().Replace(rest))
}

// fields are those of a file that became settings of podo's.
func fields() map[string]string {
	return map[string]string{
		"cluster-cidr": "networking.podSubnet", "service-cidr": "networking.serviceSubnet", "feature-gates": "featureGates",
		"node-label": "labels", "node-taint": "nodeRegistration.taints", "kubelet-arg": "kubeletExtraArgs",
		"kube-apiserver-arg": "apiServer.extraArgs", "kube-controller-manager-arg": "controllerManager.extraArgs",
		"kube-scheduler-arg": "scheduler.extraArgs", "etcd-arg": "etcd.local.extraArgs", "kube-proxy-arg": "KubeProxyConfiguration",
		"tls-san": "apiServer.certSANs", "cluster-domain": "networking.dnsDomain",
		"bind-address": "apiServer.extraArgs bind-address", "service-node-port-range": "apiServer.extraArgs service-node-port-range",
	}
}

// inFile turns remedies that name flags of podo's into those that a file has.
func inFile() *strings.Replacer {
	return strings.NewReplacer(
		"use --cluster-cidr", "use networking.podSubnet", "use --service-cidr", "use networking.serviceSubnet",
		"use --cluster-domain", "use networking.dnsDomain of a ClusterConfiguration", "use --cluster-dns", "it follows networking.serviceSubnet",
		"use --https-listen-port", "the host's port is networking.apiServerPort", "use --advertise-address", "each node has an address of the cluster's own network",
		"use --node-ip", "each node has an address of the cluster's own network", "use --node-name", "use nodeRegistration.name",
		"use --tls-san", "use apiServer.certSANs", "--kube-apiserver-arg=tls-sni-cert-key", "tls-sni-cert-key",
		"with --kube-apiserver-arg=runtime-config=api/alpha=true", `with runtimeConfig: {api/alpha: "true"}`,
		"with --kube-apiserver-arg=runtime-config=api/beta=true", `with runtimeConfig: {api/beta: "true"}`,
		"use --datastore-endpoint", "each cluster has a datastore of its own", "use podo kill", "leave it out",
	)
}

// populate adds the nodes of a file. Every mistake in them is in the error.
func (s Site) populate(c *Cluster, f File) error {
	nodes := f.Nodes
	if len(nodes) == 0 {
		nodes = []NodeFile{{Role: ControlPlane}}
	}
	workers := 0
	for i, n := range nodes {
		if n.Role == "" {
			nodes[i].Role = ControlPlane
		}
		if n.Role == Worker {
			workers++
		}
	}
	var errs []error
	said := map[string]bool{}
	for i, n := range nodes {
		at := fmt.Sprintf("nodes[%d]", i)
		made, err := s.newNode(*c, n.Role)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		if n.Role == ControlPlane && workers > 0 {
			made.Settings.add("node-taint", serverTaint)
		}
		if err := s.equip(&made, n, f.Networking.Family == "ipv6", at); err != nil {
			errs = append(errs, err)
		}
		isFirst := n.Role == ControlPlane && len(c.servers()) == 0
		whole := patches{cluster: c, node: &made, first: isFirst, whole: true}
		own := patches{cluster: c, node: &made, first: isFirst}
		// What is said of all nodes is read once for each, and complained about once.
		if err := whole.lay(f.KubeadmPatches, "kubeadmConfigPatches"); err != nil && !said[err.Error()] {
			errs = append(errs, err)
			said[err.Error()] = true
		}
		errs = append(errs, own.lay(n.KubeadmPatches, at+".kubeadmConfigPatches"))
		if slices.Contains(c.names(), made.Name) {
			errs = append(errs, Unfit{fmt.Errorf("%s: another node is called %s too", at, made.Name)})
		}
		c.Nodes = append(c.Nodes, made)
	}
	if len(c.servers()) > 1 || c.Shared["etcd-arg"] != nil {
		for i, n := range c.Nodes {
			if n.Name == c.servers()[0].Name {
				c.Nodes[i].Settings["cluster-init"] = true
			}
		}
	}
	return errors.Join(errs...)
}

// newNode is one more node, with the name that kind would give it. Addresses below the
// highest that are free again are given away last.
func (s Site) newNode(c Cluster, role Role) (Node, error) {
	number, has := first, map[int]bool{}
	for _, n := range c.Nodes {
		number, has[n.Number] = max(number, n.Number+1), true
	}
	if number > last {
		for number = first; has[number]; number++ {
		}
	}
	if number > last {
		return Node{}, Unfit{fmt.Errorf("a cluster has room for %d nodes", last-first+1)}
	}
	name, taken := c.Name+"-"+string(role), append(c.names(), c.Gone...)
	for i := 2; slices.Contains(taken, name); i++ {
		name = fmt.Sprintf("%s-%s%d", c.Name, role, i)
	}
	return Node{Name: name, Role: role, Number: number, Podo: s.Exe, Settings: Settings{}}, nil
}

// equip gives a node what is said of it alone. Its ports are open to all of the family
// that the cluster has, if no address is given.
func (s Site) equip(n *Node, f NodeFile, v6 bool, at string) error {
	var errs []error
	for _, k := range slices.Sorted(maps.Keys(f.Labels)) {
		n.Settings.add("node-label", k+"="+f.Labels[k])
	}
	for i, m := range f.Mounts {
		from, err := filepath.Abs(m.Host)
		if err != nil {
			return err
		}
		if dir := readOnly(m.Container); dir != "" {
			errs = append(errs, Unfit{fmt.Errorf("%s.extraMounts[%d].containerPath: there is no %s on this machine, and nodes have its %s as it is; make it here, empty, or choose another path", at, i, m.Container, dir)})
		}
		if slices.ContainsFunc(n.Mounts, func(o Mount) bool { return o.To == filepath.Clean(m.Container) }) {
			errs = append(errs, Unfit{fmt.Errorf("%s.extraMounts[%d].containerPath: %s is that of another mount too", at, i, m.Container)})
		}
		follow, _ := propagation(m.Propagation)
		n.Mounts = append(n.Mounts, Mount{From: from, To: filepath.Clean(m.Container), ReadOnly: m.ReadOnly, Follow: follow})
	}
	for i, p := range f.Ports {
		at := fmt.Sprintf("%s.extraPortMappings[%d]", at, i)
		protocol := strings.ToLower(p.Protocol)
		if protocol == "" {
			protocol = "tcp"
		}
		address := netip.IPv4Unspecified()
		if v6 {
			address = netip.IPv6Unspecified()
		}
		if p.Address != "" {
			address, _ = netip.ParseAddr(p.Address)
		}
		to, err := listen(address, p.Host, protocol)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s.%s: %w", at, placed(err, "hostPort", "listenAddress"), err))
		}
		n.Ports = append(n.Ports, Port{Listen: to, Port: uint16(p.Container), Protocol: protocol})
	}
	podo, err := s.binary(f.Image)
	if err != nil {
		errs = append(errs, Unfit{fmt.Errorf("%s.image: %w", at, err)})
	}
	n.Podo = podo
	return errors.Join(errs...)
}

// binary is the podo that an image stands for: a file, or a version that is ours.
func (s Site) binary(image string) (string, error) {
	if slices.Contains([]string{"", version.Podo(), version.Kubernetes()}, image) {
		return s.Exe, nil
	}
	if !strings.Contains(image, "/") || strings.HasPrefix(image, "kindest/") {
		return "", fmt.Errorf("%q: nodes are no images here; this podo is %s with Kubernetes %s; for another, give the path of its binary", image, version.Podo(), version.Kubernetes())
	}
	path, err := filepath.Abs(image)
	if err != nil {
		return "", err
	}
	if _, err := payload.Open(path); err != nil {
		return "", fmt.Errorf("%q is not the path of a podo: %w", image, err)
	}
	return path, nil
}

// ranges are those of pods and services, one for each family.
func ranges(n Networking, families []bool) (pods, services []netip.Prefix, err error) {
	pods, _ = subnets(n.PodSubnet)
	services, _ = subnets(n.ServiceSubnet)
	usual := func(given []netip.Prefix, v4, v6 string) []netip.Prefix {
		if len(given) > 0 {
			return given
		}
		var out []netip.Prefix
		for _, six := range families {
			if six {
				out = append(out, netip.MustParsePrefix(v6))
			} else {
				out = append(out, netip.MustParsePrefix(v4))
			}
		}
		return out
	}
	pods = usual(pods, "10.42.0.0/16", "fd42::/56")
	services = usual(services, "10.43.0.0/16", "fd43::/112")
	var errs []error
	for _, r := range []struct {
		name string
		list []netip.Prefix
	}{{"podSubnet", pods}, {"serviceSubnet", services}} {
		var has []bool
		for _, p := range r.list {
			has = append(has, p.Addr().Is6())
		}
		if !slices.Equal(has, families) {
			errs = append(errs, fmt.Errorf("networking.%s: %s does not fit ipFamily %s: give one range of each family, in its order", r.name, strings.Join(texts(r.list), ","), cmp.Or(n.Family, "ipv4")))
		}
	}
	if overlap(pods, services) {
		errs = append(errs, fmt.Errorf("networking: podSubnet %s and serviceSubnet %s overlap", strings.Join(texts(pods), ","), strings.Join(texts(services), ",")))
	}
	return pods, services, errors.Join(errs...)
}

func texts[T fmt.Stringer](list []T) []string {
	var out []string
	for _, v := range list {
		out = append(out, v.String())
	}
	return out
}

// pairs joins a mapping as components' flags take it.
func pairs(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, ",")
}

// gate switches a feature of Kubernetes.
func (s Settings) gate(name, value string) {
	gates, _ := s["feature-gates"].(map[string]string)
	if gates == nil {
		gates = map[string]string{}
	}
	gates[name] = value
	s["feature-gates"] = gates
}
