package flannel

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"reflect"
	"runtime"
	"testing"
	"time"

	"github.com/flannel-io/flannel/pkg/backend"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/plan"
)

func network(t *testing.T) plan.Network {
	return plan.Network{
		Paths: paths.New(t.TempDir()), Backend: "vxlan", Offline: true,
		PodCIDR: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
	}
}

func seen() *known {
	return &known{
		Backend: "vxlan",
		Pods:    []netip.Prefix{netip.MustParsePrefix("10.42.3.0/24")},
		Own:     []way{{netip.MustParsePrefix("10.42.3.0/24"), netip.MustParseAddr("192.0.2.3"), "02:00:00:00:00:03"}},
		Others:  []way{{netip.MustParsePrefix("10.42.7.0/24"), netip.MustParseAddr("192.0.2.7"), "02:00:00:00:00:07"}},
	}
}

func TestRecall(t *testing.T) {
	p := network(t)
	if k, err := recall(p); k != nil || err != nil {
		t.Errorf("a first boot recalls %v, %v", k, err)
	}
	if err := seen().keep(p); err != nil {
		t.Fatal(err)
	}
	if k, err := recall(p); err != nil || !reflect.DeepEqual(k, seen()) {
		t.Errorf("recalled %+v, %v", k, err)
	}
	other := p
	other.Backend = "host-gw"
	moved := p
	moved.PodCIDR = []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16")}
	dual := p
	dual.PodCIDR = append(dual.PodCIDR, netip.MustParsePrefix("fd00::/56"))
	for name, p := range map[string]plan.Network{"another backend": other, "another range": moved, "another family": dual} {
		if k, err := recall(p); k != nil || err != nil {
			t.Errorf("%s: recalled %v, %v", name, k, err)
		}
	}
	if err := os.WriteFile(memoryFile(p), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if k, err := recall(p); k != nil || err == nil {
		t.Errorf("half a file: recalled %v, %v", k, err)
	}
}

func TestWays(t *testing.T) {
	l := peerLease(t)
	if got := ways(l); !reflect.DeepEqual(got, seen().Others) {
		t.Errorf("ways(%v) = %v", l, got)
	}
	_, pods, _ := net.ParseCIDR("fd00:0:0:7::/64")
	l.IPv6Subnet, l.Attrs.PublicIPv6 = ip.FromIP6Net(pods), ip.FromIP6(net.ParseIP("2001:db8::7"))
	want := way{netip.MustParsePrefix("fd00:0:0:7::/64"), netip.MustParseAddr("2001:db8::7"), ""}
	if got := ways(l); len(got) != 2 || got[1] != want {
		t.Errorf("ways(%v) = %v, want %v besides", l, got, want)
	}
}

// told is a subnet manager that has some leases to tell of.
type told struct {
	subnet.Manager
	events []lease.Event
}

func (m told) WatchLeases(ctx context.Context, receiver chan []lease.LeaseWatchResult) error {
	for _, e := range m.events {
		receiver <- []lease.LeaseWatchResult{{Events: []lease.Event{e}}}
	}
	<-ctx.Done()
	close(receiver)
	return ctx.Err()
}

func TestLeasesAreRemembered(t *testing.T) {
	p := network(t)
	own := peerLease(t)
	_, pods, _ := net.ParseCIDR("10.42.3.0/24")
	own.Subnet = ip.FromIPNet(pods)
	k := seen()
	k.Others = nil
	r := &remembering{
		Manager: told{events: []lease.Event{{Type: lease.EventAdded, Lease: own}, {Type: lease.EventAdded, Lease: peerLease(t)}}},
		known:   k, plan: p, log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	ctx, stop := context.WithCancel(t.Context())
	receiver := make(chan []lease.LeaseWatchResult)
	done := make(chan error, 1)
	go func() { done <- r.WatchLeases(ctx, receiver) }()
	for range 2 {
		<-receiver
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if got, err := recall(p); err == nil && reflect.DeepEqual(got, seen()) {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("recalled %+v, %v", got, err)
		}
	}
	stop()
	if _, ok := <-receiver; ok {
		t.Error("leases after the end")
	}
	<-done
}

// TestResumeInKernel sets up the pod network in a namespace of its own, as a boot
// without a server does, and takes back what is gone.
func TestResumeInKernel(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	runtime.LockOSThread() // for good: the thread is not fit for anything else
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	card := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1500}}
	if err := netlink.LinkAdd(card); err != nil {
		t.Fatal(err)
	}
	address, _ := netlink.ParseAddr("192.0.2.3/24")
	if err := netlink.AddrAdd(card, address); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(card); err != nil {
		t.Fatal(err)
	}
	iface := &backend.ExternalInterface{Iface: &net.Interface{Index: card.Index, MTU: 1500}}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	leads := func() bool {
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: ipNet(seen().Others[0].Pods)}, netlink.RT_FILTER_DST)
		return err == nil && len(routes) == 1
	}
	p := network(t)
	for range 2 { // podo may start twice without a server
		if err := seen().resume(iface, p, log); err != nil {
			t.Fatal(err)
		}
	}
	link, err := netlink.LinkByName(vxlanLink)
	if err != nil {
		t.Fatal(err)
	}
	if a := link.Attrs(); a.HardwareAddr.String() != "02:00:00:00:00:03" || a.MTU != 1450 || a.Flags&net.FlagUp == 0 {
		t.Errorf("link: %+v", a)
	}
	if !leads() {
		t.Error("no route to the other node")
	}
	now := seen()
	now.Others = nil
	r := &remembering{known: now, stale: seen().Others, iface: iface, plan: p, log: log}
	r.forget()
	if leads() {
		t.Error("a route to a node that is gone")
	}

	k := seen()
	k.Backend = "host-gw"
	if err := k.resume(iface, p, log); err != nil || !leads() {
		t.Errorf("host-gw: route %t, %v", leads(), err)
	}
}
