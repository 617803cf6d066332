package netpol

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/knftables"

	"github.com/podo-dev/podo/pkg/machine"
)

// room makes a network namespace.
func room(t *testing.T) *os.File {
	t.Helper()
	type made struct {
		ns  *os.File
		err error
	}
	done := make(chan made)
	go func() {
		runtime.LockOSThread() // for good: the thread is not fit for anything else
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- made{nil, err}
			return
		}
		ns, err := os.Open("/proc/thread-self/ns/net")
		done <- made{ns, err}
	}()
	m := <-done
	if m.err != nil {
		t.Fatal(m.err)
	}
	t.Cleanup(func() { m.ns.Close() })
	return m.ns
}

// within calls f in a namespace and ends the test if it fails.
func within(t *testing.T, ns *os.File, f func() error) {
	t.Helper()
	if err := machine.In(ns, f); err != nil {
		t.Fatal(err)
	}
}

// up gives a link addresses and sets it up.
func up(name string, addrs ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, text := range addrs {
		a, err := netlink.ParseAddr(text)
		if err != nil {
			return err
		}
		a.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(link, a); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

// node makes a node with pods a, b and c of namespace x on its bridge.
func node(t *testing.T) (at *os.File, pods map[string]*os.File, c cluster) {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "needs root to make network namespaces")
	}
	program(t)
	if !bridgeFiltered() {
		skip(t, "needs br_netfilter")
	}
	at = room(t)
	within(t, at, func() error {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "cni0"}}); err != nil {
			return err
		}
		return errors.Join(up("lo"), up("cni0", "10.42.0.1/24", "fd42::1/64"), os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644))
	})
	pods = map[string]*os.File{}
	c.Namespaces = map[string]labels.Set{"x": {}}
	for i, name := range []string{"a", "b", "c"} {
		pods[name] = room(t)
		within(t, at, func() error {
			veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth" + name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(pods[name].Fd())}
			if err := netlink.LinkAdd(veth); err != nil {
				return err
			}
			bridge, err := netlink.LinkByName("cni0")
			if err != nil {
				return err
			}
			return errors.Join(netlink.LinkSetMaster(veth, bridge), netlink.LinkSetHairpin(veth, true), up(veth.Name))
		})
		v4, v6 := fmt.Sprintf("10.42.0.%d", i+2), fmt.Sprintf("fd42::%d", i+2)
		within(t, pods[name], func() error { return errors.Join(up("lo"), up("eth0", v4+"/24", v6+"/64")) })
		c.Pods = append(c.Pods, pod{Namespace: "x", Name: name, UID: name, Labels: labels.Set{"pod": name}, Addrs: []netip.Addr{netip.MustParseAddr(v4), netip.MustParseAddr(v6)}})
	}
	return at, pods, c
}

// TestPackets has a kernel filter what pods on one bridge send each other: TCP over
// both families, SCTP, link-local, broadcast, and what a pod that is not known sends.
func TestPackets(t *testing.T) {
	at, pods, c := node(t)
	for _, p := range pods {
		within(t, p, func() error {
			for _, listen := range []string{"0.0.0.0:80", "[::]:81"} {
				l, err := net.Listen("tcp", listen)
				if err != nil {
					return err
				}
				t.Cleanup(func() { l.Close() })
			}
			return nil
		})
	}
	held := &table{}
	enforce := func(own []pod, policies string) {
		t.Helper()
		c.Policies = nil
		if policies != "" {
			c.Policies = objects(t, policies).Policies
		}
		if err := enforced(t, at, held, knftables.InetFamily, compile(c, own, place{"cni0", ranges(t)}, false)); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(what string, want bool, from, target string) {
		t.Helper()
		var err error
		for range 2 { // the first packet of all may have to wait for a neighbour
			err = machine.In(pods[from], func() error {
				conn, err := net.DialTimeout("tcp", target, 300*time.Millisecond)
				if err == nil {
					conn.Close()
				}
				return err
			})
			if err == nil {
				break
			}
		}
		if got := err == nil; got != want {
			t.Errorf("%s: %s to %s passes: %t, want %t (%v)", what, from, target, got, want, err)
		}
	}
	const deny = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: x, name: p}\nspec: "
	local := linkLocal(t, pods["a"])

	enforce(c.Pods, "")
	expect("no policy", true, "b", "10.42.0.2:80")
	expect("no policy", true, "b", "[fd42::2]:81")
	expect("no policy", true, "b", local)
	for what, p := range map[string]packet{"broadcast": loud(10, 42, 0, 255), "multicast": loud(224, 0, 0, 1), "SCTP": sctp(7)} {
		if !reaches(t, pods["b"], pods["a"], p) {
			t.Errorf("no policy: %s is not heard", what)
		}
	}

	enforce(c.Pods, deny+`{podSelector: {matchLabels: {pod: a}}}`)
	expect("denied", false, "b", "10.42.0.2:80")
	expect("denied", false, "b", "[fd42::2]:81")
	expect("denied", false, "b", local)
	expect("not denied", true, "b", "10.42.0.4:80")
	expect("not denied", true, "b", "[fd42::4]:81")
	expect("out of the denied", true, "a", "10.42.0.3:80")
	expect("to itself", true, "a", "10.42.0.2:80")
	for what, p := range map[string]packet{"broadcast": loud(10, 42, 0, 255), "multicast": loud(224, 0, 0, 1), "SCTP": sctp(7)} {
		if hears(t, pods["b"], pods["a"], p) {
			t.Errorf("denied: %s is heard", what)
		}
	}

	enforce(c.Pods, deny+`{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: 7, protocol: SCTP}, {port: 70, endPort: 90}]}]}`)
	expect("a range of ports", true, "b", "10.42.0.2:80")
	expect("a range of ports", true, "b", "[fd42::2]:81")
	expect("another pod", false, "c", "10.42.0.2:80")
	if !reaches(t, pods["b"], pods["a"], sctp(7)) || hears(t, pods["b"], pods["a"], sctp(80)) || hears(t, pods["c"], pods["a"], sctp(7)) {
		t.Error("SCTP is not as the policy says")
	}

	enforce(c.Pods[:2], deny+`{podSelector: {matchLabels: {pod: a}}, ingress: [{}]}`)
	expect("known", true, "b", "10.42.0.2:80")
	expect("from one that is not known", false, "c", "10.42.0.3:80")
	expect("to one that is not known", false, "b", "10.42.0.4:80")
	expect("to one that is not known", false, "b", "[fd42::4]:81")
	within(t, at, func() error { // the node itself
		conn, err := net.DialTimeout("tcp", "10.42.0.4:80", time.Second)
		if err == nil {
			conn.Close()
		}
		return err
	})
}

// enforced makes the table of a host's kernel, which held was before, hold next.
func enforced(t *testing.T, host *os.File, held *table, f knftables.Family, next *ruleset) error {
	t.Helper()
	return machine.In(host, func() (err error) {
		if held.nft, err = knftables.New(f, Table); err != nil {
			return err
		}
		return held.apply(t.Context(), next)
	})
}

// TestForeignSource: who says to be somebody that no pod is escapes no policy of its own.
func TestForeignSource(t *testing.T) {
	at, pods, c := node(t)
	within(t, pods["c"], func() error {
		return errors.Join(os.WriteFile("/proc/sys/net/ipv4/conf/all/rp_filter", []byte("0"), 0o644), os.WriteFile("/proc/sys/net/ipv4/conf/eth0/rp_filter", []byte("0"), 0o644))
	})
	p := loud(10, 42, 0, 4)
	p.from = [4]byte{198, 51, 100, 7}
	if !reaches(t, pods["b"], pods["c"], p) {
		t.Fatal("without policies it is not heard")
	}
	c.Policies = objects(t, "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: x, name: p}\nspec: {podSelector: {matchLabels: {pod: b}}, policyTypes: [Egress]}").Policies
	if err := enforced(t, at, &table{}, knftables.InetFamily, compile(c, c.Pods, place{"cni0", ranges(t)}, false)); err != nil {
		t.Fatal(err)
	}
	if hears(t, pods["b"], pods["c"], p) {
		t.Error("it is heard")
	}
	if p.from = [4]byte{}; !reaches(t, pods["a"], pods["c"], p) {
		t.Error("another pod is not heard")
	}
}

// TestTaggedFrames: a packet in VLAN tags passes no policy by.
func TestTaggedFrames(t *testing.T) {
	at, pods, c := node(t)
	const q, ad = "\x81\x00\x00\x00", "\x88\xa8\x00\x00"
	comes := false
	for range 10 {
		comes = comes || tagged(t, pods["b"], pods["a"], q)
	}
	if !comes {
		t.Fatal("without policies it is not heard")
	}
	c.Policies = objects(t, "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: x, name: p}\nspec: {podSelector: {matchLabels: {pod: a}}}").Policies
	if err := enforced(t, at, &table{}, knftables.InetFamily, compile(c, c.Pods, place{"cni0", ranges(t)}, false)); err != nil {
		t.Fatal(err)
	}
	if !tagged(t, pods["b"], pods["a"], q) {
		t.Skip("this kernel shows packets in frames with VLAN tags to the policies of packets")
	}
	frames := untagged(place{Bridge: "cni0"}, true)
	if err := enforced(t, at, &table{}, knftables.BridgeFamily, frames); err != nil {
		t.Logf("of all bridges, as this kernel cannot tell them apart: %v", err)
		frames.chains[base].rules[0].text = strings.TrimPrefix(frames.chains[base].rules[0].text, "meta ibrname cni0 ")
		if err := enforced(t, at, &table{}, knftables.BridgeFamily, frames); err != nil {
			t.Fatal(err)
		}
	}
	for _, tags := range []string{"", q, ad, q + q, ad + q, q + q + q} {
		if tagged(t, pods["b"], pods["a"], tags) {
			t.Errorf("with tags %x it is heard", tags)
		}
	}
	if !reaches(t, pods["b"], pods["c"], loud(10, 42, 0, 4)) {
		t.Error("a frame without tags is not heard by who hears all")
	}
}

// tagged reports whether a packet in a frame with these VLAN tags comes from b to a.
func tagged(t *testing.T, b, a *os.File, tags string) bool {
	t.Helper()
	mac := func(p *os.File) (out string) {
		within(t, p, func() error {
			link, err := netlink.LinkByName("eth0")
			if err == nil {
				out = string(link.Attrs().HardwareAddr)
			}
			return err
		})
		return out
	}
	ip := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0, 10, 42, 0, 3, 10, 42, 0, 2}
	var sum uint32
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	frame := mac(a) + mac(b) + tags + "\x08\x00" + string(ip) + string(loud(0, 0, 0, 0).body)
	return heard(t, a, unix.IPPROTO_UDP, func() {
		within(t, b, func() error {
			s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
			if err != nil {
				return err
			}
			defer unix.Close(s)
			link, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return unix.Sendto(s, []byte(frame), 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index})
		})
	})
}

// linkLocal is where a pod listens for those on its link.
func linkLocal(t *testing.T, p *os.File) (at string) {
	t.Helper()
	within(t, p, func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for range 50 {
			all, err := netlink.AddrList(link, netlink.FAMILY_V6)
			if err != nil {
				return err
			}
			for _, a := range all {
				if a.IP.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0 {
					at = "[" + a.IP.String() + "%eth0]:81"
					return nil
				}
			}
			time.Sleep(100 * time.Millisecond)
		}
		return errors.New("no link-local address")
	})
	return at
}

// A packet that pod a may hear: a protocol's, to an address.
type packet struct {
	protocol int
	from     [4]byte // zero for the sender's own
	to       [4]byte
	body     []byte
}

// loud is an empty datagram to many.
func loud(to ...byte) packet {
	return packet{protocol: unix.IPPROTO_UDP, to: [4]byte(to), body: []byte{0, 99, 0, 99, 0, 8, 0, 0}}
}

// sctp asks a, at 10.42.0.2, for an association.
func sctp(port uint16) packet {
	b := make([]byte, 32)
	binary.BigEndian.PutUint16(b, 9999)
	binary.BigEndian.PutUint16(b[2:], port)
	b[12] = 1 // INIT, of 20 bytes
	binary.BigEndian.PutUint16(b[14:], 20)
	binary.BigEndian.PutUint32(b[16:], 1)       // tag
	binary.BigEndian.PutUint32(b[20:], 1<<16)   // window
	binary.BigEndian.PutUint32(b[24:], 1<<16|1) // streams
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return packet{protocol: unix.IPPROTO_SCTP, to: [4]byte{10, 42, 0, 2}, body: b}
}

// reaches reports whether packets from one pod come to another, of which the first ones may
// have to wait for a neighbour.
func reaches(t *testing.T, from, to *os.File, p packet) bool {
	t.Helper()
	for range 10 {
		if hears(t, from, to, p) {
			return true
		}
	}
	return false
}

// hears reports whether a packet from one pod comes to another.
func hears(t *testing.T, from, to *os.File, p packet) bool {
	t.Helper()
	return heard(t, to, p.protocol, func() {
		within(t, from, func() error {
			s, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, p.protocol)
			if err != nil {
				return err
			}
			defer unix.Close(s)
			return errors.Join(unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_BROADCAST, 1), unix.BindToDevice(s, "eth0"),
				unix.SetsockoptInt(s, unix.SOL_IP, unix.IP_TRANSPARENT, 1), unix.Bind(s, &unix.SockaddrInet4{Addr: p.from}),
				unix.Sendto(s, p.body, 0, &unix.SockaddrInet4{Addr: p.to}))
		})
	})
}

// heard reports whether a packet of a protocol comes to a pod when send has been called.
func heard(t *testing.T, to *os.File, protocol int, send func()) bool {
	t.Helper()
	var listener int
	within(t, to, func() (err error) {
		listener, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW, protocol)
		return err
	})
	defer unix.Close(listener)
	patience := unix.NsecToTimeval(int64(300 * time.Millisecond))
	if err := unix.SetsockoptTimeval(listener, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		t.Fatal(err)
	}
	send()
	for {
		_, _, err := unix.Recvfrom(listener, make([]byte, 100), 0)
		if errors.Is(err, unix.EINTR) {
			continue // by Go's own signals
		}
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			t.Fatal(err)
		}
		return err == nil
	}
}
