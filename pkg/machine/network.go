package machine

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NewNetwork returns a network namespace that lives as long as the file is open.
func NewNetwork() (*os.File, error) {
	var file *os.File
	err := aside(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			file, err = os.Open("/proc/thread-self/ns/net")
		}
		return err
	})
	return file, err
}

// Network is that of a process.
func Network(pid int) (*os.File, error) { return os.Open(fmt.Sprintf("/proc/%d/ns/net", pid)) }

// In calls f in another network namespace: what it dials and listens on is there, also
// afterwards. f must not leave its goroutine to do so, as a dialer does for names.
func In(ns *os.File, f func() error) error {
	return aside(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter a network: %w", err)
		}
		return f()
	})
}

// aside calls f on a thread that ends with it, and that is not the first of this
// process: the network of that one is what /proc/self/net shows to all.
func aside(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			err := aside(f) // elsewhere, while this goroutine keeps the thread
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// Up lets a link carry traffic.
func Up(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

// AddAddress adds one that can be used at once: nobody else has it.
func AddAddress(l netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: IPNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return netlink.AddrAdd(l, a)
}

// IPNet is p as others write it.
func IPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Nth is the address number i of a range, of the first 256.
func Nth(r netip.Prefix, i int) netip.Addr {
	b := r.Addr().AsSlice()
	b[len(b)-1] += byte(i)
	a, _ := netip.AddrFromSlice(b)
	return a
}
