package datadir_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/podo-dev/podo/pkg/datadir"
	"github.com/podo-dev/podo/pkg/paths"
)

const kubernetes = "v1.36.4+podo1"

func somewhere(t *testing.T) paths.Paths {
	dir := t.TempDir()
	return paths.Paths{Etc: filepath.Join(dir, "etc"), Data: filepath.Join(dir, "data"), Run: filepath.Join(dir, "run")}
}

// claim judges and takes, as a start that goes ahead does.
func claim(p paths.Paths, shape map[string]string) (*datadir.Claim, error) {
	c, err := datadir.Judge(p, kubernetes, shape)
	if err != nil {
		return nil, err
	}
	if err := c.Take(); err != nil {
		c.Release()
		return nil, err
	}
	return c, nil
}

func plant(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestClaimOnce(t *testing.T) {
	p := somewhere(t)
	elsewhere := p
	elsewhere.Data = filepath.Join(t.TempDir(), "data")
	for _, round := range []string{"first", "after release"} {
		c, err := claim(p, nil)
		if err != nil {
			t.Fatalf("%s claim: %v", round, err)
		}
		if _, err := datadir.Judge(p, kubernetes, nil); !errors.Is(err, datadir.ErrHeld) {
			t.Errorf("second claim: err = %v, want ErrHeld", err)
		}
		if _, err := datadir.Judge(elsewhere, kubernetes, nil); !errors.Is(err, datadir.ErrHeld) {
			t.Errorf("claim with the same run directory: err = %v, want ErrHeld", err)
		}
		c.Release()
	}
}

// Of two first starts that were judged before either took anything, one goes on.
func TestTakeOnce(t *testing.T) {
	p := somewhere(t)
	var both [2]*datadir.Claim
	for i := range both {
		var err error
		if both[i], err = datadir.Judge(p, kubernetes, nil); err != nil {
			t.Fatal(err)
		}
		defer both[i].Release()
	}
	if err := both[0].Take(); err != nil {
		t.Fatal(err)
	}
	if err := both[1].Take(); !errors.Is(err, datadir.ErrHeld) {
		t.Errorf("err = %v, want ErrHeld", err)
	}
}

func TestJudgeWritesNothing(t *testing.T) {
	p := somewhere(t)
	c, err := datadir.Judge(p, kubernetes, map[string]string{"cluster-domain": "cluster.local"})
	if err != nil {
		t.Fatal(err)
	}
	c.Release()
	if left, err := os.ReadDir(filepath.Dir(p.Data)); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

func TestLayout(t *testing.T) {
	tests := map[string]struct {
		layout string
		want   string
		newer  bool
	}{
		"ours":    {layout: "1\n"},
		"newer":   {layout: "2\n", want: "layout 2", newer: true},
		"garbage": {layout: "one", want: "not a layout number"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := somewhere(t)
			plant(t, p.Layout(), tt.layout)
			c, err := datadir.Judge(p, kubernetes, nil)
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				c.Release()
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, datadir.ErrNewer) != tt.newer {
				t.Errorf("err = %v, want %q in it, newer %v", err, tt.want, tt.newer)
			}
		})
	}
}

func TestForeign(t *testing.T) {
	tests := map[string]struct {
		holds []string // "layout" among them marks the folder
		name  string   // that the refusal gives
	}{
		"nothing":                    {},
		"a new disk":                 {holds: []string{"lost+found/x"}},
		"prepared for its start":     {holds: []string{"agent/images/a.tar", "agent/pod-manifests/p.yaml", "server/manifests/m.yaml", "server/static/charts/c.tgz", "server/tls/ca/server.crt", "server/token"}},
		"restored from a backup":     {holds: []string{"server/db/state.db", "server/db.kind", "server/tls/ca/server.crt", "server/kubeconfig/podo.yaml"}},
		"cut off in its first":       {holds: []string{"lock", ".layout.123.tmp"}},
		"payload alone":              {holds: []string{"bin/" + strings.Repeat("0a", 32) + "/runc"}},
		"podo's, and people's":       {holds: []string{"layout", "notes.txt"}},
		"a home":                     {holds: []string{".profile"}, name: ".profile"},
		"a home with programs":       {holds: []string{"bin/backup.sh"}, name: "bin/backup.sh"},
		"configuration":              {holds: []string{"hostname", "ssl/certs/x"}, name: "hostname"},
		"another server's":           {holds: []string{"server/www/index.html"}, name: "server/www"},
		"a file of the same name":    {holds: []string{"agent"}, name: "file where a folder"},
		"somebody's file \"layout\"": {holds: []string{"layout/main.tmpl", "main.go"}, name: "main.go"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := somewhere(t)
			for _, file := range tt.holds {
				plant(t, filepath.Join(p.Data, file), "1\n")
			}
			c, err := datadir.Judge(p, kubernetes, nil)
			if tt.name == "" {
				if err != nil {
					t.Fatal(err)
				}
				c.Release()
				return
			}
			if !errors.Is(err, datadir.ErrForeign) || !strings.Contains(err.Error(), tt.name) || !strings.Contains(err.Error(), "--data-dir") {
				t.Errorf("err = %v, want ErrForeign with %q and --data-dir in it", err, tt.name)
			}
			if left, _ := os.ReadDir(filepath.Dir(p.Run)); len(left) != 1 {
				t.Errorf("left %v", left)
			}
		})
	}
	p := somewhere(t)
	plant(t, p.Data, "a file")
	for _, data := range []string{p.Data, filepath.Join(p.Data, "podo")} {
		p.Data = data
		if _, err := datadir.Judge(p, kubernetes, nil); !errors.Is(err, datadir.ErrForeign) {
			t.Errorf("%s: err = %v, want ErrForeign", data, err)
		}
	}
}

// A log file that the settings put there is there before the directory is judged.
func TestAskedForIsNotForeign(t *testing.T) {
	for _, file := range []string{"podo.log", "logs/podo.log", "server/podo.log"} {
		p := somewhere(t)
		log := filepath.Join(p.Data, file)
		plant(t, log, "")
		if err := datadir.Foreign(p, log); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		if err := datadir.Foreign(p); !errors.Is(err, datadir.ErrForeign) {
			t.Errorf("%s that nobody asked for: err = %v, want ErrForeign", file, err)
		}
	}
}

// TestOwnFilesAreKnown keeps the list of what may be there in step with package paths.
func TestOwnFilesAreKnown(t *testing.T) {
	p := somewhere(t)
	files := []string{p.CA("server").Cert, p.ServerLeaf("admin").Key, p.ServerKubeconfig("podo"), p.AgentLeaf("kubelet").Key, p.AgentCA("server"), p.AgentKubeconfig("kubelet")}
	for _, method := range reflect.ValueOf(p).Methods() {
		if path, ok := method.Interface().(func() string); ok && strings.HasPrefix(path(), p.Data+"/") {
			files = append(files, path())
		}
	}
	slices.SortFunc(files, func(a, b string) int { return len(b) - len(a) }) // folders come after what is in them
	for _, file := range files {
		if _, err := os.Lstat(file); err != nil {
			plant(t, file, "")
		}
	}
	if err := datadir.Foreign(p); err != nil {
		t.Error(err)
	}
	plant(t, filepath.Join(p.Data, "x"), "")
	if err := datadir.Foreign(p); !errors.Is(err, datadir.ErrForeign) {
		t.Errorf("err = %v, want ErrForeign", err)
	}
}

// An agent's folder is of no use to a server, nor a server's to an agent.
func TestRole(t *testing.T) {
	server, agent := somewhere(t), somewhere(t)
	for p, shape := range map[paths.Paths]map[string]string{server: {"cluster-domain": "x"}, agent: nil} {
		c, err := claim(p, shape)
		if err != nil {
			t.Fatal(err)
		}
		c.Release()
	}
	plant(t, agent.Membership(), "{}")
	if _, err := datadir.Judge(agent, kubernetes, map[string]string{}); !errors.Is(err, datadir.ErrRole) {
		t.Errorf("a server in an agent's folder: err = %v, want ErrRole", err)
	}
	if _, err := datadir.Judge(server, kubernetes, nil); !errors.Is(err, datadir.ErrRole) {
		t.Errorf("an agent in a server's folder: err = %v, want ErrRole", err)
	}
}

func TestShape(t *testing.T) {
	p := somewhere(t)
	first := map[string]string{"service-cidr": "10.43.0.0/16", "cluster-domain": "cluster.local"}
	for _, round := range []string{"first start", "second start"} {
		c, err := claim(p, first)
		if err != nil {
			t.Fatalf("%s: %v", round, err)
		}
		c.Release()
	}
	_, err := datadir.Judge(p, kubernetes, map[string]string{"service-cidr": "10.60.0.0/16", "cluster-domain": "other"})
	if !errors.Is(err, datadir.ErrShape) {
		t.Fatalf("another shape: err = %v, want ErrShape", err)
	}
	for _, want := range []string{"service-cidr", "10.43.0.0/16", "10.60.0.0/16", "cluster-domain"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	plant(t, p.Shape(), "{")
	if _, err := datadir.Judge(p, kubernetes, first); err == nil || !strings.Contains(err.Error(), p.Shape()) {
		t.Errorf("damaged file: err = %v, want its path in it", err)
	}
}

// What removes a datastore may remove the note beside it, and the cluster's keys stay.
func TestALostDatastoreIsNotForgotten(t *testing.T) {
	p, shape := somewhere(t), map[string]string{"cluster-domain": "cluster.local"}
	start := func(began string) string {
		t.Helper()
		c, err := claim(p, shape)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Release()
		kind, err := datadir.Datastore(p)
		if err != nil {
			t.Fatal(err)
		}
		if began != "" {
			plant(t, p.DatastoreKind(), began+"\n")
			if err := c.KeepDatastore(); err != nil {
				t.Fatal(err)
			}
		}
		return kind
	}
	if kind := start(""); kind != "" {
		t.Errorf("before there is a datastore: %q", kind)
	}
	if kind := start("sqlite"); kind != "" {
		t.Errorf("after a start that came to no cluster: %q", kind)
	}
	for round, lost := range []string{p.DatastoreKind(), p.DatastoreNote()} {
		if err := os.Remove(lost); err != nil {
			t.Fatal(err)
		}
		if kind := start(""); kind != "sqlite" {
			t.Errorf("round %d: %q", round, kind)
		}
		if text, err := os.ReadFile(lost); err != nil || string(text) != "sqlite\n" {
			t.Errorf("%s: %q, %v", lost, text, err)
		}
	}
	plant(t, p.DatastoreKind(), "etcd\n") // a migration
	if kind := start(""); kind != "etcd" {
		t.Errorf("after a migration: %q", kind)
	}
	if text, _ := os.ReadFile(p.DatastoreNote()); string(text) != "etcd\n" {
		t.Errorf("after a migration: %q", text)
	}
}

// A patch release may be taken back, a minor one may not.
func TestKubernetesGoesBackNoMinor(t *testing.T) {
	for ran, refused := range map[string]bool{
		"v1.36.4+podo1": false, "v1.36.9+podo2": false, "v1.35.12+podo1": false, "v1.9.0": false,
		"v1.37.0+podo1": true, "v1.100.0": true, "v2.0.0": true, "garbage": false,
	} {
		p := somewhere(t)
		plant(t, p.Kubernetes(), ran+"\n")
		plant(t, p.Layout(), "1\n")
		c, err := datadir.Judge(p, kubernetes, nil)
		if refused != errors.Is(err, datadir.ErrNewer) || err != nil && !strings.Contains(err.Error(), ran) {
			t.Errorf("after %s: %v, want refused: %v", ran, err, refused)
		}
		if err != nil {
			continue
		}
		if text, _ := os.ReadFile(p.Kubernetes()); string(text) != ran+"\n" {
			t.Errorf("a judgement wrote %q", text)
		}
		if err := c.Take(); err != nil {
			t.Error(err)
		}
		if text, _ := os.ReadFile(p.Kubernetes()); string(text) != kubernetes+"\n" {
			t.Errorf("after a start: %q", text)
		}
		c.Release()
	}
}
