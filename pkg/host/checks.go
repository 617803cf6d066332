package host

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/podo-dev/podo/pkg/config"
)

// Level is how a check came out.
type Level string

// The levels. Fail means a node cannot run; Warn that it can, with less than it
// might have.
const (
	OK   Level = "OK"
	Warn Level = "WARN"
	Fail Level = "FAIL"
)

// A Finding is the outcome of one check, with what to do about it if anything.
type Finding struct {
	Name   string `json:"name"`
	Level  Level  `json:"level"`
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"`
}

// Settings are what the checks depend on besides the machine. SettingsOf takes
// them from what a server was told.
type Settings struct {
	Ports                 []Port
	Snapshotter           string
	FlannelBackend        string
	IPv6                  bool // the cluster has an IPv6 range
	ProtectKernelDefaults bool
	ResolvConf            string         // given, not found
	NodeName              string         // given, not found
	NodeIP                []netip.Addr   // given, not found
	Ranges                []netip.Prefix // of pods and services
	ControlPlaneOnly      bool           // no kubelet here
}

// joinPort is what the port of the API is for on a server without an API server.
const joinPort = "joining of machines"

// vxlanPort is flannel's, on Linux.
const vxlanPort = 8472

// proxyMetrics is what kube-proxy can do without: it tries again until the port is free.
const proxyMetrics = "kube-proxy metrics"

// SettingsOf picks from a server's settings what the checks depend on.
func SettingsOf(cfg config.Server) Settings {
	s := Settings{
		Ports:                 []Port{{Number: cfg.Listener.Port, Use: "Kubernetes API"}},
		Snapshotter:           cfg.Snapshotter,
		FlannelBackend:        cfg.Network.FlannelBackend,
		ProtectKernelDefaults: cfg.ProtectKernelDefaults,
		ResolvConf:            cfg.ResolvConf,
		NodeName:              cfg.Name,
		NodeIP:                cfg.IP,
		Ranges:                append(slices.Clone(cfg.Network.ClusterCIDR), cfg.Network.ServiceCIDR...),
		ControlPlaneOnly:      cfg.Components.NoAgent,
	}
	if cfg.Components.NoAPIServer {
		s.Ports[0].Use = joinPort
		s.Ports = append(s.Ports, Port{Number: cfg.BalancerPort, Use: "way to the API servers"})
	}
	if cfg.Components.NoEtcd {
		s.Ports = append(s.Ports, Port{Number: 2379, Use: "way to etcd"})
	}
	s.IPv6 = slices.ContainsFunc(s.Ranges, func(p netip.Prefix) bool { return p.Addr().Is6() })
	if s.ControlPlaneOnly {
		return s
	}
	s.Ports = append(s.Ports, Port{Number: 10248, Use: "kubelet health"}, Port{Number: 10250, Use: "kubelet"})
	if !cfg.Components.NoKubeProxy {
		s.Ports = append(s.Ports, Port{Number: 10249, Use: proxyMetrics}, Port{Number: 10256, Use: "kube-proxy health"})
	}
	switch s.FlannelBackend {
	case "vxlan":
		s.Ports = append(s.Ports, Port{Number: vxlanPort, UDP: true, Use: "flannel vxlan"})
	case "wireguard-native": // an interface for each family
		if slices.ContainsFunc(s.Ranges, func(p netip.Prefix) bool { return p.Addr().Is4() }) {
			s.Ports = append(s.Ports, Port{Number: 51820, UDP: true, Use: "flannel wireguard"})
		}
		if s.IPv6 {
			s.Ports = append(s.Ports, Port{Number: 51821, UDP: true, Use: "flannel wireguard, IPv6"})
		}
	}
	return s
}

// SettingsOfAgent is SettingsOf for an agent, in a cluster with network n.
func SettingsOfAgent(cfg config.Node, n config.Network, kubeProxy bool) Settings {
	s := SettingsOf(config.Server{Node: cfg, Listener: config.Listener{Port: cfg.BalancerPort}, Network: n, Components: config.Components{NoKubeProxy: !kubeProxy}})
	s.Ports[0].Use = "way to the API servers"
	if cfg.NoBalancer {
		s.Ports = s.Ports[1:]
	}
	return s
}

// Err joins every Fail into one error, or returns nil if there is none.
func Err(findings []Finding) error {
	var errs []error
	for _, f := range findings {
		if f.Level == Fail {
			errs = append(errs, fmt.Errorf("%s: %s; %s", f.Name, f.Detail, f.Remedy))
		}
	}
	return errors.Join(errs...)
}

// Checks judges a machine. It looks at nothing but its arguments.
func Checks(f Facts, s Settings) []Finding {
	var out []Finding
	out = append(out, f.checkClock(), f.checkName(s))
	out = append(out, f.checkPrivilege()...)
	out = append(out, f.checkKernel(), f.checkMemory())
	out = append(out, f.checkNetwork(s)...)
	out = append(out, f.checkStorage()...)
	if !s.ControlPlaneOnly {
		out = append(out, f.checkOverlay(s))
		out = append(out, f.checkCgroup()...)
		out = append(out, f.checkFeatures(s)...)
		out = append(out, f.checkSysctls(s)...)
		out = append(out, f.checkPropagation(), f.checkResolver(s))
		out = append(out, f.checkHosts()...)
	}
	out = append(out, f.checkPorts()...)
	out = append(out, f.checkSecurity(s)...)
	return append(out, f.checkRivals()...)
}

func okay(name, format string, args ...any) Finding {
	return Finding{Name: name, Level: OK, Detail: fmt.Sprintf(format, args...)}
}

func (f Facts) checkClock() Finding {
	said := f.Time.UTC().Format("2006-01-02 15:04:05 MST")
	if f.Time.Year() < 2024 {
		return Finding{"clock", Fail, "it says " + said + ", which is past; no certificate would be valid",
			"set the clock, and run a time service such as chrony or systemd-timesyncd"}
	}
	return okay("clock", "%s", said)
}

func (f Facts) checkName(s Settings) Finding {
	name := s.NodeName
	if name == "" {
		name = strings.ToLower(f.Hostname)
	}
	valid := regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	switch {
	case !valid.MatchString(name) || len(name) > 253:
		return Finding{"node name", Fail, fmt.Sprintf("%q cannot name a node: it is no DNS name", name), "give one with --node-name, or change it with hostnamectl set-hostname"}
	case name == "localhost" || strings.HasPrefix(name, "localhost."):
		return Finding{"node name", Warn, "the host name is " + name + ", which other machines have too", "give another with --node-name, or change it with hostnamectl set-hostname"}
	}
	return okay("node name", "%s", name)
}

func (f Facts) checkPrivilege() []Finding {
	where := "on the machine itself"
	if f.Privilege.Container != "" {
		where = "in a container (" + f.Privilege.Container + ")"
	}
	if !f.Privilege.Root {
		return []Finding{{"privilege", Fail, "not root, " + where + "; the other findings may be incomplete", "run it with sudo"}}
	}
	var missing []string
	for _, c := range []struct {
		bit  int
		name string
	}{
		{CapSysAdmin, "CAP_SYS_ADMIN"}, {CapNetAdmin, "CAP_NET_ADMIN"}, {CapNetRaw, "CAP_NET_RAW"},
		{CapSysChroot, "CAP_SYS_CHROOT"}, {CapSysPtrace, "CAP_SYS_PTRACE"},
	} {
		if !f.Privilege.Caps.Has(c.bit) {
			missing = append(missing, c.name)
		}
	}
	if len(missing) > 0 {
		return []Finding{{"privilege", Fail, "root " + where + ", without " + strings.Join(missing, ", "), "run the container with --privileged, or as a service give it all capabilities"}}
	}
	out := []Finding{okay("privilege", "root %s", where)}
	if f.Privilege.UserNamespace {
		out = append(out, Finding{"user namespace", Warn, "this is a user namespace; some volumes and devices are refused by the kernel", "run it outside one if pods need those"})
	}
	if !f.Privilege.Caps.Has(CapSysResource) {
		out = append(out, Finding{"out-of-memory order", Warn, "without CAP_SYS_RESOURCE the kernel may choose podo before pods when memory runs out", "give the container or service that capability"})
	}
	return out
}

func (f Facts) checkKernel() Finding {
	if !f.Kernel.AtLeast(5, 13) {
		return Finding{"kernel", Fail, f.Kernel.Release + " is too old for services by nftables", "boot 5.13 or newer"}
	}
	return okay("kernel", "%s", f.Kernel.Release)
}

func (f Facts) checkMemory() Finding {
	const mib = 1 << 20
	detail := fmt.Sprintf("%s, %s", size(f.Memory.Total), count(f.CPUs, "CPU"))
	if f.Memory.Swap > 0 {
		detail += ", " + size(f.Memory.Swap) + " of swap"
	}
	switch {
	case f.Memory.Total == 0:
		return Finding{"memory", Warn, "cannot tell how much there is", "mount /proc"}
	case f.Memory.Total < 350*mib:
		return Finding{"memory", Fail, detail + "; a server needs 512 MiB", "give the machine more memory"}
	case f.Memory.Total < 900*mib:
		return Finding{"memory", Warn, detail + "; little is left for pods", "give the machine more memory"}
	}
	return okay("memory", "%s", detail)
}

func (f Facts) checkNetwork(s Settings) []Finding {
	r := f.Network.Primary()
	var out []Finding
	switch {
	case len(s.NodeIP) > 0:
		for _, ip := range s.NodeIP {
			l, ok := f.Network.LinkOf(ip)
			if !ok {
				out = append(out, Finding{"node address", Fail, ip.String() + " is on no interface that is up", "give one of " + f.Network.addresses() + " with --node-ip"})
				continue
			}
			out = append(out, okay("node address", "%s on %s, MTU %d", ip, l.Name, l.MTU))
		}
	case !r.Addr.IsValid():
		out = append(out, Finding{"node address", Fail, "no interface that is up has an address", "connect the machine to a network, or add an address to an interface: ip addr add 192.168.1.2/24 dev eth0"})
	case !r.Default:
		out = append(out, Finding{"node address", Warn, fmt.Sprintf("%s on %s is a guess, for there is no default route", r.Addr, r.Interface), "say which with --node-ip"})
	default:
		l, _ := f.Network.Link(r.Interface)
		out = append(out, okay("node address", "%s on %s, MTU %d", r.Addr, r.Interface, l.MTU))
	}
	if s.IPv6 && len(s.NodeIP) == 0 && !f.Network.V6.Addr.IsValid() {
		out = append(out, Finding{"IPv6 address", Fail, "the cluster has an IPv6 range and this machine no IPv6 address", "give the machine one, or leave IPv6 out of --cluster-cidr and --service-cidr"})
	}
	for _, l := range f.Network.Links {
		if l.Name == "cni0" || strings.HasPrefix(l.Name, "flannel") || s.FlannelBackend == "none" && Virtual(l.Name) {
			continue // podo's own, or of the pod network that somebody installed: in the cluster's range by right
		}
		for _, own := range l.Addrs {
			for _, p := range s.Ranges {
				if p.Overlaps(own) {
					out = append(out, Finding{"address ranges", Fail, fmt.Sprintf("the cluster's range %s overlaps %s on %s", p, own.Masked(), l.Name), "choose another with --cluster-cidr or --service-cidr"})
				}
			}
		}
	}
	return out
}

func (f Facts) checkStorage() []Finding {
	st := f.Storage
	if st.DataDir == "" {
		return nil
	}
	where := fmt.Sprintf("%s is on %s (%s)", st.DataDir, st.Mount, st.FSType)
	const gib = 1 << 30
	switch {
	case st.ReadOnly:
		return []Finding{{"data directory", Fail, where + ", which is read-only", "choose another with --data-dir, or remount it writable"}}
	case st.NoExec:
		return []Finding{{"data directory", Fail, where + ", which allows no programs to run", "choose another with --data-dir, or remount it with exec"}}
	case st.Total == 0:
		return []Finding{{"data directory", Warn, where + "; its free space is unknown", "see that there are some GiB"}}
	}
	detail := fmt.Sprintf("%s, %s of %s free", where, size(st.Free), size(st.Total))
	switch {
	case st.Free < gib/2 && st.Begun:
		return []Finding{{"data directory", Warn, detail + "; pods are evicted, and what is written may be refused", "make room"}}
	case st.Free < gib/2:
		return []Finding{{"data directory", Fail, detail, "make room for at least 1 GiB, or choose another with --data-dir"}}
	case st.Free < 2*gib || st.Free < st.Total/10:
		return []Finding{{"data directory", Warn, detail + "; pods are evicted when the disk is nearly full", "make room, or choose another with --data-dir"}}
	case !st.NoInodes && st.FreeInodes < 20000:
		return []Finding{{"data directory", Warn, fmt.Sprintf("%s, but only %d inodes; images need many", detail, st.FreeInodes), "remove small files, or choose another with --data-dir"}}
	}
	return []Finding{okay("data directory", "%s", detail)}
}

func (f Facts) checkOverlay(s Settings) Finding {
	if s.Snapshotter != "overlayfs" {
		return okay("snapshotter", "%s", s.Snapshotter)
	}
	if f.Storage.Overlay != "" {
		return Finding{"snapshotter", Fail, fmt.Sprintf("%s, and %s is on %s", f.Storage.Overlay, f.Storage.DataDir, f.Storage.FSType),
			"choose a folder on a disk with --data-dir, or --snapshotter=native, which needs more space"}
	}
	switch f.Kernel.Features["overlay"] {
	case Absent:
		return Finding{"snapshotter", Fail, "the kernel has no overlayfs", "boot one with CONFIG_OVERLAY_FS, or use --snapshotter=native, which needs more space"}
	case Unknown:
		return Finding{"snapshotter", Warn, "cannot tell whether the kernel has overlayfs", "modprobe overlay"}
	}
	if f.Privilege.UserNamespace && !f.Kernel.AtLeast(5, 11) {
		return Finding{"snapshotter", Fail, "this kernel mounts no overlayfs in a user namespace", "boot 5.11 or newer, or use --snapshotter=native"}
	}
	return okay("snapshotter", "overlayfs")
}

func (f Facts) checkCgroup() []Finding {
	c := f.Cgroup
	if c.Mode == CgroupNone {
		return []Finding{{"control groups", Fail, "none are mounted", "mount -t cgroup2 cgroup2 /sys/fs/cgroup"}}
	}
	if !c.Writable {
		return []Finding{{"control groups", Fail, "mounted read-only", "run the container with --privileged, or mount -o remount,rw /sys/fs/cgroup"}}
	}
	out := []Finding{okay("control groups", "%s, pods' made by %s", c.Mode, c.Driver)}
	if c.Mode != CgroupV2 {
		out[0].Level = Warn
		out[0].Detail += "; Kubernetes is about to drop v1"
		out[0].Remedy = "it works for now; for v2, boot with systemd.unified_cgroup_hierarchy=1 or mount cgroup2 on /sys/fs/cgroup"
	}
	needed, useful := []string{"cpu", "cpuset", "memory"}, []string{"pids", "io"}
	if c.Mode != CgroupV2 {
		needed, useful = append(needed, "cpuacct"), []string{"pids", "devices", "blkio"}
	}
	lacks := func(names []string) []string {
		return slices.DeleteFunc(slices.Clone(names), c.Has)
	}
	if missing := lacks(needed); len(missing) > 0 {
		remedy := "boot a kernel with them, or have them delegated to this container"
		if slices.Contains(missing, "memory") {
			remedy = "add cgroup_enable=memory cgroup_memory=1 to the kernel's command line (Raspberry Pi: /boot/firmware/cmdline.txt) and reboot"
		}
		out = append(out, Finding{"controllers", Fail, "missing: " + strings.Join(missing, ", "), remedy})
	}
	if missing := lacks(useful); len(missing) > 0 {
		out = append(out, Finding{"controllers", Warn, "missing: " + strings.Join(missing, ", ") + "; pods are not limited by them", "boot a kernel with them, or have them delegated to this container"})
	}
	return out
}

func (f Facts) checkFeatures(s Settings) []Finding {
	type need struct{ module, use, remedy string }
	needs := []need{
		{"nf_tables", "services", "boot a kernel with CONFIG_NF_TABLES"},
		{"nf_conntrack", "services", "boot a kernel with CONFIG_NF_CONNTRACK"},
		{"nf_nat", "services", "boot a kernel with CONFIG_NF_NAT"},
	}
	if s.FlannelBackend != "none" {
		needs = append(needs,
			need{"bridge", "the pod network", "boot a kernel with CONFIG_BRIDGE"},
			need{"veth", "the pod network", "boot a kernel with CONFIG_VETH"})
	}
	switch s.FlannelBackend {
	case "vxlan":
		needs = append(needs, need{"vxlan", "the pod network", "install it (Ubuntu on a Raspberry Pi: apt install linux-modules-extra-raspi), or begin the cluster with --flannel-backend=host-gw if all nodes share a network"})
	case "wireguard-native":
		needs = append(needs, need{"wireguard", "the pod network", "boot a kernel with CONFIG_WIREGUARD, or begin the cluster with --flannel-backend=vxlan"})
	}
	var out []Finding
	var found []string
	for _, n := range needs {
		switch f.Kernel.Features[n.module] {
		case Present, Loadable:
			found = append(found, n.module)
		case Absent:
			out = append(out, Finding{"kernel features", Fail, "no " + n.module + ", needed for " + n.use, n.remedy})
		case Unknown:
			// Without the modules' folder a container cannot see what the kernel
			// would load on demand, and these are.
			if n.module == "nf_conntrack" || n.module == "nf_nat" {
				found = append(found, n.module)
				continue
			}
			out = append(out, Finding{"kernel features", Warn, "cannot tell whether there is " + n.module, "modprobe " + n.module + " on the machine"})
		}
	}
	if missing := f.Kernel.withoutNFT(); len(missing) > 0 {
		out = append(out, Finding{"kernel features", Fail, "nftables lacks " + strings.Join(missing, ", "), "boot a kernel with these CONFIG_ options"})
	}
	if f.Kernel.Features["br_netfilter"] == Absent {
		out = append(out, Finding{"kernel features", Warn, "no br_netfilter: a pod cannot reach a service whose pod is on the same node", "boot a kernel with CONFIG_BRIDGE_NETFILTER"})
	}
	if len(found) > 0 {
		out = append([]Finding{okay("kernel features", "%s", strings.Join(found, ", "))}, out...)
	}
	return out
}

// withoutNFT lists the parts of nftables that rules of kube-proxy and the pod
// network use and that this kernel was built without.
func (k Kernel) withoutNFT() []string {
	var out []string
	for _, option := range []string{"NF_TABLES_IPV4", "NF_TABLES_INET", "NFT_CT", "NFT_NAT", "NFT_MASQ", "NFT_REJECT", "NFT_NUMGEN", "NFT_FIB_IPV4"} {
		if k.Option(option) == "n" {
			out = append(out, option)
		}
	}
	return out
}

func (f Facts) checkSysctls(s Settings) []Finding {
	var out []Finding
	var pending []string
	for _, p := range parameters() {
		have, exists := f.Sysctls[p.name]
		if p.ipv6 && !s.IPv6 || p.met(have) {
			continue
		}
		if !exists {
			// Made by a module that is loaded at start; its absence is another finding.
			continue
		}
		// A user namespace owns its network's parameters and no others.
		ours := f.Tunable && (!f.Privilege.UserNamespace || strings.HasPrefix(p.name, "net."))
		if ours && !(p.kubelet && s.ProtectKernelDefaults) {
			pending = append(pending, p.name)
			continue
		}
		out = append(out, f.unmet(p, have))
	}
	switch {
	case len(pending) > 0:
		out = append([]Finding{okay("kernel parameters", "podo sets %d at start: %s", len(pending), strings.Join(pending, ", "))}, out...)
	case len(out) == 0:
		out = append(out, okay("kernel parameters", "as a node needs them"))
	}
	return out
}

// unmet is the finding for a parameter that is wrong and stays so.
func (f Facts) unmet(p parameter, have string) Finding {
	level := Warn
	// In a user namespace the kubelet complains and goes on.
	if p.name == "net.ipv4.ip_forward" || p.kubelet && !f.Privilege.UserNamespace {
		level = Fail
	}
	why, want := p.why, p.want
	if p.kubelet && level == Warn {
		why = "the kubelet goes without"
	}
	if p.least {
		want += " or more"
	}
	return Finding{"kernel parameters", level, fmt.Sprintf("%s is %s, want %s: %s", p.name, have, want, why), "on the machine: " + p.command()}
}

func (f Facts) checkPropagation() Finding {
	switch {
	case f.SharedRoot:
		return okay("mount propagation", "/ is shared")
	case f.Privilege.Caps.Has(CapSysAdmin):
		return okay("mount propagation", "podo makes / shared at start")
	}
	return Finding{"mount propagation", Warn, "/ is not shared: volumes mounted by one pod do not show in others", "mount --make-rshared /"}
}

func (f Facts) checkResolver(s Settings) Finding {
	if s.ResolvConf != "" {
		return okay("resolver", "%s, as told", s.ResolvConf)
	}
	switch {
	case f.Resolver.File != "" && f.Resolver.Loopback:
		return okay("resolver", "%s, as /etc/resolv.conf names this machine's loopback", f.Resolver.File)
	case f.Resolver.File != "":
		return okay("resolver", "%s", f.Resolver.File)
	case f.Resolver.Loopback && len(f.Resolver.Servers) > 0:
		return okay("resolver", "/etc/resolv.conf, without its loopback servers")
	case f.Resolver.Loopback:
		return Finding{"resolver", Warn, "/etc/resolv.conf names only this machine's loopback; pods cannot resolve outside names", "name a file with real servers with --resolv-conf"}
	}
	return Finding{"resolver", Warn, "/etc/resolv.conf names no server; pods cannot resolve outside names", "put one in it (nameserver 192.168.1.1), or name another file with --resolv-conf"}
}

// checkHosts has nothing to say on nearly every machine; minimal images lack the file.
func (f Facts) checkHosts() []Finding {
	if !f.NoHosts {
		return nil
	}
	return []Finding{{"hosts file", Fail, "there is no /etc/hosts, and the container engine starts no pod without one", "make it: echo '127.0.0.1 localhost' > /etc/hosts"}}
}

func (f Facts) checkPorts() []Finding {
	var out []Finding
	for _, l := range f.Taken {
		proto, level := "TCP", Fail
		if l.UDP {
			// The kernel holds those of interfaces of its own, ours among them.
			if slices.ContainsFunc(f.Network.Links, func(link Link) bool {
				return strings.HasPrefix(link.Name, "flannel") && strings.HasPrefix(link.Name, "flannel-wg") == (l.Number != vxlanPort)
			}) {
				continue
			}
			proto, level = "UDP", Warn
		}
		if l.Use == proxyMetrics {
			level = Warn
		}
		if l.Program == "podo" {
			out = append(out, okay("ports", "%d/%s (%s) is held by podo itself", l.Number, proto, l.Use))
			continue
		}
		by, remedy := "another network namespace's or user's program", "find it with ss -tulpn and stop it"
		if l.PID != 0 {
			by, remedy = fmt.Sprintf("%s (process %d)", l.Program, l.PID), "stop "+l.Program
		} else if l.UDP {
			by = "the kernel"
		}
		if l.Use == "Kubernetes API" || l.Use == joinPort {
			remedy += ", or choose another with --https-listen-port"
		}
		out = append(out, Finding{"ports", level, fmt.Sprintf("%d/%s (%s) is taken by %s", l.Number, proto, l.Use, by), remedy})
	}
	if len(out) == 0 {
		out = append(out, okay("ports", "free"))
	}
	return out
}

func (f Facts) checkSecurity(s Settings) []Finding {
	var out []Finding
	if f.Security.SELinux == "enforcing" {
		out = append(out, Finding{"SELinux", Warn, "it is enforcing, and podo brings no policy", "if pods are denied what they need, setenforce 0"})
	}
	if f.Security.AppArmor {
		out = append(out, okay("AppArmor", "on"))
	}
	var ranges []string
	for _, p := range s.Ranges {
		ranges = append(ranges, p.String())
	}
	firewalld := slices.ContainsFunc(f.Rivals, func(r Running) bool { return r.Name == "firewalld" })
	if firewalld {
		out = append(out, Finding{"firewall", Warn, "firewalld may drop the traffic of pods",
			"firewall-cmd --permanent --zone=trusted" + each(" --add-source=", ranges) + "; firewall-cmd --permanent --add-port=6443/tcp; firewall-cmd --reload"})
	}
	if f.Security.UFW {
		out = append(out, Finding{"firewall", Warn, "ufw may drop the traffic of pods",
			"ufw allow 6443/tcp" + each("; ufw allow from ", ranges)})
	}
	return out
}

func (f Facts) checkRivals() []Finding {
	var out []Finding
	for _, r := range f.Rivals {
		if r.Name == "firewalld" {
			continue
		}
		out = append(out, Finding{"other Kubernetes", Warn, fmt.Sprintf("%s is running (process %d); two nodes on one machine fight over its network and /var/lib/kubelet", r.Name, r.PID),
			"stop it, unless it is in a container of its own"})
	}
	return out
}

func each(before string, items []string) string {
	var b strings.Builder
	for _, i := range items {
		b.WriteString(before + i)
	}
	return b.String()
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// size prints bytes in the largest unit that keeps the number above one.
func size(n uint64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/unit, 0
	for v >= unit && i < 4 {
		v, i = v/unit, i+1
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTP"[i])
}
