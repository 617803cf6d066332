package local

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/podo-dev/podo/pkg/machine"
)

// TestProxies: nodes have the proxies of whoever makes a cluster, and reach what is the
// cluster's own without.
func TestProxies(t *testing.T) {
	for _, environ := range [][]string{nil, {"HOME=/x", "HTTP_PROXY="}, {"NO_PROXY=a"}} {
		if got := (Cluster{Proxy: proxiesOf(environ)}).proxies(); got != nil {
			t.Errorf("of %q: %q", environ, got)
		}
	}
	c := Cluster{
		Name: "c", Ranges: []netip.Prefix{netip.MustParsePrefix("10.111.3.0/24")},
		Shared: Settings{"cluster-cidr": []string{"10.42.0.0/16"}, "service-cidr": []string{"10.43.0.0/16"}}, Common: Settings{},
		Nodes: []Node{{Name: "c-control-plane", Role: ControlPlane, Settings: Settings{}}, {Name: "c-worker", Role: Worker, Settings: Settings{}}},
		API:   netip.MustParseAddrPort("192.0.2.1:6443"),
		Proxy: proxiesOf([]string{"HTTP_PROXY=http://x:1", "http_proxy=http://y:1", "https_proxy=http://user:secret@z:2", "no_proxy=.corp", "HOME=/x"}),
	}
	own := ".corp,localhost,127.0.0.1,::1,10.111.3.0/24,10.42.0.0/16,10.43.0.0/16,.svc,.cluster.local,c-control-plane,c-worker,192.0.2.1"
	want := []string{
		"HTTPS_PROXY=http://user:secret@z:2", "https_proxy=http://user:secret@z:2", "HTTP_PROXY=http://x:1", "http_proxy=http://x:1",
		"NO_PROXY=" + own, "no_proxy=" + own,
	}
	if got := c.proxies(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}

	s := Site{Dir: t.TempDir()}
	if err := os.Mkdir(s.dir("c"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := s.save(c); err != nil {
		t.Fatal(err)
	}
	kept, err := s.Load("c")
	if err != nil || !reflect.DeepEqual(kept, c) {
		t.Errorf("kept %#v, %v; want %#v", kept, err, c)
	}
	if info, err := os.Stat(s.file("c", "cluster.json")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("cluster.json: %v, %v; want mode 0600", info, err)
	}
	logs := filepath.Join(t.TempDir(), "logs")
	if err := s.ExportLogs(t.Context(), kept, logs); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(logs, "cluster.json")); err != nil || strings.Contains(string(text), "secret") || !strings.Contains(string(text), "c-worker") {
		t.Errorf("logs have %s, %v", text, err)
	}
	spec, err := s.spec(kept, kept.Nodes[1], machine.Groups{})
	if err != nil || !slices.Equal(spec.Env, append(environment(), want...)) {
		t.Errorf("a node has %q, %v", spec.Env, err)
	}
}
