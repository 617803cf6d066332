package cluster

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

// TestTokensAreManaged: tokens are made, shown without their secrets, and ended.
func TestTokensAreManaged(t *testing.T) {
	s := begin(t)
	server := s.server("server")
	s.ready(server, server)
	if got := s.leases(server); got != "" {
		t.Errorf("the only server stands for election: %s", got)
	}

	var made struct{ ID, Description, Token, JoinCommand, Expires string }
	decode(t, s.podo(server, "token", "create", "--ttl", "1h", "--description", "for one", "-o", "json"), &made)
	id, secret, ok := strings.Cut(made.Token[strings.LastIndex(made.Token, ":")+1:], ".")
	if !ok || id != made.ID || len(secret) != 16 || made.Description != "for one" {
		t.Errorf("made: %+v", made)
	}
	if want := "podo agent --server " + url(server) + " --token " + made.Token; made.JoinCommand != want {
		t.Errorf("join command: %q, want %q", made.JoinCommand, want)
	}
	if at, err := time.Parse(time.RFC3339, made.Expires); err != nil || time.Until(at) > time.Hour || time.Until(at) < 55*time.Minute {
		t.Errorf("ends %s, an hour was asked for (%v)", made.Expires, err)
	}
	chosen := s.podo(server, "token", "generate")
	s.podo(server, "token", "create", "--ttl", "0", chosen)
	if out, err := server.Run("podo", "token", "create", chosen); err == nil {
		t.Errorf("the same token is made twice: %s", out)
	}

	list := s.podo(server, "token", "list")
	s.says(list, made.ID, "for one", "in 59m", chosen[:6], "never")
	inJSON := s.podo(server, "token", "list", "-o", "json")
	for _, text := range []string{list, inJSON} {
		if strings.Contains(text, secret) || strings.Contains(text, chosen[7:]) {
			t.Errorf("the list shows a secret:\n%s", text)
		}
	}
	var listed []struct{ ID string }
	decode(t, inJSON, &listed)
	if len(listed) != 2 {
		t.Errorf("listed: %+v", listed)
	}

	s.podo(server, "token", "delete", made.ID)
	s.refused(server, []string{"token", "delete", "x"}, "is no token's ID", "podo token list")
	if out, err := server.Run("podo", "token", "delete", made.ID); err == nil {
		t.Errorf("a token that is gone is deleted: %s", out)
	}
	decode(t, s.podo(server, "token", "list", "-o", "json"), &listed)
	if len(listed) != 1 || listed[0].ID != chosen[:6] {
		t.Errorf("listed after one is deleted: %+v", listed)
	}
	if said, code := s.try(s.net.Host("elsewhere"), 10*time.Second, "token", "list"); code != 1 || !strings.Contains(said, "run this on a server") {
		t.Errorf("on a machine without a server: exit code %d\n%s", code, said)
	}

	// The line that is printed to be typed works as it is.
	one := s.net.Host("one")
	s.start(one, strings.Fields(s.podo(server, "token", "create", "--print-join-command"))[1:]...)
	s.ready(server, one)
}

// TestRotationKeepsAgents: a lasting token is replaced while agents are connected;
// they notice nothing, and from then on the new one alone lets machines in.
func TestRotationKeepsAgents(t *testing.T) {
	s := begin(t)
	server := s.net.Host("server")
	of := s.start(server, "server", "--agent-token", "open-sesame-for-agents")
	old, all := s.token(server), s.file(server, "/var/lib/podo/server/token")
	if !strings.HasSuffix(old, "::node:open-sesame-for-agents") || strings.Contains(all, "sesame") {
		t.Error("the agents' token is not the one that was given")
	}
	one, two, three := s.net.Host("one"), s.net.Host("two"), s.net.Host("three")
	join := func(h *hosts.Host, token string) *hosts.Process {
		return s.start(h, "agent", "--server", url(server), "--token", token)
	}
	p := join(one, old)
	s.ready(server, server, one)

	fresh := s.podo(server, "token", "rotate", "--agent")
	if fresh == old || fresh != s.token(server) {
		t.Fatal("the token printed is not the new one in server/agent-token")
	}
	s.refused(two, []string{"agent", "--server", url(server), "--token", old}, "password is not this cluster's")
	join(two, fresh)
	s.ready(server, one, two)

	// The server's token lets agents in too, until it is replaced in turn.
	given := s.podo(server, "token", "rotate", "--new-token", "correct-horse-battery-staple")
	if !strings.HasSuffix(given, "::server:correct-horse-battery-staple") {
		t.Error("the token given is not the token printed")
	}
	s.refused(three, []string{"agent", "--server", url(server), "--token", all}, "password is not this cluster's")
	join(three, given)
	s.ready(server, three)

	// A node that has joined comes back with a token that is no good any more, or with none.
	for _, args := range [][]string{{"--token", old}, nil} {
		s.end(p)
		began := time.Now()
		p = s.start(one, append([]string{"agent", "--server", url(server)}, args...)...)
		s.podo(one, "status", "--wait=30s")
		t.Logf("back after %s", time.Since(began).Round(100*time.Millisecond))
	}

	// A server that starts again keeps the new ones.
	s.end(of)
	s.start(server, "server")
	s.within(30*time.Second, "the server is back", func() error {
		out, err := server.Run("podo", "status")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if s.token(server) != fresh || s.file(server, "/var/lib/podo/server/token") != given {
		t.Error("the server's start has changed a token")
	}
	s.ready(server, one, two, three)
	four := s.net.Host("four")
	join(four, fresh)
	s.ready(server, four)
}

// TestRotationReachesAllServers: the lasting tokens are replaced, each on one of three
// servers. Within seconds they are those of all, and the old ones let nobody in; an
// agent notices nothing, and servers that are still started with the old one start.
func TestRotationReachesAllServers(t *testing.T) {
	s := begin(t)
	servers, agent := s.three()
	one, two, three := servers[0], servers[1], servers[2]
	old, oldAgents := s.serverToken(one.Host), s.token(one.Host)
	pid := func() (report struct{ PID int }) {
		decode(t, s.podo(agent, "status", "--wait=30s", "-o", "json"), &report)
		return report
	}
	before := pid()
	s.says(s.leases(one.Host), "podo-kube-scheduler", "podo-kube-controller-manager")

	began := time.Now()
	fresh := s.podo(two.Host, "token", "rotate")
	freshAgents := s.podo(three.Host, "token", "rotate", "--agent")
	all := func() {
		s.Helper()
		s.within(20*time.Second, "every server has the new tokens", func() error {
			for _, m := range servers {
				if s.serverToken(m.Host) != fresh || s.token(m.Host) != freshAgents {
					return fmt.Errorf("%s has others", m.Name())
				}
			}
			return nil
		})
	}
	all()
	t.Logf("every server has the new tokens after %s", time.Since(began).Round(100*time.Millisecond))

	stranger := s.net.Host("stranger")
	for _, m := range servers {
		s.refused(stranger, []string{"server", "--server", url(m.Host), "--token", old}, "password is not this cluster's")
		s.refused(stranger, []string{"agent", "--server", url(m.Host), "--token", oldAgents}, "password is not this cluster's")
	}
	servers = append(servers, s.station("four", "server", "--server", url(three.Host), "--token", fresh))
	s.members(one.Host, 4)

	for _, m := range servers {
		m.crash()
	}
	s.within(60*time.Second, "all servers are back", func() error {
		for _, m := range servers {
			if out, err := m.Run("podo", "status"); err != nil {
				return fmt.Errorf("%s: %w: %s", m.Name(), err, out)
			}
		}
		return nil
	})
	s.members(one.Host, 4)
	all()
	s.ready(three.Host, agent)
	if after := pid(); after != before {
		t.Errorf("the agent's podo was %v, and is %v", before, after)
	}
	for _, m := range servers {
		for _, text := range []string{old, oldAgents, fresh, freshAgents} {
			if _, secret, _ := strings.Cut(text, "::"); strings.Contains(m.log(), secret) {
				t.Errorf("a token is in the log of %s", m.Name())
			}
		}
	}
}

// leases are what the parts of podo and of Kubernetes that one server runs at a time are
// held by.
func (s *scene) leases(server *hosts.Host) string {
	s.Helper()
	return s.kubectl(server, "get", "leases", "-n", "kube-system", "-l", "apiserver.kubernetes.io/identity!=kube-apiserver", "-o", "jsonpath={.items[*].metadata.name}")
}

func decode(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
}
