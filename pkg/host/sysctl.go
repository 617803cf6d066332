package host

import (
	"strconv"
	"strings"
)

// A parameter is a kernel parameter that a node cares about.
type parameter struct {
	name string
	want string
	// least means any number from want up will do.
	least bool
	// kubelet means the kubelet sets it too, and ends if it may not.
	kubelet bool
	// module provides the parameter; without it the parameter does not exist.
	module string
	ipv6   bool // only for clusters with IPv6
	why    string
}

func parameters() []parameter {
	return []parameter{
		{name: "net.ipv4.ip_forward", want: "1", why: "pods reach nothing outside their node"},
		{name: "net.ipv6.conf.all.forwarding", want: "1", ipv6: true, why: "pods reach nothing outside their node over IPv6"},
		{name: "net.bridge.bridge-nf-call-iptables", want: "1", module: "br_netfilter", why: "a pod cannot reach a service whose pod is on the same node"},
		{name: "net.bridge.bridge-nf-call-ip6tables", want: "1", module: "br_netfilter", ipv6: true, why: "a pod cannot reach a service whose pod is on the same node over IPv6"},
		{name: "fs.inotify.max_user_instances", want: "8192", least: true, why: "pods run out of file watches (\"too many open files\")"},
		{name: "fs.inotify.max_user_watches", want: "524288", least: true, why: "pods run out of file watches (\"no space left on device\")"},
		{name: "net.netfilter.nf_conntrack_max", want: "131072", least: true, module: "nf_conntrack", why: "many connections at once are dropped"},
		{name: "vm.overcommit_memory", want: "1", kubelet: true, why: "the kubelet ends at once"},
		{name: "vm.panic_on_oom", want: "0", kubelet: true, why: "the kubelet ends at once"},
		{name: "kernel.panic", want: "10", kubelet: true, why: "the kubelet ends at once"},
		{name: "kernel.panic_on_oops", want: "1", kubelet: true, why: "the kubelet ends at once"},
		{name: "kernel.keys.root_maxkeys", want: "1000000", kubelet: true, why: "the kubelet ends at once"},
		{name: "kernel.keys.root_maxbytes", want: "25000000", kubelet: true, why: "the kubelet ends at once"},
	}
}

// sysctlPath is the file of a parameter as people write its name: what separates first
// separates, and the other stands for itself (sysctl.d(5)).
func sysctlPath(name string) string {
	if at := strings.IndexAny(name, "./"); at >= 0 && name[at] == '.' {
		name = strings.NewReplacer(".", "/", "/", ".").Replace(name)
	}
	return "/proc/sys/" + name
}

// tunable reports whether /proc/sys can be written: container engines mount it
// read-only unless the container is privileged.
func tunable(table mountTable) bool {
	m, ok := table.of("/proc/sys")
	return ok && !m.readOnly()
}

// met reports whether a value will do.
func (p parameter) met(have string) bool {
	if !p.least {
		return have == p.want
	}
	h, err1 := strconv.ParseUint(have, 10, 64)
	w, err2 := strconv.ParseUint(p.want, 10, 64)
	return err1 == nil && err2 == nil && h >= w
}

// command is how a person sets the parameter for good.
func (p parameter) command() string {
	return "sysctl -w " + p.name + "=" + p.want + ", and put it in a file in /etc/sysctl.d"
}

func (r root) sysctls() map[string]string {
	out := map[string]string{}
	for _, p := range parameters() {
		if v := r.line(sysctlPath(p.name)); v != "" {
			out[p.name] = v
		}
	}
	return out
}
