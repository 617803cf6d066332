package config

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Resolve applies settings to cfg and checks the outcome. Every mistake of both
// kinds is in the error; a setting that could not be read is not judged further.
func Resolve(cfg *Server, settings []Setting) (Origins, error) {
	origins, err := Apply(cfg, settings)
	v := validation{cfg: *cfg, from: origins, unread: map[string]bool{}}
	for _, m := range Mistakes(err) {
		v.unread[m.Setting] = true
	}
	v.all()
	return origins, errors.Join(append([]error{err}, v.errs...)...)
}

// ResolveAgent is Resolve for an agent. Settings that only a server has are passed
// over.
func ResolveAgent(cfg *Node, settings []Setting) (Origins, error) {
	origins, err := Apply(cfg, settings)
	v := validation{cfg: Default(), from: origins, unread: map[string]bool{}}
	v.cfg.Node = *cfg
	for _, m := range Mistakes(err) {
		v.unread[m.Setting] = true
	}
	v.anyNode()
	if cfg.Join.Server == "" && !v.unread["server"] {
		v.one("server", "is missing; an agent needs the URL of a server, such as https://10.0.0.1:6443 (to run a cluster of its own: podo server)")
	}
	return origins, errors.Join(append([]error{err}, v.errs...)...)
}

// Validate reports every mistake that can be seen in cfg alone. It judges what was
// asked for; whether this host can do it is a matter for others.
func Validate(cfg Server, origins Origins) error {
	v := validation{cfg: cfg, from: origins}
	v.all()
	return errors.Join(v.errs...)
}

// Mistakes takes an error of this package apart.
func Mistakes(err error) []Mistake {
	switch e := err.(type) {
	case Mistake:
		return []Mistake{e}
	case interface{ Unwrap() []error }:
		var out []Mistake
		for _, one := range e.Unwrap() {
			out = append(out, Mistakes(one)...)
		}
		return out
	}
	return nil
}

// SplitArg takes a flag for a component apart: "--v=4" is v and 4. A name without
// a value is a switch turned on.
func SplitArg(arg string) (name, value string, err error) {
	name, value, ok := strings.Cut(strings.TrimLeft(strings.TrimSpace(arg), "-"), "=")
	if !ok {
		value = "true"
	}
	if name == "" || strings.Trim(name, letters+digits+"-_.") != "" {
		return "", "", fmt.Errorf("%q is not NAME=VALUE", arg)
	}
	return name, value, nil
}

type validation struct {
	cfg    Server
	from   Origins
	unread map[string]bool
	errs   []error
}

// bad adds a mistake. It is blamed on the first of the settings that somebody
// gave, since a default that conflicts with a wish is not the one to change.
func (v *validation) bad(settings []string, format string, args ...any) {
	m := Mistake{Setting: settings[0], Err: fmt.Errorf(format, args...)}
	for i := len(settings) - 1; i >= 0; i-- {
		if v.unread[settings[i]] {
			return
		}
		if origin := v.from[settings[i]]; origin != "" {
			m.Setting, m.Origin = settings[i], origin
		}
	}
	v.errs = append(v.errs, m)
}

func (v *validation) one(setting, format string, args ...any) {
	v.bad([]string{setting}, format, args...)
}

func (v *validation) given(setting string) bool { return v.from[setting] != "" }

func (v *validation) all() {
	v.anyNode()
	v.datastore()
	v.roles()
	v.agentToken()
	v.listener()
	v.network()
	v.addresses()
	v.kubeconfig()
	v.parts()
}

// anyNode checks what agents have as well.
func (v *validation) anyNode() {
	v.logging()
	v.node()
	v.join()
	v.labels()
	v.taints()
	v.args()
}

func (v *validation) join() {
	j := v.cfg.Join
	if j.Server != "" {
		u, err := url.Parse(j.Server)
		switch {
		case err != nil || u.Host == "" || u.Hostname() == "":
			v.one("server", "%q is not a URL such as https://10.0.0.1:6443", j.Server)
		case u.Scheme != "https":
			v.one("server", "%q: servers speak https; write https://%s", j.Server, u.Host)
		case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil || u.Fragment != "":
			v.one("server", "%q holds more than a host and a port; write https://%s", j.Server, u.Host)
		case u.Port() != "" && !isPort(u.Port()):
			v.one("server", "%s is not a port; ports go from 1 to 65535", u.Port())
		}
	}
	v.token("token", "token-file", j.Token, j.TokenFile)
	switch p := j.BalancerPort; {
	case p < 1 || p > 65535:
		v.one("lb-server-port", "%d is not a port; ports go from 1 to 65535", p)
	case slices.Contains([]int{10248, 10249, 10250, 10256}, p):
		v.one("lb-server-port", "%d is the port of the kubelet or of kube-proxy; choose another", p)
	}
}

func isPort(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n > 0
}

func (v *validation) datastore() {
	d, joins := v.cfg.Datastore, v.cfg.Join.Server != ""
	v.external(joins)
	switch {
	case d.Init && joins:
		v.bad([]string{"cluster-init", "server"}, "a server either begins a cluster or joins one; keep cluster-init on the first server, and server on the others")
	case d.Reset && joins:
		v.bad([]string{"cluster-reset", "server"}, "a reset makes a cluster of this server alone; leave server out")
	}
}

// external checks where a datastore elsewhere is. The endpoint is never quoted: it may
// hold a password.
func (v *validation) external(joins bool) {
	d := v.cfg.Datastore
	for _, f := range []struct{ setting, path string }{{"datastore-cafile", d.CAFile}, {"datastore-certfile", d.CertFile}, {"datastore-keyfile", d.KeyFile}} {
		if f.path == "" {
			continue
		}
		v.file(f.setting, f.path)
		if d.Endpoint == "" {
			v.one(f.setting, "is for a datastore elsewhere; give datastore-endpoint too, or leave it out")
		}
	}
	if (d.CertFile == "") != (d.KeyFile == "") {
		v.bad([]string{"datastore-certfile", "datastore-keyfile"}, "a certificate and its key go together; give both or neither")
	}
	if d.Endpoint == "" {
		if v.given("datastore-endpoint") {
			v.one("datastore-endpoint", "is empty; leave it out to keep the state on this server")
		}
		return
	}
	if _, err := ParseEndpoint(d.Endpoint); err != nil {
		v.one("datastore-endpoint", "%w", err)
	}
	const instead = "the state is in the datastore of datastore-endpoint; leave one of the two out"
	switch {
	case joins:
		v.bad([]string{"datastore-endpoint", "server"}, "servers of one datastore find each other in it; leave server out, and give their token")
	case d.Init:
		v.bad([]string{"cluster-init", "datastore-endpoint"}, instead)
	case d.Reset:
		v.bad([]string{"cluster-reset", "datastore-endpoint"}, instead)
	case v.cfg.Components.NoAPIServer:
		v.bad([]string{"disable-apiserver", "datastore-endpoint"}, "a server whose state is elsewhere serves nothing but the API; run podo agent here, or leave disable-apiserver out")
	}
	if len(d.EtcdArgs) > 0 {
		v.bad([]string{"etcd-arg", "datastore-endpoint"}, "no etcd runs on this server; leave it out")
	}
	if d.ExposeMetrics {
		v.bad([]string{"etcd-expose-metrics", "datastore-endpoint"}, "no etcd runs on this server; leave it out")
	}
}

// roles checks what a server can be without. Whether it has an etcd at all is known by
// its disk too, and judged later.
func (v *validation) roles() {
	c, d := v.cfg.Components, v.cfg.Datastore
	if c.NoAPIServer && v.cfg.NoBalancer {
		v.bad([]string{"disable-apiserver-lb", "disable-apiserver"}, "a server without an API server reaches those of the others by the balancer; leave disable-apiserver-lb out")
	}
	if !c.NoEtcd {
		return
	}
	switch {
	case c.NoAPIServer:
		v.bad([]string{"disable-etcd", "disable-apiserver"}, "a server with neither etcd nor an API server serves nothing; run podo agent here, or keep one of the two")
	case d.Init:
		v.bad([]string{"cluster-init", "disable-etcd"}, "begins an etcd cluster in this server, and disable-etcd keeps etcd out of it; begin the cluster on a server that runs etcd")
	case d.Reset:
		v.bad([]string{"cluster-reset", "disable-etcd"}, "is about the etcd of this server, and disable-etcd keeps etcd out of it; run it on a server that runs etcd")
	case len(d.EtcdArgs) > 0:
		v.bad([]string{"etcd-arg", "disable-etcd"}, "is for the etcd of this server, and disable-etcd keeps etcd out of it; remove it")
	case d.ExposeMetrics:
		v.bad([]string{"etcd-expose-metrics", "disable-etcd"}, "is about the etcd of this server, and disable-etcd keeps etcd out of it; remove it")
	case d.Endpoint != "":
		v.bad([]string{"disable-etcd", "datastore-endpoint"}, "the state is in the datastore of datastore-endpoint, so no etcd runs here anyway; leave disable-etcd out")
	case v.cfg.Join.Server == "":
		v.bad([]string{"disable-etcd", "server"}, "a server without etcd uses that of other servers; give the URL of one that runs etcd with --server, such as https://10.0.0.1:6443")
	}
}

func (v *validation) agentToken() {
	v.token("agent-token", "agent-token-file", v.cfg.Agents.Token, v.cfg.Agents.TokenFile)
	if t := v.cfg.Agents.Token; t != "" && t == v.cfg.Token {
		v.bad([]string{"agent-token", "token"}, "is the same as token, so whoever may join an agent could join a server; give another, or leave it out and one is made")
	}
}

// token checks a secret that can be given by itself or in a file.
func (v *validation) token(setting, file string, given Secret, path string) {
	switch {
	case v.given(setting) && given == "":
		v.one(setting, "is empty; leave it out and one is made")
	case strings.ContainsAny(string(given), " \t\r\n"):
		v.one(setting, "holds blanks; a token is one word")
	}
	if given != "" && path != "" && v.given(setting) {
		v.bad([]string{file, setting}, "the token is given twice, by %s (%s) and by %s (%s); keep one", setting, v.from[setting], file, v.from[file])
	}
}

func (v *validation) logging() {
	l := v.cfg.Logging
	if l.Config == "" {
		v.one("config", "is empty; name a file")
	}
	if l.Verbosity < 0 || l.Verbosity > 10 {
		v.one("v", "%d is not between 0 and 10", l.Verbosity)
	}
	for part := range strings.SplitSeq(l.VModule, ",") {
		pattern, level, _ := strings.Cut(part, "=")
		if n, err := strconv.Atoi(level); l.VModule != "" && (pattern == "" || err != nil || n < 0) {
			v.one("vmodule", "%q is not FILE=N, such as reflector=4", part)
		}
	}
	if v.given("log") && l.File == "" {
		v.one("log", "is empty; name a file")
	}
}

func (v *validation) node() {
	n := v.cfg.Node
	v.folder("data-dir", n.DataDir)
	if strings.ContainsAny(n.DataDir, ":,\\ \t\n?;'\"") {
		v.one("data-dir", "%q holds a colon, comma, semicolon, question mark, quote, backslash or blank, which not all of podo's parts can take; choose another folder", n.DataDir)
	}
	if filepath.Clean(n.DataDir) == "/" {
		v.one("data-dir", "is the root folder; choose one of its own, such as /var/lib/podo")
	}
	if n.Name != "" {
		v.nodeName(n.Name)
	}
	if n.ResolvConf != "" {
		v.file("resolv-conf", n.ResolvConf)
	}
	v.image("pause-image", n.PauseImage)
	v.images()
	v.oneOf("snapshotter", n.Snapshotter, "overlayfs", "native")
	if strings.ContainsAny(n.FlannelIface, "/ \t\n") || len(n.FlannelIface) > 15 {
		v.one("flannel-iface", "%q is not the name of an interface, which has 15 letters at most; see ip link", n.FlannelIface)
	}
	for _, name := range slices.Sorted(maps.Keys(n.FeatureGates)) {
		value := n.FeatureGates[name]
		if _, err := strconv.ParseBool(value); err != nil {
			v.one("feature-gates", "%s is %q, which is neither true nor false", name, value)
		}
	}
}

func (v *validation) nodeName(name string) {
	lower := strings.ToLower(name)
	switch {
	case len(name) > 63:
		v.one("node-name", "%q has %d letters; a node's name is a label too, which takes 63 at most", name, len(name))
	case !subdomain(name) && subdomain(lower):
		v.one("node-name", "%q has capital letters, which names of nodes cannot have; write %s", name, lower)
	case !subdomain(name):
		v.one("node-name", "%q is not a name such as node-1: small letters, digits, dashes and dots, with a letter or digit at both ends", name)
	}
}

func (v *validation) labels() {
	seen := map[string]string{}
	for _, text := range v.cfg.Labels {
		key, value, ok := strings.Cut(text, "=")
		switch {
		case !ok:
			v.one("node-label", "%q is not KEY=VALUE", text)
		case !qualified(key):
			v.one("node-label", "%q: key %s", text, keyRule)
		case strings.Contains(value, ",") && strings.Contains(value, "="):
			v.one("node-label", "%q holds several labels; write a list, or give the flag once for each", text)
		case !labelValue(value):
			v.one("node-label", "%q: value %s", text, valueRule)
		case !selfSet(key):
			v.one("node-label", "%q: a node may not give itself a label of Kubernetes' own; use kubectl label node once it has joined", text)
		}
		if other, twice := seen[key]; ok && twice && other != value {
			v.one("node-label", "%s is both %q and %q", key, other, value)
		}
		seen[key] = value
	}
}

func (v *validation) taints() {
	const shape = "KEY=VALUE:EFFECT or KEY:EFFECT"
	effects := []string{"NoSchedule", "PreferNoSchedule", "NoExecute"}
	seen := map[string]bool{}
	for _, text := range v.cfg.Taints {
		i := strings.LastIndex(text, ":")
		if i < 0 {
			v.one("node-taint", "%q is not %s", text, shape)
			continue
		}
		effect := text[i+1:]
		key, value, _ := strings.Cut(text[:i], "=")
		switch {
		case !qualified(key):
			v.one("node-taint", "%q: key %s", text, keyRule)
		case !labelValue(value):
			v.one("node-taint", "%q: value %s", text, valueRule)
		case !slices.Contains(effects, effect):
			v.one("node-taint", "%q: effect %q is not one of %s", text, effect, strings.Join(effects, ", "))
		case seen[key+":"+effect]:
			v.one("node-taint", "%q: %s:%s is given twice", text, key, effect)
		}
		seen[key+":"+effect] = true
	}
}

func (v *validation) listener() {
	l := v.cfg.Listener
	switch {
	case l.Port < 1 || l.Port > 65535:
		v.one("https-listen-port", "%d is not a port; ports go from 1 to 65535", l.Port)
	case slices.Contains([]int{10248, 10249, 10250, 10256}, l.Port):
		v.one("https-listen-port", "%d is the port of the kubelet or of kube-proxy; choose another", l.Port)
	}
	if l.BindAddress.IsMulticast() {
		v.one("bind-address", "%s is a multicast address; give one of this host", l.BindAddress)
	}
	if a := l.AdvertiseAddress; a.IsValid() {
		if what := unreachable(a); what != "" {
			v.one("advertise-address", "%s is %s, which pods cannot reach; give an address of this node", a, what)
		}
	}
	for _, san := range l.TLSSANs {
		name := strings.TrimSuffix(strings.TrimPrefix(strings.ToLower(san), "*."), ".")
		if _, err := netip.ParseAddr(san); err != nil && !subdomain(name) {
			v.one("tls-san", "%q is neither a host name nor an IP address; give the name alone, without scheme and port", san)
		}
	}
}

func (v *validation) network() {
	n := v.cfg.Network
	v.ranges("cluster-cidr", n.ClusterCIDR)
	v.ranges("service-cidr", n.ServiceCIDR)
	for i, p := range n.ClusterCIDR {
		mask := v.cfg.NodeMask(p.Addr().Is4())
		switch {
		case p.Bits() > mask:
			v.bad([]string{"cluster-cidr", "kube-controller-manager-arg"}, "%s is too small: each node takes a /%d of it; give a /%d or larger, or let nodes take less of it, with node-cidr-mask-size of kube-controller-manager", p, mask, max(mask-8, 1))
		case p.Addr().Is6() && mask-p.Bits() > 16:
			v.bad([]string{"cluster-cidr", "kube-controller-manager-arg"}, "%s is too large to be cut into a /%d for each node; give a /%d or smaller", p, mask, mask-16)
		}
		if i < len(n.ServiceCIDR) && len(n.ClusterCIDR) == len(n.ServiceCIDR) && n.ServiceCIDR[i].Addr().Is4() != p.Addr().Is4() {
			v.bad([]string{"cluster-cidr", "service-cidr"}, "pods' ranges and services' ranges differ in their IP families: %s and %s; give the same families in the same order", join(n.ClusterCIDR), join(n.ServiceCIDR))
			break
		}
	}
	if len(n.ClusterCIDR) > 0 && len(n.ServiceCIDR) > len(n.ClusterCIDR) {
		v.bad([]string{"service-cidr", "cluster-cidr"}, "services have %d IP families and pods %d: %s and %s; give pods a range of each family", len(n.ServiceCIDR), len(n.ClusterCIDR), join(n.ServiceCIDR), join(n.ClusterCIDR))
	}
	for _, p := range n.ServiceCIDR {
		switch room := p.Addr().BitLen() - p.Bits(); {
		case room < 4:
			v.one("service-cidr", "%s is too small: it has %d addresses; give a /%d or larger", p, 1<<room, p.Addr().BitLen()-8)
		case p.Addr().Is6() && p.Bits() < 64:
			v.one("service-cidr", "%s is too large; Kubernetes takes a /64 or smaller for services, such as %s", p, netip.PrefixFrom(p.Addr(), 108))
		}
	}
	v.clusterDNS()
	if !subdomain(n.ClusterDomain) {
		v.one("cluster-domain", "%q is not a DNS domain such as cluster.local: small letters, digits, dashes and dots", n.ClusterDomain)
	}
	v.nodePorts()
	v.oneOf("egress-selector-mode", n.Egress, "agent", "pod", "cluster", "disabled")
	switch n.FlannelBackend {
	case "wireguard":
		v.one("flannel-backend", "is called wireguard-native")
	case "ipsec", "udp":
		v.one("flannel-backend", "%q is not supported; for encryption use wireguard-native", n.FlannelBackend)
	default:
		v.oneOf("flannel-backend", n.FlannelBackend, "vxlan", "host-gw", "wireguard-native", "none")
	}
}

// ranges checks one list of ranges by itself.
func (v *validation) ranges(setting string, list []netip.Prefix) {
	if len(list) == 0 {
		v.one(setting, "is empty; give at least one range")
	}
	if f := twiceOfOneFamily(list, netip.Prefix.Addr); f != "" {
		v.one(setting, "%s has more than one %s range; give one for each IP family", join(list), f)
	}
	for _, p := range list {
		for _, r := range reserved() {
			if p.Overlaps(r.prefix) {
				v.one(setting, "%s overlaps %s, which is for %s", p, r.prefix, r.use)
				break
			}
		}
	}
}

// NodeMask is the length of one node's range of pod addresses, by its family.
func (s Server) NodeMask(v4 bool) int {
	mask, names := 64, []string{"node-cidr-mask-size-ipv6"}
	if v4 {
		mask, names = 24, []string{"node-cidr-mask-size-ipv4"}
	}
	if len(s.Network.ClusterCIDR) == 1 {
		names = append(names, "node-cidr-mask-size")
	}
	for _, arg := range s.Components.ControllerManagerArgs {
		name, value, err := SplitArg(arg)
		if n, bad := strconv.Atoi(value); err == nil && bad == nil && slices.Contains(names, name) {
			mask = n
		}
	}
	return mask
}

func (v *validation) clusterDNS() {
	n := v.cfg.Network
	if f := twiceOfOneFamily(n.ClusterDNS, self); f != "" {
		v.one("cluster-dns", "%s has more than one %s address; give one for each IP family", join(n.ClusterDNS), f)
	}
	for _, a := range n.ClusterDNS {
		i := slices.IndexFunc(n.ServiceCIDR, func(p netip.Prefix) bool { return p.Contains(a) })
		both := []string{"cluster-dns", "service-cidr"}
		if i < 0 {
			v.bad(both, "%s is outside service-cidr %s; give an address inside it, or leave cluster-dns out", a, join(n.ServiceCIDR))
			continue
		}
		switch p := n.ServiceCIDR[i]; a {
		case p.Addr():
			v.bad(both, "%s is the address of the range %s itself; choose another", a, p)
		case p.Addr().Next():
			v.bad(both, "%s is the first address of %s, which the API itself takes; choose another", a, p)
		case last(p):
			if a.Is4() {
				v.bad(both, "%s is the broadcast address of %s; choose another", a, p)
			}
		}
	}
}

func (v *validation) nodePorts() {
	const setting = "service-node-port-range"
	text := v.cfg.Network.NodePortRange
	a, b, ok := strings.Cut(text, "-")
	first, errFirst := strconv.Atoi(strings.TrimSpace(a))
	end, errEnd := strconv.Atoi(strings.TrimSpace(b))
	switch {
	case !ok || errFirst != nil || errEnd != nil:
		v.one(setting, "%q is not FIRST-LAST, such as 30000-32767", text)
		return
	case first < 1 || end > 65535:
		v.one(setting, "%s goes beyond the ports there are, which are 1 to 65535", text)
		return
	case first > end:
		v.one(setting, "%s ends before it begins; write %d-%d", text, end, first)
		return
	}
	if p := v.cfg.Listener.Port; first <= p && p <= end {
		v.bad([]string{setting, "https-listen-port"}, "%s contains https-listen-port %d, so a Service could take the API's port", text, p)
	}
	for _, p := range []int{10250, 10256} {
		if first <= p && p <= end {
			v.one(setting, "%s contains %d, a port of the node itself; choose a range without it", text, p)
		}
	}
}

// addresses checks what must not overlap, across settings.
func (v *validation) addresses() {
	n := v.cfg.Network
	for _, c := range n.ClusterCIDR {
		for _, s := range n.ServiceCIDR {
			if c.Overlaps(s) {
				v.bad([]string{"cluster-cidr", "service-cidr"}, "cluster-cidr %s overlaps service-cidr %s; choose ranges that share no address", c, s)
			}
		}
	}
	if f := twiceOfOneFamily(v.cfg.IP, self); f != "" {
		v.one("node-ip", "%s has more than one %s address; give one for each IP family", join(v.cfg.IP), f)
	}
	own := []struct {
		setting string
		addrs   []netip.Addr
	}{
		{"node-ip", v.cfg.IP},
		{"advertise-address", []netip.Addr{v.cfg.Listener.AdvertiseAddress}},
		{"bind-address", []netip.Addr{v.cfg.Listener.BindAddress}},
	}
	for _, o := range own {
		for _, a := range o.addrs {
			if !a.IsValid() {
				continue
			}
			if what := unreachable(a); what != "" && o.setting == "node-ip" {
				v.one(o.setting, "%s is %s, which other nodes cannot reach; give an address of this node's network", a, what)
			}
			v.inside(o.setting, a, "cluster-cidr", n.ClusterCIDR)
			v.inside(o.setting, a, "service-cidr", n.ServiceCIDR)
		}
	}
	if a := v.cfg.Listener.AdvertiseAddress; a.IsValid() && len(n.ServiceCIDR) > 0 && a.Is4() != n.ServiceCIDR[0].Addr().Is4() {
		v.bad([]string{"advertise-address", "service-cidr"}, "%s and the first service range %s are of different IP families; the API is advertised in the family of the first", a, n.ServiceCIDR[0])
	}
	if len(v.cfg.IP) > 0 {
		for _, c := range n.ClusterCIDR {
			if !slices.ContainsFunc(v.cfg.IP, func(a netip.Addr) bool { return a.Is4() == c.Addr().Is4() }) {
				v.bad([]string{"node-ip", "cluster-cidr"}, "%s has no %s address, but pods have the range %s; give the node an address of each family", join(v.cfg.IP), family(c.Addr()), c)
			}
		}
	}
}

func (v *validation) inside(setting string, a netip.Addr, other string, ranges []netip.Prefix) {
	for _, p := range ranges {
		if p.Contains(a) {
			v.bad([]string{setting, other}, "%s %s lies inside %s %s; choose a range that the hosts' network does not use", setting, a, other, p)
		}
	}
}

func (v *validation) kubeconfig() {
	k := v.cfg.Kubeconfig
	v.file("write-kubeconfig", k.Path)
	if n, err := strconv.ParseUint(strings.TrimPrefix(k.Mode, "0o"), 8, 32); err != nil || n > 0o777 {
		v.one("write-kubeconfig-mode", "%q is not a file mode in octal, such as 0600 or 644", k.Mode)
	} else if n&0o400 == 0 {
		v.one("write-kubeconfig-mode", "%q keeps its owner from reading it; use 0600 or more", k.Mode)
	}
	if k.Name == "" || strings.ContainsAny(k.Name, " \t\n/") {
		v.one("write-kubeconfig-name", "%q is not a name: it is one word without slashes", k.Name)
	}
}

func (v *validation) parts() {
	const storage = "default-local-storage-path"
	switch path := v.cfg.Components.LocalStorage; {
	case path == "":
	case filepath.IsAbs(path) && filepath.Clean(path) == "/":
		v.one(storage, "%q is the folder of all files; name one for volumes alone", path)
	default:
		v.folder(storage, path)
	}
	for _, part := range v.cfg.Components.Disable {
		switch part {
		case "coredns", "gateway-api", "local-storage", "metrics-server", "network-policy", "servicelb", "traefik":
		case "apiserver", "controller-manager", "scheduler", "etcd", "cloud-controller", "kube-proxy", "helm-controller", "agent":
			v.one("disable", "%q has a switch of its own: disable-%s: true", part, part)
		case "runtimes":
			v.one("disable", "%q is not part of podo, so there is nothing to leave out; remove it", part)
		default:
			v.manifest(part)
		}
	}
}

// manifest judges the name of a manifest of people's own that is to be left out.
func (v *validation) manifest(name string) {
	near := Closest(name, []string{"coredns", "gateway-api", "local-storage", "metrics-server", "network-policy", "servicelb", "traefik"})
	switch {
	case near != "":
		v.one("disable", "%q is neither a part that can be left out nor, it seems, a manifest of your own; did you mean %s?", name, near)
	case strings.HasPrefix(name, "podo-"):
		v.one("disable", "%q would be a manifest that podo itself needs; remove it", name)
	case strings.ContainsAny(name, "/ \t"), slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name)):
		v.one("disable", "%q is not a name: a manifest of your own is named as its file, without folder and ending", name)
	}
}

func (v *validation) args() {
	for _, f := range Fields(&v.cfg) {
		if !f.Args {
			continue
		}
		for _, arg := range f.Values() {
			name, _, err := SplitArg(arg)
			switch component := strings.TrimSuffix(f.Name, "-arg"); {
			case err != nil:
				v.one(f.Name, "%w", err)
			case name == "help" || name == "h":
				v.one(f.Name, "%q would start nothing; the flags are listed at https://kubernetes.io/docs/reference/command-line-tools-reference/%s/", arg, component)
			}
		}
	}
}

func (v *validation) folder(setting, path string) {
	switch {
	case path == "":
		v.one(setting, "is empty; name a folder")
	case !filepath.IsAbs(path):
		v.one(setting, "%q depends on where podo is started; write the whole path, from the first slash", path)
	case strings.ContainsRune(path, 0):
		v.one(setting, "%q is not a path", path)
	}
}

func (v *validation) file(setting, path string) {
	v.folder(setting, path)
	if strings.HasSuffix(path, "/") {
		v.one(setting, "%q is a folder; name a file in it", path)
	}
}

func (v *validation) images() {
	i := v.cfg.Images
	v.file("private-registry", i.Registries)
	const dir, file = "image-credential-provider-bin-dir", "image-credential-provider-config"
	if i.ProviderDir != "" {
		v.folder(dir, i.ProviderDir)
	}
	if i.ProviderConfig != "" {
		v.file(file, i.ProviderConfig)
	}
	if (i.ProviderDir == "") != (i.ProviderConfig == "") {
		v.bad([]string{dir, file}, "one is nothing without the other; set both")
	}
	r := v.cfg.Components.SystemRegistry
	host, _, _ := strings.Cut(r, "/")
	if r != "" && (host != "localhost" && !strings.ContainsAny(host, ".:") || imageProblem(r+"/pause:1") != "") {
		v.one("system-default-registry", "%q is no registry; write its host, and a path if need be, such as registry.example.com:5000/podo", r)
	}
}

// image refuses what no registry could be asked for.
func (v *validation) image(setting, text string) {
	const shape = "such as registry.example.com/pause:3.10"
	problem := imageProblem(text)
	if problem != "" {
		v.one(setting, "%q is not the name of an image: %s; write it as NAME:TAG, %s", text, problem, shape)
	}
}

func (v *validation) oneOf(setting, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		v.one(setting, "%q is not one of %s", value, strings.Join(allowed, ", "))
	}
}
