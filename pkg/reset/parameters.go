package reset

import (
	"strings"

	"github.com/podo-dev/podo/pkg/host"
)

// parameters is what podo noted of kernel parameters, and which of them are to be put back.
// What others rely on is not: in a container nobody can tell who relies on the kernel's own,
// and what another kubelet needs stays. With data of podo elsewhere, all of them do. And the
// machine goes on passing packets to links that only are of use if it does: routed.
func (m *machine) parameters() (ledger host.Ledger, may func(file string) bool, routed []string) {
	network := !m.Others && m.otherKubelet(sameHost) == ""
	kernel := network && host.WholeMachine() && m.otherKubelet(anywhere) == ""
	routed = theirLinks()
	return host.NewLedger(m.Paths.Parameters()), func(file string) bool {
		switch {
		case host.OfRouting(file):
			return network && len(routed) == 0
		case host.OfNetwork(file):
			return network
		}
		return kernel
	}, routed
}

func (m *machine) putParametersBack() error {
	if m.Others {
		return nil // their turn comes
	}
	ledger, may, routed := m.parameters()
	if len(routed) > 0 {
		if on, _ := ledger.Changed(host.OfRouting); len(on) > 0 {
			m.tell("left forwarding on, for %s", strings.Join(routed, ", "))
		}
	}
	n, err := ledger.PutBack(may)
	if n > 0 {
		m.tell("put %s back", plural(n, "kernel parameter", "kernel parameters"))
	}
	return err
}
