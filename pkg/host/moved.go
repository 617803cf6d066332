package host

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/podo-dev/podo/pkg/lifecycle"
)

// ErrMoved means that this machine has another address than when podo started. A new
// start takes it up: certificates, kubeconfigs and the node follow.
var ErrMoved = errors.New("this machine's address changed")

// settle is how long a network must have been quiet before it is looked at: a lease
// that is renewed takes the old address away a moment before the new one comes.
const settle = 3 * time.Second

// Stays is a component that fails with ErrMoved once one of ips is gone from this
// machine and another address of its family is there in its stead. An address that
// only went away may come back, and is waited for.
func Stays(ips []netip.Addr) lifecycle.Component {
	return lifecycle.Func("address", func(ctx context.Context, ready func()) error {
		addrs, links := make(chan netlink.AddrUpdate, 64), make(chan netlink.LinkUpdate, 64)
		done := make(chan struct{})
		defer close(done)
		if err := netlink.AddrSubscribe(addrs, done); err != nil {
			return fmt.Errorf("watch addresses: %w", err)
		}
		if err := netlink.LinkSubscribe(links, done); err != nil {
			return fmt.Errorf("watch interfaces: %w", err)
		}
		ready()
		quiet := time.NewTimer(settle)
		defer quiet.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case _, ok := <-addrs:
				if !ok { // a burst that the socket could not hold; the look below says how it ended
					addrs = nil
				}
				quiet.Reset(settle)
			case _, ok := <-links:
				if !ok {
					links = nil
				}
				quiet.Reset(settle)
			case <-quiet.C:
				n, err := network()
				if err != nil {
					continue
				}
				if err := moved(ips, n); err != nil {
					return err
				}
				if addrs == nil || links == nil { // deaf from now on, so look again
					quiet.Reset(time.Minute)
				}
			}
		}
	})
}

func moved(ips []netip.Addr, now Network) error {
	for _, ip := range ips {
		if _, here := now.LinkOf(ip); here {
			continue
		}
		next := now.V4.Addr
		if ip.Is6() {
			next = now.V6.Addr
		}
		if next.IsValid() {
			return fmt.Errorf("%w from %s to %s; podo starts anew", ErrMoved, ip, next)
		}
	}
	return nil
}
