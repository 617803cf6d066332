package pki

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/pkg/paths"
)

// secret is the agents' token in bundles of tests.
const secret = "K10::node:s3cret-of-agents"

// founder makes the data directory of a server that others may join.
func founder(t *testing.T) paths.Paths {
	t.Helper()
	p := paths.New(t.TempDir())
	if _, err := EnsureCAs(p, time.Now); err != nil {
		t.Fatal(err)
	}
	if err := EnsureServiceAccountKey(p); err != nil {
		t.Fatal(err)
	}
	write(t, p.AgentToken(), secret+"\n")
	return p
}

func exported(t *testing.T, p paths.Paths) Bundle {
	t.Helper()
	b, err := Export(p)
	if err != nil {
		t.Fatal(err)
	}
	b.Settings = map[string]string{"cluster-cidr": "10.42.0.0/16"}
	return b
}

// sameFiles checks that two servers share what servers share, with narrow modes.
func sameFiles(t *testing.T, got, want paths.Paths) {
	t.Helper()
	theirs := sharedFiles(want)
	for i, f := range sharedFiles(got) {
		a, err := os.ReadFile(f.path)
		b, _ := os.ReadFile(theirs[i].path)
		if err != nil || !bytes.Equal(a, b) {
			t.Errorf("%s is not the other server's: %v", f.path, err)
		}
		mode := os.FileMode(0o600)
		if filepath.Ext(f.path) == ".crt" {
			mode = 0o644
		}
		if info, err := os.Stat(f.path); err != nil || info.Mode() != mode {
			t.Errorf("%s: mode %v, %v; want %v", f.path, info.Mode(), err, mode)
		}
	}
}

func TestAllServersShareEverythingThatSigns(t *testing.T) {
	from := founder(t)
	cas, err := EnsureCAs(from, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	p := paths.New(t.TempDir())
	if err := exported(t, from).Import(p); err != nil {
		t.Fatal(err)
	}
	sameFiles(t, p, from)
	before := snapshot(t, p.Data)
	again, _, err := Ensure(p, Table(example()), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	for name, ca := range cas {
		if again[name] == nil || !bytes.Equal(again[name].PEM, ca.PEM) || !again[name].key.Equal(ca.key) {
			t.Errorf("the joined server has another %s CA", name)
		}
	}
	after := snapshot(t, p.Data)
	for name, text := range before {
		if !bytes.Equal(after[name], text) {
			t.Errorf("%s changed at the first start", name)
		}
	}
	if info, err := os.Stat(filepath.Dir(p.CA(ServerCA).Key)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder of CAs: %v, %v", info.Mode(), err)
	}
}

func TestExportWantsAWholeServer(t *testing.T) {
	for _, f := range sharedFiles(paths.Paths{}) {
		for name, spoil := range map[string]func(path string) error{
			"missing":      os.Remove,
			"empty":        func(path string) error { return os.WriteFile(path, nil, 0o600) },
			"of something": func(path string) error { return os.WriteFile(path, []byte("-----BEGIN"), 0o600) },
		} {
			if f.name == "agent-token" && name == "of something" {
				continue // any text is a password
			}
			t.Run(f.name+" "+name, func(t *testing.T) {
				p := founder(t)
				if err := spoil(filepath.Join(p.Data, f.path)); err != nil {
					t.Fatal(err)
				}
				if _, err := Export(p); err == nil || !strings.Contains(err.Error(), filepath.Base(f.path)) {
					t.Errorf("got %v, want an error that names %s", err, f.path)
				}
			})
		}
	}
	t.Run("keys swapped", func(t *testing.T) {
		p := founder(t)
		if err := os.Rename(p.CA(ClientCA).Key, p.CA(ServerCA).Key); err != nil {
			t.Fatal(err)
		}
		write(t, p.CA(ClientCA).Key, string(mustRead(t, p.CA(EtcdCA).Key)))
		if _, err := Export(p); err == nil || !strings.Contains(err.Error(), "ca/server.crt") {
			t.Errorf("got %v", err)
		}
	})
	if err := (Bundle{}).Import(paths.New(t.TempDir())); err == nil {
		t.Error("an empty bundle was imported")
	}
}

// TestInterruptedImport puts back each state that a killed Import leaves, and also
// those where one file alone was lost.
func TestInterruptedImport(t *testing.T) {
	from := founder(t)
	b := exported(t, from)
	files := sharedFiles(paths.Paths{})
	complete := func(t *testing.T, there func(i int) bool) {
		p := paths.New(t.TempDir())
		for i, f := range files {
			if !there(i) {
				continue
			}
			path := filepath.Join(p.Data, f.path)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, b.files()[f.name], f.mode); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Import(p); err != nil {
			t.Fatal(err)
		}
		sameFiles(t, p, from)
	}
	seen := map[string]bool{}
	for _, f := range files {
		if key, isCert := strings.CutSuffix(f.name, ".crt"); isCert && !seen[key+".key"] {
			t.Errorf("%s is written before its key", f.name)
		}
		seen[f.name] = true
	}
	for n := range len(files) + 1 {
		t.Run(fmt.Sprintf("after %d files", n), func(t *testing.T) { complete(t, func(i int) bool { return i < n }) })
	}
	for n, f := range files {
		t.Run("without "+f.name, func(t *testing.T) { complete(t, func(i int) bool { return i != n }) })
	}
}

func TestImportReplacesNothing(t *testing.T) {
	from, other := founder(t), founder(t)
	write(t, other.AgentToken(), "another")
	b := exported(t, from)
	theirs := sharedFiles(other)
	for i, f := range sharedFiles(paths.Paths{}) {
		t.Run(f.name, func(t *testing.T) {
			p := paths.New(t.TempDir())
			path := filepath.Join(p.Data, f.path)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, path, string(mustRead(t, theirs[i].path)))
			before := snapshot(t, p.Data)
			err := b.Import(p)
			if !errors.Is(err, ErrOtherCluster) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), secret) {
				t.Errorf("got %v, want ErrOtherCluster that names %s", err, path)
			}
			if after := snapshot(t, p.Data); !reflect.DeepEqual(before, after) {
				t.Errorf("%d files are there, want the 1 that was", len(after))
			}
		})
	}
	p := founder(t)
	if err := b.Import(p); !errors.Is(err, ErrOtherCluster) || strings.Count(err.Error(), p.Data) < 11 {
		t.Errorf("got %v, want every file named", err)
	}
	if err := b.Import(from); err != nil {
		t.Errorf("into the server that it came from: %v", err)
	}
}

func TestBundlesDoNotPrintSecrets(t *testing.T) {
	b := exported(t, founder(t))
	var hidden []string
	for name, text := range b.files() {
		if filepath.Ext(name) == ".crt" {
			continue
		}
		body := strings.ReplaceAll(string(text), "-----BEGIN EC PRIVATE KEY-----\n", "")
		encoded, _ := json.Marshal([]byte(body))
		hidden = append(hidden, body[:20], fmt.Sprintf("%x", body[:9]), fmt.Sprint([]byte(body[:9]))[1:20], string(encoded[1:20]))
	}
	var log bytes.Buffer
	for _, h := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
		l := slog.New(h)
		l.Info("x", "bundle", b, "pointer", &b, "within", struct{ b Bundle }{b})
	}
	asJSON, _ := json.Marshal(map[string]any{"bundle": b, "pointer": &b})
	printed := map[string]string{"slog": log.String(), "JSON": string(asJSON)}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		// Within a field that is not exported, fmt calls no methods.
		printed[verb] = fmt.Sprintf(verb, b) + fmt.Sprintf(verb, &b) + fmt.Sprintf(verb, struct{ b Bundle }{b}) + fmt.Sprintf(verb, []Bundle{b})
	}
	for how, text := range printed {
		for _, s := range hidden {
			if strings.Contains(text, s) {
				t.Errorf("%s prints %s", how, s)
			}
		}
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
