package cluster

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

// serverToken is the token that lets servers join.
func (s *scene) serverToken(server *hosts.Host) string {
	s.Helper()
	return s.file(server, "/var/lib/podo/server/token")
}

// peer turns a host on and makes it one more server of a cluster.
func (s *scene) peer(name string, server *hosts.Host, args ...string) *hosts.Host {
	s.Helper()
	h := s.net.Host(name)
	s.start(h, append([]string{"server", "--server", url(server), "--token", s.serverToken(server)}, args...)...)
	return h
}

// members waits until the cluster has so many voting members.
func (s *scene) members(server *hosts.Host, n int) {
	s.Helper()
	s.within(60*time.Second, fmt.Sprintf("%d members", n), func() error {
		out, err := server.Run("podo", "etcd", "member-list")
		if err != nil {
			return err
		}
		if got := strings.Count(out, "follower") + strings.Count(out, "leader"); got != n {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
}

// TestThreeServersSurviveTheLossOfAnyOne: a cluster of three servers and an agent goes
// on when one server after the other is lost and comes back.
func TestThreeServersSurviveTheLossOfAnyOne(t *testing.T) {
	s := begin(t)
	one := s.server("one", "--cluster-init")
	s.ready(one, one)
	two := s.peer("two", one)
	three := s.peer("three", one)
	s.ready(one, two, three)
	s.members(one, 3)
	agent := s.agent("agent", two)
	s.ready(one, agent)
}
