package lifecycle_test

import (
	"reflect"
	"testing"

	"github.com/podo-dev/podo/pkg/lifecycle"
)

func TestGraph(t *testing.T) {
	var j journal
	g := lifecycle.NewGroup(quiet)
	store := g.Add(j.part("store", 0))
	api := g.Add(lifecycle.Within(1, j.part("api", 0)), store, store)
	g.Add(j.part("controllers", 0), api.Begun())
	g.Add(j.part("kubelet", 0), api.Begun(), store, api)

	want := lifecycle.Graph{
		{Name: "store"},
		{Name: "api", Needs: []lifecycle.Edge{{On: "store"}}},
		{Name: "controllers", Needs: []lifecycle.Edge{{On: "api", Begun: true}}},
		{Name: "kubelet", Needs: []lifecycle.Edge{{On: "api"}, {On: "store"}}},
	}
	if got := g.Graph(); !reflect.DeepEqual(got, want) {
		t.Errorf("Graph = %+v, want %+v", got, want)
	}
	const picture = `flowchart LR
  store
  api
  controllers
  kubelet
  store --> api
  api -.-> controllers
  api --> kubelet
  store --> kubelet
`
	if got := g.Graph().Mermaid(); got != picture {
		t.Errorf("Mermaid =\n%s\nwant\n%s", got, picture)
	}
}
