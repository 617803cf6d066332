package main

import (
	"flag"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/podo-dev/podo/manifests"
	"github.com/podo-dev/podo/pkg/agent"
	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/gate"
	"github.com/podo-dev/podo/pkg/host"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/plan/plantest"
	"github.com/podo-dev/podo/pkg/server"
)

var update = flag.Bool("update", false, "rewrite the pictures in the documentation")

// bootGraph is what a server with a node starts by default, and in which order.
func bootGraph(t *testing.T) lifecycle.Graph {
	t.Helper()
	machine := plantest.Machine()
	// The kubelet compares this with the machine that the test runs on, and takes
	// either for v1's kind.
	machine.Cgroup.Mode = host.CgroupV1
	p, err := plan.New(config.Default(), machine, plan.Known{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	g, doors := lifecycle.NewGroup(log), gate.New()
	srv, err := server.Build(g, *p.Server, server.Deps{Gate: doors, Manifests: manifests.FS, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	err = agent.Build(g, *p.Node, agent.Deps{Gate: doors, Trust: srv.Trust, API: srv.API.Begun(), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	return g.Graph()
}

func TestArchitectureShowsTheBootGraph(t *testing.T) {
	const (
		file  = "../../docs/architecture.md"
		begin = "<!-- boot graph: written by make generate -->\n```mermaid\n"
		end   = "```\n<!-- boot graph ends -->"
	)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), begin)
	have, after, ended := strings.Cut(rest, end)
	if !found || !ended {
		t.Fatalf("%s: the marks around the boot graph are gone: %q and %q", file, begin, end)
	}
	want := bootGraph(t).Mermaid()
	if have == want {
		return
	}
	if !*update {
		t.Fatalf("%s shows another boot graph than the code has; run make generate\n%s", file,
			plantest.Difference(strings.Split(have, "\n"), strings.Split(want, "\n")))
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("%s: pictures are not drawn in CI", file)
	}
	if err := os.WriteFile(file, []byte(before+begin+want+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}
