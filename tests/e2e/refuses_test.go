package e2e

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/paths"
)

func listen(addr string) (net.Listener, error) {
	// Not ListenConfig's own choice of families: podo listens on IPv4 here.
	return (&net.ListenConfig{}).Listen(context.Background(), "tcp4", addr)
}

// A refusal is a start that must not happen: what is asked for, how podo ends, and
// the words that name the place, the value and the remedy.
type refusal struct {
	name    string
	flags   []string
	environ []string
	code    int
	words   []string
}

func (r refusal) check(t *testing.T) {
	t.Helper()
	began := time.Now()
	got := podoWith("", r.environ, append([]string{"server"}, r.flags...)...)
	if got.code != r.code {
		t.Errorf("%s: exit code %d, want %d: %s", r.name, got.code, r.code, got.err)
	}
	if err := contains(got.err, r.words...); err != nil {
		t.Errorf("%s: %v", r.name, err)
	}
	if strings.Contains(got.err, "goroutine ") || strings.Contains(got.err, "panic") {
		t.Errorf("%s: podo broke down instead of refusing:\n%s", r.name, got.err)
	}
	if lines := strings.Count(got.err, "\n"); lines > 10 {
		t.Errorf("%s: the refusal takes %d lines:\n%s", r.name, lines, got.err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("%s: the refusal took %s", r.name, took)
	}
	for _, path := range []string{paths.DefaultData, paths.DefaultEtc, paths.DefaultRun} {
		if entries, err := os.ReadDir(path); err == nil && len(entries) > 0 {
			t.Errorf("%s: the refusal left %s in %s", r.name, entries[0].Name(), path)
		}
	}
}

// refuses holds what is impossible whatever the machine: exit code 2, and nothing
// was changed.
func refuses(t *testing.T) {
	dir := filepath.Join(room(), "refuses")
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		write(t, path, text)
		return path
	}
	folder := filepath.Join(dir, "folder.yaml")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	unknownKey := file("key.yaml", "debug: true\nclutser-cidr: 10.1.0.0/16\n")
	badValue := file("value.yaml", "https-listen-port: many\n")
	passed := file("passed.yaml", "feature-gates: {NoSuchGate: true}\nkube-scheduler-arg: [no-flag=1]\n")
	latin1 := file("latin1.yaml", "node-name: caf\xe9\n")
	huge := file("huge.yaml", strings.Repeat("# nothing but comments in here\n", 10<<20/31+1))
	broken := file("broken.yaml", "node-label: [a=b\n")

	for _, r := range []refusal{
		{name: "unknown flag", flags: []string{"--clustr-cidr=10.1.0.0/16"}, words: []string{"--clustr-cidr", "did you mean --cluster-cidr"}},
		{name: "malformed flag", flags: []string{"--https-listen-port=https"}, words: []string{"--https-listen-port", `"https"`, "whole number"}},
		{name: "malformed switch", flags: []string{"--debug=maybe"}, words: []string{"--debug", "maybe"}},
		{name: "malformed CIDR", flags: []string{"--cluster-cidr=10.42.0.0/99"}, words: []string{"--cluster-cidr", "10.42.0.0/99"}},
		{name: "port out of range", flags: []string{"--https-listen-port=70000"}, words: []string{"--https-listen-port", "70000", "65535"}},
		{name: "unexpected argument", flags: []string{"start"}, words: []string{`"start"`}},
		{name: "unknown variable", environ: []string{"PODO_CLUSTR_CIDR=x"}, words: []string{"PODO_CLUSTR_CIDR", "PODO_CLUSTER_CIDR"}},
		{name: "malformed variable", environ: []string{"PODO_HTTPS_LISTEN_PORT=many"}, words: []string{"$PODO_HTTPS_LISTEN_PORT", `"many"`}},
		{name: "unknown key", flags: []string{"--config", unknownKey}, words: []string{unknownKey + ":2", "clutser-cidr", "cluster-cidr"}},
		{name: "malformed key", flags: []string{"--config", badValue}, words: []string{badValue + ":1", "https-listen-port", `"many"`}},
		{name: "all mistakes at once", flags: []string{"--config", badValue, "--cluster-cidr=x"}, environ: []string{"PODO_V=99"}, words: []string{badValue + ":1", "--cluster-cidr", "$PODO_V"}},
		{name: "all mistakes at once, those in what is passed on too", flags: []string{"--config", passed, "--cluster-cidr=x", "--kubelet-arg=nor-this-one=1"}, environ: []string{"PODO_KUBE_PROXY_ARG=no-such-flag=1"},
			words: []string{passed + ":1: feature-gates: NoSuchGate", passed + ":2: kube-scheduler-arg: unknown flag: --no-flag", "$PODO_KUBE_PROXY_ARG", "no-such-flag", "--cluster-cidr", "--kubelet-arg: unknown flag: --nor-this-one"}},
		{name: "unknown feature gate", flags: []string{"--feature-gates=NoSuchGate=true"}, words: []string{"feature-gates", "NoSuchGate"}},
		{name: "malformed feature gate", flags: []string{"--feature-gates=WatchList=perhaps"}, words: []string{"--feature-gates", "WatchList", "perhaps"}},
		{name: "overlapping CIDRs", flags: []string{"--cluster-cidr=10.42.0.0/16", "--service-cidr=10.42.128.0/17"}, words: []string{"--cluster-cidr", "10.42.0.0/16", "10.42.128.0/17", "overlaps", "choose"}},
		{name: "too small a CIDR for pods", flags: []string{"--cluster-cidr=10.42.0.0/26"}, words: []string{"--cluster-cidr", "10.42.0.0/26", "too small", "give a /"}},
		{name: "too small a CIDR for services", flags: []string{"--service-cidr=10.43.0.0/30"}, words: []string{"--service-cidr", "10.43.0.0/30", "too small", "give a /"}},
		{name: "DNS outside the services", flags: []string{"--cluster-dns=10.99.0.10"}, words: []string{"--cluster-dns", "10.99.0.10", "10.43.0.0/16"}},
		{name: "unknown part", flags: []string{"--disable=runtimes"}, words: []string{"--disable", "runtimes"}},
		{name: "etcd's flags without etcd", flags: []string{"--etcd-arg=quota-backend-bytes=1"}, words: []string{"etcd-arg", "SQLite", "remove"}},
		{name: "a file that is a folder", flags: []string{"--config", folder}, words: []string{folder, "folder"}},
		{name: "a file that is not there", flags: []string{"--config", dir + "/none.yaml"}, words: []string{dir + "/none.yaml", "no such file"}},
		{name: "a file that is not UTF-8", flags: []string{"--config", latin1}, words: []string{latin1 + ":1", "UTF-8"}},
		{name: "a file of 10 MB", flags: []string{"--config", huge}, words: []string{huge, "1 MiB"}},
		{name: "a file that is no YAML", flags: []string{"--config", broken}, words: []string{broken}},
		{name: "a relative data directory", flags: []string{"--data-dir=data"}, words: []string{"--data-dir", `"data"`}},
	} {
		r.code = 2
		r.check(t)
	}

	if r := podo("config", "validate", passed); r.code != 2 || contains(r.err, passed+":1: feature-gates: NoSuchGate", passed+":2: kube-scheduler-arg: unknown flag: --no-flag") != nil {
		t.Errorf("config validate FILE: %s", r)
	}

	// An empty file asks for nothing.
	empty := file("empty.yaml", "")
	if r := podo("config", "validate", empty); r.code != 0 {
		t.Errorf("an empty file: %s", r)
	}
}

// ownNetwork is a range that holds this machine's address.
func ownNetwork(t *testing.T) string {
	t.Helper()
	ip := net.ParseIP(outwardAddress(t)).To4()
	return fmt.Sprintf("%d.%d.0.0/16", ip[0], ip[1])
}

// refusesMachines holds what could be otherwise another time: exit code 1.
func refusesMachines(t *testing.T) {
	if r := as(65534, "server"); r.code != 1 || contains(r.err, "root", "sudo podo server") != nil {
		t.Errorf("not root: %s", r)
	}
	if r := as(65534, "kill"); r.code != 1 || contains(r.err, "root", "sudo") != nil {
		t.Errorf("kill, not root: %s", r)
	}

	for _, port := range []string{"6443", "10250"} {
		l, err := listen("0.0.0.0:" + port)
		if err != nil {
			t.Fatal(err)
		}
		refusal{name: "port " + port + " taken", code: 1, words: []string{port, "is taken by", "stop"}}.check(t)
		l.Close()
	}

	refusal{name: "a CIDR over this machine's own network", flags: []string{"--cluster-cidr=" + ownNetwork(t)}, code: 1, words: []string{ownNetwork(t), "overlaps", "--cluster-cidr"}}.check(t)
	readOnly := disk(t, "read-only", "tmpfs", unix.MS_RDONLY, "size=200m")
	refusal{name: "a data directory that cannot be written", flags: []string{"--data-dir", readOnly}, code: 1, words: []string{readOnly, "read-only", "--data-dir"}}.check(t)
	full := disk(t, "full", "tmpfs", 0, "size=1m")
	refusal{name: "a data directory that is full", flags: []string{"--data-dir", full}, code: 1, words: []string{full, "full", "free"}}.check(t)
	noExec := disk(t, "noexec", "tmpfs", unix.MS_NOEXEC, "size=1g")
	refusal{name: "a data directory that runs no programs", flags: []string{"--data-dir", noExec}, code: 1, words: []string{noExec, "programs"}}.check(t)
	refusal{name: "a data directory below a file", flags: []string{"--data-dir", "/etc/hostname/podo"}, code: 2, words: []string{"/etc/hostname", "--data-dir"}}.check(t)
	refusesForeign(t)
	// A kernel that lacks something: this one, if it knows no WireGuard.
	link := &netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "e2e-wg"}}
	if err := netlink.LinkAdd(link); err == nil {
		_ = netlink.LinkDel(link)
	} else {
		refusal{name: "a kernel without WireGuard", flags: []string{"--flannel-backend", "wireguard-native"}, code: 1, words: []string{"wireguard", "CONFIG_WIREGUARD", "--flannel-backend"}}.check(t)
	}
	refusal{name: "an interface that is not there", flags: []string{"--flannel-iface", "none0"}, code: 2, words: []string{"flannel-iface", "none0"}}.check(t)
	refusal{name: "an address that is not this machine's", flags: []string{"--node-ip", "198.51.100.77"}, code: 2, words: []string{"198.51.100.77", "--node-ip"}}.check(t)
	uninstall(t)
}

// refusesForeign has somebody's folder named as the data directory.
func refusesForeign(t *testing.T) {
	home := filepath.Join(room(), "somebody")
	write(t, filepath.Join(home, "server", "site.html"), "theirs")
	before := files(t, home)
	refusal{name: "somebody's folder", flags: []string{"--data-dir", home}, code: 2, words: []string{home, "site.html", "not podo's", "--data-dir"}}.check(t)
	if r := podo("uninstall", "--yes", "--purge", "--data-dir", home); r.code != 2 || contains(r.err, home, "site.html", "--data-dir") != nil {
		t.Errorf("uninstall of somebody's folder: %s", r)
	}
	if r := podo("uninstall", "--verify", "--data-dir", home); r.code != 0 {
		t.Errorf("--verify of somebody's folder: %s", r)
	}
	if after := files(t, home); after != before {
		t.Errorf("somebody's folder held %s and holds %s", before, after)
	}
}

// files lists what is below a folder.
func files(t *testing.T, dir string) (out string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		out += path + " "
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// disk mounts a file system for the length of a test.
func disk(t *testing.T, name, kind string, flags uintptr, options string) string {
	t.Helper()
	dir := filepath.Join(room(), "disk-"+name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, kind, flags, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func refusesComponentFlags(t *testing.T) {
	for c, number := range map[string]string{
		"kube-apiserver": "max-requests-inflight", "kube-controller-manager": "concurrent-gc-syncs", "kube-scheduler": "kube-api-burst",
		"kubelet": "max-pods", "kube-proxy": "conntrack-min",
	} {
		refusal{name: c, flags: []string{"--" + c + "-arg=no-such-flag=1"}, code: 2, words: []string{c, "no-such-flag"}}.check(t)
		refusal{name: c, flags: []string{"--" + c + "-arg=" + number + "=lots"}, code: 2, words: []string{c, number, "lots"}}.check(t)
		refusal{name: c, flags: []string{"--" + c + "-arg=v=3"}, code: 2, words: []string{c, "use -v"}}.check(t)
	}
	// What would break the house has a setting of podo's own.
	refusal{name: "kubelet's name", flags: []string{"--kubelet-arg=hostname-override=x"}, code: 2, words: []string{"kubelet-arg", "hostname-override", "--node-name"}}.check(t)
	// Those of the server's parts and of the node's are told in one go.
	both := []string{"--kube-scheduler-arg=no-such-flag=1", "--kubelet-arg=nor-this-one=1"}
	refusal{name: "server and node", flags: both, code: 2, words: []string{"no-such-flag", "nor-this-one"}}.check(t)
	if r := podo(append([]string{"config", "validate"}, both...)...); r.code != 2 || contains(r.err, "no-such-flag", "nor-this-one") != nil {
		t.Errorf("config validate: %s", r)
	}
	uninstall(t)
}

// stopsWhileItStarts tells podo to stop at moments of a first boot and of later ones: it is
// as quick as later, and no failure. On a busy machine that takes longer; with upstream's
// wait for an API server that does not come it took eleven seconds on any.
func stopsWhileItStarts(t *testing.T) {
	for _, after := range []time.Duration{200, 700, 1200, 400, 1000} {
		s := boot(t)
		within(t, 20*time.Second, "it says something", func() error { return contains(s.written(), "podo") })
		time.Sleep(after * time.Millisecond)
		if took := s.stop(t); took > 10*time.Second {
			t.Errorf("told to stop after %d ms, it took %s:\n%s", after, took, s.tail(20))
		}
	}
	uninstall(t)
}

// namesThePartThatDied has one part die after the others have started: podo ends, and
// the reason is the last thing it says.
func namesThePartThatDied(t *testing.T) {
	config := filepath.Join(room(), "scheduler.yaml")
	write(t, config, "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nclientConnection: {kubeconfig: /var/lib/podo/server/kubeconfig/kube-scheduler.yaml}\nprofiles:\n- schedulerName: default-scheduler\n  plugins: {filter: {enabled: [{name: NoSuchPlugin}]}}\n")
	s := boot(t, "--kube-scheduler-arg", "config="+config)
	if code := s.ended(t, 60*time.Second); code != 1 && code != 2 {
		t.Errorf("exit code %d", code)
	}
	if err := contains(s.tail(1), "podo:", "scheduler", "NoSuchPlugin"); err != nil {
		t.Errorf("the last line: %v\nall of it:\n%s", err, s.tail(30))
	}
	// What only the part itself can tell of its flags, no other start mends, nor does podo
	// wait for the others.
	for flag, words := range map[string][]string{
		"--kube-apiserver-arg=authorization-mode=Nope":    {"kube-apiserver-arg", "authorization-mode", "Nope"},
		"--kube-controller-manager-arg=controllers=grape": {"kube-controller-manager-arg", "grape"},
	} {
		s := boot(t, flag)
		if code := s.ended(t, 30*time.Second); code != 2 {
			t.Errorf("%s: exit code %d, want 2", flag, code)
		}
		if err := contains(s.tail(1), append(words, "podo:")...); err != nil {
			t.Errorf("%s: the last line: %v\nall of it:\n%s", flag, err, s.tail(30))
		}
	}
	uninstall(t)
}
