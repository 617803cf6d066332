package cluster

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

// known waits until the cluster knows a node by its present address, and the API
// server on it.
func (s *scene) known(server, node *hosts.Host) {
	s.Helper()
	s.within(60*time.Second, node.Name()+" known as "+node.IP(), func() error {
		out, err := server.Kubectl("get", "node", node.Name(), "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`)
		if err != nil || out != node.IP() {
			return fmt.Errorf("InternalIP is %q, %v", out, err)
		}
		return nil
	})
}

// advertised waits until the kubernetes Service leads to exactly these servers.
func (s *scene) advertised(from *hosts.Host, servers ...*hosts.Host) {
	s.Helper()
	s.within(60*time.Second, "the API advertised at its servers' addresses", func() error {
		out, err := from.Kubectl("get", "endpointslice", "kubernetes", "-o", `jsonpath={.endpoints[*].addresses[*]}`)
		if err != nil {
			return err
		}
		for _, h := range servers {
			if !strings.Contains(" "+out+" ", " "+h.IP()+" ") {
				return fmt.Errorf("advertised at %s, not at %s", out, h.IP())
			}
		}
		if got := len(strings.Fields(out)); got != len(servers) {
			return fmt.Errorf("advertised at %s, want %d", out, len(servers))
		}
		return nil
	})
}

// TestServerThatMoved: the only server gets another address while it runs, and one more
// while it is off. It goes on by itself, and an agent that is told the new address stays
// the same node.
func TestServerThatMoved(t *testing.T) {
	s := begin(t)
	server := s.server("server")
	agent := s.net.Host("agent")
	process := s.join(agent, server)
	s.ready(server, server, agent)
	s.apply(server, twoPlaces)
	s.running(server, "app=web")
	before := s.kubectl(server, "get", "pods", "-l", "app=web", "-o", `jsonpath={.items[*].status.containerStatuses[0].containerID}`)

	server.SetIP("10.99.0.77")
	s.known(server, server)
	s.advertised(server, server)
	s.ready(server, server)

	told := func() {
		s.Helper()
		s.end(process)
		process = s.start(agent, "agent", "--server", url(server)) // no token
		s.podo(agent, "status", "--wait=60s")
		s.ready(server, agent)
		s.within(60*time.Second, "logs of every pod", func() error {
			for _, pod := range strings.Fields(s.kubectl(server, "get", "pods", "-l", "app=web", "-o", `jsonpath={.items[*].metadata.name}`)) {
				if out, err := server.Kubectl("logs", pod); err != nil {
					return fmt.Errorf("%s: %w: %s", pod, err, out)
				}
			}
			return nil
		})
	}
	told()
	if after := s.kubectl(server, "get", "pods", "-l", "app=web", "-o", `jsonpath={.items[*].status.containerStatuses[0].containerID}`); after != before {
		t.Errorf("containers before %s\nafter %s", before, after)
	}

	server.Off()
	server.SetIP("10.99.0.78")
	server.On()
	began := time.Now()
	s.start(server, "server")
	s.known(server, server)
	s.advertised(server, server)
	t.Logf("at its other address %s after its start", time.Since(began).Round(100*time.Millisecond))
	s.ready(server, server)
	told()
}

// TestAgentThatMoved: an agent gets another address while it runs.
func TestAgentThatMoved(t *testing.T) {
	s := begin(t)
	server := s.server("server")
	agent := s.agent("agent", server)
	s.ready(server, server, agent)
	s.apply(server, twoPlaces)
	s.running(server, "app=web")
	agent.SetIP("10.99.0.88")
	s.known(server, agent)
	s.ready(server, agent)
	pod := s.kubectl(server, "get", "pods", "-l", "app=web", "--field-selector", "spec.nodeName=agent", "-o", `jsonpath={.items[0].metadata.name}`)
	s.within(30*time.Second, "exec on the agent", func() error {
		out, err := server.Kubectl("exec", pod, "--", "/agnhost", "connect", "--timeout=2s", "web.default.svc.cluster.local:80")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	s.within(60*time.Second, "pods of both nodes talk", func() error {
		for _, ip := range strings.Fields(s.kubectl(server, "get", "pods", "-l", "app=web", "-o", `jsonpath={.items[*].status.podIP}`)) {
			if out, err := server.Kubectl("exec", pod, "--", "/agnhost", "connect", "--timeout=2s", ip+":8080"); err != nil {
				return fmt.Errorf("%s: %w: %s", ip, err, out)
			}
		}
		return nil
	})
}

// TestServersThatMoveOneByOne: each of three servers gets another address in turn, the last
// while it is off. Its member of etcd tells the others, and all three serve.
func TestServersThatMoveOneByOne(t *testing.T) {
	s := begin(t)
	servers, agent := s.three()
	for i, m := range servers {
		off := i == 2
		if off {
			m.down()
		}
		m.SetIP(fmt.Sprintf("10.99.0.%d", 201+i))
		if off {
			m.up()
		}
		other := servers[(i+1)%3].Host
		s.known(other, m.Host)
		s.members(m.Host, 3)
		s.advertised(other, servers[0].Host, servers[1].Host, servers[2].Host)
	}
	s.ready(servers[0].Host, servers[0].Host, servers[1].Host, servers[2].Host, agent)
}
