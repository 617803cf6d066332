package datadir_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/datadir"
)

// A start on a disk without a free block has the room that an earlier one put by.
func TestReserve(t *testing.T) {
	p := somewhere(t)
	if err := os.MkdirAll(p.Data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", p.Data, "tmpfs", 0, "size=600m"); err != nil {
		t.Skipf("mount: %v", err) // not root
	}
	t.Cleanup(func() {
		if err := unix.Unmount(p.Data, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	reserved := func() int64 {
		info, err := os.Stat(p.Reserve())
		if err != nil {
			return 0
		}
		return info.Size()
	}
	start := func() {
		t.Helper()
		c, err := claim(p, map[string]string{"cluster-domain": "cluster.local"})
		if err != nil {
			t.Fatal(err)
		}
		c.Release()
	}
	settle := func() {
		t.Helper()
		c, err := datadir.Judge(p, kubernetes, map[string]string{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Release()
		if err := c.Reserve(); err != nil {
			t.Fatal(err)
		}
	}
	start()
	settle()
	if n := reserved(); n < 1<<20 {
		t.Fatalf("%d bytes put by, of a disk with room", n)
	}
	start()
	if reserved() == 0 {
		t.Error("a start gave it back that had room")
	}

	filler, err := os.Create(filepath.Join(p.Data, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer filler.Close()
	for block := make([]byte, 1<<20); ; {
		if _, err := filler.Write(block); err != nil {
			break
		}
	}
	if err := os.Remove(p.Kubernetes()); err != nil { // to be written
		t.Fatal(err)
	}
	start()
	if reserved() > 0 {
		t.Error("the disk is full, and the reserve is still there")
	}
	if settle(); reserved() > 0 {
		t.Errorf("%d bytes put by, of a disk without room", reserved())
	}
}
