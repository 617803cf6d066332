package main

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/status"
)

func TestSteps(t *testing.T) {
	var b strings.Builder
	s := newSteps(&b, time.Now().Add(-400*time.Millisecond), false)
	s.Done("datastore", "datastore ready (SQLite)")
	s.Done("datastore", "datastore ready again")
	s.Failed("kubelet", "kubelet: no memory cgroup")
	want := regexp.MustCompile(`^   0\.4s  datastore ready \(SQLite\)\n   0\.4s  kubelet: no memory cgroup\n$`)
	if !want.MatchString(b.String()) {
		t.Errorf("steps = %q", b.String())
	}
	b.Reset()
	newSteps(&b, time.Now(), true).Failed("x", "y")
	if !strings.Contains(b.String(), "\x1b[31my\x1b[0m") {
		t.Errorf("no colour in %q", b.String())
	}
}

func TestRoughly(t *testing.T) {
	for in, want := range map[time.Duration]string{
		300 * time.Millisecond:           "0s",
		59 * time.Second:                 "59s",
		190 * time.Second:                "3m10s",
		12*time.Minute + 5*time.Second:   "12m",
		5 * time.Hour:                    "5h",
		52 * time.Hour:                   "2d4h",
		24*time.Hour*400 + 5*time.Minute: "400d",
	} {
		if got := roughly(in); got != want {
			t.Errorf("roughly(%s) = %s, want %s", in, got, want)
		}
	}
}

func TestSize(t *testing.T) {
	for in, want := range map[int64]string{0: "0 B", 999: "999 B", 1_250_000: "1.2 MB", 38_000_000_000: "38.0 GB"} {
		if got := size(in); got != want {
			t.Errorf("size(%d) = %s, want %s", in, got, want)
		}
	}
}

func TestPrintStatus(t *testing.T) {
	now := time.Unix(1e9, 0)
	r := status.Report{
		Version: "0.1.0", Kubernetes: "v1.36.4+podo1", PID: 7, Since: now.Add(-time.Minute),
		Components: []lifecycle.Status{
			{Name: "datastore", State: lifecycle.Ready, Since: now.Add(-59 * time.Second)},
			{Name: "kubelet", State: lifecycle.Waiting, WaitOn: []string{"containerd", "api"}},
			{Name: "containerd", State: lifecycle.Restarting, Since: now.Add(-time.Second), Restarts: 3, Error: "containerd ended: signal: killed"},
			{Name: "registries", State: lifecycle.Ready, Since: now, Restarts: 1, Error: "killed"},
			{Name: "flannel", State: lifecycle.Failed, Since: now, Error: "no default route\nmore"},
		},
		Node:      &status.Node{Name: "lab", Reason: "container network is not ready"},
		Datastore: &status.Datastore{Kind: "SQLite", Healthy: true, Bytes: 1_200_000, LatencySeconds: 0.0003},
	}
	var b strings.Builder
	if err := printStatus(&b, r, now, false); err != nil {
		t.Fatal(err)
	}
	const want = `podo 0.1.0 with Kubernetes v1.36.4+podo1, pid 7, up 1m

PART         STATE        SINCE   
datastore    ready        59s     
kubelet      waiting      -       waits for containerd, api
containerd   restarting   1s      restarted 3 times, the last time after: containerd ended: signal: killed
registries   ready        0s      restarted once, the last time after: killed
flannel      failed       0s      no default route

node       NotReady, lab, container network is not ready
datastore  healthy, SQLite, 1.2 MB, answers in 0.3 ms
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestWaitFlag(t *testing.T) {
	for in, want := range map[string]time.Duration{"true": 5 * time.Minute, "30s": 30 * time.Second, "false": 0} {
		p := patience{ifBare: 5 * time.Minute}
		if err := p.Set(in); err != nil || p.d != want || p.wrong != "" {
			t.Errorf("Set(%q) = %s, %v; want %s", in, p.d, err, want)
		}
	}
	for _, in := range []string{"soon", "-1s", "0s"} {
		if err := new(patience).check(in); err == nil {
			t.Errorf("%q was accepted", in)
		}
	}
}

func TestRefusals(t *testing.T) {
	tests := map[string]struct {
		args []string
		want string
		code int
	}{
		"status with an argument":   {[]string{"status", "now"}, `no argument "now"`, 2},
		"status in no known format": {[]string{"status", "-o", "xml"}, "text or json", 2},
		"wait for nonsense":         {[]string{"status", "--wait=soon"}, "30s or 5m", 2},
		"version with an argument":  {[]string{"version", "full"}, `no argument "full"`, 2},
		"kill with an argument":     {[]string{"kill", "all"}, `no argument "all"`, 2},
		"unknown flag":              {[]string{"kill", "--force"}, "--force", 2},
	}
	for _, words := range [][]string{{"node", "remove"}, {"node", "exec"}, {"load", "archive"}, {"load", "image"}, {"export", "logs"}, {"stop"}} {
		args := append(append([]string{"cluster"}, words...), "--name", "")
		if words[0] != "stop" {
			args = append(args, "/nowhere")
		}
		tests["cluster "+strings.Join(words, " ")+" of a cluster without a name"] = struct {
			args []string
			want string
			code int
		}{args, "--name: is empty", 2}
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, _, err := run(t, tt.args...)
			if err == nil || !strings.Contains(err.Error(), tt.want) || exitCode(err) != tt.code {
				t.Errorf("podo %s = %v (exit code %d), want %q and %d", strings.Join(tt.args, " "), err, exitCode(err), tt.want, tt.code)
			}
		})
	}
}

func TestHelpHasExamples(t *testing.T) {
	var look func(c *cli.Command, name string)
	look = func(c *cli.Command, name string) {
		switch {
		case c.SkipFlagParsing: // another program's, which has help of its own
		case len(c.Subcommands) > 0 && c.Description == "":
			for _, sub := range c.Subcommands {
				look(sub, name+" "+sub.Name)
			}
		case c.Usage == "" || !strings.Contains(c.Description, name):
			t.Errorf("%s --help has no usage or no example", name)
		}
	}
	for _, c := range newApp().Commands {
		look(c, "podo "+c.Name)
	}
}

func TestCalledAs(t *testing.T) {
	for in, want := range map[string]bool{"/usr/local/bin/kubectl": true, "ctr": true, "podo": false, "./dist/podo": false} {
		if _, got := calledAs(in); got != want {
			t.Errorf("calledAs(%q) = %t", in, got)
		}
	}
}

func TestAppletEnv(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	t.Setenv("KUBECONFIG", "")
	admin := filepath.Join(t.TempDir(), "podo.yaml")
	want := "podo server"
	if _, err := os.Stat(paths.New(paths.DefaultData).Identity()); err == nil {
		want = "this machine is a node"
	}
	if _, err := appletEnv("kubectl", []string{"get", "pods"}, admin); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("without a cluster: %v", err)
	}
	if _, err := appletEnv("kubectl", []string{"get", "--help"}, admin); err != nil {
		t.Errorf("help without a cluster: %v", err)
	}
	if err := os.WriteFile(admin, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	last := func(env []string, key string) (v string) {
		for _, kv := range env {
			if s, ok := strings.CutPrefix(kv, key+"="); ok {
				v = s
			}
		}
		return v
	}
	env, err := appletEnv("kubectl", []string{"get", "pods"}, admin)
	if got := last(env, "KUBECONFIG"); err != nil || got != admin {
		t.Errorf("KUBECONFIG = %q, %v; want %q", got, err, admin)
	}
	if got := last(env, "KUBECACHEDIR"); !strings.HasSuffix(got, "/podo/kubectl") {
		t.Errorf("KUBECACHEDIR = %q", got)
	}
	t.Setenv("KUBECONFIG", "/mine")
	if env, err = appletEnv("kubectl", nil, admin); err != nil || last(env, "KUBECONFIG") != "/mine" {
		t.Errorf("the user's KUBECONFIG was overridden: %q, %v", last(env, "KUBECONFIG"), err)
	}
	t.Setenv("KUBECONFIG", "")
	own := filepath.Join(os.Getenv("HOME"), ".kube", "config")
	if err := errors.Join(os.Mkdir(filepath.Dir(own), 0o755), os.WriteFile(own, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if env, err = appletEnv("kubectl", []string{"get", "pods"}, admin); err != nil || last(env, "KUBECONFIG") != admin {
		t.Errorf("beside other clusters: KUBECONFIG = %q, %v", last(env, "KUBECONFIG"), err)
	}
	if env, err = appletEnv("kubectl", []string{"get", "--context=podo"}, admin); err != nil || last(env, "KUBECONFIG") != admin+":"+own {
		t.Errorf("with a named context: KUBECONFIG = %q, %v", last(env, "KUBECONFIG"), err)
	}
	t.Setenv("CONTAINERD_NAMESPACE", "mine")
	env, err = appletEnv("ctr", nil, admin)
	if err != nil || last(env, "CONTAINERD_NAMESPACE") != "mine" || last(env, "CONTAINERD_ADDRESS") != "/run/podo/containerd.sock" {
		t.Errorf("ctr: %q, %v", env, err)
	}
}

func TestVersion(t *testing.T) {
	out, _, err := run(t, "version", "-o", "json")
	if err != nil || !strings.Contains(out, `"kubernetes"`) {
		t.Errorf("version = %s, %v", out, err)
	}
}

func TestKubeconfigVerbs(t *testing.T) {
	if _, err := status.Fetch(t.Context(), podoSocket()); err == nil {
		t.Skip("a server runs here, whose kubeconfig it is")
	}
	dir := t.TempDir()
	admin, mine := filepath.Join(dir, "podo.yaml"), filepath.Join(dir, "home", "config")
	t.Setenv("PODO_WRITE_KUBECONFIG", admin)
	if out, _, err := run(t, "kubeconfig", "path"); err != nil || out != admin+"\n" {
		t.Errorf("path = %q, %v", out, err)
	}
	if _, _, err := run(t, "kubeconfig", "merge", "--into", mine); err == nil || !strings.Contains(err.Error(), "podo server") {
		t.Errorf("merge without a cluster = %v", err)
	}
	const text = `{"apiVersion": "v1", "kind": "Config", "current-context": "default",
"clusters": [{"name": "default", "cluster": {"server": "https://127.0.0.1:6443", "certificate-authority-data": "Y2E="}}],
"users": [{"name": "default", "user": {"client-certificate-data": "Y2VydA==", "client-key-data": "a2V5"}}],
"contexts": [{"name": "default", "context": {"cluster": "default", "user": "default"}}]}`
	if err := os.WriteFile(admin, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := run(t, "kubeconfig", "merge", "--into", mine); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(mine)
	for _, want := range []string{"current-context: \"podo\"", "https://127.0.0.1:6443", "a2V5"} {
		if err != nil || !strings.Contains(string(got), want) {
			t.Errorf("merged = %s, %v; want %q in it", got, err, want)
		}
	}
	if _, _, err := run(t, "kubeconfig", "remove", "--from", mine); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(mine); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a kubeconfig with nothing in it was left: %v", err)
	}
}

func TestComplaint(t *testing.T) {
	err := errors.Join(errors.New("one thing"), errors.New("another"))
	if got := complaint(err, false); got != "podo: one thing\nanother" {
		t.Errorf("on a terminal: %q", got)
	}
	if got := complaint(err, true); got != "<3>podo: one thing\n<3>another" {
		t.Errorf("in the journal: %q", got)
	}
}
