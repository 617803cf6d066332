package cluster

import (
	"strings"
	"testing"
)

// TestServerIsRefused: what may not become one more server of a cluster is told why,
// and what to do.
func TestServerIsRefused(t *testing.T) {
	s := begin(t)
	lone := s.net.Host("lone")
	process := s.start(lone, "server")
	first := s.server("first", "--cluster-init")
	s.ready(lone, lone)
	s.ready(first, first)
	other := s.net.Host("other")
	join := func(to string, token string, more ...string) []string {
		return append([]string{"server", "--server", to, "--token", token}, more...)
	}
	right := s.serverToken(first)

	s.refused(other, join(url(lone), s.serverToken(lone)), "SQLite", "--cluster-init", "podo agent")
	s.refused(other, join(url(first), s.token(first)), "agents", "server/token")
	s.refused(other, join(url(first), s.serverToken(lone)), "another cluster", "--server")
	s.refused(other, join(url(first), right[:strings.LastIndex(right, ":")]+":wrong"), "password", "server/token")
	s.refused(other, join(url(first), right, "--node-name", "first"), "at work", "--node-name")
	s.refused(other, join(url(first), right, "--cluster-cidr", "10.52.0.0/16", "--flannel-backend", "host-gw"),
		"cluster-cidr", "10.42.0.0/16", "10.52.0.0/16", "flannel-backend", "vxlan", "host-gw")
	s.refused(other, []string{"server", "--cluster-init", "--server", url(first)}, "cluster-init", "server")
	s.refused(other, []string{"server", "--cluster-reset"}, "cluster-reset", "SQLite")

	// A server with a state of its own stays what it is.
	s.end(process)
	s.refused(lone, join(url(first), right), "cluster of its own", "podo uninstall")
}
