package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// run calls the command line as a user would, and returns what it printed.
func run(t *testing.T, args ...string) (out, complaint string, err error) {
	t.Helper()
	var o, e bytes.Buffer
	app := newApp()
	app.Writer, app.ErrWriter = &o, &e
	err = app.RunContext(t.Context(), append([]string{"podo"}, args...))
	return o.String(), e.String(), err
}

func script(t *testing.T, shell string) string {
	t.Helper()
	text, _, err := run(t, "completion", shell)
	if err != nil || text == "" {
		t.Fatalf("completion %s = %q, %v", shell, text, err)
	}
	path := filepath.Join(t.TempDir(), "podo."+shell)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestCompletionBash asks bash itself. A function stands in for podo where its tools
// are asked for completions of their own.
func TestCompletionBash(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("no bash here")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a file.yaml"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	path := script(t, "bash")
	const ask = `
cd "$DIR"
podo() {
	case "$*" in
	"kubectl __complete get po") printf 'pods\tpods of a namespace\npodtemplates\n:4\n' ;;
	"kubectl __complete get pods --namespace=ku") printf -- '--namespace=kube-system\n:4\n' ;;
	"kubectl __complete get pods -n ") printf 'default\nkube-system\n:4\n' ;;
	"kubectl __complete apply -f ") printf ':0\n' ;;
	"crictl completion bash") printf '_crictl() {\n    opts="images\npods\nps"\n}\n' ;;
	"ctr images --generate-bash-completion") printf 'check:check that an image is there\nexport\n' ;;
	*) echo "asked: $*" >&2; return 1 ;;
	esac
}
source "$SCRIPT"
COMP_LINE=$LINE COMP_POINT=${#LINE}
_podo
printf '%s\n' "${COMPREPLY[@]}"
`
	tests := map[string]struct {
		line string
		want []string // among the answers
		not  []string
		only bool
	}{
		"commands":               {line: "podo ", want: []string{"server", "kubectl", "uninstall", "status"}, not: []string{"help"}},
		"command begun":          {line: "podo unin", want: []string{"uninstall"}, only: true},
		"sub-command":            {line: "podo kubeconfig ", want: []string{"merge", "path", "remove"}, only: true},
		"flags":                  {line: "podo server --cluster-", want: []string{"--cluster-init", "--cluster-reset", "--cluster-cidr", "--cluster-dns", "--cluster-domain"}, only: true},
		"flags after a value":    {line: "podo uninstall --data-dir /x --", want: []string{"--yes", "--verify", "--help"}},
		"flags where no command": {line: "podo kill ", want: []string{"--grace", "--data-dir"}},
		"choices":                {line: "podo status -o ", want: []string{"json", "text"}, only: true},
		"choices after =":        {line: "podo status --output=j", want: []string{"json"}, only: true},
		"choices of a setting":   {line: "podo server --flannel-backend v", want: []string{"vxlan"}, only: true},
		"file":                   {line: "podo server --config a", want: []string{"a file.yaml"}},
		"optional value":         {line: "podo status --wait --", want: []string{"--output"}},
		"kubectl resources":      {line: "podo kubectl get po", want: []string{"pods", "podtemplates"}, only: true},
		"kubectl after =":        {line: "podo kubectl get pods --namespace=ku", want: []string{"kube-system"}, only: true},
		"kubectl empty word":     {line: "podo kubectl get pods -n ", want: []string{"default", "kube-system"}, only: true},
		"kubectl files":          {line: "podo kubectl apply -f ", want: []string{"a file.yaml"}},
		"crictl":                 {line: "podo crictl p", want: []string{"pods", "ps"}, only: true},
		"crictl arguments":       {line: "podo crictl ps p", only: true},
		"ctr":                    {line: "podo ctr images c", want: []string{"check"}, only: true},
		"nothing known":          {line: "podo nonsense", want: nil, only: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("bash", "--norc", "-c", ask)
			cmd.Env = append(os.Environ(), "SCRIPT="+path, "LINE="+tt.line, "DIR="+dir)
			text, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v: %s", err, text)
			}
			got := strings.FieldsFunc(string(text), func(r rune) bool { return r == '\n' })
			for _, w := range tt.want {
				if !slices.Contains(got, w) {
					t.Errorf("%q offers %q, want %q", tt.line, got, w)
				}
			}
			for _, w := range tt.not {
				if slices.Contains(got, w) {
					t.Errorf("%q offers %q, without %q", tt.line, got, w)
				}
			}
			if tt.only && len(got) != len(tt.want) {
				t.Errorf("%q offers %q, want only %q", tt.line, got, tt.want)
			}
		})
	}
}

// TestCompletionSyntax has each shell read its script, where it is installed.
func TestCompletionSyntax(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		t.Run(shell, func(t *testing.T) {
			path := script(t, shell)
			if _, err := exec.LookPath(shell); err != nil {
				t.Skip("not installed")
			}
			if out, err := exec.Command(shell, "-n", path).CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
