package cluster

import (
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

// TestWaysToTheServers: an agent's balancer listens where it is told, or not at all, and
// pods run on both. Two servers are warned of, and etcd tells outside what it measures.
func TestWaysToTheServers(t *testing.T) {
	s := begin(t)
	server := s.station("server", "server", "--cluster-init", "--etcd-expose-metrics")
	s.ready(server.Host, server.Host)
	elsewhere := s.agent("elsewhere", server.Host, "--lb-server-port", "7444")
	direct := s.agent("direct", server.Host, "--disable-apiserver-lb")
	s.ready(server.Host, elsewhere, direct)
	for _, tt := range []struct {
		on   *hosts.Host
		port string
		open bool
	}{{elsewhere, "7444", true}, {elsewhere, "6444", false}, {direct, "6444", false}, {direct, "7444", false}} {
		c, err := tt.on.Dial("tcp", "127.0.0.1:"+tt.port, time.Second)
		if err == nil {
			c.Close()
		}
		if (err == nil) != tt.open {
			t.Errorf("port %s on %s: %v, want open %v", tt.port, tt.on.Name(), err, tt.open)
		}
	}
	s.apply(server.Host, twoPlaces)
	s.rolledOut(server.Host, "web")
	for _, h := range []*hosts.Host{elsewhere, direct} {
		name, _ := s.podOn(server.Host, h, "web")
		s.reached(server.Host, name)
	}

	text, err := s.get(direct, server.IP()+":2381", "/metrics")
	if err != nil || !strings.Contains(text, "etcd_server_has_leader 1") {
		t.Errorf("etcd's metrics from another machine: %v\n%.300s", err, text)
	}

	second := s.peer("second", server.Host)
	s.ready(server.Host, second.Host)
	s.within(20*time.Second, "two servers are warned of", func() error { return contains(second.log(), "two servers are worth less than one") })
	if _, err := s.get(direct, second.IP()+":2381", "/metrics"); err == nil {
		t.Error("a server that was not told to tells its metrics to other machines")
	}
}
