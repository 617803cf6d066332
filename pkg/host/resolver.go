package host

import (
	"net/netip"
	"slices"
	"strings"
)

// resolver looks for a resolver file that pods can use. A local forwarder such as
// systemd-resolved or dnsmasq listens on loopback, which means something else in a
// pod; it keeps the real servers in a file of its own.
func (r root) resolver() Resolver {
	var res Resolver
	for i, file := range []string{
		"/etc/resolv.conf",
		"/run/systemd/resolve/resolv.conf",
		"/run/NetworkManager/no-stub-resolv.conf",
		"/run/NetworkManager/resolv.conf",
		"/run/dnsmasq/resolv.conf", // where resolvconf keeps them for it
	} {
		servers, loopback := parseResolv(r.read(file))
		if i == 0 {
			res.Loopback = loopback
		}
		for _, s := range servers {
			if !slices.Contains(res.Servers, s) {
				res.Servers = append(res.Servers, s)
			}
		}
		if len(servers) > 0 && !loopback {
			res.File = file
			break
		}
	}
	return res
}

// parseResolv returns the servers of a resolver file that are not on loopback, and
// whether there were any on it.
func parseResolv(text string) (servers []netip.Addr, loopback bool) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		addr, err := netip.ParseAddr(fields[1])
		switch {
		case err != nil:
		case addr.IsLoopback(), addr.IsUnspecified():
			loopback = true
		default:
			servers = append(servers, addr)
		}
	}
	return servers, loopback
}
