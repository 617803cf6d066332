package kubeconfig

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/atomicfile"
)

func example() Config {
	return Config{Name: "podo", Server: "https://127.0.0.1:6443", CA: []byte("ca"), Cert: []byte("cert"), Key: []byte("key")}
}

func TestRender(t *testing.T) {
	tests := map[string]struct {
		in   Config
		want map[string]string
	}{
		"inline": {
			in: example(),
			want: map[string]string{
				"clusters.0.cluster.server": "https://127.0.0.1:6443", "clusters.0.cluster.certificate-authority-data": "Y2E=",
				"users.0.user.client-certificate-data": "Y2VydA==", "users.0.user.client-key-data": "a2V5",
				"contexts.0.context.cluster": "podo", "contexts.0.context.user": "podo", "current-context": "podo", "kind": "Config",
			},
		},
		"by path, odd names": {
			in: Config{Name: "a: \"b\" #", Server: "https://[::1]:1", CAFile: "/x y/ca.crt", CertFile: "/c", KeyFile: "/k"},
			want: map[string]string{
				"clusters.0.name": "a: \"b\" #", "clusters.0.cluster.certificate-authority": "/x y/ca.crt",
				"users.0.user.client-certificate": "/c", "users.0.user.client-key": "/k",
			},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			out, err := Render(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			for path, want := range tt.want {
				if got := lookup(t, out, path); got != want {
					t.Errorf("%s is %q, want %q in\n%s", path, got, want, out)
				}
			}
		})
	}
	if _, err := Render(Config{Name: "x"}); err == nil {
		t.Error("rendered a kubeconfig without a server")
	}
}

func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "etc", "podo.yaml")
	if err := Write(path, example(), 0o640, atomicfile.Group(os.Getgid())); err != nil {
		t.Fatal(err)
	}
	before, _ := os.Stat(path)
	if before.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, want 0640", before.Mode())
	}
	if err := Write(path, example(), 0o640); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Stat(path); !os.SameFile(before, after) {
		t.Error("an equal file was written again")
	}
}

const own = `# my clusters
apiVersion: v1
kind: Config
preferences: {}
clusters:
- name: work # the big one
  cluster:
    server: https://work.example:6443
users:
- name: me
  user:
    exec: {command: login, args: [a, b]}
contexts:
- name: work
  context:
    cluster: work
    user: me
    namespace: team
current-context: work
`

func TestMergeAndRemove(t *testing.T) {
	tests := map[string]struct {
		before string
		keeps  []string
		after  string // current context once removed
		gone   bool   // file
	}{
		"a person's own":  {before: own, keeps: []string{"# my clusters", "# the big one", "namespace: team", "command: login"}, after: "work"},
		"as kubectl made": {before: "apiVersion: v1\nclusters: null\ncontexts: null\ncurrent-context: \"\"\nkind: Config\npreferences: {}\nusers: null\n", gone: true},
		"flow style":      {before: `{"apiVersion":"v1","kind":"Config","clusters":[],"users":[],"contexts":[]}`, gone: true},
		"empty file":      {before: "", gone: true},
		"only a user":     {before: "users:\n- name: me\n  user: {token: x}\n", keeps: []string{"token: x"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config")
			if err := os.WriteFile(path, []byte(tt.before), 0o640); err != nil {
				t.Fatal(err)
			}
			for range 2 { // a second merge must not forget what was current first
				if err := Merge(path, example()); err != nil {
					t.Fatal(err)
				}
			}
			text, _ := os.ReadFile(path)
			for _, k := range append(tt.keeps, "https://127.0.0.1:6443", "current-context: ") {
				if !strings.Contains(string(text), k) {
					t.Errorf("%q is lost in\n%s", k, text)
				}
			}
			if n := strings.Count(string(text), "https://127.0.0.1:6443"); n != 1 {
				t.Errorf("merged %d times:\n%s", n, text)
			}
			if got := lookup(t, text, "current-context"); got != "podo" {
				t.Errorf("current context %q, want podo", got)
			}
			if info, _ := os.Stat(path); info.Mode().Perm() != 0o640 {
				t.Errorf("mode %v, want that of the file before", info.Mode())
			}

			if removed, err := Remove(path, "podo"); !removed || err != nil {
				t.Fatalf("Remove: %v, %v", removed, err)
			}
			text, err := os.ReadFile(path)
			if (err != nil) != tt.gone {
				t.Fatalf("file gone: %v, want %v\n%s", err != nil, tt.gone, text)
			}
			if tt.gone {
				return
			}
			if strings.Contains(string(text), "podo") || strings.Contains(string(text), "127.0.0.1") {
				t.Errorf("left in\n%s", text)
			}
			if got := lookup(t, text, "current-context"); got != tt.after {
				t.Errorf("current context %q, want %q", got, tt.after)
			}
			if tt.before == own && string(text) != own {
				t.Errorf("the file is not what it was:\n%s", text)
			}
			if removed, err := Remove(path, "podo"); removed || err != nil {
				t.Errorf("second Remove: %v, %v", removed, err)
			}
		})
	}
}

// TestManyAtOnce: whoever writes the file waits for the others, and for kubectl.
func TestManyAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "config")
	var all sync.WaitGroup
	for i := range 5 {
		all.Go(func() {
			c := example()
			c.Name = fmt.Sprint("cluster-", i)
			if err := Merge(path, c); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if err := os.WriteFile(path+".lock", nil, 0); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(300*time.Millisecond, func() { os.Remove(path + ".lock") })
	if removed, err := Remove(path, "cluster-0"); err != nil || !removed {
		t.Errorf("Remove = %v, %v", removed, err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if has := strings.Contains(strings.ReplaceAll(string(text), `"`, ""), fmt.Sprintf("name: cluster-%d\n", i)); has != (i > 0) {
			t.Errorf("cluster-%d is there: %t\n%s", i, has, text)
		}
	}
	if _, err := os.Stat(path + ".lock"); !os.IsNotExist(err) {
		t.Errorf("the lock is left: %v", err)
	}
}

func TestRemoveLeavesAnotherChoiceAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	os.WriteFile(path, []byte(own), 0o600)
	if err := Merge(path, example()); err != nil {
		t.Fatal(err)
	}
	text, _ := os.ReadFile(path)
	switched := strings.Replace(string(text), "current-context: \"podo\"", "current-context: work", 1)
	switched = strings.Replace(switched, "current-context: podo", "current-context: work", 1)
	os.WriteFile(path, []byte(switched), 0o600)
	if _, err := Remove(path, "podo"); err != nil {
		t.Fatal(err)
	}
	if text, _ = os.ReadFile(path); lookup(t, text, "current-context") != "work" {
		t.Errorf("the person's choice was changed:\n%s", text)
	}
}

func TestMergeFollowsALinkAndMakesAMissingFile(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "dotfiles"), filepath.Join(dir, "config")
	os.WriteFile(target, []byte(own), 0o600)
	os.Symlink(target, link)
	if err := Merge(link, example()); err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Lstat(link); info.Mode()&os.ModeSymlink == 0 {
		t.Error("the link was replaced by a file")
	}
	missing := filepath.Join(dir, ".kube", "config")
	if err := Merge(missing, example()); err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(missing); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", info.Mode())
	}
	if removed, err := Remove(filepath.Join(dir, "none"), "podo"); removed || err != nil {
		t.Errorf("Remove from nothing: %v, %v", removed, err)
	}
}

// TestMergeKeepsTheOwner: a file stays whose it is, also one with nothing in it.
func TestMergeKeepsTheOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, text := range []string{"", own} {
		path := filepath.Join(t.TempDir(), "config")
		if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chown(path, 1234, 1234)); err != nil {
			t.Fatal(err)
		}
		if err := Merge(path, example(), atomicfile.Owner(-1), atomicfile.Group(-1)); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st := info.Sys().(*syscall.Stat_t); st.Uid != 1234 || st.Gid != 1234 {
			t.Errorf("a file with %d bytes is of %d:%d now, want 1234:1234", len(text), st.Uid, st.Gid)
		}
	}
}

// TestCheck: what Merge would fail over in the end is told before.
func TestCheck(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "config")
	for _, path := range []string{path, filepath.Join(dir, "a", "b", "config")} {
		if err := Check(path); err != nil {
			t.Error(err)
		}
	}
	if err := os.WriteFile(path+".lock", nil, 0); err != nil {
		t.Fatal(err)
	}
	if err := Check(path); err != nil {
		t.Errorf("somebody writes it just now: %v", err)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path+".lock", old, old); err != nil {
		t.Fatal(err)
	}
	if err := Check(path); err == nil || !strings.Contains(err.Error(), "remove "+path+".lock") {
		t.Errorf("a lock that was left: %v", err)
	}
	dir = t.TempDir() // what is mounted there is seen by one thread alone
	t.Run("read-only", func(t *testing.T) {
		runtime.LockOSThread() // which ends with this goroutine
		err := errors.Join(unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("tmpfs", dir, "tmpfs", unix.MS_RDONLY, ""))
		if err != nil {
			t.Skip("cannot mount: ", err)
		}
		for _, path := range []string{filepath.Join(dir, "config"), filepath.Join(dir, "a", "b", "config")} {
			if err := Check(path); !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v, want an error that names the file and says why", err)
			}
		}
	})
}

func TestMergeRefusesWhatItCannotRead(t *testing.T) {
	for name, text := range map[string]string{
		"garbage":         "\x00\x01: [",
		"a list":          "- a\n",
		"another kind":    "kind: Pod\n",
		"clusters a text": "clusters: no\n",
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config")
			os.WriteFile(path, []byte(text), 0o600)
			err := Merge(path, example())
			if err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v, want an error that names the file", err)
			}
			if now, _ := os.ReadFile(path); string(now) != text {
				t.Errorf("it was changed to %q", now)
			}
		})
	}
	if err := Merge(t.TempDir(), example()); err == nil {
		t.Error("merged into a folder")
	}
}

// lookup finds a value by keys and indexes joined by dots.
func lookup(t *testing.T, text []byte, path string) string {
	t.Helper()
	var doc any
	if err := yaml.Unmarshal(text, &doc); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	for key := range strings.SplitSeq(path, ".") {
		switch v := doc.(type) {
		case map[string]any:
			doc = v[key]
		case []any:
			doc = v[key[0]-'0']
		}
	}
	s, _ := doc.(string)
	return s
}
