package lifecycle

import (
	"slices"
	"time"
)

// State is where a component stands. It only ever moves forward, but for one that is
// restarted in place.
type State string

const (
	Waiting    State = "waiting"  // something it needs is not ready
	Starting   State = "starting" // Run was called
	Ready      State = "ready"
	Restarting State = "restarting" // it ended, and is not ready again yet
	Stopped    State = "stopped"
	Failed     State = "failed"
)

// Status is what an operator sees of one component.
type Status struct {
	Name     string    `json:"name"`
	State    State     `json:"state"`
	Since    time.Time `json:"since"`
	WaitOn   []string  `json:"waitOn,omitempty"`
	Restarts int       `json:"restarts,omitempty"` // in place, since podo started
	Error    string    `json:"error,omitempty"`    // of its end, or of the last one before a restart
}

// Status reports every component in the order it was added.
func (g *Group) Status() []Status {
	out := make([]Status, 0, len(g.units))
	for _, u := range g.units {
		u.mu.Lock()
		s := u.status
		u.mu.Unlock()
		if s.State == Waiting {
			for _, n := range u.needs {
				on, met := n.need()
				select {
				case <-met:
				default:
					if name := on.component.Name(); !slices.Contains(s.WaitOn, name) {
						s.WaitOn = append(s.WaitOn, name)
					}
				}
			}
		}
		if r, ok := u.component.(*restarter); ok {
			r.amend(&s)
		}
		out = append(out, s)
	}
	return out
}

func (g *Group) enter(u *Unit, s State, err error) {
	u.mu.Lock()
	u.status.State, u.status.Since = s, time.Now()
	if err != nil {
		u.status.Error = err.Error()
	}
	status := u.status
	u.mu.Unlock()
	if g.Observe != nil {
		g.Observe(status)
	}
	g.log.Debug("component "+string(s), "component", u.component.Name(), "err", err)
}
