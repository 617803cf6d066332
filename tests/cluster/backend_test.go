package cluster

import (
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

// TestBackendIsTheClusters: a pod network that a kernel lacks is refused by name, on a
// server and on an agent that is told of it by its cluster, and no start changes it. Most
// kernels have WireGuard, and then there is nothing to refuse but the change.
func TestBackendIsTheClusters(t *testing.T) {
	s := begin(t)
	lone := s.net.Host("lone")
	_, err := lone.Run("ip", "link", "add", "probe", "type", "wireguard")
	has := err == nil
	wireguard := []string{"--flannel-backend", "wireguard-native"}
	lacks := func(h *hosts.Host, args ...string) {
		t.Helper()
		if has {
			t.Logf("this kernel has WireGuard: %s is not refused it", h.Name())
			return
		}
		said, code := s.try(h, 15*time.Second, args...)
		if code != 1 {
			t.Errorf("exit code %d, want 1 (-1 is: it tries on)\n%s", code, said)
		}
		s.says(said, "no wireguard", "CONFIG_WIREGUARD", "--flannel-backend=vxlan")
	}
	lacks(lone, append([]string{"server"}, wireguard...)...)

	// A control plane alone needs none, so its nodes may have another kernel.
	server := s.net.Host("server")
	process := s.start(server, append([]string{"server", "--disable-agent"}, wireguard...)...)
	s.podo(server, "status", "--wait=60s")
	lacks(s.net.Host("agent"), "agent", "--server", url(server), "--token", s.token(server))

	s.end(process)
	s.refused(server, []string{"server", "--disable-agent"}, "flannel-backend", "wireguard-native", "vxlan", "give the old value")
}
