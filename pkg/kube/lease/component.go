// Package lease lets one of several servers at a time run a part of the cluster.
//
// Servers stand in line for a Lease object. The one that holds it runs the part
// and renews the lease; one that can no longer be sure to hold it stops the part
// before any other may begin, and never begins again: Kubernetes' parts cannot run
// twice in a process, so losing a lease ends the process.
//
// Who waits goes by its own clock alone. A lease has run out when it has not
// changed for as long as it lasts, and taking it is a write on condition that it
// is still as it was seen. So clocks need not agree, and an answer from a cache
// that lags, or one that never arrives, can delay a change of leaders but not make
// two of them.
package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordination "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"

	"github.com/podo-dev/podo/pkg/lifecycle"
)

// How long things take. A leader counts from the moment it sent its last renewal
// that succeeded, everybody else from the moment they saw it, which is later. So a
// part has stopped after deadline+stop, a second before others may take the lease
// after lasts, and those have it no later than lasts+look, 14 s, after a leader's
// sudden end. A leader outlives an API that is away for deadline-renew, which is
// longer than an election of etcd takes. Each renewal is a write to the datastore
// that is synced to disk; a look is answered from the API server's memory.
const (
	lasts    = 13 * time.Second
	renew    = 4 * time.Second
	deadline = 9 * time.Second
	stop     = 3 * time.Second
	look     = time.Second
	retry    = 250 * time.Millisecond
)

// ErrLost means that another process may hold the lease now. A new process can stand
// in line again; this one cannot.
var ErrLost = errors.New("lost the lease")

// errLate is why a lease is lost if the process did not run when it should have.
var errLate = errors.New("this process was held up")

// Options say what a part is held by.
type Options struct {
	// Name is that of the Lease object in the namespace kube-system.
	Name string

	// Identity tells this process from all others, earlier ones on the same machine
	// included: a node's name and something random.
	Identity string

	// Client is for reading and writing the Lease. It is called once, by Run.
	Client func() (*rest.Config, error)

	Log *slog.Logger
}

// A Holder is a component that runs another while it holds a lease.
type Holder struct {
	options   Options
	component lifecycle.Component
	leading   atomic.Bool
}

// Hold makes c a part that only one process of the cluster runs at a time.
//
// It is ready when it stands in line behind another process, or when it leads and c
// is ready. Told to stop, it stops c and then gives the lease back, so that the next
// in line has it within moments. It must not be run again in the same process.
func Hold(o Options, c lifecycle.Component) *Holder {
	o.Log = o.Log.With("component", c.Name(), "lease", o.Name)
	return &Holder{options: o, component: c}
}

// Name is that of the component that is held.
func (h *Holder) Name() string { return h.component.Name() }

// Leading reports whether this process holds the lease and runs the component.
func (h *Holder) Leading() bool { return h.leading.Load() }

// Run waits for the lease and runs the component until ctx ends, the lease is lost
// or the component ends by itself. In the last case the lease is left to run out,
// since something of the component may still be at work.
func (h *Holder) Run(ctx context.Context, ready func()) error {
	rc, err := h.options.Client()
	if err != nil {
		return err
	}
	client, err := coordination.NewForConfig(rc)
	if err != nil {
		return err
	}
	r := &record{leases: client.Leases(metav1.NamespaceSystem), name: h.options.Name, me: h.options.Identity}
	sent, ok := h.queue(ctx, r, ready)
	if !ok {
		return nil
	}
	return h.lead(ctx, r, sent, ready)
}

// queue waits for the lease and returns when the request that won it was sent. Only
// the end of ctx ends the wait without it.
func (h *Holder) queue(ctx context.Context, r *record, ready func()) (sent time.Time, ok bool) {
	log, ahead, trouble := h.options.Log, "", false
	for ctx.Err() == nil {
		try, cancel := context.WithTimeout(ctx, deadline)
		sent, err := r.take(try)
		cancel()
		pause := retry
		switch {
		case err == nil && ctx.Err() != nil:
			h.release(ctx, r)
			return sent, false
		case err == nil:
			return sent, true
		case errors.Is(err, errHeld):
			if ahead != r.holder() {
				ahead = r.holder()
				log.Info("standing by", "leader", ahead)
			}
			ready()
			trouble, pause = false, min(look, r.left())
		case ctx.Err() == nil && !trouble:
			log.Warn("lease not to be had", "err", err)
			trouble = true
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return time.Time{}, false
}

// lead runs the component and renews the lease, which was won at sent.
func (h *Holder) lead(ctx context.Context, r *record, sent time.Time, ready func()) error {
	log := h.options.Log
	log.Info("leading")
	h.leading.Store(true)
	defer h.leading.Store(false)

	own, end := context.WithCancel(ctx)
	defer end()
	done := make(chan error, 1)
	go func() { done <- h.work(own, ready) }()

	trouble, next := errLate, sent.Add(renew)
	for {
		select {
		case err := <-done:
			if ctx.Err() != nil {
				h.leading.Store(false)
				h.release(ctx, r)
			}
			return err
		case <-time.After(time.Until(next)):
		}
		last := sent.Add(deadline)
		if !time.Now().Before(last) {
			end()
			return h.lost(done, fmt.Errorf("not renewed for %s: %w", time.Since(sent).Round(time.Second), trouble))
		}
		// Renewing goes on while the component is being stopped.
		try, cancel := context.WithDeadline(context.WithoutCancel(ctx), last)
		at, err := r.rewrite(try, r.me)
		cancel()
		switch {
		case err == nil:
			trouble, sent, next = errLate, at, at.Add(renew)
		case errors.Is(err, errTaken):
			end()
			return h.lost(done, err)
		default:
			if trouble == errLate {
				log.Warn("lease not renewed", "err", err)
			}
			trouble, next = err, time.Now().Add(retry)
			if next.After(last) {
				next = last
			}
		}
	}
}

// work runs the component, and turns a panic into an error as a group would.
func (h *Holder) work(ctx context.Context, ready func()) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return h.component.Run(ctx, ready)
}

// lost waits for the component, which has been told to stop, but not for longer than
// the lease is still good for.
func (h *Holder) lost(done <-chan error, why error) error {
	select {
	case <-done:
	case <-time.After(stop):
		why = fmt.Errorf("%w, and %s %w", why, h.Name(), lifecycle.ErrStuck)
	}
	return fmt.Errorf("%w %s: %w; this process starts anew", ErrLost, h.options.Name, why)
}

// release gives the lease back. If that cannot be done, it runs out.
func (h *Holder) release(ctx context.Context, r *record) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	if _, err := r.rewrite(ctx, ""); err != nil {
		h.options.Log.Warn("lease not given back", "err", err)
		return
	}
	h.options.Log.Info("lease given back")
}
