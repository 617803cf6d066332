package datadir_test

import (
	"strings"
	"testing"

	"github.com/podo-dev/podo/pkg/datadir"
)

func TestANodeKeepsItsName(t *testing.T) {
	p := somewhere(t)
	if name, err := datadir.NodeName(p); name != "" || err != nil {
		t.Fatalf("before the first start: %q, %v", name, err)
	}
	c, err := claim(p, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"box", "box", "other"} {
		if err := c.Name(name); err != nil {
			t.Fatal(err)
		}
		if kept, err := datadir.NodeName(p); kept != name || err != nil {
			t.Errorf("named %s: %q, %v", name, kept, err)
		}
	}
	if err := datadir.Foreign(p); err != nil {
		t.Error(err)
	}
	plant(t, p.NodeName(), "\n")
	if _, err := datadir.NodeName(p); err == nil || !strings.Contains(err.Error(), p.NodeName()) {
		t.Errorf("an empty file: %v", err)
	}
}
