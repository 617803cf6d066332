package host

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// network asks the kernel for interfaces and default routes.
func network() (Network, error) {
	var n Network
	links, err := complete(netlink.LinkList())
	if err != nil {
		return n, fmt.Errorf("list network interfaces: %w", err)
	}
	byIndex := map[int]Link{}
	for _, l := range links {
		a := l.Attrs()
		if a.Flags&net.FlagUp == 0 {
			continue
		}
		link := Link{Name: a.Name, Index: a.Index, MTU: a.MTU}
		addrs, err := complete(netlink.AddrList(l, netlink.FAMILY_ALL))
		if err != nil {
			return n, fmt.Errorf("list addresses of %s: %w", a.Name, err)
		}
		for _, addr := range addrs {
			if p, ok := lasting(addr); ok {
				link.Addrs = append(link.Addrs, p)
			}
		}
		n.Links = append(n.Links, link)
		byIndex[a.Index] = link
	}
	if n.V4, err = route(netlink.FAMILY_V4, n.Links, byIndex); err != nil {
		return n, err
	}
	n.V6, err = route(netlink.FAMILY_V6, n.Links, byIndex)
	return n, err
}

// complete lets a dump pass that changed while it was read.
func complete[T any](list []T, err error) ([]T, error) {
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		err = nil
	}
	return list, err
}

// lasting converts an address that a node may be known by.
func lasting(a netlink.Addr) (netip.Prefix, bool) {
	ip, ok := netip.AddrFromSlice(a.IP)
	if !ok || a.Flags&(unix.IFA_F_TEMPORARY|unix.IFA_F_DEPRECATED|unix.IFA_F_DADFAILED) != 0 {
		return netip.Prefix{}, false
	}
	ip = ip.Unmap()
	if ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsMulticast() || ip.IsUnspecified() {
		return netip.Prefix{}, false
	}
	bits, _ := a.Mask.Size()
	return netip.PrefixFrom(ip, bits), true
}

func route(family int, links []Link, byIndex map[int]Link) (Route, error) {
	routes, err := complete(netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE))
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return Route{}, nil // a kernel without this family
	}
	if err != nil {
		return Route{}, fmt.Errorf("list routes: %w", err)
	}
	slices.SortStableFunc(routes, func(a, b netlink.Route) int { return cmp.Compare(a.Priority, b.Priority) })
	for _, r := range routes {
		if ones := 0; r.Dst != nil {
			if ones, _ = r.Dst.Mask.Size(); ones != 0 || !r.Dst.IP.IsUnspecified() {
				continue
			}
		}
		if r.Type != unix.RTN_UNICAST {
			continue
		}
		index := r.LinkIndex
		if index == 0 && len(r.MultiPath) > 0 {
			index = r.MultiPath[0].LinkIndex
		}
		link, up := byIndex[index]
		if !up {
			continue
		}
		if src, ok := netip.AddrFromSlice(r.Src); ok && !src.Unmap().IsUnspecified() {
			return Route{Interface: link.Name, Addr: src.Unmap(), Default: true}, nil
		}
		if addr, ok := first(link, family); ok {
			return Route{Interface: link.Name, Addr: addr, Default: true}, nil
		}
	}
	return offline(family, links), nil
}

// offline picks an address for a machine without a default route.
func offline(family int, links []Link) Route {
	for _, l := range links {
		if Virtual(l.Name) {
			continue
		}
		if addr, ok := first(l, family); ok {
			return Route{Interface: l.Name, Addr: addr}
		}
	}
	return Route{}
}

func first(l Link, family int) (netip.Addr, bool) {
	for _, p := range l.Addrs {
		if p.Addr().Is4() == (family == netlink.FAMILY_V4) {
			return p.Addr(), true
		}
	}
	return netip.Addr{}, false
}

// Virtual reports interfaces that container software makes, ours included.
func Virtual(name string) bool {
	for _, prefix := range []string{"lo", "cni", "flannel", "docker", "br-", "veth", "virbr", "podman", "kube-", "cali", "cilium", "lxc", "lxdbr", "tunl", "vxlan", "antrea", "weave", "ovn", "wireguard.cali"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}
