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
	{"pkg/host", "pkg/logging", "pkg/pki", "pkg/token", "pkg/kubeconfig", "pkg/process", "pkg/payload", "pkg/balancer"},
	{"pkg/plan"},
	{"pkg/storage", "pkg/kube", "pkg/containerd", "pkg/flannel", "pkg/tunnel"},
	{"pkg/join", "pkg/deploy", "pkg/helm", "pkg/servicelb", "pkg/netpol", "pkg/encryption", "pkg/snapshot", "pkg/images", "pkg/upgrade", "pkg/status", "pkg/reset"},
	{"pkg/server", "pkg/agent", "pkg/local"},
	{"cmd/house"},
}

// doors lists the foreign giants and the only rooms each may enter by. Replacing
// or upgrading one then touches those rooms and no others.
var doors = map[string][]string{
	"github.com/urfave/cli":      {"cmd/house"},
	"k8s.io/kubernetes":          {"pkg/kube"},
	"github.com/k3s-io/kine":     {"pkg/storage"},
	"go.etcd.io/etcd":            {"pkg/storage", "pkg/snapshot"},
	"github.com/containerd":      {"pkg/containerd", "pkg/images"},
	"github.com/flannel-io":      {"pkg/flannel"},
	"github.com/sirupsen/logrus": {"pkg/logging"},
	"k8s.io/klog":                {"pkg/logging", "pkg/kube"},
}

// floorOf returns the floor a package stands on, or -1 if the plan omits it.
func floorOf(dir string) (floor int, room string) {
	for i, rooms := range floors {
		for _, r := range rooms {
			if dir == r || strings.HasPrefix(dir, r+"/") {
				return i, r
			}
		}
	}
	return -1, ""
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
					if strings.HasPrefix(path, giant) && !slices.Contains(rooms, room) {
						t.Errorf("%s imports %s, which enters only by %v", dir, path, rooms)
					}
				}
				rel, ours := strings.CutPrefix(path, module+"/")
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
							if !constant.MatchString(n.Name) {
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
				case "os.Exit", "log.Fatal", "log.Fatalf", "os.Getenv", "slog.Default", "signal.Notify", "context.Background":
					t.Errorf("%s: %s.%s belongs in cmd", dir, x.Name, call.Sel.Name)
				}
				return true
			})
		}
	}
}

// embeds reports whether a declaration carries a go:embed directive, the one
// reason for a package variable that is not an error.
func embeds(d *ast.GenDecl) bool {
	return d.Doc != nil && slices.ContainsFunc(d.Doc.List, func(c *ast.Comment) bool {
		return strings.HasPrefix(c.Text, "//go:embed")
	})
}

// TestNoForks allows replace lines that pin a version, as Kubernetes' staging
// modules need, but none that swaps a module for somebody's copy.
func TestNoForks(t *testing.T) {
	mod, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mod)) {
		old, swap, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "replace "), " => ")
		if ok && strings.Fields(old)[0] != strings.Fields(swap)[0] {
			t.Errorf("go.mod swaps %s for %s", strings.Fields(old)[0], strings.Fields(swap)[0])
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
