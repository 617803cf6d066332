package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func tellsVersion(t *testing.T) {
	text := must(t, "version")
	if err := contains(text, "podo ", "kubernetes  v1.36.4+podo1", "go "); err != nil {
		t.Error(err)
	}
	var v struct {
		Podo, Commit, Kubernetes, Go, Platform string
		Payload                                []struct {
			Name, Version, License, SHA256 string
			Size                           int64
		}
		Linked []struct{ Name, Version string }
	}
	if err := json.Unmarshal([]byte(must(t, "version", "--components", "-o", "json")), &v); err != nil {
		t.Fatal(err)
	}
	stamps, err := exec.Command(filepath.Join(repository(), "scripts", "stamps"), "podo").Output()
	if err != nil {
		t.Fatal(err)
	}
	if _, want, ok := strings.Cut(string(stamps), "pkg/version.podo="); ok {
		if want, _, _ = strings.Cut(want, "\n"); v.Podo != want {
			t.Errorf("it says that it is %s, and was built as %s", v.Podo, want)
		}
	}
	if _, want, _ := strings.Cut(string(stamps), "pkg/version.commit="); v.Commit == "" || !strings.HasPrefix(want, v.Commit) {
		t.Errorf("it says that it is of commit %q, and was built from %.40s", v.Commit, want)
	}
	if v.Podo == "" || v.Podo == "dev" || v.Kubernetes != "v1.36.4+podo1" || !strings.HasPrefix(v.Go, "go1.") {
		t.Errorf("the stamps are %+v", v)
	}
	has := map[string]bool{}
	for _, p := range v.Payload {
		has[p.Name] = true
		if p.Version == "" || p.License == "" || p.SHA256 == "" || p.Size == 0 {
			t.Errorf("nobody knows what %+v is", p)
		}
	}
	for _, p := range v.Linked {
		has[p.Name] = p.Version != ""
	}
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "runc", "bridge", "host-local", "portmap", "loopback", "nft", "crictl", "kubectl", "ctr", "images/pause.tar", "images/coredns.tar", "images/traefik.tar", "manifests/traefik.yaml", "manifests/gateway-api.yaml", "kubernetes", "kine", "etcd", "flannel"} {
		if !has[name] {
			t.Errorf("%s is not inside", name)
		}
	}
}

func tellsThatItDoesNotRun(t *testing.T) {
	r := podo("status")
	if err := contains(r.err, "not running", "podo server"); r.code != 1 || err != nil {
		t.Errorf("status without a server: %s", r)
	}
	r = podo("status", "-o", "json")
	if err := contains(r.out, `"ready": false`); r.code != 1 || err != nil {
		t.Errorf("status -o json without a server: %s", r)
	}
	if r = podo("kill"); r.code != 0 {
		t.Errorf("kill, where nothing runs: %s", r)
	}
	if r = podo("uninstall", "--verify"); r.code != 0 {
		t.Errorf("uninstall --verify, where nothing is: %s", r)
	}
	if r = podo("uninstall"); r.code != 2 || contains(r.err, "--yes") != nil {
		t.Errorf("uninstall, without anybody to confirm: %s", r)
	}
}

func checksTheMachine(t *testing.T) {
	text := must(t, "check-config")
	if err := contains(text, "OK", "kernel", "control groups", "can run podo"); err != nil {
		t.Error(err)
	}
	var findings []struct{ Name, Level, Detail, Remedy string }
	if err := json.Unmarshal([]byte(must(t, "check-config", "-o", "json")), &findings); err != nil {
		t.Fatal(err)
	}
	if len(findings) < 10 {
		t.Errorf("only %d findings: %v", len(findings), findings)
	}
	for _, f := range findings {
		if f.Level == "FAIL" || f.Level == "WARN" && f.Remedy == "" || f.Name == "" || f.Detail == "" {
			t.Errorf("finding %+v", f)
		}
	}
	if r := as(65534, "check-config"); r.code != 1 || contains(r.out, "FAIL", "not root", "sudo") != nil {
		t.Errorf("as nobody: %s", r)
	}
	l, err := listen("0.0.0.0:6443")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if r := podo("check-config"); r.code != 1 || contains(r.out, "FAIL", "6443") != nil {
		t.Errorf("with its port taken: %s", r)
	}
}

func blamesOrigin(t *testing.T) {
	file := filepath.Join(room(), "origins.yaml")
	write(t, file, "debug: false\ncluster-cidr: 10.52.0.0/16\n")
	write(t, file+".d/10-more.yaml", "node-label+: [a=b]\n")
	r := podoWith("", []string{"PODO_SERVICE_CIDR=10.53.0.0/16", "K3S_CLUSTER_DOMAIN=k3s.local"}, "config", "show", "--origin", "--config", file, "--https-listen-port", "7443")
	if r.code != 0 {
		t.Fatal(r)
	}
	for setting, origin := range map[string]string{
		"cluster-cidr": file + ":2", "service-cidr": "$PODO_SERVICE_CIDR", "cluster-domain": "$K3S_CLUSTER_DOMAIN",
		"https-listen-port": "--https-listen-port", "node-label": "10-more.yaml:1", "data-dir": "default",
	} {
		found := false
		for line := range strings.Lines(r.out) {
			found = found || strings.HasPrefix(line, setting+":") && strings.Contains(line, origin)
		}
		if !found {
			t.Errorf("%s does not come from %s in:\n%s", setting, origin, r.out)
		}
	}
}

func bringsTools(t *testing.T) {
	s := scenario(t)
	if out := must(t, "kubectl", "get", "nodes", "-o", "name"); out != "node/"+s.node().Name+"\n" {
		t.Errorf("kubectl get nodes: %q", out)
	}
	within(t, 30*time.Second, "crictl sees CoreDNS", func() error {
		return contains(podo("crictl", "pods").out+podo("crictl", "ps").out, "coredns", "Running")
	})
	if err := contains(must(t, "crictl", "images"), "podo.local/pause", "podo.local/coredns", "podo.local/busybox"); err != nil {
		t.Error(err)
	}
	if err := contains(must(t, "ctr", "containers", "list", "-q"), "\n"); err != nil {
		t.Error(err)
	}
	if r := podo("kubectl", "get", "nothing-of-the-kind"); r.code != 1 {
		t.Errorf("kubectl's exit code is lost: %s", r)
	}
	// By the names that fingers know.
	for name, args := range map[string][]string{"kubectl": {"get", "namespaces"}, "crictl": {"version"}, "ctr": {"version"}} {
		link := filepath.Join(room(), "links", name)
		if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(room(), "podo"), link); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(link, args...)
		cmd.Env = environment(room())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s %v: %v\n%s", link, args, err, out)
		}
	}
	// Who is not root is told what to do.
	if r := as(65534, "kubectl", "get", "nodes"); r.code == 0 || contains(r.err, "sudo", "--write-kubeconfig-mode") != nil {
		t.Errorf("kubectl as nobody: %s", r)
	}
}

func completesInBash(t *testing.T) {
	script := must(t, "completion", "bash")
	// What a shell does on TAB: it fills in the words and calls the function.
	ask := func(words ...string) string {
		t.Helper()
		line := fmt.Sprintf(`
%s
COMP_WORDS=(%s); COMP_CWORD=%d; COMP_LINE="%s"; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9; COMP_KEY=9
f=$(complete -p podo | sed 's/.*-F \([^ ]*\).*/\1/')
$f podo "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}" 2>/dev/null
printf '%%s\n' "${COMPREPLY[@]}"`, script, "'"+strings.Join(words, "' '")+"'", len(words)-1, strings.Join(words, " "))
		ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
		defer stop()
		cmd := exec.CommandContext(ctx, "bash", "--norc", "-c", line)
		cmd.Env = append(environment(room()), "PATH="+room()+":"+os.Getenv("PATH"))
		out, err := cmd.Output()
		if err != nil {
			t.Logf("bash: %v", err)
		}
		return string(out)
	}
	for _, c := range []struct{ words, want []string }{
		{[]string{"podo", "se"}, []string{"server"}},
		{[]string{"podo", ""}, []string{"server", "status", "kubectl", "uninstall"}},
		{[]string{"podo", "server", "--cluster-"}, []string{"--cluster-cidr", "--cluster-dns", "--cluster-domain"}},
		{[]string{"podo", "completion", ""}, []string{"bash", "zsh", "fish"}},
		{[]string{"podo", "kubectl", "get", "namesp"}, []string{"namespaces"}},
	} {
		if err := contains(ask(c.words...), c.want...); err != nil {
			t.Errorf("podo %v<TAB>: %v", c.words[1:], err)
		}
	}
	for _, shell := range []string{"zsh", "fish"} {
		if out := must(t, "completion", shell); !strings.Contains(out, "podo") {
			t.Errorf("completion %s: %q", shell, out)
		}
	}
}
