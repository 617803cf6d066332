package cluster

import (
	"fmt"
	"syscall"
	"testing"
	"time"
)

// steady measures for how much of a time the API took writes: the part of half-second
// slots with an acknowledged one.
func (w *writer) steady(lasts time.Duration, meanwhile func()) float64 {
	slots, good := 0, 0
	for end := time.Now().Add(lasts); time.Now().Before(end); slots++ {
		before := w.count()
		meanwhile()
		time.Sleep(500 * time.Millisecond)
		if w.count() > before {
			good++
		}
	}
	return float64(good) / float64(slots)
}

func (w *writer) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.kept)
}

// TestBadLinkCausesNoStorm: one of three servers hears the others but is not heard, and
// then has a link that comes and goes each second. The API takes writes for 95 % of
// the time, through an agent's balancer.
func TestBadLinkCausesNoStorm(t *testing.T) {
	s := begin(t)
	servers, agent := s.three()
	w := s.write(s.through(agent, servers[0].Host))
	time.Sleep(2 * time.Second)
	three := servers[2].Host

	for _, m := range servers[:2] {
		s.net.CutOneWay(three, m.Host)
	}
	s.net.CutOneWay(three, agent)
	time.Sleep(5 * time.Second) // what was under way may fail once
	if got := w.steady(15*time.Second, func() {}); got < 0.95 {
		t.Errorf("a server that is not heard: writes for %.0f %% of the time, want 95", got*100)
	} else {
		t.Logf("a server that is not heard: writes for %.0f %% of the time", got*100)
	}
	s.net.Heal()
	s.members(three, 3)

	plugged := true
	if got := w.steady(20*time.Second, func() {
		if plugged = !plugged; plugged {
			s.net.Heal()
		} else {
			s.net.Isolate(three)
		}
		time.Sleep(500 * time.Millisecond)
	}); got < 0.95 {
		t.Errorf("a link that flaps: writes for %.0f %% of the time, want 95", got*100)
	} else {
		t.Logf("a link that flaps: writes for %.0f %% of the time", got*100)
	}
	s.net.Heal()
	s.members(three, 3)
	w.verify()
}

// TestFrozenServerResumes: the only server stands still for half a minute. Nothing is
// evicted, and watches and leases go on.
func TestFrozenServerResumes(t *testing.T) {
	s := begin(t)
	server := s.net.Host("server")
	process := s.start(server, "server")
	agent := s.agent("agent", server)
	s.ready(server, server, agent)
	s.apply(server, twoPlaces)
	s.running(server, "app=web")
	pods := s.kubectl(server, "get", "pods", "-l", "app=web", "-o", `jsonpath={.items[*].metadata.uid}`)

	if err := process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(30 * time.Second)
	if err := process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	s.within(15*time.Second, "API after the freeze", func() error {
		out, err := server.Kubectl("get", "nodes")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	time.Sleep(10 * time.Second)
	s.ready(server, server, agent)
	if now := s.kubectl(server, "get", "pods", "-l", "app=web", "-o", `jsonpath={.items[*].metadata.uid}`); now != pods {
		t.Errorf("pods before %s\nafter %s", pods, now)
	}
	s.kubectl(server, "create", "configmap", "after")
}
