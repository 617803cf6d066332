package cluster

import (
	"fmt"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

// TestTenAgentsJoinAtOnce: nobody has to join machines one after the other.
func TestTenAgentsJoinAtOnce(t *testing.T) {
	s := begin(t)
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
	t.Logf("one agent: Ready after %s", join(s.net.Host("first")).Round(100*time.Millisecond))
	var list []*hosts.Host
	for i := range 10 {
		list = append(list, s.net.Host(fmt.Sprint("node-", i)))
	}
	took := join(list...)
	t.Logf("ten agents: Ready after %s", took.Round(100*time.Millisecond))
	if took > 45*time.Second {
		t.Errorf("ten agents were Ready after %s", took)
	}
	s.ready(server, server)
}
