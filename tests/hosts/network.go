// Package hosts makes machines out of namespaces for tests that need more than one.
//
// A host has its own processes, files, host name, control groups and network: a
// process in it that looks around finds a machine. Underneath is one kernel, so the
// clock, loaded modules and most kernel parameters are shared, and what a killed host
// wrote is not lost as in a power cut. The hosts of a Network hang on one switch that
// leads nowhere else. Nothing of it is named on the machine that runs the tests: links
// and mounts live in namespaces that end with the test process. What outlives a killed
// process, a folder and control groups called podo-t-…, the next network removes.
//
// A test binary that uses the package calls Main first in its TestMain.
package hosts

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/machine"
)

// The ranges that hosts usually get their addresses from. They are not visible from
// the machine, so that any number of networks may use the same.
const (
	IPv4 = "10.99.0.0/24"
	IPv6 = "fd99:7064::/64"
)

// Options say what the hosts of a network are like.
type Options struct {
	Binary string   // podo; each new host has it as /usr/local/bin/podo
	Ranges []string // of addresses; an IPv4 one, an IPv6 one, or one of each; IPv4 if empty
	Share  []string // folders of this machine that hosts find at the same place, read-only
	Env    []string // of every process, beside its own
	Memory bool     // hosts keep their files there rather than on the disk, if there is enough
	Logs   string   // folder for the output of processes; the test's artifacts if empty
}

// A Network is a switch with hosts on it.
type Network struct {
	t      testing.TB
	opts   Options
	ranges []netip.Prefix
	id     string // names the folder and the control groups of this network
	room   string
	groups machine.Groups
	wire   *os.File // network namespace of the switch
	hosts  []*Host
	cuts   map[cut]bool
	alone  map[*Host]bool
	logs   atomic.Int32
}

// A cut is a direction in which nothing passes any more.
type cut struct{ from, to *Host }

// Hosts are those of the network, on or off.
func (n *Network) Hosts() []*Host { return n.hosts }

// NewNetwork makes a network without hosts. Everything in it ends with the test.
func NewNetwork(t testing.TB, opts Options) *Network {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("hosts can only be made by root")
	}
	if err := Sweep(); err != nil {
		t.Fatal(err)
	}
	n := &Network{t: t, opts: opts, cuts: map[cut]bool{}, alone: map[*Host]bool{}}
	if len(opts.Ranges) == 0 {
		opts.Ranges = []string{IPv4}
	}
	for _, r := range opts.Ranges {
		p, err := netip.ParsePrefix(r)
		if err != nil {
			t.Fatal(err)
		}
		n.ranges = append(n.ranges, p.Masked())
	}
	if n.opts.Logs == "" {
		n.opts.Logs = t.ArtifactDir() // made before our own cleanup is registered, so removed after it
	}
	t.Cleanup(n.close)
	var err error
	if n.room, err = makeRoom(); err != nil {
		t.Fatal(err)
	}
	n.id = filepath.Base(n.room)
	if err := n.furnish(); err != nil {
		t.Fatalf("make room for files: %v", err)
	}
	if n.groups, err = machine.FindGroups(); err != nil {
		t.Fatal(err)
	}
	if n.wire, err = machine.NewNetwork(); err != nil {
		t.Fatalf("make the switch: %v", err)
	}
	if err := machine.In(n.wire, n.plugIn); err != nil {
		t.Fatalf("make the switch: %v", err)
	}
	return n
}

// podo is the file of the program that all hosts share.
func (n *Network) podo() string { return filepath.Join(n.room, ".podo") }

// furnish prepares the folder for hosts.
func (n *Network) furnish() error {
	if n.opts.Memory {
		if err := intoMemory(n.room); err != nil {
			return err
		}
	}
	if n.opts.Binary == "" {
		return nil
	}
	if err := os.Link(n.opts.Binary, n.podo()); !errors.Is(err, unix.EXDEV) {
		return err
	}
	from, err := os.Open(n.opts.Binary)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(n.podo(), os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	return errors.Join(err, to.Close())
}

// plugIn makes the switch. It has the first address of each range and answers there,
// so that hosts have a default route.
func (n *Network) plugIn() error {
	if err := machine.Up("lo"); err != nil {
		return err
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "switch"}}
	if err := netlink.LinkAdd(bridge); err != nil {
		return err
	}
	for _, r := range n.ranges {
		if err := machine.AddAddress(bridge, netip.PrefixFrom(machine.Nth(r, 1), r.Bits())); err != nil {
			return err
		}
	}
	return machine.Up("switch")
}

// close removes everything, and reports the last words of the hosts' processes if the
// test failed.
func (n *Network) close() {
	var errs []error
	for _, h := range n.hosts {
		errs = append(errs, h.end())
	}
	if n.wire != nil {
		errs = append(errs, n.wire.Close())
	}
	if n.id != "" {
		errs = append(errs, n.groups.Remove(n.id), outOfMemory(n.room), os.RemoveAll(n.room))
	}
	if err := errors.Join(errs...); err != nil {
		n.t.Errorf("remove the network: %v", err)
	}
	if !n.t.Failed() {
		return
	}
	for _, h := range n.hosts {
		for _, p := range h.started {
			n.t.Logf("%s: %s (%s) ends with:\n%s", h.name, p.args[0], p.log, p.Tail(30))
		}
	}
}

// Pids are the processes on n's hosts that run a program, by their ids on this machine.
func (n *Network) Pids(program string) []int {
	var out []int
	for _, pid := range allPIDs() {
		its, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		group, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if string(its) == program+"\n" && strings.Contains(string(group), "/"+n.id+"/") {
			out = append(out, pid)
		}
	}
	return out
}

// Cut stops everything between two hosts, without a word to either.
func (n *Network) Cut(a, b *Host) {
	n.t.Helper()
	n.CutOneWay(a, b)
	n.CutOneWay(b, a)
}

// CutOneWay stops what from sends to to, and nothing in the other direction.
func (n *Network) CutOneWay(from, to *Host) {
	n.t.Helper()
	n.cuts[cut{from, to}] = true
	if err := from.lose(to); err != nil {
		n.t.Fatalf("cut %s from %s: %v", from.name, to.name, err)
	}
}

// Isolate separates a host from all others. Its own link stays up, as when the switch
// beyond it fails.
func (n *Network) Isolate(h *Host) {
	n.t.Helper()
	n.alone[h] = true
	if err := n.attach(h); err != nil {
		n.t.Fatalf("isolate %s: %v", h.name, err)
	}
}

// Heal undoes every cut and isolation.
func (n *Network) Heal() {
	n.t.Helper()
	var errs []error
	for c := range n.cuts {
		errs = append(errs, c.from.find(c.to))
	}
	clear(n.cuts)
	for h := range n.alone {
		delete(n.alone, h)
		errs = append(errs, n.attach(h))
	}
	if err := errors.Join(errs...); err != nil {
		n.t.Fatalf("heal the network: %v", err)
	}
}

// In calls f as if it ran at the switch: its connections reach all hosts. They stay
// usable afterwards. f must not leave its goroutine to make them.
func (n *Network) In(f func() error) error { return machine.In(n.wire, f) }

// Dir is a folder for what is no host and yet goes with the network. Its name is no host's.
func (n *Network) Dir(name string) (string, error) {
	dir := filepath.Join(n.room, name)
	return dir, os.MkdirAll(dir, 0o755)
}

// Tap makes a device at the switch that a program can be a card of the network through.
func (n *Network) Tap(name string) error {
	return n.In(func() error {
		tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TAP}
		if err := netlink.LinkAdd(tap); err != nil {
			return fmt.Errorf("make the tap %s: %w", name, err)
		}
		bridge, err := netlink.LinkByName("switch")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(tap, bridge); err != nil {
			return err
		}
		return machine.Up(name)
	})
}

// Beside starts a program that stands among the hosts, such as a machine with a kernel of
// its own: it has the network of the switch, an input without an end, and control groups,
// by which it is found if this process does not end it.
func (n *Network) Beside(name string, cmd *exec.Cmd) error {
	// Until it has its groups it waits: what it starts is to have them too.
	cmd.Path, cmd.Args = "/bin/sh", append([]string{"sh", "-c", `read -r _ && exec "$@"`, "sh"}, cmd.Args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := n.In(cmd.Start); err != nil {
		return err
	}
	if err := n.groups.Join(n.id+"/"+name, cmd.Process.Pid); err != nil {
		return errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	_, err = io.WriteString(in, "\n")
	return err
}

// attach plugs a host's cable into the switch, or out if it is isolated.
func (n *Network) attach(h *Host) error {
	if !h.Running() {
		return nil
	}
	return machine.In(n.wire, func() error {
		port, err := netlink.LinkByName(h.port())
		if err != nil {
			return err
		}
		if n.alone[h] {
			return netlink.LinkSetNoMaster(port)
		}
		bridge, err := netlink.LinkByName("switch")
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(port, bridge)
	})
}

// connect makes the cable between a host's first process and the switch. The address
// of the card stays the same over reboots, as neighbours remember it.
func (n *Network) connect(h *Host, pid int) error {
	card := net.HardwareAddr{0x02, 0x99, 0, 0, 0, byte(h.index)}
	err := machine.In(n.wire, func() error {
		if old, err := netlink.LinkByName(h.port()); err == nil { // of a host that just ended
			if err := netlink.LinkDel(old); err != nil && !errors.Is(err, unix.ENODEV) {
				return err
			}
		}
		cable := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: h.port()},
			PeerName:  "eth0", PeerNamespace: netlink.NsPid(pid), PeerHardwareAddr: card,
		}
		if err := netlink.LinkAdd(cable); err != nil {
			return err
		}
		return machine.Up(h.port())
	})
	if err != nil {
		return fmt.Errorf("connect %s: %w", h.name, err)
	}
	if err := n.attach(h); err != nil {
		return fmt.Errorf("connect %s: %w", h.name, err)
	}
	if err := h.In(func() error {
		if err := machine.Up("lo"); err != nil {
			return err
		}
		return h.address()
	}); err != nil {
		return fmt.Errorf("give %s an address: %w", h.name, err)
	}
	for c := range n.cuts {
		if c.from == h {
			if err := h.lose(c.to); err != nil {
				return err
			}
		}
	}
	return nil
}
