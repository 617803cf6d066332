package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/gate"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/lifecycle/lifecycletest"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/pki"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/plan/plantest"
)

// server is the plan of an ordinary machine that keeps everything below dir.
func server(t *testing.T, dir string) plan.Server {
	t.Helper()
	p, err := plan.New(config.Default(), plantest.Machine(), plan.Known{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := *p.Server
	where := paths.Paths{Etc: dir + "/etc", Data: dir + "/data", Run: dir + "/run"}
	s.Paths, s.Certificates.Paths, s.APIServer.Paths, s.ControllerManager.Paths, s.Scheduler.Paths = where, where, where, where, where
	s.Kubeconfig.Path = where.AdminKubeconfig()
	return s
}

// trust runs the component until it is ready.
func trust(t *testing.T, p plan.Server) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	return (&keyring{plan: p}).component().Run(ctx, cancel)
}

// tree lists every file below dir with its mode and content.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text, err := os.ReadFile(path)
		out[strings.TrimPrefix(path, dir)] = info.Mode().String() + " " + string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestTrustWritesEverythingOnce(t *testing.T) {
	dir := t.TempDir()
	p := server(t, dir)
	if err := trust(t, p); err != nil {
		t.Fatal(err)
	}
	first := tree(t, dir)
	for _, path := range []string{p.Paths.Token(), p.Kubeconfig.Path, p.Paths.ServiceAccountKey(), p.Paths.CA("server").Key,
		p.Paths.ServerKubeconfig("podo"), p.Paths.ServerKubeconfig("kube-controller-manager"), p.Paths.ServerKubeconfig("kube-scheduler"),
		p.Paths.AgentKubeconfig("kubelet"), p.Paths.AgentKubeconfig("kube-proxy"), p.Paths.AgentCA("server"), p.Paths.AgentCA("client")} {
		text, ok := first[strings.TrimPrefix(path, dir)]
		if !ok {
			t.Errorf("%s is missing", path)
		} else if private := !strings.HasSuffix(path, ".crt"); private && !strings.HasPrefix(text, "-rw------- ") {
			t.Errorf("%s: mode %s, want it to be its owner's alone", path, text[:10])
		}
	}
	for path, text := range first {
		if strings.HasSuffix(path, ".key") && !strings.HasPrefix(text, "-rw------- ") {
			t.Errorf("%s: mode %s, want it to be its owner's alone", path, text[:10])
		}
		if strings.HasPrefix(path, "/data/agent/") && strings.HasSuffix(path, "ca/server.key") {
			t.Errorf("%s: a node holds no CA key", path)
		}
	}
	// A start that finds everything right writes nothing.
	if err := trust(t, p); err != nil {
		t.Fatal(err)
	}
	for path, text := range tree(t, dir) {
		if first[path] != text {
			t.Errorf("%s changed at the second start", path)
		}
	}
	// What a kill took away comes back, for the same authorities.
	ca := first[strings.TrimPrefix(p.Paths.CA("server").Cert, dir)]
	for _, path := range []string{p.Kubeconfig.Path, p.Paths.ServerLeaf("admin").Key, p.Paths.AgentKubeconfig("kubelet")} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := trust(t, p); err != nil {
		t.Fatal(err)
	}
	again := tree(t, dir)
	if again[strings.TrimPrefix(p.Paths.CA("server").Cert, dir)] != ca {
		t.Error("another CA")
	}
	for path := range first {
		if _, ok := again[path]; !ok {
			t.Errorf("%s is still missing", path)
		}
	}
}

func TestAdministratorsKubeconfig(t *testing.T) {
	p := server(t, t.TempDir())
	p.Kubeconfig.Path = filepath.Join(t.TempDir(), "elsewhere", "kube.yaml")
	p.Kubeconfig.Mode, p.Kubeconfig.Name, p.Kubeconfig.Server = 0o640, "vineyard", "https://192.0.2.10:6443"
	me, err := user.LookupGroupId("0")
	if err != nil {
		t.Fatal(err)
	}
	p.Kubeconfig.Group = me.Name
	if os.Geteuid() != 0 {
		p.Kubeconfig.Group = ""
	}
	if err := trust(t, p); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(p.Kubeconfig.Path)
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, want 640 (%v)", info.Mode(), err)
	}
	c, err := clientcmd.LoadFromFile(p.Kubeconfig.Path)
	if err != nil {
		t.Fatal(err)
	}
	cluster, who := c.Clusters["vineyard"], c.AuthInfos["vineyard"]
	if c.CurrentContext != "vineyard" || cluster == nil || cluster.Server != "https://192.0.2.10:6443" || who == nil {
		t.Fatalf("context %q, cluster %+v", c.CurrentContext, cluster)
	}
	// It works where it is copied to: nothing in it is a path.
	if cluster.CertificateAuthority+who.ClientCertificate+who.ClientKey != "" {
		t.Error("it names files")
	}
	if _, err := tls.X509KeyPair(who.ClientCertificateData, who.ClientKeyData); err != nil {
		t.Errorf("certificate and key do not fit: %v", err)
	}

	p.Kubeconfig.Group = "no-such-group"
	if err := trust(t, p); err == nil || !strings.Contains(err.Error(), "write-kubeconfig-group") || !strings.Contains(err.Error(), "no-such-group") {
		t.Errorf("unknown group: err = %v, want the setting and the value in it", err)
	}
}

func TestTrustContract(t *testing.T) {
	lifecycletest.Check(t, (&keyring{plan: server(t, t.TempDir())}).component())
}

// TestCertificatesNeverEnd lets a year and a half pass in a server that nobody restarts.
func TestCertificatesNeverEnd(t *testing.T) {
	p := server(t, t.TempDir())
	synctest.Test(t, func(t *testing.T) {
		var said bytes.Buffer
		ctx, stop := context.WithCancel(t.Context())
		ready, done := make(chan struct{}), make(chan error, 1)
		who := &keyring{plan: p, log: slog.New(slog.NewTextHandler(&said, nil))}
		go func() { done <- who.component().Run(ctx, func() { close(ready) }) }()
		<-ready
		first := tree(t, p.Kubeconfig.Path)
		for range 18 {
			time.Sleep(30 * 24 * time.Hour)
			for _, l := range pki.Table(p.Certificates.Names) {
				if cert, err := pki.Load(l.Files(p.Paths)); err != nil || time.Until(cert.NotAfter) < 60*24*time.Hour {
					t.Fatalf("%s after %s: ends %v, %v", l.Name, time.Now(), cert.NotAfter, err)
				}
			}
			admin, err := clientcmd.LoadFromFile(p.Kubeconfig.Path)
			if err != nil {
				t.Fatal(err)
			}
			want, _, err := read(p.Paths.ServerLeaf("admin"))
			if got := admin.AuthInfos[p.Kubeconfig.Name].ClientCertificateData; err != nil || !bytes.Equal(got, want) {
				t.Fatalf("the administrator's kubeconfig holds another certificate than the one on disk: %v", err)
			}
		}
		if maps.Equal(first, tree(t, p.Kubeconfig.Path)) {
			t.Error("the administrator's certificate was never renewed")
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := strings.Count(said.String(), "certificates renewed"); n < 2 || n > 3 {
			t.Errorf("said %d times that certificates were renewed\n%s", n, said.String())
		}
	})
}

// TestBuild checks the boot order: who waits for whom.
func TestBuild(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	deps := Deps{Gate: gate.New(), Manifests: fstest.MapFS{}, Values: func() (map[string]string, error) { return nil, nil }, Log: log}
	g := lifecycle.NewGroup(log)
	s, err := Build(g, server(t, t.TempDir()), deps)
	if err != nil {
		t.Fatal(err)
	}
	if s.Trust == nil || s.API == nil || s.Store == nil {
		t.Errorf("server = %+v", s)
	}
	got, want := order(g), []string{
		"certificates <",
		"datastore < certificates",
		"egress <",
		"kube-apiserver < certificates datastore egress",
		"supervisor < kube-apiserver",
		"metrics-server < kube-apiserver",
		"load-balancer < kube-apiserver",
		"kube-controller-manager < kube-apiserver",
		"kube-scheduler < kube-apiserver",
		"volume-provisioner < kube-apiserver",
		"node-role < kube-apiserver",
		"manifests < kube-apiserver",
		"addons < kube-apiserver",
		"helm-controller < kube-apiserver",
	}
	if !slices.Equal(got, want) {
		t.Errorf("order\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestBuildForEtcdAlone checks the boot order of a server that runs no API server.
func TestBuildForEtcdAlone(t *testing.T) {
	cfg := config.Default()
	cfg.Datastore.Init = true
	cfg.Components.NoAPIServer, cfg.Components.NoControllers, cfg.Components.NoScheduler = true, true, true
	p, err := plan.New(cfg, plantest.Machine(), plan.Known{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	g := lifecycle.NewGroup(log)
	s, err := Build(g, *p.Server, Deps{Gate: gate.New(), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	if s.Near != s.API {
		t.Error("parts start before an API server answers")
	}
	if got, want := order(g), []string{
		"certificates <",
		"datastore < certificates",
		"secrets < datastore",
		"port < certificates datastore",
		"balancer < certificates",
		"servers < balancer certificates datastore",
		"api < balancer",
		"supervisor < api",
		"volume-provisioner < api",
		"node-role < api",
		"manifests < api",
	}; !slices.Equal(got, want) {
		t.Errorf("order\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// order lists every part with what it waits for.
func order(g *lifecycle.Group) (out []string) {
	for _, u := range g.Status() {
		slices.Sort(u.WaitOn)
		out = append(out, strings.TrimSpace(u.Name+" < "+strings.Join(u.WaitOn, " ")))
	}
	return out
}

func TestBuildWithoutScheduler(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	p := server(t, t.TempDir())
	p.Scheduler = nil
	g := lifecycle.NewGroup(log)
	if _, err := Build(g, p, Deps{Gate: gate.New(), Log: log}); err != nil {
		t.Fatal(err)
	}
	for _, u := range g.Status() {
		if u.Name == "kube-scheduler" {
			t.Error("a scheduler was added")
		}
	}
}

func TestBuildReportsEveryWrongFlag(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	p := server(t, t.TempDir())
	p.APIServer.Args, p.ControllerManager.Args, p.Scheduler.Args = []string{"bad-a=1"}, []string{"bad-b=1"}, []string{"leader-elect=true"}
	_, err := Build(lifecycle.NewGroup(log), p, Deps{Gate: gate.New(), Log: log})
	for _, want := range []string{"kube-apiserver-arg: unknown flag: --bad-a", "kube-controller-manager-arg: unknown flag: --bad-b", "kube-scheduler-arg: leader-elect: "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("err = %v, want %q in it", err, want)
		}
	}
}

func TestReady(t *testing.T) {
	status := http.StatusOK
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" {
			status = http.StatusNotFound
		}
		w.WriteHeader(status)
	}))
	rc := &rest.Config{Host: api.URL}
	if err := ready(t.Context(), rc); err != nil {
		t.Error(err)
	}
	status = http.StatusInternalServerError
	if err := ready(t.Context(), rc); err == nil || !strings.Contains(err.Error(), "500") {
		t.Errorf("err = %v, want the answer in it", err)
	}
	api.Close()
	if err := ready(t.Context(), rc); err == nil {
		t.Error("a server that is gone is called ready")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := ready(ended, rc); !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v, want context.Canceled", err)
	}
}
