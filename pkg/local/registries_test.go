package local

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker/config"

	"github.com/podo-dev/podo/pkg/paths"
)

// TestMirrorOfAll: containerd finds what is said of all registries where it asks for one of
// which nothing is said.
func TestMirrorOfAll(t *testing.T) {
	s, c, n := Site{Dir: t.TempDir()}, Cluster{Name: "c", Registry: 5000, Ranges: []netip.Prefix{netip.MustParsePrefix("10.111.0.0/24")}}, Node{Name: "c-worker"}
	if err := c.trust([]string{"[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors]\n\"*\" = {endpoint = [\"http://all\"]}\n\"docker.io\" = {endpoint = [\"http://one\"]}\n"}); err != nil {
		t.Fatal(err)
	}
	if err := s.trustRegistries(c, n); err != nil {
		t.Fatal(err)
	}
	root := s.on(c.Name, n.Name, paths.New(paths.DefaultData).RegistryHosts())
	for host, want := range map[string]string{"quay.io": "http://all", "docker.io": "http://one", "localhost:5000": "http://10.111.0.1:5000"} {
		dir, err := config.HostDirFromRoot(root)(host)
		if err != nil {
			t.Errorf("%s: %v", host, err)
			continue
		}
		if text, err := os.ReadFile(filepath.Join(dir, "hosts.toml")); err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s is found by %q, %v; want %s", host, text, err, want)
		}
	}
}
