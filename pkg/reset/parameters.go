package reset

import "github.com/podo-dev/podo/pkg/host"

// parameters is what podo noted of kernel parameters, and which of them are to be put back.
// What others rely on is not: in a container nobody can tell who relies on the kernel's own,
// and what another kubelet needs stays. With data of podo elsewhere, all of them do.
func (m *machine) parameters() (host.Ledger, func(file string) bool) {
	network := !m.Others && m.otherKubelet(sameHost) == ""
	kernel := network && host.WholeMachine() && m.otherKubelet(anywhere) == ""
	return host.NewLedger(m.Paths.Parameters()), func(file string) bool {
		if host.OfNetwork(file) {
			return network
		}
		return kernel
	}
}

func (m *machine) putParametersBack() error {
	if m.Others {
		return nil // their turn comes
	}
	ledger, may := m.parameters()
	n, err := ledger.PutBack(may)
	if n > 0 {
		m.tell("put %s back", plural(n, "kernel parameter", "kernel parameters"))
	}
	return err
}
