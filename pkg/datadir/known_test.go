package datadir_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/podo-dev/podo/pkg/datadir"
	"github.com/podo-dev/podo/pkg/paths"
)

// Whoever removes podo learns of every directory that it had, and of none that is gone.
func TestDirectoriesAreRemembered(t *testing.T) {
	here := somewhere(t)
	known := func(want ...string) {
		t.Helper()
		got, err := datadir.Known(here)
		got = slices.DeleteFunc(got, func(dir string) bool { return dir == paths.DefaultData }) // this machine's
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("known: %q (%v), want %q", got, err, want)
		}
	}
	known()
	run := func(data string) {
		t.Helper()
		p := here
		p.Data = data
		c, err := claim(p, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Release()
		if err := c.Remember(); err != nil {
			t.Fatal(err)
		}
	}
	other := filepath.Join(t.TempDir(), "other")
	run(here.Data)
	run(other)
	run(here.Data)
	known(here.Data, other)
	if err := os.RemoveAll(here.Data); err != nil {
		t.Fatal(err)
	}
	known(other)
	if err := os.Remove(filepath.Join(other, "layout")); err != nil {
		t.Fatal(err)
	}
	known()
}
