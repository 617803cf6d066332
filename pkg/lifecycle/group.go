package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"
)

var (
	// ErrExited reports a component that returned without being asked to.
	ErrExited = errors.New("exited unexpectedly")

	// ErrStuck reports a component that outlived its grace period and was left behind.
	ErrStuck = errors.New("did not stop in time")
)

// DefaultGrace is how long a component may take to return once told to stop.
const DefaultGrace = 10 * time.Second

// A Group runs components in the order their needs dictate.
type Group struct {
	log   *slog.Logger
	units []*Unit

	// Observe, if set before Run, is told of every transition as it happens. It is
	// called from many goroutines and must not block.
	Observe func(Status)
}

// A Need is something that a component waits for before it starts, and that stops
// only after it: a *Unit, until that is ready, or what Unit.Begun returns.
type Need interface {
	need() (u *Unit, met <-chan struct{})
}

func (u *Unit) need() (*Unit, <-chan struct{}) { return u, u.ready }

// Begun is a weaker need: it is met once the unit has started, ready or not. It
// suits what can start together with the unit but must stop before it.
func (u *Unit) Begun() Need { return begun{u} }

type begun struct{ *Unit }

func (b begun) need() (*Unit, <-chan struct{}) { return b.Unit, b.Unit.started }

// A Unit is a component's place in a Group. It exists only to be passed to Add,
// which is why a Group cannot contain a cycle: a unit must exist to be needed.
type Unit struct {
	component Component
	needs     []Need
	neededBy  []*Unit
	grace     time.Duration

	started chan struct{}
	ready   chan struct{}
	stopped chan struct{}

	mu     sync.Mutex
	status Status
}

// NewGroup returns an empty group that logs each transition to log.
func NewGroup(log *slog.Logger) *Group { return &Group{log: log} }

// Add places c in the group. It starts after every one of needs is met, and
// stops before any of them.
func (g *Group) Add(c Component, needs ...Need) *Unit {
	u := &Unit{
		component: c,
		needs:     needs,
		grace:     DefaultGrace,
		started:   make(chan struct{}),
		ready:     make(chan struct{}),
		stopped:   make(chan struct{}),
	}
	u.status = Status{Name: c.Name(), State: Waiting}
	for _, n := range needs {
		on, _ := n.need()
		on.neededBy = append(on.neededBy, u)
	}
	g.units = append(g.units, u)
	return u
}

// Run starts the group and blocks until every component has stopped. It returns
// nil if ctx ended it, and otherwise the first failure, which is the reason for all
// that follow; those are logged.
func (g *Group) Run(ctx context.Context) error {
	life, end := context.WithCancel(ctx)
	defer end()

	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		first error
	)
	for _, u := range g.units {
		u.mu.Lock()
		u.status.Since = time.Now()
		u.mu.Unlock()
	}
	for _, u := range g.units {
		wg.Go(func() {
			defer close(u.stopped)
			if err := g.drive(life, u); err != nil {
				mu.Lock()
				if first == nil {
					first = fmt.Errorf("%s: %w", u.component.Name(), err)
				} else {
					g.log.Warn("trouble while stopping", "component", u.component.Name(), "err", err)
				}
				mu.Unlock()
				end()
			}
		})
	}
	wg.Wait()
	return first
}

// drive takes one unit from waiting to stopped.
func (g *Group) drive(life context.Context, u *Unit) error {
	for _, n := range u.needs {
		_, met := n.need()
		select {
		case <-met:
		case <-life.Done():
			g.enter(u, Stopped, nil)
			return nil
		}
	}

	// The unit's own context ends last: after the group's, and after its dependents.
	own, stop := context.WithCancel(context.WithoutCancel(life))
	defer stop()
	go func() {
		<-life.Done()
		for _, d := range u.neededBy {
			<-d.stopped
		}
		stop()
	}()

	g.enter(u, Starting, nil)
	close(u.started)
	result := make(chan error, 1)
	go func() {
		err := ErrExited
		defer func() { result <- err }() // a part that ends its goroutine has ended too
		err = guarded(own, u.component, func() { g.enter(u, Ready, nil); close(u.ready) })
	}()

	var err error
	select {
	case err = <-result:
	case <-own.Done():
		select {
		case err = <-result:
		case <-time.After(u.grace):
			err = ErrStuck
		}
	}
	switch {
	case own.Err() != nil && !errors.Is(err, ErrStuck):
		// What a part says of being stopped, such as that a program it was running was
		// killed, is no failure.
		g.log.Debug("component stopped short", "component", u.component.Name(), "err", err)
		g.enter(u, Stopped, nil)
		return nil
	case err == nil:
		err = ErrExited
	}
	g.enter(u, Failed, err)
	return err
}

// guarded runs a component, turning a panic into an error with its stack. Its ready may be
// called more than once.
func guarded(ctx context.Context, c Component, ready func()) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return c.Run(ctx, sync.OnceFunc(ready))
}
