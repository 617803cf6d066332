package local

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/machine"
)

// first is the number of a cluster's first node; those before it are for the host.
const first = 11

// last is the number of the last node that there is an address for.
const last = 254

// networks is how many there are to choose from.
const networks = 256

// rangeOf is the network with an index, in one IP family.
func rangeOf(index int, v6 bool) netip.Prefix {
	if v6 {
		return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x70, 0x6f, 0x64, 0x6f, 0, 0, byte(index)}), 64)
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 111, byte(index), 0}), 24)
}

// addrs are a node's addresses.
func (c Cluster) addrs(n Node) []netip.Addr {
	var out []netip.Addr
	for _, r := range c.Ranges {
		out = append(out, machine.Nth(r, n.Number))
	}
	return out
}

// Addr is a node's address, the IPv4 one if it has two.
func (c Cluster) Addr(n Node) netip.Addr { return c.addrs(n)[0] }

// choose finds a network that nothing on this machine, and none of the cluster's own
// ranges, overlaps with.
func (s Site) choose(families []bool, own []netip.Prefix) (int, []netip.Prefix, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return 0, nil, fmt.Errorf("list routes: %w", err)
	}
	taken := slices.Clone(own)
	for _, r := range routes {
		if p, ok := prefixOf(r.Dst); ok && p.Bits() > 0 {
			taken = append(taken, p)
		}
	}
	names, err := s.Names()
	if err != nil {
		return 0, nil, err
	}
	for _, name := range names {
		if c, err := s.Load(name); err == nil {
			taken = append(taken, c.Ranges...)
			taken = append(taken, rangeOf(c.Index, false), rangeOf(c.Index, true)) // its links have the number
		}
	}
	covered := true // by the cluster's own ranges alone
	for index := range networks {
		var out []netip.Prefix
		for _, v6 := range families {
			out = append(out, rangeOf(index, v6))
		}
		if !overlap(out, taken) {
			return index, out, nil
		}
		covered = covered && overlap(out, own)
	}
	if covered {
		return 0, nil, Unfit{fmt.Errorf("networking: podSubnet and serviceSubnet leave nothing of 10.111.0.0/16 and fd70:6f64:6f00::/48 for the addresses of nodes; choose other ranges")}
	}
	return 0, nil, fmt.Errorf("all of %d networks for clusters overlap with what this machine has routes to", networks)
}

func overlap(a, b []netip.Prefix) bool {
	for _, p := range a {
		for _, q := range b {
			if p.Overlaps(q) {
				return true
			}
		}
	}
	return false
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	if a.Is4In6() && len(n.Mask) == net.IPv4len {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones), ok
}

// subnets reads ranges that commas separate.
func subnets(text string) ([]netip.Prefix, error) {
	if text == "" {
		return nil, nil
	}
	var out []netip.Prefix
	for part := range strings.SplitSeq(text, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(part))
		if err != nil {
			return nil, fmt.Errorf("%q is not a range of addresses such as 10.10.0.0/16", part)
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("%s is an address and no range; %s has it", part, p.Masked())
		}
		out = append(out, p)
	}
	return out, nil
}

func parseAddr(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	if err != nil {
		return a, fmt.Errorf("%q is not an IP address", text)
	}
	return a, nil
}

// propagation is kind's word for how mounts are followed, as flags of mount(2).
func propagation(word string) (uintptr, bool) {
	switch word {
	case "", "None":
		return 0, true
	case "HostToContainer":
		return unix.MS_SLAVE, true
	case "Bidirectional":
		return unix.MS_SHARED, true
	}
	return 0, false
}
