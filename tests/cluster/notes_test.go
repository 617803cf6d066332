package cluster

import (
	"strings"
	"testing"
)

// TestNodeNotesThingsAboutItselfOnly: where a node's pods are reached is noted on the
// node, by the node. Whoever has the keys of another could redirect its traffic.
func TestNodeNotesThingsAboutItselfOnly(t *testing.T) {
	s := begin(t)
	server := s.server("server")
	thief := s.agent("thief", server)
	s.ready(server, server, thief)
	for _, who := range []string{"kubelet", "podo-node"} {
		note := func(node string) (string, error) {
			return thief.Run("podo", "kubectl", "--kubeconfig", "/var/lib/podo/agent/kubeconfig/"+who+".yaml", "patch", "node", node,
				"--subresource=status", "--type=merge", "-p", `{"metadata":{"annotations":{"example.com/place":"10.99.0.66"}}}`)
		}
		if out, err := note("server"); err == nil || !strings.Contains(err.Error(), "orbidden") && !strings.Contains(err.Error(), "denied") {
			t.Errorf("as %s, about another node: %v\n%s", who, err, out)
		}
		if out, err := note("thief"); err != nil {
			t.Errorf("as %s, about itself: %v\n%s", who, err, out)
		}
	}
}
