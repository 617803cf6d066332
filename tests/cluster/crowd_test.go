package cluster

import (
	"fmt"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

// TestTenAgentsJoinAtOnce_alone: nobody has to join machines one after the other.
func TestTenAgentsJoinAtOnce_alone(t *testing.T) {
	s := alone(t)
	server := s.server("server")
	token := s.token(server)
	s.ready(server, server)
	join := func(list ...*hosts.Host) time.Duration {
		began := time.Now()
		for _, h := range list {
			h.Start("podo", "agent", "--server", url(server), "--token", token)
		}
		s.ready(server, list...)
		return time.Since(began)
	}
	took := join(s.net.Host("first"))
	t.Logf("one agent: Ready after %s", took.Round(100*time.Millisecond))
	s.figure("one agent, from its start to Ready", took.Seconds(), "s")
	var list []*hosts.Host
	for i := range 10 {
		list = append(list, s.net.Host(fmt.Sprint("node-", i)))
	}
	took = join(list...)
	t.Logf("ten agents: Ready after %s", took.Round(100*time.Millisecond))
	s.figure("ten agents at once, from their start to all Ready", took.Seconds(), "s")
	if took > 45*time.Second {
		t.Errorf("ten agents were Ready after %s", took)
	}
	s.ready(server, server)
}
