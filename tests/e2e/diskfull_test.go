package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// diskFull fills the disk under a running server. Eviction is off: that the kubelet
// drops pods when images run out of room is Kubernetes' way and not tested here.
func diskFull(t *testing.T) {
	image, dir := filepath.Join(room(), "small.ext4"), filepath.Join(room(), "disk-small")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"truncate -s 1500M " + image, "mkfs.ext4 -q -F -m 0 " + image, "mount -o loop " + image + " " + dir} {
		if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
	}
	t.Cleanup(func() {
		podo("uninstall", "--yes", "--purge", "--data-dir", filepath.Join(dir, "podo"))
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("the disk is still in use: %v", err)
		}
	})
	srv := boot(t, "--data-dir", filepath.Join(dir, "podo"), "--kubelet-arg", "eviction-hard=memory.available<10Mi").ready(t)
	importImages(t)
	w := witnesses(t)

	// Fill it to the last block.
	filler, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer filler.Close()
	fill := func() {
		for block := make([]byte, 1<<20); len(block) >= 512; {
			if _, err := filler.Write(block); err != nil {
				block = block[:len(block)/2]
			}
		}
	}
	write := func(i int) error {
		_, err := w.CoreV1().ConfigMaps(w.ns).Create(w.ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("big-%d", i)}, Data: map[string]string{"x": strings.Repeat("x", 500_000)},
		}, metav1.CreateOptions{})
		return err
	}
	n := 0
	within(t, 60*time.Second, "the API answers writes with errors", func() error {
		n++
		fill() // what the engine tidies away in the meantime is room again
		if err := write(n); err == nil {
			return errors.New("it still takes them")
		}
		return nil
	})
	always(t, 15*time.Second, "pods work while the disk is full", w.works)
	if !srv.running() {
		t.Fatalf("podo ended:\n%s", srv.tail(30))
	}
	if _, err := w.CoreV1().ConfigMaps(w.ns).List(w.ctx, metav1.ListOptions{}); err != nil {
		t.Errorf("reading on a full disk: %v", err)
	}

	// Make room, and touch nothing else.
	if err := os.Remove(filler.Name()); err != nil {
		t.Fatal(err)
	}
	filler.Close()
	within(t, 60*time.Second, "the API takes writes again", func() error { n++; return write(n) })
	within(t, 60*time.Second, "the node is well again", func() error {
		if r := podo("status", "--data-dir", filepath.Join(dir, "podo")); r.code != 0 {
			return errors.New(r.String())
		}
		return nil
	})
	w.kubectl("run", "afterwards", "--image="+pause, "--image-pull-policy=Never")
	w.podReady("afterwards")
	w.noticedNothing()
	if !srv.running() {
		t.Errorf("podo ended:\n%s", srv.tail(30))
	}
}
