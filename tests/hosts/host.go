package hosts

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/machine"
	"github.com/podo-dev/podo/pkg/paths"
)

// A Host is a machine: a process that stands for its kernel, and what that one started.
type Host struct {
	net   *Network
	name  string
	index int // on the network: the last part of its first addresses
	addrs []netip.Prefix
	life  int // counts wipes: each makes another machine
	first *exec.Cmd
	line  *line

	mu      sync.Mutex
	started []*Process
}

// Host adds a machine and turns it on. It comes with a copy of this machine's files
// that lacks anything of a podo, with an empty /var/lib, and with an address.
func (n *Network) Host(name string) *Host {
	n.t.Helper()
	h := &Host{net: n, name: name, index: len(n.hosts) + 11}
	for _, r := range n.ranges {
		h.addrs = append(h.addrs, netip.PrefixFrom(machine.Nth(r, h.index), r.Bits()))
	}
	if slices.ContainsFunc(n.hosts, func(o *Host) bool { return o.name == name }) {
		n.t.Fatalf("%s: the network has a host of this name", name)
	}
	n.hosts = append(n.hosts, h)
	h.On()
	return h
}

// Name is what the host was called when it was made.
func (h *Host) Name() string { return h.name }

// IP is the host's address, the IPv4 one if it has two.
func (h *Host) IP() string { return h.addrs[0].Addr().String() }

// IPs are all its addresses.
func (h *Host) IPs() []string {
	var out []string
	for _, a := range h.addrs {
		out = append(out, a.Addr().String())
	}
	return out
}

// Running reports whether the host is on.
func (h *Host) Running() bool { return h.first != nil }

// Path is where this machine sees a file of the running host. Links in it that start
// with a slash do not lead where they lead on the host.
func (h *Host) Path(path string) string {
	h.mustRun()
	return filepath.Join(fmt.Sprintf("/proc/%d/root", h.first.Process.Pid), path)
}

// In calls f in the host's network: what it dials and listens on is the host's, also
// afterwards. f must not leave its goroutine to do so, as a dialer does for names.
func (h *Host) In(f func() error) error {
	h.mustRun()
	ns, err := machine.Network(h.first.Process.Pid)
	if err != nil {
		return err
	}
	defer ns.Close()
	return machine.In(ns, f)
}

// Dial connects from this host to an address and port.
func (h *Host) Dial(network, address string, patience time.Duration) (net.Conn, error) {
	var c net.Conn
	err := h.In(func() (err error) {
		c, err = net.DialTimeout(network, address, patience)
		return err
	})
	return c, err
}

// On starts the host. It knows what it had on its disk, and runs nothing.
func (h *Host) On() {
	h.net.t.Helper()
	if h.Running() {
		return
	}
	if err := h.boot(); err != nil {
		console, _ := os.ReadFile(h.dir("console"))
		h.net.t.Fatalf("start host %s: %v\n%s", h.name, errors.Join(err, h.end()), console)
	}
}

// Off ends everything on the host at once, as if its cable was pulled.
func (h *Host) Off() {
	h.net.t.Helper()
	if err := h.end(); err != nil {
		h.net.t.Fatalf("stop host %s: %v", h.name, err)
	}
}

// Reboot is Off and On. Files in /run and /tmp are gone then, as are processes, links
// and mounts; others stay.
func (h *Host) Reboot() {
	h.net.t.Helper()
	h.Off()
	h.On()
}

// Wipe puts a new machine with the same name and addresses in the host's place.
func (h *Host) Wipe() {
	h.net.t.Helper()
	h.Off()
	if err := os.RemoveAll(h.dir("")); err != nil {
		h.net.t.Fatalf("wipe host %s: %v", h.name, err)
	}
	h.life++
	h.On()
}

// SetIP gives the host another address in place of the one of the same family.
func (h *Host) SetIP(ip string) {
	h.net.t.Helper()
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		h.net.t.Fatal(err)
	}
	i := slices.IndexFunc(h.addrs, func(p netip.Prefix) bool { return p.Addr().Is4() == addr.Is4() })
	if i < 0 || !h.addrs[i].Contains(addr) {
		h.net.t.Fatalf("%s is in none of the network's ranges %v", addr, h.net.ranges)
	}
	if err := h.move(i, netip.PrefixFrom(addr, h.addrs[i].Bits())); err != nil {
		h.net.t.Fatalf("move %s to %s: %v", h.name, addr, err)
	}
}

func (h *Host) move(i int, to netip.Prefix) error {
	for c := range h.net.cuts {
		if c.to == h {
			if err := c.from.find(h); err != nil {
				return err
			}
		}
	}
	old := h.addrs[i]
	h.addrs[i] = to
	if h.Running() {
		if err := h.In(func() error {
			card, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			if err := netlink.AddrDel(card, &netlink.Addr{IPNet: machine.IPNet(old)}); err != nil {
				return err
			}
			return h.address()
		}); err != nil {
			return err
		}
		if err := os.WriteFile(h.Path("/etc/hosts"), []byte(h.hostsFile()), 0o644); err != nil {
			return err
		}
	}
	for c := range h.net.cuts {
		if c.to == h {
			if err := c.from.lose(h); err != nil {
				return err
			}
		}
	}
	return nil
}

// address gives the host's card what it lacks of addresses and default routes.
func (h *Host) address() error {
	card, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(card); err != nil {
		return err
	}
	for i, p := range h.addrs {
		if err := machine.AddAddress(card, p); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		err := netlink.RouteAdd(&netlink.Route{LinkIndex: card.Attrs().Index, Gw: machine.Nth(h.net.ranges[i], 1).AsSlice()})
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return nil
}

// lose has the host send what it has for another to a card that nobody has. Unlike a
// route that refuses, that tells no one, and it takes no module of the kernel.
func (h *Host) lose(other *Host) error {
	return h.neighbours(other, func(n *netlink.Neigh) error { return netlink.NeighSet(n) })
}

// find undoes lose.
func (h *Host) find(other *Host) error {
	return h.neighbours(other, func(n *netlink.Neigh) error {
		if err := netlink.NeighDel(n); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
		return nil
	})
}

func (h *Host) neighbours(other *Host, set func(*netlink.Neigh) error) error {
	if !h.Running() {
		return nil
	}
	return h.In(func() error {
		card, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, p := range other.addrs {
			family := netlink.FAMILY_V4
			if p.Addr().Is6() {
				family = netlink.FAMILY_V6
			}
			if err := set(&netlink.Neigh{
				LinkIndex: card.Attrs().Index, Family: family, State: netlink.NUD_PERMANENT, Type: unix.RTN_UNICAST,
				IP: p.Addr().AsSlice(), HardwareAddr: net.HardwareAddr{0x02, 0x99, 0, 0, 0xff, 0xff},
			}); err != nil {
				return err
			}
		}
		return nil
	})
}

func (h *Host) mustRun() {
	if !h.Running() {
		panic("host " + h.name + " is off")
	}
}

// port is the name of the host's cable at the switch.
func (h *Host) port() string { return fmt.Sprint("port", h.index) }

// dir is where a part of the host is kept.
func (h *Host) dir(part string) string { return filepath.Join(h.net.room, h.name, part) }

func (h *Host) hostsFile() string {
	text := "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
	for _, a := range h.addrs {
		text += a.Addr().String() + " " + h.name + "\n"
	}
	return text
}

// boot starts the first process. It begins outside of the namespaces' files and waits
// until it has its control groups and its cable.
func (h *Host) boot() error {
	_, statErr := os.Stat(h.dir("varlib"))
	for _, part := range []string{"upper", "work", "root", "varlib", "vartmp"} {
		if err := os.MkdirAll(h.dir(part), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(h.dir("vartmp"), 0o777|os.ModeSticky); err != nil {
		return err
	}
	if err := h.install(); err != nil {
		return err
	}
	ours, theirs, err := machine.Line()
	if err != nil {
		return err
	}
	defer theirs.Close()
	defer ours.Close()
	console, err := os.OpenFile(h.dir("console"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer console.Close()

	first := machine.First([]string{"host " + h.name}, theirs)
	first.Env = append(baseEnv(), marker+"="+born)
	first.Stdout, first.Stderr = console, console
	if err := first.Start(); err != nil {
		return err
	}
	h.first = first
	theirs.Close()
	if h.line, err = openLine(ours); err != nil {
		return err
	}
	if err := h.net.groups.Join(h.group(), first.Process.Pid); err != nil {
		return err
	}
	if err := h.net.connect(h, first.Process.Pid); err != nil {
		return err
	}
	return h.line.begin(h.spec(os.IsNotExist(statErr)))
}

// group is the name of the host's control groups.
func (h *Host) group() string { return h.net.id + "/" + h.name }

// spec is the machine: a copy of this one's files, without podo's if it is new.
func (h *Host) spec(isNew bool) machine.Spec {
	id := sha256.Sum256(fmt.Append(nil, h.net.id, h.name, h.life))
	bind := func(from, to string) machine.Mount {
		return machine.Mount{From: from, To: to, Flags: unix.MS_BIND}
	}
	fresh := func(kind, to, data string) machine.Mount {
		return machine.Mount{From: kind, To: to, Kind: kind, Data: data}
	}
	s := machine.Spec{
		Name: h.name, Root: h.dir("root"), Groups: h.net.groups,
		Mounts: []machine.Mount{
			fresh("overlay", "", fmt.Sprintf("lowerdir=/,upperdir=%s,workdir=%s", h.dir("upper"), h.dir("work"))),
			bind(h.dir("varlib"), "/var/lib"), // an overlay cannot hold the layers of another
			bind(h.dir("vartmp"), "/var/tmp"),
			fresh("proc", "/proc", ""),
			fresh("sysfs", "/sys", ""),
			{From: "/dev", To: "/dev", Flags: unix.MS_BIND | unix.MS_REC},
			fresh("tmpfs", "/dev/shm", "mode=1777"),
			fresh("tmpfs", "/run", "mode=755"),
			fresh("tmpfs", "/tmp", "mode=1777"),
		},
		Files: map[string]string{
			"/etc/hostname":    h.name + "\n",
			"/etc/hosts":       h.hostsFile(),
			"/etc/resolv.conf": "nameserver " + machine.Nth(h.net.ranges[0], 1).String() + "\n",
			"/etc/machine-id":  hex.EncodeToString(id[:16]) + "\n",
		},
		Args: []string{"host " + h.name}, Env: append(baseEnv(), marker+"="+ready),
	}
	for _, dir := range h.net.opts.Share {
		s.Mounts = append(s.Mounts, machine.Mount{From: dir, To: dir, Flags: unix.MS_BIND | unix.MS_RDONLY})
	}
	if isNew {
		s.Remove = []string{paths.DefaultEtc, paths.PodLogs, paths.ContainerLogs, "/etc/cni", "/etc/kubernetes", "/opt/cni", "/root/.kube", "/usr/libexec/kubernetes"}
	}
	return s
}

// install gives a new machine its podo. It is a file like any other, so that it can be
// removed, and a link, so that all hosts share its pages.
func (h *Host) install() error {
	dir := h.dir("upper/usr/local/bin")
	if _, err := os.Stat(dir); h.net.opts.Binary == "" || err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.Link(h.net.podo(), filepath.Join(dir, "podo"))
}

// end kills the first process, with which the kernel ends all others, and takes away
// what is left of them.
func (h *Host) end() error {
	if !h.Running() {
		return nil
	}
	_ = h.first.Process.Kill()
	_ = h.first.Wait() // returns when the last process of the host is gone
	h.first = nil
	if h.line != nil {
		h.line.close()
		h.line = nil
	}
	return h.net.groups.Remove(h.group())
}

// baseEnv is the environment of all processes of hosts.
func baseEnv() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TERM=dumb"}
}
