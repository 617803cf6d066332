package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podo-dev/podo/pkg/paths"
)

// dropbox is the folder that images are imported from.
func dropbox(file string) string { return filepath.Join(paths.New(paths.DefaultData).Images(), file) }

// drop puts a file into that folder, and takes it away at the end of the test.
func drop(t *testing.T, file string, content []byte) {
	t.Helper()
	t.Cleanup(func() { os.Remove(dropbox(file)) })
	if err := os.WriteFile(dropbox(file), content, 0o644); err != nil {
		t.Fatal(err)
	}
}

// labelled is the image of the tests' busybox with a label, which makes it another.
func labelled(t *testing.T, label string) v1.Image {
	t.Helper()
	archive := filepath.Join(t.TempDir(), "busybox.tar")
	must(t, "images", "export", "--file", archive, busybox)
	tag, err := name.NewTag(busybox)
	if err != nil {
		t.Fatal(err)
	}
	img, err := tarball.ImageFromPath(archive, &tag)
	if err == nil {
		img, err = mutate.Config(img, v1.Config{Labels: map[string]string{"is": label}})
	}
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// publish brings an image to a registry, by these names.
func publish(t *testing.T, img v1.Image, names ...string) {
	t.Helper()
	for _, called := range names {
		tag, err := name.NewTag(called)
		if err == nil {
			err = remote.Write(tag, img)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// dockerArchive is an image as docker save writes it.
func dockerArchive(t *testing.T, called string, img v1.Image) []byte {
	t.Helper()
	var buf bytes.Buffer
	tag, err := name.NewTag(called)
	if err == nil {
		err = tarball.Write(tag, img, &buf)
	}
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// ociArchive is an image in OCI's layout.
func ociArchive(t *testing.T, called string, img v1.Image) []byte {
	t.Helper()
	return ociNoted(t, img, map[string]string{"io.containerd.image.name": called})
}

// ociNoted is an image in OCI's layout with these annotations.
func ociNoted(t *testing.T, img v1.Image, notes map[string]string, more ...layout.Option) []byte {
	t.Helper()
	dir := t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	if err == nil {
		err = path.AppendImage(img, append(more, layout.WithAnnotations(notes))...)
	}
	return packed(t, dir, err)
}

// partialArchive is an image of this platform and of another, as docker save writes it
// where only this one was pulled.
func partialArchive(t *testing.T, called string, img v1.Image) []byte {
	t.Helper()
	dir, other := t.TempDir(), labelled(t, called+" of another platform")
	index := v1.ImageIndex(empty.Index)
	for arch, i := range map[string]v1.Image{runtime.GOARCH: img, "s390x": other} {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: i, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	path, err := layout.Write(dir, empty.Index)
	if err == nil {
		err = path.AppendIndex(index, layout.WithAnnotations(map[string]string{"io.containerd.image.name": called}))
	}
	digest, err2 := other.Digest()
	return packed(t, dir, errors.Join(err, err2, os.Remove(filepath.Join(dir, "blobs/sha256", digest.Hex))))
}

// packed is an archive of a folder, which was made unless there is an error.
func packed(t *testing.T, dir string, err error) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := errors.Join(err, w.AddFS(os.DirFS(dir)), w.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func compressed(t *testing.T, how string, content []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	var w io.WriteCloser
	switch how {
	case ".tar":
		return content
	case ".tar.gz":
		w = gzip.NewWriter(&buf)
	case ".tar.zst":
		z, err := zstd.NewWriter(&buf)
		if err != nil {
			t.Fatal(err)
		}
		w = z
	case ".tar.lz4":
		w = lz4.NewWriter(&buf)
	}
	_, err := w.Write(content)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// kept waits until the node has an image that is never collected.
func kept(t *testing.T, called string) {
	t.Helper()
	within(t, time.Minute, called+" is imported and pinned", func() error {
		for _, i := range listed(t) {
			if slices.Contains(i.Names, called) && i.Pinned {
				return nil
			}
		}
		return errors.New(must(t, "images", "list"))
	})
}

// imagesOfAFolder puts archives of every form into the folder of a podo that runs.
func imagesOfAFolder(t *testing.T) {
	s := scenario(t)
	var names []string
	for _, how := range []string{".tar", ".tar.gz", ".tar.zst", ".tar.lz4"} {
		for format, archive := range map[string]func(*testing.T, string, v1.Image) []byte{"docker": dockerArchive, "oci": ociArchive} {
			called := "podo.local/folder/" + format + strings.ReplaceAll(how, ".", "-") + ":1"
			drop(t, format+how, compressed(t, how, archive(t, called, labelled(t, called))))
			names = append(names, called)
		}
	}
	partial := "podo.local/folder/partial:1"
	drop(t, "partial.tar", partialArchive(t, partial, labelled(t, partial)))
	for _, called := range append(names, partial) {
		kept(t, called)
	}
	s.apply(`apiVersion: v1
kind: Pod
metadata: {name: imported}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "` + names[7] + `", imagePullPolicy: Never, command: [sleep, "1000"]}]
`)
	s.kubectl("wait", "--for=condition=Ready", "pod/imported", "--timeout=60s")
	if out := must(t, "images", "prune", "--dry-run"); strings.Contains(out, "podo.local/folder") {
		t.Errorf("prune takes what the folder holds:\n%s", out)
	}
	must(t, "images", "remove", names[0])
	kept(t, names[0])
	if n := strings.Count(theCluster.written(), "path="+dropbox("docker.tar ")) + strings.Count(theCluster.written(), "path="+dropbox("oci.tar ")); n != 3 {
		t.Errorf("the log tells of %d imports of plain archives, want two and that of the one which was lost", n)
	}
}

// halfCopied copies an archive slowly, and then one whose copying breaks off.
func halfCopied(t *testing.T) {
	s := scenario(t)
	slow, broken := "podo.local/half/slow:1", "podo.local/half/broken:1"
	content := dockerArchive(t, slow, labelled(t, slow))
	drop(t, "slow.tar", nil)
	f, err := os.OpenFile(dropbox("slow.tar"), os.O_WRONLY, 0)
	s.ok(err)
	defer f.Close()
	_, err = f.Write(content[:len(content)/2])
	s.ok(err)
	time.Sleep(3 * time.Second)
	if out := theCluster.written(); strings.Contains(out, dropbox("slow.tar")) {
		t.Errorf("what is still copied was looked at:\n%s", out)
	}
	_, err = f.Write(content[len(content)/2:])
	s.ok(errors.Join(err, f.Close()))
	kept(t, slow)

	content = compressed(t, ".tar.zst", ociArchive(t, broken, labelled(t, broken)))
	drop(t, "broken.tar.zst", content[:len(content)/2])
	s.leftOut("broken.tar.zst", "it is cut short")
	if slices.ContainsFunc(listed(t), func(i image) bool { return slices.Contains(i.Names, broken) }) {
		t.Error("half an archive was imported")
	}
	drop(t, "broken.tar.zst", content)
	kept(t, broken)
}

// leftOut waits for an event of the node that names a file and a reason, and sees that
// there is but one, in the log too.
func (s *scene) leftOut(file, reason string) {
	s.Helper()
	find := func() (found []corev1.Event) {
		list, err := s.CoreV1().Events("default").List(s.ctx, metav1.ListOptions{FieldSelector: "involvedObject.kind=Node,reason=ImagesLeftOut"})
		s.ok(err)
		for _, e := range list.Items {
			if strings.Contains(e.Message, dropbox(file)) {
				found = append(found, e)
			}
		}
		return found
	}
	s.within(30*time.Second, "an event tells that "+file+" was left out", func() error {
		found := find()
		if len(found) == 0 {
			return errors.New("there is none")
		}
		return contains(found[0].Message, reason)
	})
	time.Sleep(2 * time.Second)
	if found := find(); len(found) != 1 || found[0].Count > 1 || found[0].InvolvedObject.Name != s.node().Name {
		s.Errorf("the events are %+v, want one of the node", found)
	}
	if n := strings.Count(theCluster.written(), "path="+dropbox(file)); n != 1 {
		s.Errorf("the log names %s %d times, want once", file, n)
	}
}

// spoiltArchives puts what is of no use beside what is.
func spoiltArchives(t *testing.T) {
	s := scenario(t)
	good, flipped := "podo.local/spoilt/good:1", "podo.local/spoilt/flipped:1"
	archiveOf := func(h tar.Header, content string) []byte {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for _, e := range []struct {
			tar.Header
			content string
		}{{h, content}, {tar.Header{Typeflag: tar.TypeReg, Name: "manifest.json"}, "[]"}} {
			e.Mode, e.Size = 0o644, int64(len(e.content))
			s.ok(w.WriteHeader(&e.Header))
			_, err := io.WriteString(w, e.content)
			s.ok(err)
		}
		s.ok(w.Close())
		return buf.Bytes()
	}
	damaged := ociArchive(t, flipped, labelled(t, flipped))
	damaged[len(damaged)/2] ^= 1
	huge := archiveOf(tar.Header{Typeflag: tar.TypeReg, Name: "layer.tar"}, strings.Repeat("x", 1024))
	// A header that claims a petabyte, with its sum put right.
	copy(huge[124:136], []byte{0x80, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0})
	copy(huge[148:156], "        ")
	total := 0
	for _, b := range huge[:512] {
		total += int(b)
	}
	copy(huge[148:156], fmt.Sprintf("%06o\x00 ", total))

	drop(t, "a-nothing.tar", []byte(strings.Repeat("no archive ", 1000)))
	drop(t, "b-up.tar", archiveOf(tar.Header{Typeflag: tar.TypeReg, Name: "../../../../etc/podo-was-here"}, "x"))
	drop(t, "c-link.tar.gz", compressed(t, ".tar.gz", archiveOf(tar.Header{Typeflag: tar.TypeSymlink, Name: "layer.tar", Linkname: "/etc/shadow"}, "")))
	drop(t, "d-huge.tar", huge)
	drop(t, "e-damaged.tar.lz4", compressed(t, ".tar.lz4", damaged))
	drop(t, "f-empty.tar.zst", nil)
	drop(t, "z-good.tar.zst", compressed(t, ".tar.zst", ociArchive(t, good, labelled(t, good))))
	kept(t, good)
	for file, reason := range map[string]string{
		"a-nothing.tar": "no archive", "b-up.tar": "leads out of it", "c-link.tar.gz": "/etc/shadow", "d-huge.tar": "takes more room than there is",
		"e-damaged.tar.lz4": "damaged", "f-empty.tar.zst": "holds no images",
	} {
		s.leftOut(file, reason)
	}
	if _, err := os.Lstat("/etc/podo-was-here"); err == nil {
		t.Error("an archive wrote outside of the engine's folder")
	}
	denied(t, 1, []string{"images", "import", dropbox("b-up.tar")}, dropbox("b-up.tar"), "leads out of it")
}

// listedImages names images in a list, of which a registry has one.
func listedImages(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	s := scenario(t)
	there := "localhost" + server.URL[strings.LastIndexByte(server.URL, ':'):]
	first, second := there+"/listed:1", there+"/listed:2"
	publish(t, labelled(t, first), first)
	drop(t, "images.txt", []byte("# what this node needs\n\n"+first+"\n"+second+"\nnot an image\n"))
	kept(t, first)
	s.within(30*time.Second, "the log tells what is wrong with the list", func() error {
		return contains(theCluster.written(), dropbox("images.txt"), second, "line 5", "is not the name of an image")
	})
	publish(t, labelled(t, second), second) // and nobody touches the list
	kept(t, second)
	must(t, "images", "remove", first)
	kept(t, first)
	if out := must(t, "images", "prune", "--dry-run"); strings.Contains(out, there) {
		t.Errorf("prune takes what a list names:\n%s", out)
	}
	s.ok(os.Remove(dropbox("images.txt")))
	must(t, "images", "remove", first, second)
}

// importsOnce starts podo again beside an archive that it has imported, one that it has
// not seen, and one of no use.
func importsOnce(t *testing.T) {
	clusterRuns(t)
	old, fresh := "podo.local/once/old:1", "podo.local/once/fresh:1"
	drop(t, "old.tar.gz", compressed(t, ".tar.gz", dockerArchive(t, old, labelled(t, old))))
	kept(t, old)
	content := ociArchive(t, fresh, labelled(t, fresh))
	theCluster.stop(t)
	drop(t, "a-cut.tar.zst", []byte{0x28, 0xb5, 0x2f, 0xfd, 0})
	drop(t, "fresh.tar", content)
	startCluster(t)
	if out := must(t, "images", "list"); contains(out, old, fresh) != nil {
		t.Errorf("podo says that it has started, and there is:\n%s", out)
	}
	told := theCluster.written()
	if err := contains(told, dropbox("fresh.tar"), dropbox("a-cut.tar.zst")); err != nil || strings.Contains(told, "old.tar.gz") {
		t.Errorf("the start imported what it had, or did not tell of the others: %v\n%s", err, told)
	}
}

// shortOfRoom has the kubelet collect every image that it may.
func shortOfRoom(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	loose, called := "localhost"+server.URL[strings.LastIndexByte(server.URL, ':'):]+"/loose:1", "podo.local/room/kept:1"
	srv := boot(t).ready(t)
	t.Cleanup(func() { uninstall(t) })
	importImages(t)
	drop(t, "kept.tar", ociArchive(t, called, labelled(t, called)))
	kept(t, called)
	held := loose + "-pinned"
	publish(t, labelled(t, loose), loose)
	publish(t, labelled(t, held), held)
	must(t, "images", "pull", loose)
	if out := must(t, "images", "pull", "--pin", "-o", "json", held); contains(out, held, "sha256:") != nil {
		t.Errorf("pull prints %s", out)
	}
	if a, b := imageNamed(t, loose), imageNamed(t, held); a.Pinned || !b.Pinned {
		t.Errorf("of two that were pulled the second is to be pinned: %+v %+v", a, b)
	}
	if out := must(t, "images", "prune", "--dry-run", "-o", "json"); contains(out, loose, `"dryRun": true`) != nil || strings.Contains(out, held) || strings.Contains(out, called) {
		t.Errorf("prune would take:\n%s", out)
	}
	srv.stop(t)

	srv = boot(t, "--kubelet-arg", "eviction-hard=imagefs.available<99.9%", "--kubelet-arg", "minimum-image-ttl-duration=5s")
	within(t, 2*time.Minute, "the kubelet collects an image that nobody uses", func() error {
		r := podo("images", "list")
		if r.code != 0 || strings.Contains(r.out, loose+" ") {
			return errors.New(r.String())
		}
		return nil
	})
	if out := must(t, "images", "list"); contains(out, called, held, busybox, pause) != nil {
		t.Errorf("of what is kept there is no more than:\n%s", out)
	}
	if out := srv.written(); strings.Contains(out, dropbox("kept.tar")) {
		t.Errorf("it was collected, and imported again:\n%s", out)
	}
	srv.stop(t)
}
