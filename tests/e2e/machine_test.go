package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A machine is everything that podo could leave behind, as lines of text by kind.
type machine map[string]bool

// lookAtMachine lists mounts, links, routes, network namespaces, packet filter
// tables, control groups, processes of containers, and files in the places that
// podo writes to.
func lookAtMachine() (machine, error) {
	m := machine{}
	add := func(kind, what string) { m[kind+" "+what] = true }

	points, err := mountPoints()
	if err != nil {
		return nil, err
	}
	for _, p := range points {
		add("mount", p)
	}
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		add("link", l.Name)
	}
	for _, file := range []string{"/proc/net/route", "/proc/net/ipv6_route"} {
		text, _ := os.ReadFile(file)
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			// Those of single addresses come with an address, and with forwarding, which stays.
			if len(f) > 1 && !strings.HasPrefix(f[0], "fe80") && f[1] != "80" {
				add("route", f[0]+" "+f[1]+" "+f[len(f)-1])
			}
		}
	}
	tables, err := filterTables()
	if err != nil {
		return nil, err
	}
	for _, t := range tables {
		add("table", t)
	}
	err = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && ofPods(strings.TrimPrefix(path, "/sys/fs/cgroup")) {
			add("cgroup", path)
		}
		return nil // others come and go: those of a session, of a service
	})
	if err != nil {
		return nil, err
	}
	for _, p := range processes() {
		if !p.contained && !p.near {
			continue // another machine within this one
		}
		if p.contained || p.isServer() || strings.Contains(p.exe, "/bin/current/") || strings.Contains(p.cmdline, "/run/podo") || strings.Contains(p.exe, "containerd") {
			add("process", fmt.Sprintf("%d %s", p.pid, p.cmdline))
		}
	}
	for _, dir := range []string{
		"/etc", "/etc/cni", "/etc/kubernetes", "/etc/systemd/system", "/etc/modules-load.d", "/etc/sysctl.d",
		"/run", "/run/netns", "/run/containerd", "/run/flannel", "/var/lib", "/var/lib/cni", "/var/lib/kubelet",
		"/var/log", "/var/log/pods", "/var/log/containers", "/var/cache", "/opt", "/opt/cni", "/usr/local/bin",
		"/usr/libexec", "/usr/libexec/kubernetes", "/root/.kube", "/etc/podo", "/var/lib/podo", "/run/podo",
	} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			// mount(8) makes this one for itself at its first mount after a boot.
			if path := filepath.Join(dir, e.Name()); path != "/run/mount" {
				add("file", path)
			}
		}
	}
	return m, nil
}

// save writes m to a file, and savedMachine reads it back.
func (m machine) save(file string) error {
	return os.WriteFile(file, []byte(strings.Join(slices.Sorted(maps.Keys(m)), "\n")), 0o644)
}

func savedMachine(file string) (machine, error) {
	text, err := os.ReadFile(file)
	m := machine{}
	for line := range strings.SplitSeq(string(text), "\n") {
		m[line] = true
	}
	return m, err
}

// changes lists what after has and m has not, and the other way round.
func (m machine) changes(after machine) []string {
	var out []string
	for _, what := range slices.Sorted(maps.Keys(after)) {
		if !m[what] {
			out = append(out, "left: "+what)
		}
	}
	for _, what := range slices.Sorted(maps.Keys(m)) {
		if !after[what] && !strings.HasPrefix(what, "process ") {
			out = append(out, "gone: "+what)
		}
	}
	return out
}

func mountPoints() ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 {
			out = append(out, strings.ReplaceAll(f[4], `\040`, " "))
		}
	}
	return out, nil
}

// unmountBelow takes away the disks that a test mounted.
func unmountBelow(dir string) error {
	points, err := mountPoints()
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range slices.Backward(points) {
		if strings.HasPrefix(p, dir+"/") {
			errs = append(errs, unix.Unmount(p, unix.MNT_DETACH))
		}
	}
	return errors.Join(errs...)
}

// filterTables lists the nftables tables of this network namespace.
func filterTables() ([]string, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETTABLE, unix.NLM_F_DUMP)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return nil, fmt.Errorf("list packet filter tables: %w", err)
	}
	family := map[byte]string{unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6", unix.NFPROTO_INET: "inet", unix.NFPROTO_ARP: "arp", unix.NFPROTO_BRIDGE: "bridge", unix.NFPROTO_NETDEV: "netdev"}
	var out []string
	for _, msg := range msgs {
		attrs, err := nl.ParseRouteAttr(msg[nl.SizeofNfgenmsg:])
		if err != nil {
			return nil, err
		}
		for _, a := range attrs {
			if a.Attr.Type == unix.NFTA_TABLE_NAME {
				out = append(out, family[msg[0]]+" "+strings.TrimRight(string(a.Value), "\x00"))
			}
		}
	}
	return out, nil
}

// A process is what /proc says of one.
type process struct {
	pid, parent  int
	exe, cmdline string
	contained    bool // runs in a pod's control group
	near         bool // sees the same mounts as this process
}

// ofPods reports whether a control group is one of those that a kubelet or its engine
// makes, below the root or below a controller of cgroup v1. Those of hosts of other tests
// (tests/hosts) come and go beside this one.
func ofPods(path string) bool {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	for _, name := range parts[:min(2, len(parts))] {
		if strings.HasPrefix(name, "podo-t-") {
			return false
		}
		for _, start := range []string{"kube", "podo", "containerd", "k8s"} {
			if strings.HasPrefix(name, start) {
				return true
			}
		}
	}
	return false
}

// isServer tells a running podo from one that only answers a question.
func (p process) isServer() bool {
	return filepath.Base(strings.TrimSuffix(p.exe, " (deleted)")) == "podo" && strings.Contains(p.cmdline, " server")
}

// processes lists all of them, without the threads of the kernel.
func processes() []process {
	entries, _ := os.ReadDir("/proc")
	var out []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join("/proc", e.Name())
		exe, err := os.Readlink(dir + "/exe")
		if err != nil {
			continue
		}
		cmdline, _ := os.ReadFile(dir + "/cmdline")
		stat, _ := os.ReadFile(dir + "/stat")
		groups, _ := os.ReadFile(dir + "/cgroup")
		p := process{pid: pid, exe: exe, cmdline: strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " ")), contained: strings.Contains(string(groups), ":/kubepods")}
		mine, _ := os.Readlink("/proc/self/ns/mnt")
		its, err := os.Readlink(dir + "/ns/mnt")
		p.near = err == nil && its == mine
		if i := strings.LastIndexByte(string(stat), ')'); i > 0 {
			if f := strings.Fields(string(stat[i+1:])); len(f) > 1 {
				p.parent, _ = strconv.Atoi(f[1])
			}
		}
		out = append(out, p)
	}
	return out
}

// contained lists the processes that run in pods.
func contained() []process {
	return slices.DeleteFunc(processes(), func(p process) bool { return !p.contained })
}
