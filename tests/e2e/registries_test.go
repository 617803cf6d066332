package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podo-dev/podo/pkg/helm/helmtest"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/registries/registriestest"
)

// ownImages looks at what a first boot told of its own pods, none of which lacked its
// image, and pulls those again.
func ownImages(t *testing.T) {
	s := scenario(t)
	for _, name := range []string{"coredns", "traefik"} {
		s.kubectl("-n", "kube-system", "rollout", "status", "deployment/"+name, "--timeout=100s")
	}
	list, err := s.CoreV1().Events("kube-system").List(s.ctx, metav1.ListOptions{})
	s.ok(err)
	if len(list.Items) == 0 {
		t.Error("nothing was told at all")
	}
	for _, e := range list.Items {
		if e.Type == corev1.EventTypeWarning && strings.Contains(e.Message, "mage") {
			t.Errorf("%s: %s %s", e.InvolvedObject.Name, e.Reason, e.Message)
		}
	}
	for _, i := range listed(t) {
		for _, name := range i.Names {
			if strings.Contains(name, "coredns") || strings.Contains(name, "traefik") || name == pause {
				must(t, "images", "pull", name)
			}
		}
	}
	if i := imageNamed(t, pause); !i.Pinned {
		t.Errorf("every pod needs it: %+v", i)
	}
	denied(t, 1, []string{"crictl", "pull", "podo.local/none:1"}, "podo.local/none:1: not found")
}

// ownImagesElsewhere has a node ask another registry for podo's own images, which come to
// be there only later, and a program for the password of one that lets nobody else in.
func ownImagesElsewhere(t *testing.T) {
	store := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	at := func(h http.Handler) string {
		s := httptest.NewServer(h)
		t.Cleanup(s.Close)
		return "localhost" + s.URL[strings.LastIndexByte(s.URL, ':'):]
	}
	public, private := at(store), at(registriestest.Basic(store))
	programs, about := filepath.Join(room(), "provider"), filepath.Join(room(), "provider.yaml")
	write(t, filepath.Join(programs, "vintner"), `#!/bin/sh
cat >/dev/null
echo '{"kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "cacheKeyType": "Registry",
 "auth": {"`+private+`": {"username": "grape", "password": "sweet"}}}'
`)
	if err := os.Chmod(filepath.Join(programs, "vintner"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, about, `apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- {name: vintner, matchImages: ["`+private+`"], defaultCacheDuration: 1h, apiVersion: credentialprovider.kubelet.k8s.io/v1}
`)
	srv := boot(t, "--system-default-registry", public+"/mirror", "--image-credential-provider-bin-dir", programs, "--image-credential-provider-config", about)
	t.Cleanup(func() { uninstall(t) })
	srv.ready(t)
	within(t, 60*time.Second, "an event tells where the image of pods was looked for", func() error {
		return contains(podo("kubectl", "-n", "kube-system", "get", "events").out, public+"/mirror/pause")
	})

	var brought struct {
		Payload []struct{ Name, Version string }
	}
	if err := json.Unmarshal([]byte(must(t, "version", "--components", "-o", "json")), &brought); err != nil {
		t.Fatal(err)
	}
	for _, c := range brought.Payload {
		file, image := strings.CutPrefix(c.Name, "images/")
		if !image {
			continue
		}
		name := strings.TrimSuffix(file, ".tar") + ":" + c.Version
		must(t, "images", "push", "--from", filepath.Join(srv.dir.PayloadImages(), file), public+"/mirror/"+name)
	}
	within(t, 2*time.Minute, "the cluster's DNS runs with the image from there", func() error {
		return contains(podo("kubectl", "-n", "kube-system", "get", "pods", "-l", "k8s-app=kube-dns").out, "1/1")
	})
	for _, i := range listed(t) {
		if !strings.HasPrefix(i.Names[0], public+"/mirror/") {
			t.Errorf("an image has another origin: %+v", i)
		}
	}

	secret := private + "/mirror/" + strings.TrimPrefix(pause, "podo.local/")
	denied(t, 1, []string{"crictl", "pull", secret}, "no basic auth credentials")
	must(t, "kubectl", "run", "private", "--image="+secret)
	must(t, "kubectl", "wait", "--for=condition=Ready", "pod/private", "--timeout=60s")
}

// heed puts registries.yaml in place while podo runs, and waits until the engine has a
// file about a registry.
func (s *scene) heed(registry, text string) {
	s.Helper()
	dir := paths.New(paths.DefaultData).RegistryRoutes()
	write(s.T, paths.New(paths.DefaultData).Registries(), text)
	s.within(20*time.Second, "the engine is told of "+registry, func() error {
		_, err := os.Stat(filepath.Join(dir, registry, "hosts.toml"))
		return err
	})
}

// pulls starts a pod whose image is pulled whatever is there.
func (s *scene) pulls(pod, image, secret string) {
	s.Helper()
	s.apply(fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  imagePullSecrets: [%s]
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: %q, imagePullPolicy: Always, command: [sleep, "1000"]}]
`, pod, secret, image))
}

// isTold waits for an event of a pod.
func (s *scene) isTold(pod string, words ...string) {
	s.Helper()
	s.within(60*time.Second, "pod "+pod+" is told", func() error {
		return contains(s.kubectl("get", "events", "--field-selector", "involvedObject.name="+pod), words...)
	})
}

// registriesFile follows registries.yaml from one change to the next.
func registriesFile(t *testing.T) {
	s := scenario(t)
	file := paths.New(paths.DefaultData).Registries()
	t.Cleanup(func() {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	})
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	open := httptest.NewServer(h)
	t.Cleanup(open.Close)
	there := "localhost" + open.URL[strings.LastIndexByte(open.URL, ':'):]
	// Not an image that other pods use: what was pulled with a password must be asked for
	// again by whoever uses it by another name.
	publish(t, labelled(t, "private"), there+"/proj/mirror/app:1", there+"/team/app:1")
	locked, ca := registriestest.OverTLS(t, room(), helmtest.Locked("ann", "secret", h), time.Now().Add(time.Hour))
	late, lateCA := registriestest.OverTLS(t, room(), h, time.Now().Add(-time.Hour))
	mirrored := func(registry, auth string) string {
		return fmt.Sprintf(`
mirrors:
  %q:
    endpoint: ["https://%s"]
    rewrite: {"^team/(.*)": "proj/mirror/$1"}
configs:
  %[2]q: {tls: {ca_file: %[3]q}%s}
`, registry, locked, ca, auth)
	}
	const credentials = ", auth: {username: ann, password: secret}"

	s.heed("one.test_5000_", mirrored("one.test:5000", credentials))
	s.pulls("mirrored", "one.test:5000/team/app:1", "")
	s.podReady("mirrored")
	must(t, "crictl", "pull", "one.test:5000/team/app:1")

	write(t, file, "mirror: {}\n")
	s.within(20*time.Second, "a wrong file is refused", func() error {
		return contains(theCluster.written(), "registries stay as they were", file+":1: unknown field", "did you mean mirrors?")
	})
	must(t, "crictl", "pull", "one.test:5000/team/app:1")

	s.heed("two.test", mirrored("two.test", ""))
	if out := podo("crictl", "pull", "one.test:5000/team/app:1"); out.code == 0 {
		t.Error("a registry is found by an entry that is gone")
	}
	s.kubectl("create", "secret", "docker-registry", "ann", "--docker-server=two.test", "--docker-username=ann", "--docker-password=secret")
	s.pulls("stranger", "two.test/team/app:1", "")
	s.pulls("known", "two.test/team/app:1", "{name: ann}")
	s.podReady("known")
	s.isTold("stranger", "no basic auth credentials")

	s.heed("three.test", fmt.Sprintf("mirrors: {three.test: {endpoint: [\"https://%s\"]}}\nconfigs: {%[1]q: {tls: {ca_file: %q}}}", late, lateCA))
	s.pulls("late", "three.test/team/app:1", "")
	s.isTold("late", late+": tls: failed to verify certificate: x509: certificate has expired")

	// One that lets nobody in any more, and one that dies half-way.
	limited, broken := httptest.NewServer(registriestest.Limited()), httptest.NewServer(registriestest.BreaksOff(h))
	t.Cleanup(limited.Close)
	t.Cleanup(broken.Close)
	layer, err := random.Layer(4<<20, types.DockerLayer)
	s.ok(err)
	large, err := mutate.AppendLayers(labelled(t, "large"), layer)
	s.ok(err)
	publish(t, large, there+"/team/large:1")
	s.heed("five.test", fmt.Sprintf("mirrors: {five.test: {endpoint: [%q, %q]}}", limited.URL, broken.URL))
	s.pulls("patient", "five.test/team/large:1", "")
	s.podReady("patient")
	s.within(10*time.Second, "podo told of it", func() error { return contains(theCluster.written(), "registry broke off") })

	theCluster.crash(t)
	write(t, file, "mirrors: {docker.io: {endpoints: []}}\n")
	startRefused(t, "a wrong registries.yaml", 2, file+`:1: unknown field "endpoints" of a mirror; did you mean endpoint?`)
	write(t, file, mirrored("*", credentials))
	startCluster(t)
	s.pulls("after", "four.test/team/app:1", "")
	s.podReady("after", "mirrored", "known")
}
