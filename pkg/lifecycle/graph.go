package lifecycle

import (
	"fmt"
	"strings"
)

// A Graph is who waits for whom in a Group.
type Graph []Vertex

// A Vertex is one component and what it waits for, each thing once.
type Vertex struct {
	Name  string
	Needs []Edge
}

// An Edge leads to the component that is waited for.
type Edge struct {
	On string
	// Begun means that On need only have started; see Unit.Begun.
	Begun bool
}

// Graph describes the group as it was put together, in the order of the calls of
// Add. Where a component is needed in both ways, the stronger one counts.
func (g *Group) Graph() Graph {
	out := make(Graph, 0, len(g.units))
	for _, u := range g.units {
		v := Vertex{Name: u.component.Name()}
		at := map[*Unit]int{}
		for _, n := range u.needs {
			on, _ := n.need()
			_, weak := n.(begun)
			if i, ok := at[on]; ok {
				v.Needs[i].Begun = v.Needs[i].Begun && weak
				continue
			}
			at[on] = len(v.Needs)
			v.Needs = append(v.Needs, Edge{On: on.component.Name(), Begun: weak})
		}
		out = append(out, v)
	}
	return out
}

// Mermaid draws the graph as a flowchart (https://mermaid.js.org/syntax/flowchart.html).
// An arrow leads from what is waited for to who waits; a dotted one stands for a
// need that is met by a beginning. Equal graphs are drawn equally.
func (g Graph) Mermaid() string {
	var b strings.Builder
	b.WriteString("flowchart LR\n")
	for _, v := range g {
		fmt.Fprintf(&b, "  %s\n", v.Name)
	}
	for _, v := range g {
		for _, n := range v.Needs {
			arrow := "-->"
			if n.Begun {
				arrow = "-.->"
			}
			fmt.Fprintf(&b, "  %s %s %s\n", n.On, arrow, v.Name)
		}
	}
	return b.String()
}
