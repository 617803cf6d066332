package e2e

import (
	"encoding/json"
	"io"
	"log"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// movesImages follows an image from an archive to a registry, to the node and back.
func movesImages(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	there := "localhost" + server.URL[strings.LastIndexByte(server.URL, ':'):]
	first, second := there+"/from/archive:1", there+"/from/node:2"
	s, dir := scenario(t), t.TempDir()

	dns := must(t, "kubectl", "-n", "kube-system", "get", "pods", "-l", "k8s-app=kube-dns", "-o", "jsonpath={.items[0].spec.containers[0].image}")
	if i := imageNamed(t, dns); !i.Used || i.Size == 0 {
		t.Errorf("the image of the cluster's DNS is %+v, want it used", i)
	}
	two := filepath.Join(dir, "two.tar")
	must(t, "images", "export", "--file", two, busybox, pause)
	denied(t, 1, []string{"images", "export", "--file", filepath.Join(dir, "none.tar"), "example.com/none:1"}, "example.com/none:1")
	denied(t, 1, []string{"images", "push", "--from", two, first}, "2 images", "--image", busybox)
	denied(t, 1, []string{"images", "push", "--from", two, "--image", "none:1", first}, `"none:1"`, busybox)
	denied(t, 2, []string{"images", "push", "--from", two + ".gone", first}, "no file")
	denied(t, 2, []string{"images", "push", "--username", "grape", busybox}, "--password-stdin")
	must(t, "images", "push", "--from", two, "--image", busybox, there+"/two:1")

	digest := strings.TrimSpace(must(t, "images", "push", "--from", another(t, two, dir), first))
	if !strings.HasPrefix(digest, there+"/from/archive@sha256:") {
		t.Errorf("push prints %q, want a name to pull by", digest)
	}
	must(t, "images", "pull", first, digest)
	if i := imageNamed(t, first); i.Used || i.Pinned {
		t.Errorf("pulled, and no more: %+v", i)
	}
	denied(t, 1, []string{"images", "pull", there + "/none:1"}, "not found")
	must(t, "images", "push", first, second)

	s.apply(`apiVersion: v1
kind: Pod
metadata: {name: pulled}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "` + second + `", command: [sleep, "1000"]}]
`)
	s.kubectl("wait", "--for=condition=Ready", "pod/pulled", "--timeout=60s")
	if out := must(t, "images", "prune"); strings.Contains(out, there) || strings.Contains(out, busybox) {
		t.Errorf("prune takes what is used, or was imported:\n%s", out)
	}
	must(t, "images", "remove", first)
	if out := must(t, "images", "list"); strings.Contains(out, first) || !strings.Contains(out, second) {
		t.Errorf("one name of two was removed, and there is:\n%s", out)
	}
	back := filepath.Join(dir, "back.tar")
	must(t, "images", "export", "--file", back, second)
	s.kubectl("delete", "pod", "pulled", "--now")
	// The kubelet removes containers of pods that went at once, or a minute later.
	s.within(2*time.Minute, "prune takes what nobody uses any more", func() error {
		return contains(must(t, "images", "prune"), second)
	})

	if out := must(t, "images", "import", back); !strings.Contains(out, second) {
		t.Errorf("import prints %q, want the name of the image", out)
	}
	if !imageNamed(t, second).Pinned {
		t.Error("what was imported is not kept")
	}
	must(t, "images", "remove", second)
	denied(t, 1, []string{"images", "remove", second}, "no image", second)
	write(t, back, "no archive")
	denied(t, 1, []string{"images", "import", back}, back)
	denied(t, 1, []string{"images", "push", "--from", back, first}, back)
	s.takesNames(dir)
}

// takesNames: an image may have no more than a short name in an archive, as skopeo and
// buildah write it, and one that has only a tag is of no use.
func (s *scene) takesNames(dir string) {
	s.Helper()
	file := filepath.Join(dir, "said.tar")
	for said, names := range map[string]bool{"short:1": true, "latest": false, "": false, "example.org/App:1": false} {
		notes := map[string]string{"org.opencontainers.image.ref.name": said}
		if said == "" {
			notes = nil
		}
		write(s.T, file, string(ociNoted(s.T, labelled(s.T, said+" as an archive says it"), notes)))
		if !names {
			denied(s.T, 1, []string{"images", "import", file}, file, "no names", "example.org/app:1")
			continue
		}
		began := time.Now()
		if out := must(s.T, "images", "import", file); strings.TrimSpace(out) != "docker.io/library/short:1" {
			s.Errorf("import prints %q", out)
		}
		s.Logf("imported by a short name in %s", time.Since(began).Round(time.Millisecond))
		s.apply(`apiVersion: v1
kind: Pod
metadata: {name: short}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "short:1", imagePullPolicy: Never, command: [sleep, "1000"]}]
`)
		s.kubectl("wait", "--for=condition=Ready", "pod/short", "--timeout=60s")
		s.kubectl("delete", "pod", "short", "--now")
		must(s.T, "images", "remove", "short:1")
	}
	write(s.T, file, string(ociNoted(s.T, labelled(s.T, "elsewhere"), map[string]string{"org.opencontainers.image.ref.name": "example.org/short:1"},
		layout.WithPlatform(v1.Platform{OS: "linux", Architecture: "s390x"}))))
	denied(s.T, 1, []string{"images", "import", file}, file, "no image for this machine", "linux/"+runtime.GOARCH)
	if out := must(s.T, "images", "list"); strings.Contains(out, "nameless") || strings.Contains(out, "short") {
		s.Errorf("left:\n%s", out)
	}
	denied(s.T, 1, []string{"images", "import", "/dev/null"}, "/dev/null", "no regular file")
}

// another makes an image of its own from one of an archive, and keeps it in an archive of
// docker's layout.
func another(t *testing.T, archive, dir string) string {
	t.Helper()
	tag, err := name.NewTag(busybox)
	if err != nil {
		t.Fatal(err)
	}
	img, err := tarball.ImageFromPath(archive, &tag)
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.Config(img, v1.Config{Labels: map[string]string{"moved": "about"}}); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "another.tar")
	if err := tarball.WriteToFile(file, tag, img); err != nil {
		t.Fatal(err)
	}
	return file
}

type image struct {
	ID           string
	Names        []string
	Size         int64
	Pinned, Used bool
}

func listed(t *testing.T) []image {
	t.Helper()
	var list []image
	if err := json.Unmarshal([]byte(must(t, "images", "list", "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	return list
}

func imageNamed(t *testing.T, name string) image {
	t.Helper()
	list := listed(t)
	at := slices.IndexFunc(list, func(i image) bool { return slices.Contains(i.Names, name) })
	if at < 0 {
		t.Fatalf("images list does not know %s: %+v", name, list)
	}
	return list[at]
}

// denied runs a verb that must fail, with an exit code and words that say why.
func denied(t *testing.T, code int, args []string, words ...string) {
	t.Helper()
	r := podo(args...)
	if err := contains(r.err, words...); r.code != code || err != nil {
		t.Errorf("want exit code %d, and why: %v\n%s", code, err, r)
	}
}
