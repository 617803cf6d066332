package local

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// TestSearch: domains are the host's, or those of the file, of which there may be none. That
// is kept for nodes that are added later.
func TestSearch(t *testing.T) {
	s := Site{Dir: t.TempDir()}
	stub, real := filepath.Join(s.Dir, "stub"), filepath.Join(s.Dir, "real")
	for file, text := range map[string]string{stub: "nameserver 127.0.0.53\nsearch a.stub\n", real: "nameserver 10.0.0.1\nsearch a.host\noptions edns0\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(s.dir("c"), 0o700); err != nil {
		t.Fatal(err)
	}
	for said, want := range map[string]string{
		"":                                  "nameserver 10.0.0.1\nsearch a.host\noptions edns0\n",
		"networking: {dnsSearch: }":         "nameserver 10.0.0.1\nsearch a.host\noptions edns0\n",
		"networking: {dnsSearch: []}":       "nameserver 10.0.0.1\noptions edns0\n",
		"networking: {dnsSearch: [b.c, d]}": "nameserver 10.0.0.1\noptions edns0\nsearch b.c d\n",
	} {
		f, err := Parse("c.yaml", []byte(head+said))
		if err != nil {
			t.Fatal(err)
		}
		c, err := settled(t, f)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.save(c); err != nil {
			t.Fatal(err)
		}
		kept, err := s.Load("c")
		if err != nil || !reflect.DeepEqual(kept.Search, c.Search) {
			t.Errorf("%s: kept as %#v, %v; want %#v", said, kept.Search, err, c.Search)
		}
		if got, err := resolver(kept.Search, filepath.Join(s.Dir, "none"), stub, real); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", said, got, err, want)
		}
	}
}

// TestBehind: what is mounted at a path lands where the node's links lead from there.
func TestBehind(t *testing.T) {
	links := map[string]string{"/lib": "usr/lib", "/bin": "usr/bin", "/etc/alternatives/x": "/usr/share/x", "/usr/lib/far": "../../opt"}
	for path, want := range map[string]string{
		"/lib/modules": "/usr/lib/modules", "/library": "/library", "/usr/lib/a": "/usr/lib/a",
		"/etc/alternatives/x/y": "/usr/share/x/y", "/lib/far/z": "/opt/z", "/lib": "/lib",
	} {
		if got := behind(links, path); got != want {
			t.Errorf("%s is at %s, want %s", path, got, want)
		}
	}
	c := Cluster{Hosts: usualHosts}
	if got := c.hostsAt(usualHosts + "/a.example"); !strings.HasSuffix(got, "/a.example") || strings.HasPrefix(got, usualHosts) {
		t.Errorf("a registry is described at %s, where containerd does not look", got)
	}
}
