package flannel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/flannel-io/flannel/pkg/backend"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"
	"github.com/vishvananda/netlink"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/plan"
)

// known is what a node remembers of the pod network, for a boot while no server
// answers: its own place in it, and the way to other nodes.
type known struct {
	Backend string         `json:"backend"`
	Pods    []netip.Prefix `json:"pods"`
	Own     []way          `json:"own"`
	Others  []way          `json:"others"`
}

// A way leads to a node's pods of one IP family.
type way struct {
	Pods netip.Prefix `json:"pods"`
	Node netip.Addr   `json:"node"`
	MAC  string       `json:"mac,omitempty"` // of its vxlan device
}

// patience is how long a server is waited for before memory serves. Flannel starts
// over when it has one.
const patience = 5 * time.Second

// recall reads what this node knew, or nil if that does not serve.
func recall(p plan.Network) (*known, error) {
	text, err := os.ReadFile(memoryFile(p))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return nil, err
	}
	k := &known{}
	if err := json.Unmarshal(text, k); err != nil {
		return nil, fmt.Errorf("%s: %w", memoryFile(p), err)
	}
	if k.Backend != p.Backend || len(k.Pods) == 0 || len(k.Pods) != len(p.PodCIDR) {
		return nil, nil
	}
	for _, c := range k.Pods {
		if !slices.ContainsFunc(p.PodCIDR, func(all netip.Prefix) bool { return all.Contains(c.Addr()) }) {
			return nil, nil
		}
	}
	return k, nil
}

func memoryFile(p plan.Network) string { return filepath.Join(p.Paths.Offline(), "flannel.json") }

// keep writes what is to be recalled.
func (k *known) keep(p plan.Network) error {
	text, err := json.Marshal(k)
	if err != nil {
		return err
	}
	if err := atomicfile.EnsureDir(p.Paths.Offline(), 0o700); err != nil {
		return err
	}
	_, err = atomicfile.WriteIfChanged(memoryFile(p), text, 0o600)
	return err
}

// ways reads a lease, once for each family that it has.
func ways(l lease.Lease) []way {
	var out []way
	add := func(pods *net.IPNet, node net.IP, data json.RawMessage) {
		prefix, err := netip.ParsePrefix(pods.String())
		addr, ok := netip.AddrFromSlice(node)
		if err != nil || !ok {
			return
		}
		out = append(out, way{prefix, addr.Unmap(), vtepMAC(data).String()})
	}
	if !l.Subnet.Empty() {
		add(l.Subnet.ToIPNet(), l.Attrs.PublicIP.ToIP(), l.Attrs.BackendData)
	}
	if !l.IPv6Subnet.Empty() && l.Attrs.PublicIPv6 != nil {
		add(l.IPv6Subnet.ToIPNet(), l.Attrs.PublicIPv6.ToIP(), l.Attrs.BackendV6Data)
	}
	return out
}

// resume sets up what the kernel needs to carry traffic as before the boot. Of
// wireguard nothing is remembered: its keys are flannel's.
func (k *known) resume(iface *backend.ExternalInterface, p plan.Network, log *slog.Logger) error {
	if k.Backend == "vxlan" {
		for _, own := range k.Own {
			if err := own.device(iface, p); err != nil {
				return err
			}
		}
	}
	for _, w := range k.Others {
		if err := w.set(k.Backend, iface, true); err != nil {
			log.Warn("route to another node not set", "component", "flannel", "addr", w.Pods.String(), "err", err)
		}
	}
	return nil
}

// device makes this node's vxlan device as flannel would, which then takes it over.
// Other nodes know it by its address.
func (w way) device(iface *backend.ExternalInterface, p plan.Network) error {
	mac, err := net.ParseMAC(w.MAC)
	if err != nil {
		return err
	}
	name := vxlanLink
	if w.Pods.Addr().Is6() {
		name = vxlanLinkV6
	}
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr, attrs.MTU = name, mac, iface.Iface.MTU-vxlanOverhead
		err = netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: vni, VtepDevIndex: iface.Iface.Index, SrcAddr: w.Node.AsSlice()})
		if err == nil {
			link, err = netlink.LinkByName(name)
		}
	}
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	for _, all := range p.PodCIDR {
		var err error
		switch whole := ipNet(all); {
		case all.Addr().Is4() != w.Pods.Addr().Is4():
		case all.Addr().Is4():
			err = ip.EnsureV4AddressOnLink(ip.IP4Net{IP: ip.FromIP(w.Pods.Addr().AsSlice()), PrefixLen: 32}, ip.FromIPNet(whole), link)
		default:
			err = ip.EnsureV6AddressOnLink(ip.IP6Net{IP: ip.FromIP6(w.Pods.Addr().AsSlice()), PrefixLen: 128}, ip.FromIP6Net(whole), link)
		}
		if err != nil {
			return fmt.Errorf("address of %s: %w", name, err)
		}
	}
	return netlink.LinkSetUp(link)
}

// Flannel's defaults, which podo leaves as they are.
const (
	vni           = 1
	vxlanOverhead = 50
)

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// set tells the kernel of a way, or makes it forget one.
func (w way) set(kind string, iface *backend.ExternalInterface, add bool) error {
	pods := ipNet(w.Pods)
	switch kind {
	case "vxlan":
		mac, err := net.ParseMAC(w.MAC)
		if err != nil {
			return err
		}
		link := vxlanLink
		if w.Pods.Addr().Is6() {
			link = vxlanLinkV6
		}
		return peer{link, pods, pods.IP, mac, w.Node.AsSlice()}.apply(add)
	case "host-gw":
		route := &netlink.Route{LinkIndex: iface.Iface.Index, Dst: pods, Gw: w.Node.AsSlice()}
		if add {
			return netlink.RouteReplace(route)
		}
		return netlink.RouteDel(route)
	}
	return nil
}

// remembering passes on a subnet manager's leases, keeps them, and undoes the ways
// that were recalled and are no more.
type remembering struct {
	subnet.Manager
	known *known
	stale []way
	iface *backend.ExternalInterface
	plan  plan.Network
	log   *slog.Logger
}

// WatchLeases passes on what happens to leases until ctx ends. The first ones, of all
// nodes there are, come within a moment.
func (r *remembering) WatchLeases(ctx context.Context, receiver chan []lease.LeaseWatchResult) error {
	in, done := make(chan []lease.LeaseWatchResult), make(chan error, 1)
	go func() { done <- r.Manager.WatchLeases(ctx, in) }()
	var due <-chan time.Time
	for {
		select {
		case batch, ok := <-in:
			if !ok {
				close(receiver)
				return <-done
			}
			if r.note(batch) && due == nil {
				due = time.After(time.Second)
			}
			select {
			case receiver <- batch:
			case <-ctx.Done():
			}
		case <-due:
			due = nil
			if err := r.known.keep(r.plan); err != nil {
				r.log.Warn("the pod network is not remembered", "component", "flannel", "err", err)
			}
			r.forget()
		}
	}
}

// note takes leases down and reports whether there were any.
func (r *remembering) note(batch []lease.LeaseWatchResult) bool {
	noted := false
	for _, result := range batch {
		for _, e := range result.Events {
			noted = true
			if e.Lease.Attrs.BackendType != r.known.Backend {
				continue // there is no way to it
			}
			for _, w := range ways(e.Lease) {
				if slices.ContainsFunc(r.known.Own, func(own way) bool { return own.Pods == w.Pods }) {
					continue
				}
				r.known.Others = slices.DeleteFunc(r.known.Others, func(o way) bool { return o.Pods == w.Pods })
				if e.Type == lease.EventAdded {
					r.known.Others = append(r.known.Others, w)
				}
			}
		}
	}
	slices.SortFunc(r.known.Others, func(a, b way) int { return a.Pods.Addr().Compare(b.Pods.Addr()) })
	return noted
}

// forget undoes what was recalled of nodes that are gone.
func (r *remembering) forget() {
	for _, old := range r.stale {
		if slices.ContainsFunc(r.known.Others, func(w way) bool { return w.Pods == old.Pods }) {
			continue
		}
		if err := old.set(r.plan.Backend, r.iface, false); err != nil && !errors.Is(err, syscall.ESRCH) && !errors.Is(err, syscall.ENOENT) {
			r.log.Debug("route to a node that is gone not removed", "component", "flannel", "addr", old.Pods.String(), "err", err)
		}
	}
	r.stale = nil
}
