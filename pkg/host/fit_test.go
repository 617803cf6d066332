package host

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/podo-dev/podo/pkg/config"
)

func TestFit(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	absent := filepath.Join(dir, "absent")
	theirs, ours, before := filepath.Join(dir, "theirs"), filepath.Join(dir, "ours"), filepath.Join(dir, "before")
	for path, contexts := range map[string]string{theirs: "[{name: default}, {name: work}]", ours: "[{name: default}]", before: "[{name: old}]"} {
		if err := os.WriteFile(path, []byte("kind: Config\ncontexts: "+contexts+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for in, want := range map[string]string{
		"write-kubeconfig-group no-such-group": `write-kubeconfig-group: this machine has no group "no-such-group"; make it`,
		"write-kubeconfig-group -1":            "no group",
		"write-kubeconfig-group root":          "",
		"write-kubeconfig-group 4711":          "",
		"write-kubeconfig " + dir:              "write-kubeconfig: " + dir + " is a folder; name a file in it",
		"write-kubeconfig " + file + "/k":      file + " is a file, so nothing can be in it",
		"write-kubeconfig /dev/null":           "/dev/null is no ordinary file",
		"write-kubeconfig " + file:             "",
		"write-kubeconfig " + absent + "/a/b":  "",
		"write-kubeconfig " + theirs:           theirs + ` has the context "default" of another cluster, which would be lost; name another file`,
		"write-kubeconfig " + before:           "",
		"write-kubeconfig " + ours:             `has the context "default" of another cluster`,
		"log " + dir:                           "log: " + dir + " is a folder",
		"log " + file + "/a/b":                 file + " is a file",
		"log " + absent + "/x":                 "",
		"log /dev/null":                        "",
		"data-dir " + file:                     "data-dir: " + file + " is a file; name a folder",
		"data-dir " + file + "/a":              file + " is a file, so nothing can be in it",
		"resolv-conf " + absent:                "resolv-conf: there is no file " + absent + "; name a file",
		"resolv-conf " + dir:                   "is no ordinary file",
		"resolv-conf " + file:                  "",
		"node-ip 192.0.2.77":                   "node-ip: 192.0.2.77 is on no interface of this machine that is up; give one of ",
		"bind-address 192.0.2.77":              "bind-address: this machine cannot listen on 192.0.2.77 (cannot assign requested address); give one of ",
		"bind-address 127.0.0.1":               "",
		"bind-address 0.0.0.0":                 "",
		"flannel-iface nosuch0":                "flannel-iface: no interface of this machine that is up is called nosuch0; give one of ",
	} {
		name, value, _ := strings.Cut(in, " ")
		err := fitOf(t, config.Setting{Name: name, Values: []string{value}, Origin: "f:1"})
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", in, err)
		case want != "" && (err == nil || !strings.HasPrefix(err.Error(), "f:1: ") || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v; want %q in it", in, err, want)
		}
	}

	err := fitOf(t,
		config.Setting{Name: "node-ip", Values: []string{"192.0.2.77"}, Origin: "--node-ip"},
		config.Setting{Name: "log", Values: []string{dir}, Origin: "--log"},
		config.Setting{Name: "write-kubeconfig", Values: []string{dir}, Origin: "--write-kubeconfig"})
	if n := len(config.Mistakes(err)); n != 3 {
		t.Errorf("%d mistakes at once, want 3:\n%v", n, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 4 {
		t.Errorf("%v, %v: something was made by looking", left, err)
	}
}

func fitOf(t *testing.T, settings ...config.Setting) error {
	t.Helper()
	cfg := config.Default()
	origins, err := config.Resolve(&cfg, settings)
	if err != nil {
		t.Fatal(err)
	}
	return Fit(cfg, origins, map[string]string{filepath.Join(filepath.Dir(cfg.Kubeconfig.Path), "before"): "old"})
}

// The machine's own addresses pass, and it is told which they are.
func TestFitKnowsTheMachine(t *testing.T) {
	addr := netip.MustParseAddr("192.0.2.10")
	n := Network{Links: []Link{
		{Name: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(addr, 24)}},
		{Name: "cni0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.42.0.1/24")}},
	}}
	cfg := config.Default()
	cfg.IP, cfg.FlannelIface = []netip.Addr{addr}, "eth0"
	var f fit
	if f.addresses(cfg, n); f.errs != nil {
		t.Error(f.errs)
	}
	cfg.IP, cfg.FlannelIface = []netip.Addr{addr.Next()}, "eth1"
	f.addresses(cfg, n)
	if len(f.errs) != 2 || !strings.HasSuffix(f.errs[0].Error(), "give one of 192.0.2.10") || !strings.HasSuffix(f.errs[1].Error(), "give one of eth0") {
		t.Error(f.errs)
	}
}
