package local

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestDeleteNothing: only a cluster that is not there is taken for one, and not one that
// something is missing to remove.
func TestDeleteNothing(t *testing.T) {
	s := Site{Dir: filepath.Join(t.TempDir(), "clusters"), Exe: "/nowhere/podo"}
	if err := s.Delete(t.Context(), "test-of-none"); !errors.Is(err, ErrNoCluster) {
		t.Errorf("got %v, want %v", err, ErrNoCluster)
	}
	for _, left := range []string{".bin", ".podo", ".new-1"} { // of one whose removal was cut short, or that was not finished
		if err := os.MkdirAll(s.dir(left), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Delete(t.Context(), "test-of-none"); !errors.Is(err, ErrNoCluster) {
		t.Errorf("got %v, want %v", err, ErrNoCluster)
	}
	if left, err := os.ReadDir(s.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left: %v, %v", left, err)
	}
	if err := os.MkdirAll(s.dir("lost+found"), 0o700); err != nil { // a disk of its own
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), "test-of-none"); !errors.Is(err, ErrNoCluster) {
		t.Errorf("beside what is not podo's: got %v, want %v", err, ErrNoCluster)
	}
	if _, err := os.Stat(s.dir("lost+found")); err != nil {
		t.Error(err)
	}
	if err := os.MkdirAll(s.dir("test-of-none"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), "test-of-none"); err == nil || errors.Is(err, ErrNoCluster) {
		t.Errorf("of one that cannot be removed: %v", err)
	}
}

// TestOldTools: what another podo unpacked is enough where ours cannot be unpacked.
func TestOldTools(t *testing.T) {
	s := Site{Dir: t.TempDir(), Exe: "/nowhere/podo"}
	if err := s.oldTools(t.Context()); err == nil {
		t.Error("programs that are not there are enough")
	}
	if err := os.MkdirAll(filepath.Join(s.Programs(), "nft"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.oldTools(t.Context()); err != nil {
		t.Errorf("those that are there are not enough: %v", err)
	}
}

// TestClear: what clusters shared goes with the last of them, also if somebody else has
// just removed it.
func TestClear(t *testing.T) {
	s := Site{Dir: filepath.Join(t.TempDir(), "clusters")}
	if err := os.MkdirAll(s.dir("c"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.Clear(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(s.dir("c")); err != nil {
		t.Errorf("a cluster is gone: %v", err)
	}
	if err := os.Remove(s.dir("c")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Clear(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(s.Dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("left: %v", err)
		}
	}
}
