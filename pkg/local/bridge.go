package local

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/podo-dev/podo/pkg/machine"
)

// bridge is the name of the link that a cluster's nodes hang on, and cable that of a
// node's end there. Names are short in Linux; whose a link is, its alias tells.
func (c Cluster) bridge() string      { return fmt.Sprintf("podo-c%d", c.Index) }
func (c Cluster) cable(n Node) string { return fmt.Sprintf("podo-c%d-%d", c.Index, n.Number) }

func alias(cluster string) string { return "podo cluster " + cluster }

// table is the nftables table that gives the nodes of a cluster the host's address where
// they speak to others.
func table(cluster string) string { return "local-podo-" + cluster }

// raise makes the cluster's network, or what is missing of it.
func (c Cluster) raise(ctx context.Context) error {
	card := c.card(1)
	l := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: c.bridge(), HardwareAddr: card}}
	if err := netlink.LinkAdd(l); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make bridge %s: %w", c.bridge(), err)
	}
	made, err := netlink.LinkByName(c.bridge())
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", c.bridge(), err)
	}
	if err := netlink.LinkSetAlias(made, alias(c.Name)); err != nil {
		return fmt.Errorf("name bridge %s: %w", c.bridge(), err)
	}
	for _, r := range c.Ranges {
		if err := machine.AddAddress(made, netip.PrefixFrom(machine.Nth(r, 1), r.Bits())); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("give %s an address: %w", c.bridge(), err)
		}
	}
	if err := netlink.LinkSetUp(made); err != nil {
		return fmt.Errorf("start bridge %s: %w", c.bridge(), err)
	}
	for _, r := range c.Ranges {
		if err := forward(r); err != nil {
			return err
		}
		if err := c.masquerade(ctx, r); err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
	}
	return c.admit(ctx)
}

// forward has the kernel pass on packets between networks.
func forward(r netip.Prefix) error {
	path := "/proc/sys/net/ipv4/ip_forward"
	if r.Addr().Is6() {
		path = "/proc/sys/net/ipv6/conf/all/forwarding"
	}
	if on, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(on)) == "1" {
		return nil
	}
	if r.Addr().Is6() {
		if err := keepAdvertised(); err != nil {
			return err
		}
	}
	return os.WriteFile(path, []byte("1"), 0o644)
}

// keepAdvertised lets this machine keep IPv6 routes that it learned from a router, which it
// would drop where it passes on packets itself (the kernel's ip-sysctl.rst, accept_ra).
func keepAdvertised() error {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V6)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if p, ok := prefixOf(r.Dst); ok && p.Bits() > 0 {
			continue
		}
		l, err := netlink.LinkByIndex(r.LinkIndex)
		if err != nil {
			continue // it has gone, or there are several
		}
		path := "/proc/sys/net/ipv6/conf/" + l.Attrs().Name + "/accept_ra"
		if now, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(now)) != "1" {
			continue
		}
		if err := os.WriteFile(path, []byte("2"), 0o644); err != nil {
			return fmt.Errorf("keep the IPv6 route by %s: %w; type: sysctl -w net.ipv6.conf.%[1]s.accept_ra=2", l.Attrs().Name, err)
		}
	}
	return nil
}

func (c Cluster) masquerade(ctx context.Context, r netip.Prefix) error {
	family, ip := knftables.IPv4Family, "ip"
	if r.Addr().Is6() {
		family, ip = knftables.IPv6Family, "ip6"
	}
	nft, err := knftables.New(family, table(c.Name))
	if err != nil {
		return err
	}
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{Comment: knftables.PtrTo(alias(c.Name) + ": nodes speak to the outside with the host's address")})
	tx.Add(&knftables.Chain{
		Name:     "postrouting",
		Type:     knftables.PtrTo(knftables.NATType),
		Hook:     knftables.PtrTo(knftables.PostroutingHook),
		Priority: knftables.PtrTo(knftables.SNATPriority),
	})
	tx.Flush(&knftables.Chain{Name: "postrouting"})
	tx.Add(&knftables.Rule{Chain: "postrouting", Rule: knftables.Concat(
		ip, "saddr", r.String(), ip, "daddr !=", r.String(), "oifname !=", c.bridge(), "masquerade")})
	return nft.Run(ctx, tx)
}

// fell removes a cluster's network, of whatever is there.
func fell(ctx context.Context, cluster string) error {
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list links: %w", err)
	}
	errs := []error{dismiss(ctx, cluster)}
	for _, l := range links {
		if l.Attrs().Alias == alias(cluster) {
			errs = append(errs, gone(netlink.LinkDel(l)))
		}
	}
	for _, family := range []knftables.Family{knftables.IPv4Family, knftables.IPv6Family} {
		nft, err := knftables.New(family, table(cluster))
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		tx := nft.NewTransaction()
		tx.Add(&knftables.Table{}) // so that there is one to delete
		tx.Delete(&knftables.Table{})
		if err := nft.Run(ctx, tx); err != nil {
			errs = append(errs, fmt.Errorf("nftables: %w", err))
		}
	}
	return errors.Join(errs...)
}

// gone passes over that a link is not there.
func gone(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// card is the hardware address of number i on the cluster's network. It stays the same
// over restarts, as neighbours remember it.
func (c Cluster) card(i int) net.HardwareAddr {
	return net.HardwareAddr{0x02, 0x70, 0x6f, 0x64, byte(c.Index), byte(i)}
}

// connect makes the cable between a node's first process and the bridge.
func (c Cluster) connect(n Node, pid int) error {
	bridge, err := netlink.LinkByName(c.bridge())
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", c.bridge(), err)
	}
	if old, err := netlink.LinkByName(c.cable(n)); err == nil { // of a machine that just ended
		if err := gone(netlink.LinkDel(old)); err != nil {
			return err
		}
	}
	cable := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: c.cable(n), MasterIndex: bridge.Attrs().Index},
		PeerName:  "eth0", PeerNamespace: netlink.NsPid(pid), PeerHardwareAddr: c.card(n.Number),
	}
	if err := netlink.LinkAdd(cable); err != nil {
		return fmt.Errorf("make link %s: %w", c.cable(n), err)
	}
	made, err := netlink.LinkByName(c.cable(n))
	if err != nil {
		return fmt.Errorf("find link %s: %w", c.cable(n), err)
	}
	if err := errors.Join(netlink.LinkSetAlias(made, alias(c.Name)), netlink.LinkSetUp(made)); err != nil {
		return fmt.Errorf("start link %s: %w", c.cable(n), err)
	}
	ns, err := machine.Network(pid)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := machine.In(ns, func() error { return c.address(n) }); err != nil {
		return fmt.Errorf("give %s an address: %w", n.Name, err)
	}
	return nil
}

// address gives the node whose network this is its addresses and default routes.
func (c Cluster) address(n Node) error {
	if err := machine.Up("lo"); err != nil {
		return err
	}
	card, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(card); err != nil {
		return err
	}
	for _, r := range c.Ranges {
		if err := machine.AddAddress(card, netip.PrefixFrom(machine.Nth(r, n.Number), r.Bits())); err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: card.Attrs().Index, Gw: machine.Nth(r, 1).AsSlice()}); err != nil {
			return err
		}
	}
	return nil
}
