package registries

import (
	"bytes"
	"context"
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
	"github.com/podo-dev/podo/pkg/plan"
)

func planned(t *testing.T) plan.Registries {
	t.Helper()
	p := plan.Registries{File: filepath.Join(t.TempDir(), "etc", "registries.yaml"), Listen: netip.MustParseAddr("127.0.0.1")}
	p.Paths.Data = t.TempDir()
	if err := os.MkdirAll(p.Paths.RegistryHosts(), 0o755); err != nil {
		t.Fatal(err)
	}
	return p
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
	e := engine{hosts: p.Paths.RegistryHosts(), log: log}
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
	if got := led(t, e.hosts); !slices.Equal(got, []string{"b.example.com", "c.example.com_5000_", "podo.local"}) {
		t.Errorf("the engine is led here for %v", got)
	}
	if err := os.Remove(p.File); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); len(led(t, e.hosts)) != 2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the file is gone, and the engine led here for %v", led(t, e.hosts))
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

func led(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		if _, err := fs.Stat(os.DirFS(dir), e.Name()+"/hosts.toml"); err == nil {
			out = append(out, e.Name())
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
		for end := time.Now().Add(20 * time.Second); !slices.Equal(led(t, p.Paths.RegistryHosts()), want); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the engine is led here for %v, want %v\n%s", led(t, p.Paths.RegistryHosts()), want, log)
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
