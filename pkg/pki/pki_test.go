package pki

import (
	"bytes"
	"crypto/x509"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/pkg/paths"
)

const year = 365 * 24 * time.Hour

func at(t time.Time) func() time.Time { return func() time.Time { return t } }

func example() Names {
	return Names{
		Node: "n1", HostName: "host.lan", ClusterDomain: "cluster.local",
		NodeIPs:    []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("fd00::2")},
		ServiceIPs: []netip.Addr{netip.MustParseAddr("10.43.0.1")},
		ExtraSANs:  []string{"api.example", "203.0.113.7"},
	}
}

func ensure(t *testing.T, p paths.Paths, now time.Time) (Authorities, []string) {
	t.Helper()
	cas, issued, err := Ensure(p, Table(example()), at(now))
	if err != nil {
		t.Fatal(err)
	}
	return cas, issued
}

func TestTable(t *testing.T) {
	p, now := paths.New(t.TempDir()), time.Now()
	cas, issued := ensure(t, p, now)
	if len(issued) != len(Table(example())) {
		t.Errorf("issued %v on an empty disk", issued)
	}
	tests := map[string]struct {
		ca, cn string
		org    string
		usage  x509.ExtKeyUsage
		names  []string
	}{
		"kube-apiserver": {ServerCA, "kube-apiserver", "", x509.ExtKeyUsageServerAuth, []string{
			"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
			"localhost", "127.0.0.1", "::1", "10.43.0.1", "192.0.2.2", "fd00::2", "n1", "host.lan", "api.example", "203.0.113.7",
		}},
		"kube-apiserver-kubelet":  {ClientCA, "system:kube-apiserver-kubelet", "system:masters", x509.ExtKeyUsageClientAuth, nil},
		"front-proxy":             {RequestHeaderCA, FrontProxy, "", x509.ExtKeyUsageClientAuth, nil},
		"admin":                   {ClientCA, "system:admin", "system:masters", x509.ExtKeyUsageClientAuth, nil},
		"podo":                    {ClientCA, "system:podo", "system:masters", x509.ExtKeyUsageClientAuth, nil},
		"kube-controller-manager": {ClientCA, "system:kube-controller-manager", "", x509.ExtKeyUsageClientAuth, nil},
		"kube-scheduler":          {ClientCA, "system:kube-scheduler", "", x509.ExtKeyUsageClientAuth, nil},
		"kubelet":                 {ClientCA, "system:node:n1", "system:nodes", x509.ExtKeyUsageClientAuth, nil},
		"kubelet-serving":         {KubeletCA, "system:node:n1", "system:nodes", x509.ExtKeyUsageServerAuth, []string{"n1", "192.0.2.2", "fd00::2", "127.0.0.1", "localhost"}},
		"kube-proxy":              {ClientCA, "system:kube-proxy", "", x509.ExtKeyUsageClientAuth, nil},
		"podo-node":               {ClientCA, "system:podo-node:n1", "system:podo-nodes", x509.ExtKeyUsageClientAuth, nil},
	}
	for _, l := range Table(example()) {
		want, ok := tests[l.Name]
		if !ok {
			t.Errorf("%s is not expected", l.Name)
			continue
		}
		cert, err := Load(l.Files(p))
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AddCert(cas[want.ca].Cert)
		opts := x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{want.usage}, CurrentTime: now}
		if _, err := cert.Verify(opts); err != nil {
			t.Errorf("%s: %v", l.Name, err)
		}
		if got := strings.Join(cert.Subject.Organization, ","); cert.Subject.CommonName != want.cn || got != want.org {
			t.Errorf("%s is for %s of %q, want %s of %q", l.Name, cert.Subject.CommonName, got, want.cn, want.org)
		}
		for _, name := range want.names {
			if err := cert.VerifyHostname(name); err != nil {
				t.Errorf("%s: %v", l.Name, err)
			}
		}
		for other, ca := range cas {
			if other != want.ca && cert.CheckSignatureFrom(ca.Cert) == nil {
				t.Errorf("%s is signed by the %s CA too", l.Name, other)
			}
		}
		if got := cert.NotAfter.Sub(now).Round(time.Minute); got != year {
			t.Errorf("%s lives %s, want a year", l.Name, got)
		}
	}
}

func TestModes(t *testing.T) {
	p := paths.New(t.TempDir())
	ensure(t, p, time.Now())
	err := filepath.WalkDir(p.Data, func(path string, d fs.DirEntry, err error) error {
		info, ierr := d.Info()
		if err != nil || ierr != nil {
			return errors.Join(err, ierr)
		}
		mode, want := info.Mode().Perm(), fs.FileMode(0o600)
		switch {
		case filepath.Ext(path) == ".crt":
			want = 0o644
		case d.IsDir() && (strings.Contains(path, "/tls")):
			want = 0o700
		case d.IsDir():
			return nil
		}
		if d.Name() == "tls" && d.IsDir() {
			want |= mode & 0o111 // parent of the folder of CAs, made on the way
		}
		if mode != want {
			t.Errorf("%s has mode %v, want %v", path, mode, want)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	// A mode that lets others read a key is narrowed.
	os.Chmod(p.CA(ClientCA).Key, 0o644)
	ensure(t, p, time.Now())
	if info, _ := os.Stat(p.CA(ClientCA).Key); info.Mode().Perm() != 0o600 {
		t.Errorf("key has mode %v, want 0600", info.Mode())
	}
}

func TestSecondStartChangesNothing(t *testing.T) {
	p, now := paths.New(t.TempDir()), time.Now()
	ensure(t, p, now)
	before := snapshot(t, p.Data)
	if _, issued := ensure(t, p, now.Add(200*24*time.Hour)); len(issued) > 0 {
		t.Errorf("issued %v again", issued)
	}
	for name, text := range snapshot(t, p.Data) {
		if !bytes.Equal(before[name], text) {
			t.Errorf("%s changed", name)
		}
	}
}

func TestLeavesAreReplaced(t *testing.T) {
	now := time.Now()
	tests := map[string]struct {
		spoil func(t *testing.T, p paths.Paths)
		names func(*Names)
		now   time.Time
		want  []string // nil means all
	}{
		"a new address": {
			names: func(n *Names) { n.NodeIPs = append(n.NodeIPs, netip.MustParseAddr("198.51.100.1")) },
			want:  []string{"kube-apiserver", "kubelet-serving"},
		},
		"an address less": {names: func(n *Names) { n.NodeIPs = n.NodeIPs[:1] }, want: []string{}},
		"another node name": {
			names: func(n *Names) { n.Node = "n2" },
			want:  []string{"kube-apiserver", "kubelet", "kubelet-serving", "podo-node"},
		},
		"a third of life left": {now: now.Add(year*2/3 + 2*time.Hour)},
		"before they started":  {now: now.Add(-30 * time.Minute), want: []string{}},
		"cut off": {
			spoil: func(t *testing.T, p paths.Paths) { write(t, p.ServerLeaf("admin").Cert, "-----BEGIN CERT") },
			want:  []string{"admin"},
		},
		"key of another": {
			spoil: func(t *testing.T, p paths.Paths) {
				text, _ := os.ReadFile(p.ServerLeaf("admin").Key)
				write(t, p.ServerLeaf("kube-scheduler").Key, string(text))
			},
			want: []string{"kube-scheduler"},
		},
		"key without certificate": {
			spoil: func(t *testing.T, p paths.Paths) { os.Remove(p.AgentLeaf("kubelet").Cert) },
			want:  []string{"kubelet"},
		},
		"certificate without key": {
			spoil: func(t *testing.T, p paths.Paths) { os.Remove(p.AgentLeaf("kubelet").Key) },
			want:  []string{"kubelet"},
		},
		"of another cluster": {
			spoil: func(t *testing.T, p paths.Paths) {
				other := paths.New(t.TempDir())
				ensure(t, other, now)
				for _, ext := range []string{".crt", ".key"} {
					text, _ := os.ReadFile(filepath.Join(other.Data, "server", "tls", "admin"+ext))
					write(t, filepath.Join(p.Data, "server", "tls", "admin"+ext), string(text))
				}
			},
			want: []string{"admin"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := paths.New(t.TempDir())
			cas, _ := ensure(t, p, now)
			if tt.spoil != nil {
				tt.spoil(t, p)
			}
			n, later := example(), now
			if tt.names != nil {
				tt.names(&n)
			}
			if !tt.now.IsZero() {
				later = tt.now
			}
			again, issued, err := Ensure(p, Table(n), at(later))
			if err != nil {
				t.Fatal(err)
			}
			if tt.want == nil {
				for _, l := range Table(n) {
					tt.want = append(tt.want, l.Name)
				}
			}
			slices.Sort(issued)
			slices.Sort(tt.want)
			if !slices.Equal(issued, tt.want) {
				t.Errorf("issued %v, want %v", issued, tt.want)
			}
			for ca := range cas {
				if !bytes.Equal(cas[ca].PEM, again[ca].PEM) {
					t.Errorf("the %s CA changed", ca)
				}
			}
			for _, l := range Table(n) {
				if cert, err := Load(l.Files(p)); err != nil || again[l.CA].Right(l, cert, later) != nil {
					t.Errorf("%s is not right: %v", l.Name, err)
				}
			}
		})
	}
}

func TestAuthoritiesAreNeverReplaced(t *testing.T) {
	now := time.Now()
	tests := map[string]struct {
		spoil func(t *testing.T, p paths.Paths)
		now   time.Time
		says  []string
		is    error
	}{
		"key gone":            {spoil: func(t *testing.T, p paths.Paths) { os.Remove(p.CA(ServerCA).Key) }, is: ErrKeyMissing, says: []string{"ca/server.crt", "ca/server.key", "backup"}},
		"certificate garbage": {spoil: func(t *testing.T, p paths.Paths) { write(t, p.CA(ClientCA).Cert, "x") }, says: []string{"ca/client.crt", "backup"}},
		"certificate empty":   {spoil: func(t *testing.T, p paths.Paths) { write(t, p.CA(ClientCA).Cert, "") }, says: []string{"ca/client.crt"}},
		"key garbage":         {spoil: func(t *testing.T, p paths.Paths) { write(t, p.CA(ClientCA).Key, "x") }, says: []string{"ca/client.key", "backup"}},
		"key of another": {spoil: func(t *testing.T, p paths.Paths) {
			text, _ := os.ReadFile(p.CA(ServerCA).Key)
			write(t, p.CA(ClientCA).Key, string(text))
		}, says: []string{"ca/client.crt", "belong together"}},
		"a leaf in its place": {spoil: func(t *testing.T, p paths.Paths) {
			for from, to := range map[string]string{p.ServerLeaf("admin").Cert: p.CA(ClientCA).Cert, p.ServerLeaf("admin").Key: p.CA(ClientCA).Key} {
				text, _ := os.ReadFile(from)
				write(t, to, string(text))
			}
		}, says: []string{"may not sign"}},
		"service-account key garbage": {spoil: func(t *testing.T, p paths.Paths) { write(t, p.ServiceAccountKey(), "x") }, says: []string{"service-account.key", "backup"}},
		"clock behind":                {now: now.Add(-2 * time.Hour), says: []string{"the clock says", "CA starts", "set the clock"}},
		"clock far ahead":             {now: now.Add(11 * year), says: []string{"the clock says", "CA ended"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := paths.New(t.TempDir())
			ensure(t, p, now)
			if tt.spoil != nil {
				tt.spoil(t, p)
			}
			before := snapshot(t, filepath.Dir(p.CA(ServerCA).Cert))
			later := now
			if !tt.now.IsZero() {
				later = tt.now
			}
			_, _, err := Ensure(p, Table(example()), at(later))
			if err == nil || tt.is != nil && !errors.Is(err, tt.is) {
				t.Fatalf("got %v", err)
			}
			var clock *ClockError
			if !tt.now.IsZero() && !errors.As(err, &clock) {
				t.Errorf("%T is no *ClockError", err)
			}
			for _, s := range tt.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q does not say %q", err, s)
				}
			}
			for name, text := range snapshot(t, filepath.Dir(p.CA(ServerCA).Cert)) {
				if !bytes.Equal(before[name], text) {
					t.Errorf("%s was changed", name)
				}
			}
		})
	}
}

func TestSmallClockErrorsAreForgiven(t *testing.T) {
	p, now := paths.New(t.TempDir()), time.Now()
	ensure(t, p, now)
	if _, _, err := Ensure(p, Table(example()), at(now.Add(-backdate-30*time.Second))); err != nil {
		t.Error(err)
	}
}

func TestLeavesEndWithTheirAuthority(t *testing.T) {
	p, now := paths.New(t.TempDir()), time.Now()
	cas, _ := ensure(t, p, now)
	late := now.Add(caLife - 30*24*time.Hour)
	ensure(t, p, late)
	cert, err := Load(p.ServerLeaf("admin"))
	if err != nil || cert.NotAfter.After(cas[ClientCA].Cert.NotAfter) {
		t.Errorf("ends %v, %v, after its CA at %v", cert.NotAfter, err, cas[ClientCA].Cert.NotAfter)
	}
	if _, issued := ensure(t, p, late.Add(time.Hour)); len(issued) > 0 {
		t.Errorf("issued %v an hour later again", issued)
	}
}

// TestInterruptedFirstBoot puts back each state that the order of writes allows.
func TestInterruptedFirstBoot(t *testing.T) {
	now := time.Now()
	whole := paths.New(t.TempDir())
	ensure(t, whole, now)
	for _, ca := range []string{ServerCA, KubeletCA, ClientCA, RequestHeaderCA} {
		t.Run(ca, func(t *testing.T) {
			p := paths.New(t.TempDir())
			text, _ := os.ReadFile(whole.CA(ca).Key)
			os.MkdirAll(filepath.Dir(p.CA(ca).Key), 0o700)
			write(t, p.CA(ca).Key, string(text))
			cas, _ := ensure(t, p, now)
			if kept, _ := os.ReadFile(p.CA(ca).Key); !bytes.Equal(kept, text) {
				t.Error("the key was replaced")
			}
			if !cas[ca].key.PublicKey.Equal(cas[ca].Cert.PublicKey) {
				t.Error("the certificate is not for the key that was there")
			}
		})
	}
}

// TestKilledFirstBoot kills a process that makes certificates, again and again.
func TestKilledFirstBoot(t *testing.T) {
	if dir := os.Getenv("PKI_TEST_DIR"); dir != "" {
		os.Stdout.WriteString("started\n")
		Ensure(paths.New(dir), Table(example()), time.Now)
		return
	}
	if testing.Short() {
		t.Skip("starts processes")
	}
	for round := range 12 {
		p := paths.New(t.TempDir())
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledFirstBoot$")
		cmd.Env = append(os.Environ(), "PKI_TEST_DIR="+p.Data)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		out.Read(make([]byte, 1))
		time.Sleep(time.Duration(round) * 2 * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
		before := snapshot(t, p.Data)
		ensure(t, p, time.Now())
		for name, text := range snapshot(t, p.Data) {
			old, had := before[name]
			if isCA := strings.Contains(name, "/ca/") || strings.HasSuffix(name, "service-account.key"); had && isCA && !bytes.Equal(old, text) {
				t.Errorf("killed after %d ms: %s was replaced", round*2, name)
			}
		}
	}
}

func TestAgentsHoldNoAuthorityKey(t *testing.T) {
	p := paths.New(t.TempDir())
	cas, _ := ensure(t, p, time.Now())
	for _, ca := range []string{ServerCA, ClientCA} {
		if text, err := os.ReadFile(p.AgentCA(ca)); err != nil || !bytes.Equal(text, cas[ca].PEM) {
			t.Errorf("copy of the %s CA: %v", ca, err)
		}
	}
	keys, _ := filepath.Glob(filepath.Join(p.Data, "agent", "tls", "ca", "*.key"))
	if len(keys) > 0 {
		t.Errorf("found %v", keys)
	}

	control := slices.DeleteFunc(Table(example()), func(l Leaf) bool { return l.Node })
	alone := paths.New(t.TempDir())
	if _, _, err := Ensure(alone, control, time.Now); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(alone.Data, "agent")); err == nil {
		t.Error("a control plane without a node has an agent folder")
	}
}

func snapshot(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, ".tmp") {
			return err
		}
		out[path], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
