package host

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Kernel is the running kernel and what it can do.
type Kernel struct {
	Release      string
	Major, Minor int
	Features     map[string]State
	// Config holds what the kernel was built with, without CONFIG_; empty if it
	// does not say.
	config map[string]string
}

// State is whether a feature is there.
type State string

// The states of a feature.
const (
	Unknown  State = "unknown"
	Absent   State = "absent"
	Loadable State = "loadable" // a module that is installed, not loaded
	Present  State = "present"
)

// AtLeast compares the kernel's version.
func (k Kernel) AtLeast(major, minor int) bool {
	return k.Major > major || k.Major == major && k.Minor >= minor
}

// Option returns what a build option was set to: "y", "m", "n", or "" if the
// kernel does not tell.
func (k Kernel) Option(name string) string {
	if len(k.config) == 0 {
		return ""
	}
	if v := k.config[name]; v != "" {
		return v
	}
	return "n"
}

// A feature is known by its module and its build option.
type feature struct{ module, option string }

func features() []feature {
	return []feature{
		{"overlay", "OVERLAY_FS"},
		{"bridge", "BRIDGE"},
		{"veth", "VETH"},
		{"br_netfilter", "BRIDGE_NETFILTER"},
		{"nf_tables", "NF_TABLES"},
		{"nf_conntrack", "NF_CONNTRACK"},
		{"nf_nat", "NF_NAT"},
		{"vxlan", "VXLAN"},
		{"wireguard", "WIREGUARD"},
	}
}

func (r root) kernel() Kernel {
	k := Kernel{Release: r.line("/proc/sys/kernel/osrelease"), Features: map[string]State{}}
	k.Major, k.Minor = parseRelease(k.Release)
	k.config = r.kernelConfig(k.Release)
	mods := r.modules(k.Release)
	for _, f := range features() {
		k.Features[f.module] = r.state(k, f, mods)
	}
	return k
}

func (r root) state(k Kernel, f feature, mods moduleSet) State {
	if mods.loaded[f.module] || r.isDir("/sys/module/"+f.module) || r.working(f.module) {
		return Present
	}
	switch k.Option(f.option) {
	case "y":
		return Present
	case "n":
		// A module may still have been built apart from the kernel.
		if !mods.installed[f.module] {
			return Absent
		}
	}
	switch {
	case mods.installed[f.module]:
		return Loadable
	case mods.whole:
		return Absent
	}
	return Unknown
}

// working knows features by what they leave in /proc once they are there.
func (r root) working(module string) bool {
	switch module {
	case "overlay":
		for line := range strings.Lines(r.read("/proc/filesystems")) {
			if fields := strings.Fields(line); len(fields) > 0 && fields[len(fields)-1] == "overlay" {
				return true
			}
		}
		return false
	case "br_netfilter":
		return r.isDir("/proc/sys/net/bridge")
	case "nf_conntrack":
		return r.exists("/proc/sys/net/netfilter/nf_conntrack_max")
	}
	return false
}

func parseRelease(release string) (major, minor int) {
	parts := strings.FieldsFunc(release, func(c rune) bool { return c < '0' || c > '9' })
	if len(parts) > 1 {
		major, _ = strconv.Atoi(parts[0])
		minor, _ = strconv.Atoi(parts[1])
	}
	return major, minor
}

func (r root) kernelConfig(release string) map[string]string {
	var text string
	if f, err := os.Open(r.path("/proc/config.gz")); err == nil {
		defer f.Close()
		if z, err := gzip.NewReader(f); err == nil {
			raw, _ := io.ReadAll(io.LimitReader(z, 4<<20))
			text = string(raw)
		}
	}
	for _, file := range []string{"/boot/config-" + release, "/lib/modules/" + release + "/config", "/usr/lib/modules/" + release + "/config"} {
		if text == "" {
			text = r.read(file)
		}
	}
	out := map[string]string{}
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "CONFIG_")
		if name, v, set := strings.Cut(rest, "="); ok && set {
			out[name] = v
		}
	}
	return out
}

// A moduleSet is whole if it lists every module there is for this kernel.
type moduleSet struct {
	loaded, installed map[string]bool
	whole             bool
}

func (r root) modules(release string) moduleSet {
	m := moduleSet{loaded: map[string]bool{}, installed: map[string]bool{}}
	for line := range strings.Lines(r.read("/proc/modules")) {
		name, _, _ := strings.Cut(line, " ")
		m.loaded[name] = true
	}
	dir := "/lib/modules/" + release
	for line := range strings.Lines(r.read(dir + "/modules.builtin")) {
		m.loaded[moduleName(line)] = true
	}
	for line := range strings.Lines(r.read(dir + "/modules.dep")) {
		file, _, _ := strings.Cut(line, ":")
		m.installed[moduleName(file)] = true
	}
	m.whole = len(m.installed) > 0 && r.exists(dir+"/modules.builtin")
	return m
}

// moduleName is a module's name from its file: no folder, no ending, dashes equal
// to underscores.
func moduleName(file string) string {
	file = strings.TrimSpace(file)
	file = file[strings.LastIndexByte(file, '/')+1:]
	name, _, _ := strings.Cut(file, ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// probe asks the kernel about network features that no file told of. It tries them
// in a network namespace that belongs to one thread and vanishes with it.
func (k *Kernel) probe(ctx context.Context) {
	var ask []string
	for name, state := range k.Features {
		if state == Unknown {
			ask = append(ask, name)
		}
	}
	if len(ask) == 0 || ctx.Err() != nil {
		return
	}
	slices.Sort(ask)
	answers := make(chan map[string]State, 1)
	go onThreadOfItsOwn(func() {
		found := map[string]State{}
		defer func() { answers <- found }()
		if unix.Unshare(unix.CLONE_NEWNET) != nil {
			return
		}
		for _, name := range ask {
			found[name] = try(name)
		}
	})
	for name, state := range <-answers {
		k.Features[name] = state
	}
}

// onThreadOfItsOwn calls f on a thread that ends with it. The first thread of a process
// does not end, and /proc/net would show for good the namespace that f left it in.
func onThreadOfItsOwn(f func()) {
	runtime.LockOSThread() // never unlocked: that is what ends the thread
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	defer runtime.UnlockOSThread()
	done := make(chan struct{})
	go func() { // elsewhere, as this thread is held
		defer close(done)
		runtime.LockOSThread()
		f()
	}()
	<-done
}

func try(feature string) State {
	var link netlink.Link
	attrs := netlink.LinkAttrs{Name: "probe0"}
	switch feature {
	case "bridge":
		link = &netlink.Bridge{LinkAttrs: attrs}
	case "veth":
		link = &netlink.Veth{LinkAttrs: attrs, PeerName: "probe1"}
	case "vxlan":
		link = &netlink.Vxlan{LinkAttrs: attrs, VxlanId: 1, Port: 8472}
	case "wireguard":
		link = &netlink.Wireguard{LinkAttrs: attrs}
	case "nf_tables":
		// NFT_MSG_GETGEN, the cheapest question there is.
		req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
		req.AddRawData([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0})
		_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
		return verdict(err)
	default:
		return Unknown
	}
	err := netlink.LinkAdd(link)
	if err == nil {
		netlink.LinkDel(link)
	}
	return verdict(err)
}

func verdict(err error) State {
	switch {
	case err == nil:
		return Present
	case errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.EPROTONOSUPPORT), errors.Is(err, syscall.EAFNOSUPPORT),
		errors.Is(err, syscall.EINVAL):
		return Absent
	}
	return Unknown
}
