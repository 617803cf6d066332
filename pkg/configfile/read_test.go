package configfile_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/configfile"
)

func show(list []config.Setting) string {
	var out []string
	for _, s := range list {
		out = append(out, fmt.Sprintf("%s=%q@%s", s.Name, s.Values, filepath.Base(s.Origin)))
	}
	return strings.Join(out, " ")
}

func TestParse(t *testing.T) {
	tests := map[string]struct{ in, want string }{
		"empty":               {"", ""},
		"comments alone":      {"# nothing yet\n\n", ""},
		"a document marker":   {"---\nv: 3\n", `v=["3"]@c:2`},
		"null document":       {"---\n", ""},
		"byte order mark":     {"\xef\xbb\xbfv: 3\n", `v=["3"]@c:1`},
		"Windows lines":       {"v: 3\r\ndebug: true\r\n", `v=["3"]@c:1 debug=["true"]@c:2`},
		"kinds of values":     {"debug: true\nhttps-listen-port: 6443\ntoken: \"007\"\nwrite-kubeconfig-mode: 0644\n", `debug=["true"]@c:1 https-listen-port=["6443"]@c:2 token=["007"]@c:3 write-kubeconfig-mode=["0644"]@c:4`},
		"lists":               {"tls-san:\n- a\n- b\nnode-label: [x=1, y=2]\n", `tls-san=["a" "b"]@c:1 node-label=["x=1" "y=2"]@c:4`},
		"one for a list":      {"tls-san: a,b\n", `tls-san=["a,b"]@c:1`},
		"an empty list":       {"disable: []\n", `disable=[]@c:1`},
		"adding":              {"tls-san: [a]\ntls-san+: [b]\n", `tls-san=["a"]@c:1 tls-san+=["b"]@c:2`},
		"mapping of gates":    {"feature-gates:\n  A: true\n  B: false\n", `feature-gates=["A=true" "B=false"]@c:1`},
		"mapping of labels":   {"node-label:\n  a: b\n  c:\n", `node-label=["a=b" "c="]@c:1`},
		"anchors":             {"tls-san: &x [a]\nnode-label: *x\n", `tls-san=["a"]@c:1 node-label=["a"]@c:2`},
		"unknown name passes": {"clutser-cidr: x\n", `clutser-cidr=["x"]@c:1`},
		"dashes of a flag":    {"--debug: true\n", `debug=["true"]@c:1`},
		"an empty text":       {"node-name: \"\"\n", `node-name=[""]@c:1`},
		"a tab in a text":     {"node-label: [\"a=b\"]\t# note\n", `node-label=["a=b"]@c:1`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := configfile.Parse("c", []byte(tt.in))
			if err != nil || show(got) != tt.want {
				t.Errorf("Parse(%q) = %s, %v; want %s", tt.in, show(got), err, tt.want)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	tests := map[string]struct{ in, want string }{
		"a list":                     {"- a\n", "c:1: is a list; settings are written as name: value"},
		"a word":                     {"\nhello\n", `c:2: is the plain value "hello"`},
		"twice":                      {"v: 1\ndebug: true\nv: 2\n", "c:3: v is here again, after line 1"},
		"twice by an alias":          {"kube-controller-arg: a=1\nkube-controller-manager-arg: b=2\n", "c:2: kube-controller-manager-arg is here again, after line 1"},
		"no value":                   {"v:\n", "c:1: v: has no value"},
		"mapping for a list":         {"kubelet-arg:\n  max-pods: 250\n", "c:2: kubelet-arg: is a mapping; it takes list of texts, such as - max-pods=250"},
		"mapping for a text":         {"data-dir: {a: b}\n", "data-dir: is a mapping; it takes text"},
		"mapping in a list":          {"kubelet-arg:\n- max-pods: 250\n", "c:2: kubelet-arg: an entry is a mapping; write plain values, such as - max-pods=250"},
		"list in a list":             {"tls-san:\n- [a]\n", "c:2: tls-san: an entry is a list"},
		"empty entry":                {"tls-san:\n- a\n-\n", "tls-san: an entry is empty"},
		"gate twice":                 {"feature-gates:\n  A: true\n  A: false\n", "c:3: feature-gates: A is here twice"},
		"deep mapping":               {"feature-gates:\n  A: {b: c}\n", "c:2: feature-gates: values below it must be plain"},
		"tabs":                       {"tls-san:\n\t- a\n", "c:2: starts with a tab; YAML is indented with spaces"},
		"two documents":              {"v: 1\n---\nv: 2\n", "a second document begins here"},
		"bad YAML":                   {"v: 1\nx: [a\n", "not valid YAML"},
		"not UTF-8":                  {"v: 1\nnode-name: caf\xe9\n", "c:2: is not UTF-8 text"},
		"NUL":                        {"v: 1\nx: \x00\n", "c:2: holds a NUL byte"},
		"a file in a file":           {"config: /x\n", "c:1: config: a file cannot name another"},
		"a list for a name":          {"[a]: b\n", "c:1: the name of a setting is a list"},
		"a number for a name":        {"1: b\n", "c:1: the name of a setting is the plain value"},
		"no colon":                   {"v 1\ndebug true\n", "is the plain value"},
		"far too many":               {many(), "c:1: holds 100000 settings, far more than there are"},
		"aliases that grow the file": {bomb(), "c:"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := configfile.Parse("c", []byte(tt.in))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Parse(%.80q) = %s, %v; want %q", tt.in, show(got), err, tt.want)
			}
		})
	}
}

func many() string {
	var b strings.Builder
	for i := range 100000 {
		fmt.Fprintf(&b, "k%d: 1\n", i)
	}
	return b.String()
}

// bomb is a file of lists that each name the one before nine times.
func bomb() string {
	var b strings.Builder
	b.WriteString("a0: &a0 [x]\n")
	for i := 1; i < 20; i++ {
		fmt.Fprintf(&b, "a%d: &a%d [%s*a%d]\n", i, i, strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 8), i-1)
	}
	return b.String()
}

func TestEveryMistakeAtOnce(t *testing.T) {
	got, err := configfile.Parse("c", []byte("v:\ndata-dir: [[]]\ndebug: true\ndebug: false\nkubelet-arg: {a: b}\n"))
	if n := strings.Count(err.Error(), "\n") + 1; n != 4 || show(got) != `debug=["true"]@c:3` {
		t.Errorf("%d mistakes, want 4; %s\n%v", n, show(got), err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	os.MkdirAll(filepath.Dir(path), 0o755)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestReadAddsDropinsInNameOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	write(t, path, "v: 1\n")
	write(t, path+".d/20-b.yaml", "v: 3\n")
	write(t, path+".d/10-a.yml", "tls-san+: [a]\nv: 2\n")
	write(t, path+".d/.10-a.yaml.swp.yaml", "not: [ours\n")
	write(t, path+".d/README", "not YAML: [\n")
	got, err := configfile.Read(path, "")
	want := `v=["1"]@config.yaml:1 tls-san+=["a"]@10-a.yml:1 v=["2"]@10-a.yml:2 v=["3"]@20-b.yaml:1`
	if err != nil || show(got) != want {
		t.Errorf("got  %s, %v\nwant %s", show(got), err, want)
	}
}

func TestReadWithoutFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	if got, err := configfile.Read(path, ""); err != nil || got != nil {
		t.Errorf("missing default: %v, %v", got, err)
	}
	if _, err := configfile.Read(path, "--config"); err == nil || !strings.HasPrefix(err.Error(), "--config: ") {
		t.Errorf("missing file that was named: %v", err)
	}
	write(t, path+".d/a.yaml", "v: 1\n")
	if got, err := configfile.Read(path, ""); err != nil || show(got) != `v=["1"]@a.yaml:1` {
		t.Errorf("drop-in alone: %s, %v", show(got), err)
	}
}

func TestReadRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big.yaml")
	write(t, big, strings.Repeat("# ten bytes\n", 1<<20))
	write(t, filepath.Join(dir, "folder.yaml", "x"), "")
	for path, want := range map[string]string{
		dir:                               "is a folder",
		big:                               "larger than 1 MiB",
		"/dev/fd":                         "is a folder",
		filepath.Join(big, "x"):           "not a directory",
		"/dev/null":                       "not a regular file",
		filepath.Join(dir, "folder.yaml"): "go into " + filepath.Join(dir, "folder.yaml") + ".d",
	} {
		if _, err := configfile.Read(path, ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Read(%s): %v, want %q", path, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"v: 1\n", "a: [b, c]\n", "feature-gates: {A: true}\n", "a: &x [1]\nb: *x\n", "---\n---\n", "\t", "? a\n: b\n", "<<: {a: b}\n", "a: !!binary x\n", bomb()} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := configfile.Parse("c", text)
		for _, s := range got {
			if s.Name == "" && err == nil && !strings.Contains(string(text), ":") {
				t.Errorf("a setting without a name in %q", text)
			}
			if !strings.HasPrefix(s.Origin, "c:") {
				t.Errorf("origin %q of %q", s.Origin, s.Name)
			}
		}
		if err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n") {
				if !strings.HasPrefix(line, "c:") && !strings.HasPrefix(line, " ") {
					t.Errorf("a mistake without a place: %q", line)
				}
			}
		}
		cfg := config.Default()
		config.Resolve(&cfg, got)
	})
}
