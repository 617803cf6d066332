package status

import (
	"slices"
	"strings"
	"time"

	"github.com/podo-dev/podo/pkg/balancer"
	"github.com/podo-dev/podo/pkg/lifecycle"
)

// A Report is what podo says about itself. A nil branch means that this podo has no
// such part: a control plane alone has no node, an agent no API and no datastore.
type Report struct {
	Version    string             `json:"version"`
	Kubernetes string             `json:"kubernetes"`
	PID        int                `json:"pid"`
	Since      time.Time          `json:"since"`
	DataDir    string             `json:"dataDir"`
	Kubeconfig string             `json:"kubeconfig,omitempty"` // the administrator's; an agent writes none
	Components []lifecycle.Status `json:"components"`
	Node       *Node              `json:"node,omitempty"`
	API        *API               `json:"api,omitempty"`
	Servers    []balancer.Server  `json:"servers,omitempty"` // that an agent knows
	Datastore  *Datastore         `json:"datastore,omitempty"`
}

// Node is this machine as the cluster sees it.
type Node struct {
	Name   string `json:"name"`
	Ready  bool   `json:"ready"`
	Reason string `json:"reason,omitempty"` // why it is not, or what else it reports
}

// API is the Kubernetes API of this server.
type API struct {
	Address string `json:"address,omitempty"`
	Healthy bool   `json:"healthy"`
	Error   string `json:"error,omitempty"`
}

// Datastore is where the cluster's objects are kept.
type Datastore struct {
	Kind           string  `json:"kind"` // such as "SQLite"
	Healthy        bool    `json:"healthy"`
	Bytes          int64   `json:"bytes,omitempty"`
	LatencySeconds float64 `json:"latencySeconds,omitempty"` // of one small question
	Error          string  `json:"error,omitempty"`
}

// Ready reports whether every part runs and the node takes pods.
func (r Report) Ready() bool { return len(r.Missing()) == 0 }

// Missing names, in a few words each, what keeps r from being ready.
func (r Report) Missing() []string {
	var out []string
	for _, c := range r.Components {
		switch c.State {
		case lifecycle.Ready:
		case lifecycle.Waiting:
			out = append(out, c.Name+" waits for "+strings.Join(c.WaitOn, ", "))
		default:
			out = append(out, with(c.Name+" is "+string(c.State), c.Error))
		}
	}
	if len(r.Components) == 0 {
		out = append(out, "no part has started")
	}
	if d := r.Datastore; d != nil && !d.Healthy {
		out = append(out, with("the datastore is not healthy", d.Error))
	}
	if a := r.API; a != nil && !a.Healthy {
		out = append(out, with("the API does not answer", a.Error))
	}
	if n := r.Node; n != nil && !n.Ready {
		out = append(out, with("node "+n.Name+" is not Ready", n.Reason))
	}
	return out
}

// failed returns a component that will never become ready in this process.
func (r Report) failed() (lifecycle.Status, bool) {
	i := slices.IndexFunc(r.Components, func(c lifecycle.Status) bool { return c.State == lifecycle.Failed })
	if i < 0 {
		return lifecycle.Status{}, false
	}
	return r.Components[i], true
}

func with(text, why string) string {
	if why == "" {
		return text
	}
	return text + " (" + why + ")"
}
