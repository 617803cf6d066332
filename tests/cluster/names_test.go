package cluster

import (
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

// TestRenamedHostStaysItsNode: a server and an agent whose host names changed between
// two starts are the nodes that they were, with the same pods.
func TestRenamedHostStaysItsNode(t *testing.T) {
	s := begin(t)
	server, agent := s.net.Host("server"), s.net.Host("agent")
	runs, member := s.start(server, "server"), s.join(agent, server)
	s.ready(server, server, agent)
	s.apply(server, twoPlaces)
	s.rolledOut(server, "web")
	identity := func() string {
		return s.kubectl(server, "get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} {.status.addresses[*].address}{"\n"}{end}`) +
			s.kubectl(server, "get", "pods", "-l", "app=web", "-o", `jsonpath={.items[*].status.containerStatuses[0].containerID}`)
	}
	before := identity()

	s.end(member)
	s.end(runs)
	for _, h := range []*hosts.Host{server, agent} {
		if out, err := h.Run("hostname", "another-"+h.Name()); err != nil {
			t.Fatalf("%v %s", err, out)
		}
	}
	began := time.Now()
	s.start(server, "server")
	s.start(agent, "agent", "--server", url(server))
	s.podo(server, "status", "--wait=60s")
	s.podo(agent, "status", "--wait=60s")
	t.Logf("both Ready %s after the start under other host names", time.Since(began).Round(100*time.Millisecond))
	if after := identity(); after != before {
		t.Errorf("nodes and containers before:\n%s\nafter:\n%s", before, after)
	}
	name, _ := s.podOn(server, agent, "web")
	s.reached(server, name)
}
