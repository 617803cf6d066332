package cluster

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

// A cluster that was lost with all notes beside it is missed, and a data directory that a
// flag named alone is found again by who removes podo. Its folder of images leads to another
// disk, which is read-only.
func TestDataIsNotForgotten(t *testing.T) {
	s := begin(t)
	h := s.net.Host("one")
	s.onDisk(h, "/srv", "1g")
	s.onDisk(h, "/media", "64m")
	archive, err := filepath.Abs("../../dist/images/busybox.tar")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := h.Run("sh", "-c", "mkdir -p /srv/podo/agent && ln -s /media /srv/podo/agent/images && cp "+archive+" /media/ && mount -o remount,ro /media"); err != nil {
		t.Fatal(out, err)
	}
	p := s.start(h, "server", "--data-dir", "/srv/podo")
	s.podo(h, "status", "--wait=90s")
	s.says(s.podo(h, "images", "list", "--data-dir", "/srv/podo"), images("$BUSYBOX"))
	s.end(p)
	s.podo(h, "kill", "--data-dir", "/srv/podo")

	if out, code := s.try(h, 30*time.Second, "uninstall", "--verify"); code != 1 {
		t.Errorf("with data left: exit code %d\n%s", code, out)
	} else {
		s.says(out, "/srv/podo/server")
	}
	for _, lost := range [][]string{{"/srv/podo/server/db", "/srv/podo/server/db.kind"}, {"/srv/podo/server"}} {
		for _, path := range lost {
			if err := os.RemoveAll(h.Path(path)); err != nil {
				t.Fatal(err)
			}
		}
		out, code := s.try(h, 30*time.Second, "server", "--data-dir", "/srv/podo")
		if code != 1 {
			t.Errorf("without %s: exit code %d, want 1", lost, code)
		}
		s.says(out, "/srv/podo/server/db/state.db is missing", "backup", "podo uninstall")
	}

	// One of two is removed, and what they share stays for the other.
	p = s.start(h, "server", "--data-dir", "/srv/more")
	s.within(30*time.Second, "it begins", func() error { _, err := os.Stat(h.Path("/srv/more/server/token")); return err })
	s.end(p)
	s.podo(h, "kill", "--data-dir", "/srv/more")
	if out, code := s.try(h, 60*time.Second, "uninstall", "--yes", "--purge", "--data-dir", "/srv/more"); code != 0 {
		t.Errorf("uninstall of one of two: exit code %d\n%s", code, out)
	} else {
		s.says(out, "removed /srv/more", "there is data of podo in /srv/podo, too", "nothing but what was left alone is left of podo")
	}
	s.says(s.podo(h, "uninstall", "--yes", "--purge"), "removed /srv/podo", "removed /etc/podo", "nothing is left of podo")
	if left, err := os.ReadDir(h.Path("/srv")); err != nil || len(left) > 0 {
		t.Errorf("left in /srv: %v (%v)", left, err)
	}
	if _, err := os.Stat(h.Path("/media/busybox.tar")); err != nil {
		t.Errorf("an archive of images that lies elsewhere: %v", err)
	}
}

// A restart finds its disk full, and takes its pods over all the same.
func TestRestartsOnAFullDisk(t *testing.T) {
	s := begin(t)
	h := s.net.Host("one")
	s.onDisk(h, "/srv", "1100m")
	args := []string{"server", "--data-dir", "/srv/podo", "--kubelet-arg", "eviction-hard=memory.available<10Mi"}
	p := s.start(h, args...)
	s.podo(h, "status", "--wait=90s")
	containers := func() string { return s.podo(h, "crictl", "ps", "-q") }
	s.podo(h, "kubectl", "wait", "--for=condition=Available", "deployments", "--all", "--namespace=kube-system", "--timeout=90s")
	s.within(60*time.Second, "all is on the disk", func() error { _, err := os.Stat(h.Path("/srv/podo/reserve")); return err })
	time.Sleep(15 * time.Second) // the rest of the payload
	before := containers()
	fill := func() {
		t.Helper()
		out, err := h.Run("sh", "-c", "dd if=/dev/zero of=/srv/filler bs=4k oflag=append conv=notrunc 2>/dev/null; df /srv")
		if err != nil || !strings.Contains(out, " 100% ") {
			t.Fatalf("the disk is not full: %v\n%s", err, out)
		}
	}
	fill()
	s.end(p)
	fill()
	p = s.start(h, args...)
	s.podo(h, "status", "--wait=60s")
	time.Sleep(5 * time.Second)
	after := containers()
	for id := range strings.FieldsSeq(before) {
		if !strings.Contains(after, id) {
			t.Errorf("containers before: %s\nafter: %s\n%s", before, after, p.Log())
			break
		}
	}
}

// onDisk turns a host on that has a disk of its own somewhere.
func (s *scene) onDisk(h *hosts.Host, path, size string) {
	s.Helper()
	h.On()
	if out, err := h.Run("sh", "-c", "mkdir -p "+path+" && mount -t tmpfs -o size="+size+" none "+path); err != nil {
		s.Fatalf("%v\n%s", err, out)
	}
}
