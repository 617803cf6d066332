package main

import (
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/podo-dev/podo/pkg/kubeconfig"
)

// TestKubeconfigOwner: with sudo, a file in the home of who called it is that person's, also
// if it is named from there.
func TestKubeconfigOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	u, err := user.Lookup("root")
	if err != nil {
		t.Skip(err)
	}
	t.Setenv("SUDO_USER", "root")
	t.Setenv("KUBECONFIG", "")
	t.Chdir(u.HomeDir)
	for file, uid := range map[string]int{
		"": 0, "config": 0, "./sub/config": 0, u.HomeDir + "/config": 0,
		"../config": -1, "/etc/config": -1,
	} {
		p, err := kubeconfigOwner(file)
		if err != nil || p.uid != uid {
			t.Errorf("%q is of %d, %v; want %d", file, p.uid, err, uid)
		}
	}
}

// TestListedKubeconfigs: of several files the one that kubectl would choose is written, and a
// cluster is sought in all.
func TestListedKubeconfigs(t *testing.T) {
	dir := t.TempDir()
	a, b, c := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "c")
	t.Setenv("KUBECONFIG", strings.Join([]string{"", a, b, c, ""}, ":"))
	t.Setenv("SUDO_USER", "")
	choose := func(want string) {
		t.Helper()
		if p, err := kubeconfigOwner(""); err != nil || p.file != want {
			t.Errorf("chosen %s, %v; want %s", p.file, err, want)
		}
	}
	choose(c)
	if err := os.WriteFile(b, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	choose(b)
	if files, err := kubeconfigsOf(""); err != nil || !slices.Equal(files, []string{a, b, c}) {
		t.Errorf("all: %q, %v", files, err)
	}
	if files, err := kubeconfigsOf("x"); err != nil || !slices.Equal(files, []string{"x"}) {
		t.Errorf("the one that is named: %q, %v", files, err)
	}
}

// TestRemoveContext: of several files all that have a context lose it, and those that cannot
// be read are left alone. One that was named has to be read.
func TestRemoveContext(t *testing.T) {
	dir := t.TempDir()
	a, broken, b := filepath.Join(dir, "a"), filepath.Join(dir, "broken"), filepath.Join(dir, "b")
	for _, file := range []string{a, b} {
		if err := kubeconfig.Merge(file, kubeconfig.Config{Name: "x", Server: "https://127.0.0.1:6443", CA: []byte("ca"), Cert: []byte("cert"), Key: []byte("key")}); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(broken, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if removed, err := removeContext([]string{a, broken, filepath.Join(dir, "none"), b}, "x"); err != nil || !slices.Equal(removed, []string{a, b}) {
		t.Errorf("removed from %q, %v", removed, err)
	}
	if _, err := removeContext([]string{broken}, "x"); err == nil {
		t.Error("a file that cannot be read has no mistake")
	}
}

// TestPersonalMerge: a file that was not there is the person's, and so is its folder.
func TestPersonalMerge(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	p := personal{file: filepath.Join(t.TempDir(), ".kube", "config"), uid: 1234, gid: 1234}
	if err := p.merge(kubeconfig.Config{Name: "x", Server: "https://127.0.0.1:6443", CA: []byte("ca"), Cert: []byte("cert"), Key: []byte("key")}); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{p.file, filepath.Dir(p.file)} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st := info.Sys().(*syscall.Stat_t); st.Uid != 1234 || st.Gid != 1234 {
			t.Errorf("%s is of %d:%d, want 1234:1234", path, st.Uid, st.Gid)
		}
	}
}
