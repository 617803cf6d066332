package local

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestThePage runs what docs/cluster.md tells people to type: its first block, and the job
// for CI.
func TestThePage(t *testing.T) {
	s := begin(t)
	text, err := os.ReadFile("../../docs/cluster.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "```\n")
	begins, rest, _ := strings.Cut(rest, "```")
	_, rest, _ = strings.Cut(rest, "```sh\n")
	job, _, _ := strings.Cut(rest, "```")

	dir := t.TempDir()
	for name, to := range map[string]string{
		"bin/podo": s.podo, "bin/kubectl": s.podo, "image.tar": filepath.Join(s.dist, "images", "agnhost.tar"), "bin/sudo": "/usr/bin/env",
	} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	deploy := strings.NewReplacer("name: web}\nspec:\n  replicas", "name: app}\nspec:\n  replicas", "$AGNHOST", agnhost).Replace(web)
	for name, text := range map[string]string{"kind.yaml": head + "nodes: [{role: control-plane}, {role: worker}]\n", "deploy/app.yaml": deploy} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for what, script := range map[string]string{"the first block": begins, "the job": job} {
		if !strings.Contains(script, "podo cluster delete") {
			t.Fatalf("%s is not on the page any more:\n%s", what, script)
		}
		cmd := exec.CommandContext(t.Context(), "sh", "-ec", script)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "KUBECONFIG="+s.kubeconfig, "PATH="+filepath.Join(dir, "bin")+":"+os.Getenv("PATH"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", what, err, out)
		}
		if left := look(t).beside(s.before); len(left) > 0 {
			t.Errorf("%s leaves:\n%s", what, strings.Join(left, "\n"))
		}
	}
	if logs, _ := filepath.Glob(filepath.Join(dir, "logs/ci-worker/podo.log")); len(logs) != 1 {
		t.Error("the job kept no logs")
	}
}
