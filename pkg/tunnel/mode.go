package tunnel

import (
	"fmt"
	"strconv"
	"strings"
)

// Mode says what API servers reach by tunnel; the rest they dial. All servers of a
// cluster have the same one.
type Mode string

const (
	// ModeDisabled dials everything: no tunnels, no egress selector.
	ModeDisabled Mode = "disabled"
	// ModeAgent uses tunnels for kubelets. Webhooks, aggregated APIs and proxied
	// pods are dialled, so a server must be part of the pod network.
	ModeAgent Mode = "agent"
	// ModePod uses tunnels for pods too, for servers that run no node.
	ModePod Mode = "pod"
	// ModeCluster also uses them for whatever else listens on a node's addresses,
	// such as pods on the host's network.
	ModeCluster Mode = "cluster"
)

// ParseMode reads a mode as people write it.
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case ModeDisabled, ModeAgent, ModePod, ModeCluster:
		return m, nil
	}
	return "", fmt.Errorf("egress selector mode %q: use agent, cluster, pod or disabled", s)
}

// Place is what the cluster knows about an address.
type Place struct {
	Node string
	// Addr is where the node is dialled if it has no tunnel; empty stands for the
	// address asked for.
	Addr string
	// Pod tells a pod's address from one of the node's own.
	Pod bool
	// KubeletPort is where the node's kubelet listens; 0 stands for 10250.
	KubeletPort uint16
}

// target is what a node is asked for so that it connects us to addr, a port of p.
// It is empty if addr is to be dialled.
func (m Mode) target(p Place, addr, port string) string {
	kubelet := "10250"
	if p.KubeletPort != 0 {
		kubelet = strconv.Itoa(int(p.KubeletPort))
	}
	switch {
	case m == ModeDisabled:
		return ""
	case !p.Pod && port == kubelet:
		return toKubelet
	case m == ModeCluster, m == ModePod && p.Pod:
		return addr
	}
	return ""
}

// EgressConfig is the file for kube-apiserver's --egress-selector-config-file that
// sends connections into the cluster through the socket of [Connect]. It is nil for
// ModeDisabled, where that flag is to be left out.
//
// The datastore and the control plane are not mentioned: what is absent is dialled
// as if there were no file, while "Direct" would put upstream's dialer in the place
// of one that knows unix sockets.
func EgressConfig(m Mode, socket string) []byte {
	if m == ModeDisabled {
		return nil
	}
	return []byte(strings.Join([]string{
		`apiVersion: apiserver.k8s.io/v1beta1`,
		`kind: EgressSelectorConfiguration`,
		`egressSelections:`,
		`  - name: cluster`,
		`    connection:`,
		`      proxyProtocol: HTTPConnect`,
		`      transport:`,
		`        uds:`,
		`          udsName: ` + strconv.Quote(socket),
		``,
	}, "\n"))
}
