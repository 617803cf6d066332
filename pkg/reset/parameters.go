package reset

import (
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/podo-dev/podo/pkg/host"
)

// parameters is what podo noted of kernel parameters, and which of them are to be put back.
// What others rely on is not: in a container nobody can tell who relies on the kernel's own,
// and what another kubelet needs stays. With data of podo elsewhere, all of them do. And the
// machine goes on passing packets to links that only are of use if it does.
func (m *machine) parameters() (host.Ledger, func(file string) bool) {
	network := !m.Others && m.otherKubelet(sameHost) == ""
	kernel := network && host.WholeMachine() && m.otherKubelet(anywhere) == ""
	routing := network && len(routed()) == 0
	return host.NewLedger(m.Paths.Parameters()), func(file string) bool {
		switch {
		case host.OfRouting(file):
			return routing
		case host.OfNetwork(file):
			return network
		}
		return kernel
	}
}

// routed are links of containers, virtual machines and tunnels that are not podo's.
func routed() []string {
	all, _ := netlink.LinkList() // without them all is put back
	ours, _ := ourLinks()
	var out []string
	for _, l := range all {
		name := l.Attrs().Name
		kind := slices.Contains([]string{"bridge", "tun", "tuntap", "wireguard"}, l.Type())
		if kind && !slices.ContainsFunc(ours, func(o netlink.Link) bool { return o.Attrs().Name == name }) {
			out = append(out, name)
		}
	}
	return out
}

func (m *machine) putParametersBack() error {
	if m.Others {
		return nil // their turn comes
	}
	ledger, may := m.parameters()
	if links := routed(); len(links) > 0 {
		if on, _ := ledger.Changed(host.OfRouting); len(on) > 0 {
			m.tell("left forwarding on, for %s", strings.Join(links, ", "))
		}
	}
	n, err := ledger.PutBack(may)
	if n > 0 {
		m.tell("put %s back", plural(n, "kernel parameter", "kernel parameters"))
	}
	return err
}
