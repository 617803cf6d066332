package flannel

import (
	"errors"
	"net"
	"os"
	"runtime"
	"testing"

	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func peerLease(t *testing.T) lease.Lease {
	t.Helper()
	_, pods, err := net.ParseCIDR("10.42.7.0/24")
	if err != nil {
		t.Fatal(err)
	}
	return lease.Lease{
		EnableIPv4: true,
		Subnet:     ip.FromIPNet(pods),
		Attrs: lease.LeaseAttrs{
			BackendType: "vxlan", PublicIP: ip.FromIP(net.ParseIP("192.0.2.7")),
			BackendData: []byte(`{"VNI":1,"VtepMAC":"02:00:00:00:00:07"}`),
		},
	}
}

func TestPeersLeavesOutWhatIsNotVxlan(t *testing.T) {
	good := peerLease(t)
	if got := peers(good); len(got) != 1 || got[0].mac.String() != "02:00:00:00:00:07" || got[0].vtep.String() != "10.42.7.0" {
		t.Errorf("peers(%v) = %v", good, got)
	}
	other := good
	other.Attrs.BackendType = "host-gw"
	broken := good
	broken.Attrs.BackendData = []byte(`null`)
	for name, l := range map[string]lease.Lease{"another backend": other, "no address of the device": broken} {
		if got := peers(l); len(got) != 0 {
			t.Errorf("%s: peers = %v, want none", name, got)
		}
	}
}

// TestPeerInKernel programmes a peer into a network namespace of its own.
func TestPeerInKernel(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	runtime.LockOSThread() // for good: the thread is not fit for anything else
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	dev := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: vxlanLink}, VxlanId: 1, Port: 8472, Learning: false}
	if err := netlink.LinkAdd(dev); err != nil {
		t.Fatal(err)
	}
	own, err := netlink.ParseAddr("10.42.0.0/32")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(netlink.AddrAdd(dev, own), netlink.LinkSetUp(dev)); err != nil {
		t.Fatal(err)
	}
	count := func() (routes, neighbours int) {
		r, err := netlink.RouteList(dev, netlink.FAMILY_V4)
		if err != nil {
			t.Fatal(err)
		}
		for _, route := range r {
			if route.Dst != nil && route.Dst.String() == "10.42.7.0/24" {
				routes++
			}
		}
		for _, family := range []int{netlink.FAMILY_V4, unix.AF_BRIDGE} {
			n, err := netlink.NeighList(dev.Attrs().Index, family)
			if err != nil {
				t.Fatal(err)
			}
			for _, one := range n {
				if one.HardwareAddr.String() == "02:00:00:00:00:07" {
					neighbours++
				}
			}
		}
		return routes, neighbours
	}
	p := peers(peerLease(t))[0]
	for range 2 { // a lease is told of again after each reconnect
		if err := p.apply(true); err != nil {
			t.Fatal(err)
		}
	}
	if routes, neighbours := count(); routes != 1 || neighbours != 2 {
		t.Errorf("after adding: %d routes, %d neighbours, want 1 and 2", routes, neighbours)
	}
	if err := p.apply(false); err != nil {
		t.Fatal(err)
	}
	if routes, neighbours := count(); routes != 0 || neighbours != 0 {
		t.Errorf("after removing: %d routes, %d neighbours, want none", routes, neighbours)
	}
}
