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

// inPlace stands in for podo where scripts ask it and its tools for words.
const inPlace = `case "$*" in
"kubectl __complete get po") printf 'pods\tpods of a namespace\npodtemplates\n:4\n' ;;
"kubectl __complete get pods --namespace=ku") printf -- '--namespace=kube-system\n:4\n' ;;
"kubectl __complete get pods -n ") printf 'default\nkube-system\n:4\n' ;;
"kubectl __complete apply -f ") printf ':0\n' ;;
"crictl completion bash") printf '_crictl() {\n    opts="images\npods\nps"\n}\n' ;;
"ctr images --generate-bash-completion") printf 'check:check that an image is there\nexport\n' ;;
"cluster get clusters") printf 'ci\npodo\n' ;;
"cluster get nodes -o name --name=") printf 'podo-control-plane\n' ;;
"cluster get nodes -o name --name=ci") printf 'ci-control-plane\nci-worker\n' ;;
*) echo "asked: $*" >&2; exit 1 ;;
esac
`

// shells are how each is asked what it offers at the end of $LINE, by its script.
var shells = map[string]string{
	"bash": `source "$SCRIPT"
COMP_LINE=$LINE COMP_POINT=${#LINE}
_podo
printf '%s\n' "${COMPREPLY[@]}"
`,
	// What zsh's completion calls offers all there is, and leaves it to zsh to choose.
	"zsh": `compdef() { }
compadd() { [[ $1 == -- ]] && shift; for w; do [[ $w == $typed* ]] && print -r -- $w; done }
_files() { for w in *; do [[ $w == $typed* ]] && print -r -- $w; done }
_describe() { for w in ${(P)2}; do w=${w%%:*}; [[ $w == $typed* ]] && print -r -- $w; done }
source "$SCRIPT"
words=(${(s: :)LINE})
[[ $LINE == *' ' ]] && words+=('')
CURRENT=${#words} typed=$words[-1]
_podo
true
`,
	"fish": `set -x PATH $BIN $PATH
source $SCRIPT
complete -C $LINE | string replace -r '\t.*' ''
true
`,
}

// TestCompletion asks the shells themselves.
func TestCompletion(t *testing.T) {
	dir, bin := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "afile.yaml"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "podo"), []byte("#!/bin/sh\n"+inPlace), 0o755); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		line string
		want []string // among the answers
		not  []string
		only bool
		bash bool // other shells show it otherwise
	}{
		"commands":               {line: "podo ", want: []string{"server", "kubectl", "uninstall", "status"}, not: []string{"help"}},
		"command begun":          {line: "podo unin", want: []string{"uninstall"}, only: true},
		"sub-command":            {line: "podo kubeconfig ", want: []string{"merge", "path", "remove"}, only: true},
		"flags":                  {line: "podo server --cluster-", want: []string{"--cluster-init", "--cluster-reset", "--cluster-cidr", "--cluster-dns", "--cluster-domain"}, only: true},
		"flags after a value":    {line: "podo uninstall --data-dir /x --", want: []string{"--yes", "--verify", "--help"}},
		"flags where no command": {line: "podo kill ", want: []string{"--grace", "--data-dir"}, bash: true},
		"choices":                {line: "podo status -o ", want: []string{"json", "text"}, only: true},
		"choices after =":        {line: "podo status --output=j", want: []string{"json"}, only: true, bash: true},
		"choices of a setting":   {line: "podo server --flannel-backend v", want: []string{"vxlan"}, only: true},
		"file":                   {line: "podo server --config a", want: []string{"afile.yaml"}},
		"file as an argument":    {line: "podo cluster load archive a", want: []string{"afile.yaml"}},
		"optional value":         {line: "podo status --wait --", want: []string{"--output"}},
		"clusters":               {line: "podo cluster delete --name ", want: []string{"ci", "podo"}, only: true},
		"clusters after =":       {line: "podo cluster stop --name=c", want: []string{"ci"}, only: true, bash: true},
		"no cluster to make":     {line: "podo cluster create --name ", not: []string{"ci"}},
		"nodes":                  {line: "podo cluster node remove ", want: []string{"podo-control-plane"}, only: true},
		"nodes of a cluster":     {line: "podo cluster node exec --name ci ci-", want: []string{"ci-control-plane", "ci-worker"}, only: true},
		"nodes after =":          {line: "podo cluster node exec --name=ci ci-w", want: []string{"ci-worker"}, only: true},
		"nodes to load into":     {line: "podo cluster load archive --name ci --nodes ", want: []string{"ci-control-plane", "ci-worker"}, only: true},
		"kubectl resources":      {line: "podo kubectl get po", want: []string{"pods", "podtemplates"}, only: true},
		"kubectl after =":        {line: "podo kubectl get pods --namespace=ku", want: []string{"kube-system"}, only: true, bash: true},
		"kubectl empty word":     {line: "podo kubectl get pods -n ", want: []string{"default", "kube-system"}, only: true},
		"kubectl files":          {line: "podo kubectl apply -f ", want: []string{"afile.yaml"}},
		"crictl":                 {line: "podo crictl p", want: []string{"pods", "ps"}, only: true},
		"crictl arguments":       {line: "podo crictl ps p", only: true},
		"ctr":                    {line: "podo ctr images c", want: []string{"check"}, only: true},
		"nothing known":          {line: "podo nonsense", want: nil, only: true},
	}
	for shell, ask := range shells {
		t.Run(shell, func(t *testing.T) {
			if _, err := exec.LookPath(shell); err != nil {
				t.Skip("not installed")
			}
			path := script(t, shell)
			for name, tt := range tests {
				if tt.bash && shell != "bash" {
					continue
				}
				t.Run(name, func(t *testing.T) {
					cmd := exec.Command(shell, "-c", ask)
					cmd.Dir = dir
					cmd.Env = append(os.Environ(), "SCRIPT="+path, "LINE="+tt.line, "BIN="+bin, "HOME="+bin, "PATH="+bin+":"+os.Getenv("PATH"))
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
