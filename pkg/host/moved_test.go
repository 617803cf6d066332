package host

import (
	"errors"
	"net/netip"
	"testing"
)

func TestMoved(t *testing.T) {
	v4, v6, next := netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10"), netip.MustParseAddr("192.0.2.77")
	with := func(route4 netip.Addr, addrs ...netip.Addr) Network {
		l := Link{Name: "eth0"}
		for _, a := range addrs {
			l.Addrs = append(l.Addrs, netip.PrefixFrom(a, 24))
		}
		return Network{Links: []Link{l}, V4: Route{Addr: route4}, V6: Route{Addr: v6}}
	}
	for name, tt := range map[string]struct {
		now  Network
		want bool
	}{
		"as before":             {with(v4, v4, v6), false},
		"one more address":      {with(next, next, v4, v6), false},
		"another in its stead":  {with(next, next, v6), true},
		"cable pulled":          {with(netip.Addr{}, v6), false},
		"nothing left":          {Network{}, false},
		"gone, link still down": {Network{V6: Route{Addr: v6}}, true},
	} {
		if err := moved([]netip.Addr{v4, v6}, tt.now); errors.Is(err, ErrMoved) != tt.want {
			t.Errorf("%s: %v, want moved %v", name, err, tt.want)
		}
	}
}
