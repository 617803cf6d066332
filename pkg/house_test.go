package pkg_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/podo-dev/podo"

// floors lists every package by floor, lowest first. A name covers its subfolders.
var floors = [][]string{
	{"pkg/version", "pkg/config", "pkg/paths", "pkg/lifecycle", "pkg/atomicfile", "manifests"},
	{"pkg/host", "pkg/logging", "pkg/pki", "pkg/token", "pkg/kubeconfig", "pkg/process", "pkg/payload", "pkg/configfile", "pkg/datadir", "pkg/gate", "pkg/nodes", "pkg/balancer", "pkg/machine", "pkg/tree", "pkg/inbox"},
	{"pkg/plan"},
	{"pkg/storage", "pkg/kube", "pkg/containerd", "pkg/flannel", "pkg/tunnel", "pkg/netpol"},
	{"pkg/deploy", "pkg/images", "pkg/status", "pkg/reset", "pkg/join", "pkg/metrics", "pkg/loadbalancer", "pkg/volumes", "pkg/helm", "pkg/registries", "pkg/dns"},
	{"pkg/server", "pkg/agent", "pkg/local"},
	{"cmd/podo"},
}

// doors lists the foreign giants and the only rooms each may enter by. Replacing
// or upgrading one then touches those rooms and no others.
var doors = map[string][]string{
	"github.com/urfave/cli":                  {"cmd/podo"},
	"k8s.io/kubernetes":                      {"pkg/kube"},
	"github.com/k3s-io/kine":                 {"pkg/storage"},
	"go.etcd.io/etcd":                        {"pkg/storage"},
	"github.com/containerd":                  {"pkg/containerd", "pkg/images"},
	"github.com/flannel-io":                  {"pkg/flannel"},
	"github.com/google/go-containerregistry": {"pkg/images", "pkg/local"},
	"github.com/hashicorp/yamux":             {"pkg/tunnel"},
	"helm.sh/helm":                           {"pkg/helm"},
	"oras.land":                              {"pkg/helm", "pkg/registries"},
	"github.com/sirupsen/logrus":             {"pkg/logging"},
	"k8s.io/klog":                            {"pkg/logging", "pkg/kube"},
}

// stamped are the package variables that are the linker's, by package: it sets those
// of version, and makes the others another package's.
var stamped = map[string][]string{
	"pkg/version":        {"podo", "commit", "glibc"},
	"pkg/kube":           {"queueMetrics"},
	"pkg/kube/kubelet":   {"systemBus"},
	"pkg/kube/apiserver": {"etcdClientLogger"},
}

// floorOf returns the floor a package stands on, or -1 if the plan omits it.
func floorOf(dir string) (floor int, room string) {
	for i, rooms := range floors {
		for _, r := range rooms {
			if within(dir, r) {
				return i, r
			}
		}
	}
	return -1, ""
}

// within reports whether path is dir or lies below it.
func within(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// TestPlanIsUpToDate keeps doc.go, which people read, and floors, which is
// enforced, from drifting apart or naming rooms that are gone.
func TestPlanIsUpToDate(t *testing.T) {
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	drawn := strings.FieldsFunc(string(doc), func(r rune) bool { return strings.ContainsRune(" \t\n", r) })
	for _, rooms := range floors {
		for _, room := range rooms {
			if info, err := os.Stat("../" + room); err != nil || !info.IsDir() {
				t.Errorf("%s: on the floor plan, but there is no such folder", room)
			}
			name := strings.TrimPrefix(room, "pkg/")
			if !slices.Contains(drawn, name) && !slices.Contains(drawn, name+"/...") {
				t.Errorf("%s: on the floor plan, but doc.go does not draw it", room)
			}
		}
	}
}

func TestFloors(t *testing.T) {
	for dir, files := range sources(t) {
		if dir == "pkg" {
			continue
		}
		from, room := floorOf(dir)
		if from < 0 {
			t.Errorf("%s: not in the floor plan; add it to floors and to doc.go", dir)
			continue
		}
		for _, f := range files {
			for _, imp := range f.Imports {
				path, _ := strconv.Unquote(imp.Path.Value)
				for giant, rooms := range doors {
					if within(path, giant) && !slices.Contains(rooms, room) {
						t.Errorf("%s imports %s, which enters only by %v", dir, path, rooms)
					}
				}
				rel, ours := strings.CutPrefix(path, module+"/")
				if ours && forTests(rel) && !forTests(dir) {
					t.Errorf("%s imports %s, which is for tests", dir, path)
				}
				if !ours {
					if from == 0 && strings.Contains(strings.Split(path, "/")[0], ".") {
						t.Errorf("%s is ground and imports %s; ground stands on the standard library alone", dir, path)
					}
					continue
				}
				to, other := floorOf(rel)
				if to > from || to == from && other != room {
					t.Errorf("%s (floor %d) imports %s (floor %d)", dir, from, rel, to)
				}
			}
		}
	}
}

func TestEveryPackageExplainsItself(t *testing.T) {
	vague := []string{"util", "utils", "common", "helper", "helpers", "base", "misc", "shared", "types"}
	for dir, files := range sources(t) {
		if slices.Contains(vague, filepath.Base(dir)) {
			t.Errorf("%s: name says nothing about what it holds", dir)
		}
		var docs []string
		for _, f := range files {
			if f.Doc != nil {
				docs = append(docs, f.Doc.Text())
			}
		}
		if len(docs) != 1 {
			t.Errorf("%s: has %d package comments, want 1", dir, len(docs))
			continue
		}
		if lines := strings.Count(docs[0], "\n"); lines < 3 && !strings.HasPrefix(dir, "cmd/") {
			t.Errorf("%s: package comment has %d lines, want at least 3", dir, lines)
		}
	}
}

func TestNoHiddenState(t *testing.T) {
	constant := regexp.MustCompile(`^(err|Err)|^_$`)
	for dir, files := range sources(t) {
		if forTests(dir) {
			continue
		}
		for _, f := range files {
			for _, decl := range f.Decls {
				switch d := decl.(type) {
				case *ast.FuncDecl:
					if d.Recv == nil && d.Name.Name == "init" {
						t.Errorf("%s: init runs where no reader looks", dir)
					}
				case *ast.GenDecl:
					for _, spec := range d.Specs {
						v, ok := spec.(*ast.ValueSpec)
						if !ok || d.Tok != token.VAR || embeds(d) {
							continue
						}
						for _, n := range v.Names {
							if !constant.MatchString(n.Name) && !slices.Contains(stamped[dir], n.Name) {
								t.Errorf("%s: package variable %s", dir, n.Name)
							}
						}
					}
				}
			}
			ast.Inspect(f, func(n ast.Node) bool {
				call, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				x, ok := call.X.(*ast.Ident)
				if !ok || strings.HasPrefix(dir, "cmd/") {
					return true
				}
				switch x.Name + "." + call.Sel.Name {
				case "os.Exit", "log.Fatal", "log.Fatalf", "os.Getenv", "os.LookupEnv", "os.Environ", "os.ExpandEnv",
					"slog.Default", "signal.Notify", "signal.NotifyContext", "context.Background":
					t.Errorf("%s: %s.%s belongs in cmd", dir, x.Name, call.Sel.Name)
				}
				return true
			})
		}
	}
}

// forTests reports whether a package only serves tests, as lifecycletest does.
func forTests(dir string) bool { return strings.HasSuffix(dir, "test") }

// embeds reports whether a declaration carries a go:embed directive, the one
// reason for a package variable that is not an error.
func embeds(d *ast.GenDecl) bool {
	return d.Doc != nil && slices.ContainsFunc(d.Doc.List, func(c *ast.Comment) bool {
		return strings.HasPrefix(c.Text, "//go:embed")
	})
}

// TestNoForks keeps go.mod free of replace lines: every module, Kubernetes and its
// staging modules included, is upstream's at a version that upstream tagged.
func TestNoForks(t *testing.T) {
	mod, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mod)) {
		words := strings.Fields(strings.SplitN(line, "//", 2)[0])
		if len(words) > 0 && words[0] == "replace" || slices.Contains(words, "=>") {
			t.Errorf("go.mod swaps a module: %s", strings.TrimSpace(line))
		}
	}
}

// sources parses every non-test file of the module, by directory.
func sources(t *testing.T) map[string][]*ast.File {
	t.Helper()
	out := map[string][]*ast.File{}
	for _, top := range []string{"cmd", "pkg", "manifests"} {
		err := filepath.WalkDir("../"+top, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
			dir := strings.TrimPrefix(filepath.ToSlash(filepath.Dir(path)), "../")
			out[dir] = append(out[dir], f)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}
