package datadir

import (
	"maps"
	"os"
	"testing"

	"github.com/podo-dev/podo/pkg/paths"
)

func TestOutside(t *testing.T) {
	p := paths.Paths{Etc: "/etc/podo", Data: t.TempDir(), Run: "/run/podo"}
	c := &Claim{paths: p}
	expect := func(want map[string]string) {
		t.Helper()
		if got, err := Outside(p); err != nil || !maps.Equal(got, want) {
			t.Errorf("%v, %v, want %v", got, err, want)
		}
	}
	remember := func(files map[string]string) {
		t.Helper()
		if err := c.Outside(files); err != nil {
			t.Fatal(err)
		}
	}
	remember(map[string]string{"/etc/podo/podo.yaml": "default", p.Data + "/server/podo.log": "", "": ""})
	if _, err := os.Stat(p.Outside()); !os.IsNotExist(err) {
		t.Errorf("nothing is outside, and something was written: %v", err)
	}
	expect(nil)
	remember(map[string]string{"/root/k.yaml": "default", "/var/log/podo.log": "", p.Data + "/podo.log": ""})
	remember(map[string]string{"/root/other.yaml": "home"})
	expect(map[string]string{"/root/k.yaml": "default", "/var/log/podo.log": "", p.Data + "/podo.log": "", "/root/other.yaml": "home"})
	if err := os.WriteFile(p.Outside(), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Outside(p); err == nil {
		t.Error("half a file was read")
	}
}
