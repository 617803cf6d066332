package cluster

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

// TestRefusedJoinsNameTheRemedy: whoever must not join is told at once which mistake
// it was and what to type, prints no secret, and can join when it is put right.
func TestRefusedJoinsNameTheRemedy(t *testing.T) {
	s := begin(t)
	server := s.server("server")
	token := s.token(server)
	s.ready(server, server)
	one, two := s.net.Host("one"), s.net.Host("two")
	with := func(token string, more ...string) []string {
		return append([]string{"agent", "--server", url(server), "--token", token}, more...)
	}
	hash, _, _ := strings.Cut(token, "::")
	create := func(args ...string) string { return s.podo(server, append([]string{"token", "create"}, args...)...) }

	t.Run("wrong pin", func(t *testing.T) {
		wrong := "K10" + strings.Repeat("0", 64) + strings.TrimPrefix(token, hash)
		s.in(t).refused(two, with(wrong), "another cluster", url(server), "take the token from that server")
	})
	t.Run("wrong password", func(t *testing.T) {
		s.in(t).refused(two, with(hash+"::node:wrong"), "password is not this cluster's", "server/agent-token")
	})
	t.Run("cut off", func(t *testing.T) {
		s.in(t).refused(two, with(token[:40]+"::node:wrong"), "is it cut off?")
	})
	t.Run("expired", func(t *testing.T) {
		ended := create("--ttl", "1s")
		time.Sleep(1500 * time.Millisecond)
		s.in(t).refused(two, with(ended), "ended", "podo token create")
	})
	t.Run("deleted", func(t *testing.T) {
		gone := create()
		s.podo(server, "token", "delete", gone)
		s.in(t).refused(two, with(gone), "knows no join token", "podo token create")
	})
	t.Run("no token", func(t *testing.T) {
		s.in(t).refused(two, []string{"agent", "--server", url(server)}, "needs a token", "podo token create")
	})
	t.Run("no pin", func(t *testing.T) {
		_, short, _ := strings.Cut(token, "::node:")
		s.in(t).refused(two, with(short), "does not name the cluster's CA", "--insecure-trust-server")
	})
	t.Run("no server named", func(t *testing.T) {
		s.in(t).refused(two, []string{"agent", "--token", token}, "needs the URL of a server")
	})
	t.Run("plain http", func(t *testing.T) {
		s.in(t).refused(two, []string{"agent", "--server", "http://" + server.IP() + ":6443", "--token", token}, "server:", "https://")
	})
	t.Run("not podo", func(t *testing.T) {
		kubelet := "https://" + server.IP() + ":10250"
		s.in(t).refused(two, []string{"agent", "--server", kubelet, "--token", token}, "no podo server", kubelet, "check the address and the port")
	})
	t.Run("clock a day off", func(t *testing.T) {
		// One kernel has one clock, so a server that is off is made up.
		s := s.in(t)
		at := s.impostor(time.Now().Add(24 * time.Hour))
		s.refused(two, []string{"agent", "--server", at, "--token", token}, "clock", "behind the server's", "set the one that is wrong")
	})

	// A token for one machine lets in one, which then needs none.
	once := create("--once")
	p := s.start(one, with(once)...)
	s.ready(server, one)
	t.Run("used", func(t *testing.T) {
		s.in(t).refused(two, with(once), "another has used it as node one", "podo token create")
	})
	t.Run("name taken", func(t *testing.T) {
		s.in(t).refused(two, with(token, "--node-name", "one"), "belongs to another machine", "--node-name", "podo node replace one")
	})
	t.Run("member of another cluster", func(t *testing.T) {
		s := s.in(t)
		s.end(p)
		wrong := "K10" + strings.Repeat("0", 64) + strings.TrimPrefix(token, hash)
		s.refused(one, with(wrong), "another cluster than the one this machine is a node of", "podo uninstall", "leave --token out")
	})
	t.Run("server on an agent's data", func(t *testing.T) {
		s.in(t).refused(one, []string{"server"}, "an agent's", "podo agent", "podo uninstall")
	})
	t.Run("rebuilt", func(t *testing.T) {
		s := s.in(t)
		// What the old machine had may be in other hands.
		old, err := tls.LoadX509KeyPair(one.Path("/var/lib/podo/agent/tls/kubelet.crt"), one.Path("/var/lib/podo/agent/tls/kubelet.key"))
		if err != nil {
			s.Fatal(err)
		}
		itself := func() int {
			res, err := s.client(two, &old).Get(url(server) + "/api/v1/nodes/one")
			if err != nil {
				s.Fatal(err)
			}
			res.Body.Close()
			return res.StatusCode
		}
		one.Wipe()
		s.refused(one, with(token), "belongs to another machine", "rebuilt", "podo node replace one")

		line := strings.Fields(s.podo(server, "node", "replace", "one"))
		if len(line) < 2 || line[0] != "podo" || line[1] != "agent" {
			s.Fatalf("podo node replace prints %q, which is no command to type", line)
		}
		s.refused(two, with(line[5], "--node-name", "two"), "made to replace node one")
		if got := itself(); got != http.StatusOK {
			s.Errorf("before it is replaced, the old machine's certificate gets %d", got)
		}
		patient := s.client(two, &old)
		patient.Timeout = 0
		watch, err := patient.Get(url(server) + "/api/v1/nodes?watch=1&fieldSelector=metadata.name=one")
		if err != nil {
			s.Fatal(err)
		}
		defer watch.Body.Close()
		if watch.StatusCode != http.StatusOK {
			s.Fatalf("a watch is answered with %s", watch.Status)
		}
		ended := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, watch.Body)
			ended <- err
		}()
		began := time.Now()
		s.start(one, line[1:]...)
		s.machine(server, one)
		took := time.Since(began)
		s.Logf("the new machine is Ready after %s", took.Round(100*time.Millisecond))
		if took > 8*time.Second {
			s.Errorf("the new machine is Ready after %s, want 8s at most", took)
		}
		if got := itself(); got != http.StatusUnauthorized {
			s.Errorf("once it is replaced, the old machine's certificate gets %d", got)
		}
		select {
		case <-ended:
		default:
			s.Error("what the old machine watched goes on")
		}
		s.refused(two, line[1:], "another has used it as node one", "podo node replace one")
	})

	// The machine that was refused so often has nothing that keeps it out. A token
	// without a pin serves whoever asks for that, with a warning.
	_, short, _ := strings.Cut(token, "::node:")
	q := s.start(two, with(short, "--insecure-trust-server")...)
	s.ready(server, two)
	s.says(q.Log(), "trusts whatever answered")
}

// TestServerDoesNotBecomeAgent: a cluster of one's own is not given up by a typing error.
func TestServerDoesNotBecomeAgent(t *testing.T) {
	s := begin(t)
	server, other := s.net.Host("server"), s.net.Host("other")
	p := s.start(server, "server")
	s.start(other, "server")
	token := s.token(other)
	s.ready(server, server)
	s.end(p)
	s.refused(server, []string{"agent", "--server", url(other), "--token", token}, "one of its own", "podo server", "podo uninstall")
	s.start(server, "server")
	s.ready(server, server)
	one := s.net.Host("one")
	s.refused(one, []string{"agent", "--server", url(server), "--token", token}, "another cluster", url(server))
}

// TestAgentWaitsForItsServer: machines may be turned on in any order.
func TestAgentWaitsForItsServer(t *testing.T) {
	s := begin(t)
	server := s.net.Host("server")
	p := s.start(server, "server")
	token := s.token(server)
	s.ready(server, server)
	s.end(p)

	one, two := s.net.Host("one"), s.net.Host("two")
	a := s.start(one, "agent", "--server", url(server), "--token", token) // refuses connections
	s.within(20*time.Second, "the agent says that it tries on", func() error { return contains(a.Log(), "trying on") })
	server.Off()
	b := s.start(two, "agent", "--server", url(server), "--token", token) // does not answer
	s.within(20*time.Second, "the agent says that it tries on", func() error { return contains(b.Log(), "trying on") })
	if !a.Running() || !b.Running() {
		t.Fatal("an agent gave up")
	}
	if n := strings.Count(a.Log(), "\n"); n > 20 {
		t.Errorf("it says so in %d lines:\n%s", n, a.Log())
	}
	server.On()
	s.start(server, "server")
	s.ready(server, server)
	began := time.Now()
	s.ready(server, one, two)
	t.Logf("both Ready %s after the server", time.Since(began).Round(100*time.Millisecond))
}

// machine waits until a node is Ready and is the machine that now has its name.
func (s *scene) machine(server, h *hosts.Host) {
	s.Helper()
	id := s.file(h, "/etc/machine-id")
	s.within(60*time.Second, "the new machine is node "+h.Name(), func() error {
		out, err := server.Kubectl("get", "node", h.Name(), "-o", `jsonpath={.status.nodeInfo.machineID}`)
		if err != nil || out != id {
			return fmt.Errorf("machine %s, want %s: %w", out, id, err)
		}
		return nil
	})
	s.ready(server, h)
}

func contains(text, word string) error {
	if strings.Contains(text, word) {
		return nil
	}
	return fmt.Errorf("nothing of %q in:\n%s", word, text)
}

// impostor is the URL of something on the network that answers as a server does, by
// a clock of its own.
func (s *scene) impostor(now time.Time) string {
	s.Helper()
	var l net.Listener
	if err := s.net.In(func() (err error) {
		l, err = net.Listen("tcp", "10.99.0.1:6443")
		return err
	}); err != nil {
		s.Fatal(err)
	}
	srv := &http.Server{
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{*s.selfMade("impostor", "")}},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "" {
				s.Errorf("%s sends a secret to an unknown server", r.URL)
			}
			w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
			w.Write([]byte("nothing"))
		}),
	}
	go srv.ServeTLS(l, "", "")
	s.Cleanup(func() { srv.Close() })
	return "https://" + l.Addr().String()
}
