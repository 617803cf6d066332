package main

import (
	"os"
	"os/user"
	"path/filepath"
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
