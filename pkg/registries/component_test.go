package registries

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/podo-dev/podo/pkg/lifecycle/lifecycletest"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/plan"
)

func planned(t *testing.T) plan.Registries {
	t.Helper()
	p := plan.Registries{File: filepath.Join(t.TempDir(), "etc", "registries.yaml"), Listen: netip.MustParseAddr("127.0.0.1")}
	p.Paths = somewhere(t)
	return p
}

func somewhere(t *testing.T) paths.Paths {
	dir := t.TempDir()
	return paths.Paths{Data: filepath.Join(dir, "data"), Run: filepath.Join(dir, "run")}
}

func TestContract(t *testing.T) {
	c, err := New(planned(t), http.NotFoundHandler(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	lifecycletest.Check(t, c)
}

func TestWrongFileIsRefusedAtStart(t *testing.T) {
	p := planned(t)
	p.Named = true
	if _, err := New(p, nil, nil); err == nil || !strings.Contains(err.Error(), "private-registry: there is no file "+p.File) {
		t.Errorf("a file that somebody named is missing: %v", err)
	}
	replace(t, p.File, "mirror: {}")
	if _, err := New(p, nil, nil); err == nil || !strings.Contains(err.Error(), p.File+`:1: unknown field "mirror"`) {
		t.Errorf("err = %v", err)
	}
	p.Named = false
	replace(t, p.File, "configs: {a.example.com: {tls: {ca_file: /nonexistent.pem}}}")
	if _, err := New(p, nil, nil); err == nil || !strings.Contains(err.Error(), "/nonexistent.pem") {
		t.Errorf("a certificate is missing, not the file: %v", err)
	}
}

// replace puts a file in place as editors do.
func replace(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file+"~", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+"~", file); err != nil {
		t.Fatal(err)
	}
}

// notes are log lines that several goroutines write and read.
type notes struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (n *notes) Write(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.b.Write(p)
}

func (n *notes) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.b.String()
}

func (n *notes) count(text string) int {
	return strings.Count(n.String(), text)
}

func TestReadsAgain(t *testing.T) {
	p, log := planned(t), &notes{}
	foreign := filepath.Join(p.Paths.RegistryHosts(), "b.example.com", "hosts.toml")
	replace(t, foreign, "# somebody else's")
	first, second := httptest.NewServer(store(t, "app:1")), httptest.NewServer(store(t, "app:2"))
	defer first.Close()
	defer second.Close()
	replace(t, p.File, fmt.Sprintf("mirrors: {a.example.com: {endpoint: [%q]}}", first.URL))

	c, err := New(p, http.NotFoundHandler(), slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- c.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	e := engine{paths: p.Paths, log: log}
	e.pulls(t, "a.example.com/app:1")

	change := func(text, said string) {
		t.Helper()
		before := log.count(said)
		replace(t, p.File, text)
		for end := time.Now().Add(20 * time.Second); log.count(said) == before; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("nothing is said of %q:\n%s", text, log)
			}
		}
	}
	const again, refused = "registries were read again", "registries stay as they were"
	change("mirrors: {a.example.com: {endpoint: [1", refused)
	e.pulls(t, "a.example.com/app:1")
	change(fmt.Sprintf("mirrors: {\"c.example.com:5000\": {endpoint: [%q]}}", second.URL), again)
	e.pulls(t, "c.example.com:5000/app:2")
	if got := led(t, p.Paths); !slices.Equal(got, []string{"c.example.com_5000_", "podo.local"}) {
		t.Errorf("the engine is led here for %v", got)
	}
	if err := os.Remove(p.File); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); len(led(t, p.Paths)) != 1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the file is gone, and the engine led here for %v", led(t, p.Paths))
		}
	}
	if text, err := os.ReadFile(foreign); err != nil || string(text) != "# somebody else's" {
		t.Errorf("what others wrote is now %q (%v)", text, err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// led are the registries that podo has written a file into.
func led(t *testing.T, p paths.Paths) []string {
	t.Helper()
	var out []string
	for _, root := range p.RegistryRoots() {
		entries, err := os.ReadDir(root)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		for _, e := range entries {
			if ours(filepath.Join(root, e.Name(), "hosts.toml")) {
				out = append(out, e.Name())
			}
		}
	}
	return out
}

// TestFollowsLinks: the file is a link into a folder that is a link to a version, as those
// that are kept by others are.
func TestFollowsLinks(t *testing.T) {
	p, log := planned(t), &notes{}
	kept := t.TempDir()
	version := func(name, registry string) {
		t.Helper()
		replace(t, filepath.Join(kept, name, "registries.yaml"), "mirrors: {"+registry+": {endpoint: [127.0.0.1:1]}}")
	}
	link := func(to, at string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, at+"~"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(at+"~", at); err != nil {
			t.Fatal(err)
		}
	}
	version("1", "one.example.com")
	link("1", filepath.Join(kept, "current"))
	link(filepath.Join(kept, "current", "registries.yaml"), p.File)

	c, err := New(p, http.NotFoundHandler(), slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx, func() {}) }()
	leads := func(registry string) {
		t.Helper()
		want := []string{plan.OwnRegistry, registry}
		slices.Sort(want)
		for end := time.Now().Add(20 * time.Second); !slices.Equal(led(t, p.Paths), want); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the engine is led here for %v, want %v\n%s", led(t, p.Paths), want, log)
			}
		}
	}
	leads("one.example.com")
	version("2", "two.example.com")
	link("2", filepath.Join(kept, "current"))
	leads("two.example.com")
	version("2", "more.example.com") // in a folder that was not watched at first
	leads("more.example.com")
	link(filepath.Join(kept, "later", "registries.yaml"), p.File) // where nothing is yet
	for end := time.Now().Add(20 * time.Second); log.count("registries stay as they were") == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("nothing is said of a link that leads nowhere:\n%s", log)
		}
	}
	version("later", "later.example.com")
	leads("later.example.com")
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// What a start writes for the engine must not need a block of the disk, and leaves alone
// what people wrote there.
func TestWritesNothingOnTheDisk(t *testing.T) {
	p := somewhere(t)
	people := filepath.Join(p.RegistryHosts(), "a.example.com", "hosts.toml")
	own := filepath.Join(p.RegistryHosts(), "b.example.com", "hosts.toml")
	replace(t, people, "# somebody's")
	replace(t, own, mark) // from before
	if err := writeHosts(p, []string{"a.example.com", "c.example.com", "*", plan.OwnRegistry}, "http://127.0.0.1:1", "s"); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(p.RegistryHosts())
	if err != nil || len(left) != 1 {
		t.Errorf("on the disk: %v (%v)", left, err)
	}
	e := engine{paths: p}
	for host, root := range map[string]string{
		"a.example.com": p.RegistryRoutes(), "podo.local": p.RegistryRoutes(), "docker.io": p.RegistryRest(),
	} {
		if dir, err := e.folder(host); err != nil || filepath.Dir(dir) != root {
			t.Errorf("the engine asks for %s by %s (%v), want one in %s", host, dir, err, root)
		}
	}
	replace(t, filepath.Join(p.RegistryHosts(), "docker.io", "hosts.toml"), "# somebody's")
	if dir, _ := e.folder("docker.io"); filepath.Dir(dir) != p.RegistryHosts() {
		t.Errorf("what people say of one registry gives way to what the file says of all: %s", dir)
	}
	if err := writeHosts(p, nil, "http://127.0.0.1:1", "s"); err != nil {
		t.Fatal(err)
	}
	if got := led(t, p); len(got) > 0 {
		t.Errorf("left: %v", got)
	}
}
