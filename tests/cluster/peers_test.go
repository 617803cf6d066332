package cluster

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/podo-dev/podo/tests/hosts"
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
	odd := s.net.Host("odd")
	for _, version := range []string{"v1.35.", "v1.37."} {
		s.otherVersion(odd, version)
		s.refused(odd, join(url(first), right), "this podo has Kubernetes "+version, "v1.36.", "same minor version")
	}
	s.refused(other, []string{"server", "--cluster-init", "--server", url(first)}, "cluster-init", "server")
	s.refused(other, []string{"server", "--cluster-reset"}, "cluster-reset", "SQLite")

	// A server with a state of its own stays what it is.
	s.end(process)
	s.refused(lone, join(url(first), right), "cluster of its own", "podo uninstall")
}

// otherVersion gives a host a podo that calls itself by the start of another version of
// Kubernetes, such as "v1.35.".
func (s *scene) otherVersion(h *hosts.Host, start string) {
	s.Helper()
	text, err := os.ReadFile("../../dist/podo")
	if err != nil {
		s.Fatal(err)
	}
	path := h.Path("/usr/local/bin/podo")
	if err := os.Remove(path); err != nil { // all hosts have the same file by links
		s.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.ReplaceAll(text, []byte("v1.36."), []byte(start)), 0o755); err != nil {
		s.Fatal(err)
	}
	s.says(s.podo(h, "version"), start)
}
