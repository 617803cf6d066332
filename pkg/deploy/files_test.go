package deploy

import (
	"context"
	"crypto/rand"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/podo-dev/podo/pkg/inbox"
)

func TestDecide(t *testing.T) {
	tests := map[string]struct {
		here, there, agreed string
		unknown             bool
		want                action
	}{
		"nothing at all":                       {unknown: true, want: same},
		"new here":                             {here: "a", unknown: true, want: push},
		"new there":                            {there: "a", want: pull},
		"the same on both":                     {here: "a", there: "a", want: same},
		"changed here":                         {here: "b", there: "a", agreed: "a", want: push},
		"changed there":                        {here: "a", there: "b", agreed: "a", want: pull},
		"changed back here":                    {here: "a", there: "b", agreed: "b", want: push},
		"deleted here":                         {there: "a", agreed: "a", want: push},
		"deleted there":                        {here: "a", agreed: "a", want: pull},
		"deleted on both":                      {agreed: "a", want: same},
		"changed on both":                      {here: "b", there: "c", agreed: "a", want: clash},
		"changed alike":                        {here: "b", there: "b", agreed: "a", want: same},
		"new on both":                          {here: "b", there: "c", want: clash},
		"changed here, deleted there":          {here: "b", agreed: "a", want: push},
		"deleted here, changed there":          {there: "b", agreed: "a", want: pull},
		"written again after it was deleted":   {here: "a", want: push},
		"lost by the cluster":                  {here: "a", agreed: "a", unknown: true, want: push},
		"lost by the cluster and deleted here": {agreed: "a", unknown: true, want: same},
	}
	for name, tt := range tests {
		if got := decide(tt.here, tt.there, tt.agreed, !tt.unknown); got != tt.want {
			t.Errorf("%s: %d, want %d", name, got, tt.want)
		}
	}
}

func TestAccepted(t *testing.T) {
	for path, want := range map[string]bool{
		"a.yaml": true, "a.yml": true, "a.json": true, "b/c/a.yaml": true, "a.yaml.skip": true, "b/a.json.skip": true,
		"a": false, "a.txt": false, "a.yaml.replaced": false, "a.skip": false, "a.yaml~": false, ".a.yaml": false, ".a.yaml.123.tmp": false,
		".git/a.yaml": false, "../a.yaml": false, "/etc/a.yaml": false, "b/../../a.yaml": false, "\xff.yaml": false, "": false,
	} {
		if got := accepted(path); got != want {
			t.Errorf("%q: %v, want %v", path, got, want)
		}
	}
}

// A host is a server's folder, kept the same as the cluster's.
type host struct {
	*testing.T
	dir  string
	stop func()
}

// share starts a server on a folder.
func share(t *testing.T, rc *rest.Config, name, dir string) *host {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done, ready := make(chan error, 1), make(chan struct{}, 100)
	c := Files(filepath.Join(dir, "manifests"), filepath.Join(dir, "agreed"), name, func() (*rest.Config, error) { return rc, nil }, slog.New(slog.DiscardHandler))
	go func() { done <- c.Run(ctx, func() { ready <- struct{}{} }) }()
	h := &host{T: t, dir: dir}
	h.stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", name, err)
		}
		h.stop = func() {}
	}
	t.Cleanup(func() { h.stop() })
	select {
	case <-ready:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s is not ready", name)
	}
	return h
}

func (h *host) path(name string) string { return filepath.Join(h.dir, "manifests", name) }

func (h *host) write(name, text string) {
	h.Helper()
	if err := os.MkdirAll(filepath.Dir(h.path(name)), 0o700); err != nil {
		h.Fatal(err)
	}
	if err := os.WriteFile(h.path(name), []byte(text), 0o600); err != nil {
		h.Fatal(err)
	}
}

// until waits for something that is to come about soon.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// has waits until a file has this text; no text means that there is no file.
func (h *host) has(name, want string) {
	h.Helper()
	var text []byte
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		var err error
		if text, err = os.ReadFile(h.path(name)); string(text) == want && (want == "") == os.IsNotExist(err) {
			return
		}
	}
	h.Fatalf("%s says %q, want %q", h.path(name), text, want)
}

func TestFoldersAreOne(t *testing.T) {
	_, rc := newAPI(t)
	one, two := share(t, rc, "one", t.TempDir()), share(t, rc, "two", t.TempDir())
	one.write("web.yaml", "first")
	two.has("web.yaml", "first")
	two.write("web.yaml", "second")
	one.has("web.yaml", "second")
	one.write("web.yaml", "first") // back to what it was
	two.has("web.yaml", "first")
	one.write("deep/er/x.json", "{}")
	two.has("deep/er/x.json", "{}")
	one.write("deep/er/x.json.skip", "-")
	two.has("deep/er/x.json.skip", "-")
	one.write("notes.txt", "mine")

	// A server that comes later has them all, and keeps what it brought.
	dir := t.TempDir()
	early := &host{T: t, dir: dir}
	early.write("web.yaml", "third")
	early.write("own.yaml", "its own")
	three := share(t, rc, "three", dir)
	three.has("web.yaml", "first")
	three.has("web.yaml.replaced", "third")
	three.has("deep/er/x.json", "{}")
	one.has("own.yaml", "its own")

	// Any may delete.
	if err := os.Remove(three.path("web.yaml")); err != nil {
		t.Fatal(err)
	}
	one.has("web.yaml", "")
	two.has("web.yaml", "")
	two.has("notes.txt", "")

	// What happens while a server is away follows.
	two.stop()
	two.write("own.yaml", "changed while away")
	if err := os.RemoveAll(two.path("deep")); err != nil {
		t.Fatal(err)
	}
	one.write("new.yaml", "new")
	three.has("new.yaml", "new")
	two = share(t, rc, "two", two.dir)
	two.has("new.yaml", "new")
	one.has("own.yaml", "changed while away")
	one.has("deep/er/x.json", "")

	// A folder that is lost is not one that was emptied.
	two.stop()
	if err := os.RemoveAll(two.path("")); err != nil {
		t.Fatal(err)
	}
	two = share(t, rc, "two", two.dir)
	two.has("own.yaml", "changed while away")
	one.has("own.yaml", "changed while away")
	if err := os.Rename(two.path(""), two.path("")+"-moved"); err != nil {
		t.Fatal(err)
	}
	two.has("own.yaml", "changed while away")
	one.has("own.yaml", "changed while away")
	two.write("late.yaml", "late") // and the new one is watched
	one.has("late.yaml", "late")
}

func TestCopyOfTheClusterIsPutBack(t *testing.T) {
	a, rc := newAPI(t)
	one := share(t, rc, "one", t.TempDir())
	one.write("a.yaml", "a")
	one.write("b.yaml", "b")
	both := func() bool {
		return a.get(secretsPath+"/"+key("a.yaml")) != nil && a.get(secretsPath+"/"+key("b.yaml")) != nil
	}
	until(t, "not shared", both)
	a.mu.Lock()
	delete(a.objects, secretsPath+"/"+key("a.yaml"))
	a.mu.Unlock()
	one.write("b.yaml", "c")
	until(t, "not put back", both)
	one.has("a.yaml", "a")
}

func TestHalfWrittenFilesWait(t *testing.T) {
	dir := folder(t.TempDir())
	path := filepath.Join(string(dir), "a.yaml")
	if err := os.WriteFile(path, []byte("ha"), 0o600); err != nil {
		t.Fatal(err)
	}
	if v, err := dir.scan(); err != nil || len(v.files) != 0 || !v.busy["a.yaml"] {
		t.Errorf("%v, %v", v, err)
	}
	time.Sleep(inbox.Settle + 50*time.Millisecond)
	if v, err := dir.scan(); err != nil || string(v.files["a.yaml"].content) != "ha" || len(v.busy) != 0 {
		t.Errorf("%v, %v", v, err)
	}

	// Whoever has it open may only pause.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := dir.scan(); err != nil || len(v.files) != 0 || !v.busy["a.yaml"] {
		t.Errorf("open to write: %v, %v", v, err)
	}
	f.Close()
	if v, err := dir.scan(); err != nil || len(v.busy) != 0 {
		t.Errorf("closed: %v, %v", v, err)
	}
}

// TestLinks: a link that leads nowhere now, and one in place of a folder, delete nothing,
// and nothing is written through them.
func TestLinks(t *testing.T) {
	_, rc := newAPI(t)
	one, two := share(t, rc, "one", t.TempDir()), share(t, rc, "two", t.TempDir())
	away := filepath.Join(t.TempDir(), "disk")
	target := filepath.Join(away, "web.yaml")
	if os.Mkdir(away, 0o700) != nil || os.WriteFile(target, []byte("first"), 0o600) != nil || os.Symlink(target, one.path("web.yaml")) != nil {
		t.Fatal("no link")
	}
	one.write("deep/x.yaml", "x")
	two.has("web.yaml", "first")
	two.has("deep/x.yaml", "x")
	other := t.TempDir()
	if os.Rename(away, away+"-unmounted") != nil || os.RemoveAll(one.path("deep")) != nil || os.Symlink(other, one.path("deep")) != nil {
		t.Fatal("nothing changed")
	}
	one.write("later.yaml", "later")
	two.has("later.yaml", "later") // with which the links were seen
	two.write("deep/y.yaml", "y")
	two.write("web.yaml", "second")
	two.write("last.yaml", "last")
	one.has("last.yaml", "last")
	two.has("web.yaml", "second")
	two.has("deep/x.yaml", "x")
	two.has("deep/y.yaml", "y")
	if to, err := os.Readlink(one.path("web.yaml")); err != nil || to != target {
		t.Errorf("the link was replaced: %q, %v", to, err)
	}
	if found, _ := os.ReadDir(other); len(found) > 0 {
		t.Errorf("%v was written through a link", found)
	}
	if os.Remove(one.path("web.yaml")) != nil {
		t.Fatal("no link")
	}
	two.has("web.yaml", "second") // it was changed since
	one.has("web.yaml", "second")
}

// TestLostFolder: a folder that is gone was not emptied, also if podo ends before it is
// filled again.
func TestLostFolder(t *testing.T) {
	a, rc := newAPI(t)
	dir := t.TempDir()
	one := share(t, rc, "one", dir)
	one.write("web.yaml", "first")
	until(t, "not shared", func() bool { return a.get(secretsPath+"/"+key("web.yaml")) != nil })
	one.stop()
	if err := os.RemoveAll(one.path("")); err != nil {
		t.Fatal(err)
	}
	s := &sharer{folder: folder(one.path("")), note: filepath.Join(dir, "agreed")}
	if err := s.prepare(); err != nil {
		t.Fatal(err)
	}
	one = share(t, rc, "one", dir)
	one.has("web.yaml", "first")
}

// TestNothingGoesBeforeItsSuccessor: a file that was renamed is not deleted while its new
// name cannot be shared.
func TestNothingGoesBeforeItsSuccessor(t *testing.T) {
	a, rc := newAPI(t)
	kept, err := newShared(rc)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	one := &host{T: t, dir: dir}
	s := &sharer{folder: folder(one.path("")), note: filepath.Join(dir, "agreed"), server: "one", shared: kept,
		missing: map[string]time.Time{}, agreed: map[string]string{}, log: slog.New(slog.DiscardHandler)}
	one.write("old.yaml", "x")
	time.Sleep(inbox.Settle + 50*time.Millisecond)
	if _, err := s.pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(one.path("old.yaml"), one.path("new.yaml")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(inbox.Settle + 50*time.Millisecond)
	a.mu.Lock()
	a.sick = 1
	a.mu.Unlock()
	if _, err := s.pass(t.Context()); err == nil {
		t.Fatal("the new name was shared")
	}
	there, err := kept.list(t.Context())
	if err != nil || there[key("old.yaml")].gone {
		t.Errorf("the old name is gone: %v", err)
	}
	if _, err := s.pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	if there, _ = kept.list(t.Context()); !there[key("old.yaml")].gone || string(there[key("new.yaml")].content) != "x" {
		t.Errorf("after it was shared: %v", there)
	}

	// Nor while somebody has the new one open to write, for however long, and whoever deletes
	// another file meanwhile has that deleted, but for what cannot be shared.
	f, err := os.OpenFile(one.path("new.yaml"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Rename(one.path("new.yaml"), one.path("newer.yaml")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(inbox.Settle + 50*time.Millisecond)
	for range 3 {
		if _, err := s.pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.missing["new.yaml"] = time.Now().Add(-time.Hour)
	}
	if there, _ = kept.list(t.Context()); there[key("new.yaml")].gone {
		t.Error("gone before its successor, which somebody writes, is there")
	}
	f.Close()
	for range 2 {
		if _, err := s.pass(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if there, _ = kept.list(t.Context()); !there[key("new.yaml")].gone || string(there[key("newer.yaml")].content) != "x" {
		t.Errorf("after it was closed: %v", there)
	}

	one.write("other.yaml", "y")
	time.Sleep(inbox.Settle + 50*time.Millisecond)
	a.mu.Lock()
	a.sick = 1
	a.mu.Unlock()
	if err := os.Remove(one.path("newer.yaml")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.pass(t.Context()); err == nil {
		t.Fatal("the other was shared")
	}
	if there, _ = kept.list(t.Context()); !there[key("newer.yaml")].gone {
		t.Error("it stays because of a file that has nothing to do with it")
	}
}

// TestLinkedFolder: the folder may have been moved to another place, with a link left for it.
func TestLinkedFolder(t *testing.T) {
	_, rc := newAPI(t)
	dir, elsewhere := t.TempDir(), t.TempDir()
	one, two := share(t, rc, "one", dir), share(t, rc, "two", t.TempDir())
	one.write("deep/web.yaml", "first")
	two.has("deep/web.yaml", "first")
	one.stop()
	moved := filepath.Join(elsewhere, "manifests")
	if os.Rename(one.path(""), moved) != nil || os.Symlink(moved, filepath.Clean(one.path(""))) != nil {
		t.Fatal("not moved")
	}
	one = share(t, rc, "one", dir)
	one.write("later.yaml", "later")
	two.has("later.yaml", "later")
	two.has("deep/web.yaml", "first")
}

func TestOddFiles(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	noise := make([]byte, maxCompressed+1)
	rand.Read(noise)
	for name, text := range map[string][]byte{"big.yaml": noise, "long.yaml": []byte(strings.Repeat("# x\n", 1<<20)), "empty.yaml": nil} {
		if err := os.WriteFile(at(name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if f, err := os.Create(at("huge.yaml")); err != nil || f.Truncate(maxContent+1) != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"link.yaml": "empty.yaml", "nowhere.yaml": "nothing"} {
		if err := os.Symlink(to, at(link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(at("folder.yaml"), 0o700); err != nil {
		t.Fatal(err)
	}
	time.Sleep(inbox.Settle + 50*time.Millisecond)
	v, err := folder(dir).scan()
	if err != nil {
		t.Fatal(err)
	}
	found := v.files
	if v.away["nowhere.yaml"] == nil || v.away["link.yaml"] != nil {
		t.Errorf("away: %v", v.away)
	}
	for name, problem := range map[string]string{"big.yaml": "when compressed", "huge.yaml": "split it", "long.yaml": "", "empty.yaml": "", "link.yaml": ""} {
		f, ok := found[name]
		if !ok || !strings.Contains(f.problem, problem) || (problem == "") != (f.problem == "") {
			t.Errorf("%s: found %v, problem %q, want %q", name, ok, f.problem, problem)
		}
		delete(found, name)
	}
	if len(found) > 0 {
		t.Errorf("found %v too", found)
	}
}
