package cluster

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
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

// TestNodesAreKnownByName: pods can ask for every node by its name, by all its addresses,
// soon after it has joined, moved or gone.
func TestNodesAreKnownByName(t *testing.T) {
	s := begin(t, hosts.IPv4, hosts.IPv6)
	s.knowsNothing()
	server := s.net.Host("server")
	s.start(server, "server", "--cluster-cidr", "10.42.0.0/16,fd42::/56", "--service-cidr", "10.43.0.0/16,fd43::/112")
	s.ready(server, server)
	s.apply(server, twoPlaces)
	s.rolledOut(server, "web")
	pod, _ := s.podOn(server, server, "web")
	s.named(server, pod, "server", server.IPs()...)

	agent := s.net.Host("agent")
	process := s.join(agent, server)
	s.ready(server, agent)
	s.named(server, pod, "agent", agent.IPs()...)
	s.named(server, pod, "server", server.IPs()...)

	before := agent.IP()
	agent.SetIP("10.99.0.77")
	s.named(server, pod, "agent", agent.IPs()...)
	if slices.Contains(agent.IPs(), before) {
		t.Fatalf("the agent has %s still", before)
	}

	s.end(process)
	s.kubectl(server, "delete", "node", "agent")
	s.named(server, pod, "agent")
	s.named(server, pod, "server", server.IPs()...)
}

// knowsNothing has the resolver of all hosts deny every name: what was told of one that is
// gone counts on while no resolver answers.
func (s *scene) knowsNothing() {
	s.Helper()
	var resolver net.PacketConn
	if err := s.net.In(func() (err error) { resolver, err = net.ListenPacket("udp", "10.99.0.1:53"); return err }); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { resolver.Close() })
	go func() {
		for message := make([]byte, 4096); ; {
			n, from, err := resolver.ReadFrom(message)
			if err != nil {
				return
			}
			message[2], message[3] = message[2]|0x80, 0x83 // an answer: no such name
			_, _ = resolver.WriteTo(message[:n], from)
		}
	}()
}

// named waits until a pod of a server is told exactly these addresses of a name.
func (s *scene) named(server *hosts.Host, pod, name string, want ...string) {
	s.Helper()
	s.within(2*time.Minute, fmt.Sprintf("%s is named %s", want, name), func() error {
		// The kubelet brings a changed volume within a minute; a mark on the pod has it look now.
		if out, err := server.Kubectl("-n", "kube-system", "annotate", "--overwrite", "pod", "-l", "k8s-app=kube-dns", "e2e/look="+time.Now().Format("150405")); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		out, err := server.Kubectl("exec", pod, "--", "nslookup", name+".")
		if said := fmt.Sprint(out, err); err != nil && (len(want) > 0 || !strings.Contains(said, "NXDOMAIN")) {
			return errors.New(said)
		}
		_, answer, _ := strings.Cut(out, "\n\n") // the server's own address comes first
		var got []string
		for line := range strings.Lines(answer) {
			if address, ok := strings.CutPrefix(line, "Address: "); ok {
				got = append(got, strings.TrimSpace(address))
			}
		}
		slices.Sort(got)
		if sorted := slices.Sorted(slices.Values(want)); !slices.Equal(got, sorted) {
			return errors.New(out)
		}
		return nil
	})
}
