// Package gate holds back connections until the API server can answer, and cuts
// them all when it is about to stop.
//
// Every client in the process dials through one Gate, so that parts can start at
// once, in parallel, and find the API server ready at their first attempt: none
// is refused, none enters a back-off. Some upstream informers ignore their
// context when told to stop; cutting their connections lets the server drain.
package gate

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// ErrClosed reports a dial through a gate that has been closed.
var ErrClosed = errors.New("gate: closed")

// A Gate is shut when made. Open lets dials pass, Close ends every connection.
type Gate struct {
	dialer net.Dialer
	open   chan struct{}
	closed chan struct{}
	conns  Conns

	opening, closing sync.Once
}

// New returns a gate that is shut.
func New() *Gate {
	return &Gate{
		dialer: net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second},
		open:   make(chan struct{}),
		closed: make(chan struct{}),
	}
}

// Open lets pending and later dials through. Later calls do nothing.
func (g *Gate) Open() { g.opening.Do(func() { close(g.open) }) }

// Wait returns nil once the gate is open. It returns ErrClosed, or ctx's error,
// when that can no longer be.
func (g *Gate) Wait(ctx context.Context) error {
	select {
	case <-g.open:
		return nil
	case <-g.closed:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Pass waits until the gate is open, and reports whether it is. Where it is closed first,
// Pass returns when ctx ends: who closes a gate is about to stop all that is behind it, and
// a part that ends before it is told to has failed.
func (g *Gate) Pass(ctx context.Context) bool {
	if g.Wait(ctx) == nil {
		return true
	}
	<-ctx.Done()
	return false
}

// Close ends every connection made through the gate and refuses new ones.
func (g *Gate) Close() {
	g.closing.Do(func() { close(g.closed) })
	g.conns.Cut()
}

// Abandon closes the gate unless it is open: what is being waited for will not come.
func (g *Gate) Abandon() {
	select {
	case <-g.open:
	default:
		g.Close()
	}
}

// Announce calls ready once the gate is open, in a goroutine of its own, and never
// if it will not be. It is how a part says that it does its work.
func (g *Gate) Announce(ctx context.Context, ready func()) {
	go func() {
		if g.Wait(ctx) == nil {
			ready()
		}
	}()
}

// Dial waits until the gate is open and connects. It has the signature that
// rest.Config.Dial wants.
func (g *Gate) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if err := g.Wait(ctx); err != nil {
		return nil, err
	}
	c, err := g.dialer.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	c = g.conns.Keep(c)
	select {
	case <-g.closed: // maybe before Keep, too early to cut it
		c.Close()
		return nil, ErrClosed
	default:
		return c, nil
	}
}
