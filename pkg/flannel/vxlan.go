package flannel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"syscall"
	"time"

	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"
	"github.com/vishvananda/netlink"
)

// The devices that flannel's vxlan backend makes, one for each IP family.
const (
	vxlanLink   = "flannel.1"
	vxlanLinkV6 = "flannel-v6.1"
)

// vxlan carries traffic to other nodes' pods until ctx ends, over the devices that
// flannel's backend has made. The backend's own Run is not used: it also listens
// to every link of the machine, and when a burst of them, such as a hundred pods at
// once, overflows that socket, it dereferences nil and ends the process
// (flannel 0.28.4, watchVXLANDevice).
func vxlan(ctx context.Context, nodes subnet.Manager, own *lease.Lease, log *slog.Logger) error {
	events := make(chan []lease.Event)
	go subnet.WatchLeases(ctx, nodes, own, events)
	look := time.NewTicker(time.Minute)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case batch, ok := <-events:
			if !ok {
				return nil
			}
			for _, e := range batch {
				for _, p := range peers(e.Lease) {
					if err := p.apply(e.Type == lease.EventAdded); err != nil {
						log.Warn("route to another node not set", "component", "flannel", "addr", p.route.String(), "err", err)
					}
				}
			}
		case <-look.C:
			// Whoever deleted the device took every route with it; a start makes both.
			for family, enabled := range map[string]bool{vxlanLink: !own.Subnet.Empty(), vxlanLinkV6: !own.IPv6Subnet.Empty()} {
				if _, err := netlink.LinkByName(family); enabled && errors.As(err, &netlink.LinkNotFoundError{}) {
					return fmt.Errorf("link %s was deleted", family)
				}
			}
		}
	}
}

// peer is how another node's pods of one IP family are reached.
type peer struct {
	link   string
	route  *net.IPNet       // the pods
	vtep   net.IP           // the node's address on the pod network
	mac    net.HardwareAddr // of its device
	public net.IP           // the node's own address
}

// peers reads a lease, once for each family that it has. What cannot be read is
// left out: it is not a vxlan node's.
func peers(l lease.Lease) []peer {
	if l.Attrs.BackendType != "vxlan" {
		return nil
	}
	var out []peer
	if mac := vtepMAC(l.Attrs.BackendData); l.EnableIPv4 && mac != nil {
		out = append(out, peer{vxlanLink, l.Subnet.ToIPNet(), l.Subnet.IP.ToIP(), mac, l.Attrs.PublicIP.ToIP()})
	}
	if mac := vtepMAC(l.Attrs.BackendV6Data); l.EnableIPv6 && mac != nil && l.Attrs.PublicIPv6 != nil {
		out = append(out, peer{vxlanLinkV6, l.IPv6Subnet.ToIPNet(), l.IPv6Subnet.IP.ToIP(), mac, l.Attrs.PublicIPv6.ToIP()})
	}
	return out
}

func vtepMAC(data json.RawMessage) net.HardwareAddr {
	var attrs struct{ VtepMAC string }
	if json.Unmarshal(data, &attrs) != nil {
		return nil
	}
	mac, err := net.ParseMAC(attrs.VtepMAC)
	if err != nil {
		return nil
	}
	return mac
}

// apply tells the kernel of a peer, or makes it forget one. The route comes last
// and goes first: with it but without the others the kernel would ask around.
func (p peer) apply(add bool) error {
	link, err := netlink.LinkByName(p.link)
	if err != nil {
		return err
	}
	index := link.Attrs().Index
	route := &netlink.Route{LinkIndex: index, Scope: netlink.SCOPE_UNIVERSE, Dst: p.route, Gw: p.vtep}
	route.SetFlag(syscall.RTNH_F_ONLINK)
	neighbour := &netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, Type: syscall.RTN_UNICAST, IP: p.vtep, HardwareAddr: p.mac}
	forward := &netlink.Neigh{LinkIndex: index, Family: syscall.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF, IP: p.public, HardwareAddr: p.mac}
	if add {
		if err := netlink.NeighSet(neighbour); err != nil {
			return fmt.Errorf("neighbour: %w", err)
		}
		if err := netlink.NeighSet(forward); err != nil {
			return fmt.Errorf("forwarding entry: %w", err)
		}
		return netlink.RouteReplace(route)
	}
	return errors.Join(netlink.RouteDel(route), netlink.NeighDel(neighbour), netlink.NeighDel(forward))
}
