package cluster

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

// TestAgentTellsItsState: podo status on an agent tells its parts, its servers and
// its node, and fails while no server answers.
func TestAgentTellsItsState(t *testing.T) {
	s := begin(t)
	server := s.net.Host("server")
	p := s.start(server, "server")
	one := s.agent("one", server)
	s.ready(server, server, one)
	s.podo(one, "status", "--wait=30s")
	s.says(s.podo(one, "status"), "kubelet", "node       Ready, one", "server     healthy, "+server.IP()+":6443")

	type report struct {
		Ready      bool
		Missing    []string
		Kubeconfig string
		Node       struct {
			Name  string
			Ready bool
		}
		Servers []struct {
			Addr    string
			Healthy bool
		}
		Components []struct{ Name, State string }
	}
	var r report
	decode(t, s.podo(one, "status", "-o", "json"), &r)
	if !r.Ready || r.Node.Name != "one" || !r.Node.Ready || len(r.Servers) != 1 || !r.Servers[0].Healthy || r.Servers[0].Addr != server.IP()+":6443" || r.Kubeconfig != "" {
		t.Errorf("status: %+v", r)
	}
	for _, c := range r.Components {
		if c.State != "ready" {
			t.Errorf("%s is %s", c.Name, c.State)
		}
	}

	s.end(p)
	s.within(15*time.Second, "status tells that the server is away", func() error {
		out, code := s.try(one, 10*time.Second, "status")
		if code != 1 {
			return contains(out, "exit code 1")
		}
		return contains(out, "server     unhealthy, "+server.IP()+":6443")
	})
	var away report
	out, code := s.try(one, 10*time.Second, "status", "-o", "json")
	decode(t, out[:strings.LastIndex(out, "}")+1], &away)
	if code != 1 || away.Ready || len(away.Missing) == 0 {
		t.Errorf("exit code %d, status: %+v", code, away)
	}
	for _, c := range away.Components {
		if c.State != "ready" {
			t.Errorf("without a server, %s is %s", c.Name, c.State)
		}
	}
	s.start(server, "server")
	s.podo(one, "status", "--wait=30s")
}

// TestAgentUninstalls: nothing of an agent is left on its machine, whether its pods
// run and its server answers or not.
func TestAgentUninstalls(t *testing.T) {
	s := begin(t)
	server := s.net.Host("server")
	p := s.start(server, "server")
	one := s.net.Host("one")
	// A kernel as it comes, which passes nothing on. These are of the host's own network.
	const passOn = "/proc/sys/net/ipv4/ip_forward /proc/sys/net/bridge/bridge-nf-call-iptables"
	are := func(want string) {
		t.Helper()
		if out, err := one.Run("sh", "-c", "cat "+passOn); err != nil || strings.Join(strings.Fields(out), "") != want {
			t.Errorf("%s are %q (%v), want %s", passOn, out, err, want)
		}
	}
	if out, err := one.Run("sh", "-c", "for f in "+passOn+"; do echo 0 >$f || exit; done"); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	are("00")
	a := s.join(one, server)
	two := s.agent("two", server)
	s.ready(server, server, one, two)
	s.apply(server, twoPlaces)
	s.rolledOut(server, "web")
	are("11")

	if out, err := one.Run("podo", "uninstall", "--verify"); err == nil {
		t.Fatalf("it finds nothing where all is:\n%s", out)
	}
	const spare = "/root/podo" // podo removes itself too
	for _, h := range []*hosts.Host{one, two} {
		if out, err := h.Run("cp", "/usr/local/bin/podo", spare); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		s.says(s.podo(h, "uninstall", "--yes"), "nothing is left of podo")
		if out, err := h.Run(spare, "uninstall", "--verify"); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		for _, path := range []string{"/var/lib/podo", "/var/lib/kubelet", "/run/podo", "/etc/podo", "/usr/local/bin/podo"} {
			if _, err := os.Lstat(h.Path(path)); !os.IsNotExist(err) {
				entries, _ := os.ReadDir(h.Path(path))
				t.Errorf("%s is left on %s, with %v (%v)", path, h.Name(), entries, err)
			}
		}
		if h == one {
			are("00")
		}
		if p.Running() { // the other does without a server
			s.end(p)
		}
	}
	if _, err := a.Wait(time.Second); err != nil {
		t.Error(err)
	}

	// The machine can be another node at once.
	s.start(server, "server")
	if out, err := one.Run("cp", spare, "/usr/local/bin/podo"); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	s.start(one, "agent", "--server", url(server), "--token", s.token(server), "--node-name", "other")
	s.within(30*time.Second, "node other", func() error {
		out, err := server.Kubectl("wait", "--for=condition=Ready", "node/other", "--timeout=2s")
		if err != nil {
			return contains(out+err.Error(), "condition met")
		}
		return nil
	})
}
