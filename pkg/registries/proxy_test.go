package registries

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	dockerconfig "github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/registries/registriestest"
)

// store is a registry with one image of 100 kB, by each of names.
func store(t *testing.T, names ...string) http.Handler {
	t.Helper()
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	image, err := random.Image(100_000, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		ref, err := name.ParseReference(strings.TrimPrefix(s.URL, "http://") + "/" + n)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(ref, image); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// A seen is a handler that remembers what it was asked.
type seen struct {
	http.Handler
	mu       sync.Mutex
	requests []*http.Request
}

func (s *seen) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r)
	s.mu.Unlock()
	s.Handler.ServeHTTP(w, r)
}

func soon() time.Time { return time.Now().Add(30 * time.Minute) }

// An engine pulls as containerd does, and is led by the files that it is led by.
type engine struct {
	paths paths.Paths
	proxy string
	log   *notes
}

func start(t *testing.T, text string, noDefault bool) engine {
	t.Helper()
	e := engine{paths: somewhere(t), log: &notes{}}
	p := newProxy("secret", http.NotFoundHandler(), slog.New(slog.NewTextHandler(e.log, nil)))
	s := httptest.NewServer(p)
	t.Cleanup(s.Close)
	e.proxy = s.URL
	d := &door{plan: plan.Registries{NoDefault: noDefault, Paths: e.paths}, proxy: p}
	if err := d.lead(parse(t, text), s.URL); err != nil {
		t.Fatal(err)
	}
	return e
}

// folder is what containerd makes of the config_path that podo gives it.
func (e engine) folder(host string) (string, error) {
	for _, root := range e.paths.RegistryRoots() {
		if dir, err := dockerconfig.HostDirFromRoot(root)(host); !errdefs.IsNotFound(err) {
			return dir, err
		}
	}
	return "", errdefs.ErrNotFound
}

// pull fetches all of an image.
func (e engine) pull(ctx context.Context, ref, user, password string) error {
	r := docker.NewResolver(docker.ResolverOptions{Hosts: dockerconfig.ConfigureHosts(ctx, dockerconfig.HostOptions{
		HostDir:     e.folder,
		Credentials: func(string) (string, string, error) { return user, password, nil },
	})})
	ref, desc, err := r.Resolve(ctx, ref)
	if err != nil {
		return err
	}
	fetcher, err := r.Fetcher(ctx, ref)
	if err != nil {
		return err
	}
	get := func(d ocispec.Descriptor) ([]byte, error) {
		rc, err := fetcher.Fetch(ctx, d)
		if err != nil {
			return nil, err
		}
		defer rc.Close()
		text, err := io.ReadAll(rc)
		if err == nil && digest.FromBytes(text) != d.Digest {
			err = fmt.Errorf("%s came as %d other bytes", d.Digest, len(text))
		}
		return text, err
	}
	text, err := get(desc)
	if err != nil {
		return err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return err
	}
	for _, d := range append(m.Layers, m.Config) {
		if _, err := get(d); err != nil {
			return err
		}
	}
	return nil
}

func (e engine) pulls(t *testing.T, ref string) {
	t.Helper()
	if err := e.pull(t.Context(), ref, "", ""); err != nil {
		t.Errorf("pull %s: %v\n%s", ref, err, e.log)
	}
}

func (e engine) fails(t *testing.T, ref string, words ...string) {
	t.Helper()
	err := e.pull(t.Context(), ref, "", "")
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("pull %s: %v; want %q", ref, err, w)
		}
	}
}

func TestMirrorWithEverything(t *testing.T) {
	up := &seen{Handler: registriestest.Basic(store(t, "proj/hub/library/app:1"))}
	host, ca := registriestest.OverTLS(t, t.TempDir(), up, soon())
	e := start(t, fmt.Sprintf(`
mirrors:
  docker.io:
    endpoint: ["https://%[1]s"]
    rewrite: {"^nobody/": x, "^library/(.*)": "proj/hub/library/$1", "(.*)": never}
configs:
  "%[1]s":
    auth: {username: grape, password: sweet}
    tls: {ca_file: %[2]q}
`, host, ca), true)
	e.pulls(t, "docker.io/library/app:1")
	for _, r := range up.requests {
		if r.URL.Query().Get("ns") != "docker.io" || r.Header.Get(secretHeader) != "" {
			t.Errorf("the mirror was asked %s, with the secret %q", r.URL, r.Header.Get(secretHeader))
		}
	}
	e.fails(t, "docker.io/library/none:1", "not found")
}

func TestOthersAreKeptOut(t *testing.T) {
	e := start(t, "", false)
	for _, secret := range []string{"", "wrong"} {
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, e.proxy+"/v2/a/manifests/1?ns=docker.io", nil)
		r.Header.Set(secretHeader, secret)
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusForbidden {
			t.Errorf("with the secret %q: %s", secret, res.Status)
		}
	}
	info, err := os.Stat(filepath.Join(e.paths.RegistryRoutes(), "podo.local", "hosts.toml"))
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("the secret's file: %v %v", info, err)
	}
}

func TestPullSecrets(t *testing.T) {
	up := &seen{Handler: registriestest.Basic(store(t, "app:1"))}
	host, ca := registriestest.OverTLS(t, t.TempDir(), up, soon())
	tls := fmt.Sprintf("tls: {ca_file: %q}", ca)

	e := start(t, fmt.Sprintf("configs: {%q: {%s}}", host, tls), false)
	e.fails(t, host+"/app:1", "no basic auth credentials")
	if err := e.pull(t.Context(), host+"/app:1", "grape", "sweet"); err != nil {
		t.Error(err)
	}
	if err := e.pull(t.Context(), host+"/app:1", "grape", "sour"); err == nil || !strings.Contains(err.Error(), "401 Unauthorized") {
		t.Errorf("with a wrong secret: %v", err)
	}
	// A pod's secret helps where the file's does not, and is shown without it.
	e = start(t, fmt.Sprintf("configs: {%q: {%s, auth: {username: grape, password: old}}}", host, tls), false)
	if err := e.pull(t.Context(), host+"/app:1", "grape", "sweet"); err != nil {
		t.Error(err)
	}
	if !strings.Contains(e.log.String(), "registry does not give an image") {
		t.Errorf("nobody is told that the file's credentials are refused: %s", e.log)
	}
}

// tokens is a registry whose tokens are given out elsewhere: by whom, and for what.
func tokens(t *testing.T, h http.Handler) (up *seen, given *[]string) {
	given = &[]string{}
	giver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		user, password, _ := r.BasicAuth()
		who := user + password + r.PostForm.Get("refresh_token")
		*given = append(*given, who+" "+strings.Join(r.Form["scope"], ","))
		if who == "grapesour" {
			http.Error(w, `{"errors":[{"code":"DENIED","message":"sour"}]}`, http.StatusUnauthorized)
			return
		}
		json.NewEncoder(w).Encode(map[string]string{"token": "for-" + who, "access_token": "for-" + who})
	}))
	t.Cleanup(giver.Close)
	up = &seen{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer for-") {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="s",scope="repository:app:pull"`, giver.URL))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	})}
	return up, given
}

func TestTokens(t *testing.T) {
	up, given := tokens(t, store(t, "app:1"))
	s := httptest.NewServer(up)
	defer s.Close()
	host := strings.TrimPrefix(s.URL, "http://")
	for auth, want := range map[string]string{
		"username: grape, password: sweet": "grapesweet repository:app:pull",
		"identity_token: id":               "id repository:app:pull",
		"":                                 " repository:app:pull",
	} {
		*given, up.requests = nil, nil
		start(t, fmt.Sprintf("mirrors: {a.example.com: {endpoint: [%q]}}\nconfigs: {%q: {auth: {%s}}}", s.URL, host, auth), true).pulls(t, "a.example.com/app:1")
		if got := strings.Join(*given, "; "); got != want {
			t.Errorf("%q: tokens were given to %q, want %q", auth, got, want)
		}
		if n := len(up.requests); n != 5 { // manifest by name and by digest, two blobs, and the one that was refused
			t.Errorf("%q: the registry was asked %d times", auth, n)
		}
	}
	e := start(t, fmt.Sprintf("mirrors: {a.example.com: {endpoint: [%q]}}\nconfigs: {%q: {auth: {username: grape, password: sour}}}", s.URL, host), true)
	if err := e.pull(t.Context(), "a.example.com/app:1", "grape", "sour"); err == nil || !strings.Contains(err.Error(), "gave no token: Unauthorized: denied: sour") {
		t.Errorf("with credentials that no token is given for: %v", err)
	}
}

func TestNextEndpoint(t *testing.T) {
	good := httptest.NewServer(store(t, "app:1"))
	defer good.Close()
	limited := httptest.NewServer(registriestest.Limited())
	defer limited.Close()
	gone := httptest.NewServer(nil)
	gone.Close()
	expired, ca := registriestest.OverTLS(t, t.TempDir(), store(t, "app:1"), time.Now().Add(-time.Minute))

	portal := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "<!DOCTYPE html><html>Please log in</html>")
	}))
	defer portal.Close()

	e := start(t, fmt.Sprintf("mirrors: {a.example.com: {endpoint: [%q, %q, \"https://%s\", %q, %q]}}", limited.URL, gone.URL, expired, portal.URL, good.URL), true)
	e.pulls(t, "a.example.com/app:1")
	if n := e.log.count("connection refused"); n != 1 {
		t.Errorf("one that does not answer was asked %d times, where another has the image", n)
	}

	alone := func(endpoint string) engine {
		return start(t, fmt.Sprintf("mirrors: {a.example.com: {endpoint: [%q]}}\nconfigs: {%q: {tls: {ca_file: %q}}}", endpoint, expired, ca), true)
	}
	alone("https://"+expired).fails(t, "a.example.com/app:1", expired+": tls: failed to verify certificate: x509: certificate has expired or is not yet valid")
	alone(gone.URL).fails(t, "a.example.com/app:1", "connection refused")
	alone(good.URL).fails(t, "a.example.com/none:1", "not found")
	alone(portal.URL).fails(t, "a.example.com/app:1", strings.TrimPrefix(portal.URL, "http://")+": 200 OK with a web page", "is no registry")
	// The answer to HEAD has no body, so that the registry's own words cannot come through.
	alone(limited.URL).fails(t, "a.example.com/app:1", strings.TrimPrefix(limited.URL, "http://")+": 429 Too Many Requests")
}

func TestBlobThatBreaksOff(t *testing.T) {
	up := &seen{Handler: registriestest.BreaksOff(store(t, "app:1"))}
	s := httptest.NewServer(up)
	defer s.Close()
	e := start(t, fmt.Sprintf("mirrors: {a.example.com: {endpoint: [%q]}}", s.URL), true)
	e.pulls(t, "a.example.com/app:1")
	resumed := 0
	for _, r := range up.requests {
		if strings.HasPrefix(r.Header.Get("Range"), "bytes=") && !strings.HasPrefix(r.Header.Get("Range"), "bytes=0-") {
			resumed++
		}
	}
	if resumed == 0 || !strings.Contains(e.log.String(), "registry broke off") {
		t.Errorf("%d blobs were resumed: %s", resumed, e.log)
	}
}

func TestRedirectsTakeNoCredentialsAlong(t *testing.T) {
	behind := store(t, "app:1")
	elsewhere := &seen{Handler: behind}
	host, ca := registriestest.OverTLS(t, t.TempDir(), elsewhere, soon())
	up := httptest.NewServer(registriestest.Basic(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, (&url.URL{Scheme: "https", Host: host, Path: r.URL.Path}).String(), http.StatusTemporaryRedirect)
			return
		}
		behind.ServeHTTP(w, r)
	})))
	defer up.Close()
	here := strings.TrimPrefix(up.URL, "http://")
	start(t, fmt.Sprintf("mirrors: {a.example.com: {endpoint: [%q]}}\nconfigs: {%q: {auth: {username: grape, password: sweet}, tls: {ca_file: %q}}}", up.URL, here, ca), true).pulls(t, "a.example.com/app:1")
	if len(elsewhere.requests) == 0 {
		t.Error("no redirect was followed")
	}
	for _, r := range elsewhere.requests {
		if a := r.Header.Get("Authorization"); a != "" {
			t.Errorf("%s was shown %s", r.URL, a)
		}
	}
}

func TestNobodyLeftToAsk(t *testing.T) {
	start(t, "mirrors: {a.example.com: {endpoint: [\"http://127.0.0.1:1\"]}}", true).fails(t, "a.example.com/app:1", "127.0.0.1:1: ", "refused")
}
