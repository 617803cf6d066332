package balancer

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A pair is a client's connection and the server's that it is passed to.
type pair struct {
	client, server *net.TCPConn
	born           time.Time // what moments count from
	buffers        *sync.Pool
	stir           func() // called when asked or ended changes

	asked    moment // when the client sent what the server has sent nothing after
	answered moment // when the server sent something last
	ended    moment // when the client ended its half

	noticed time.Duration // the asked that a check has been made for; under the balancer's lock
}

// A moment is a time since the balancer was made, by the monotonic clock. Zero is
// never.
type moment struct{ d atomic.Int64 }

func (m *moment) at() time.Duration { return time.Duration(m.d.Load()) }

func (m *moment) is(d time.Duration) { m.d.Store(int64(d)) }

func (p *pair) close() {
	p.client.Close()
	p.server.Close()
}

// carry passes bytes both ways until both have ended, and closes both connections.
// It returns the server's fault, if it was one: an error, or errClosing.
func (p *pair) carry() error {
	defer p.close()
	up := make(chan error, 1)
	go func() {
		readErr, writeErr := p.pass(p.server, p.client, func() {
			if p.asked.at() <= p.answered.at() {
				p.asked.is(time.Since(p.born))
				p.stir()
			}
		})
		switch {
		case writeErr != nil:
			// Reading from the server fails as well, after whatever it had to say.
		case readErr != nil:
			p.close()
		default:
			p.ended.is(time.Since(p.born))
			p.server.CloseWrite()
			p.stir()
		}
		up <- writeErr
	}()
	readErr, writeErr := p.pass(p.client, p.server, func() { p.answered.is(time.Since(p.born)) })
	if readErr == nil && writeErr == nil && p.client.CloseWrite() == nil {
		if p.ended.at() == 0 {
			readErr = errClosing
		}
	} else {
		p.close()
	}
	for _, err := range []error{readErr, <-up} {
		if err != nil && !errors.Is(err, net.ErrClosed) { // closed by ourselves
			return err
		}
	}
	return nil
}

// pass copies from src to dst until src ends or either fails, calling each whenever
// there is something to copy.
//
// io.Copy would hold a pipe, or a buffer, for as long as a connection is idle, which
// is nearly always: here one is taken only when there are bytes to fill it with.
func (p *pair) pass(dst, src *net.TCPConn, each func()) (readErr, writeErr error) {
	raw, err := src.SyscallConn()
	if err != nil {
		return err, nil
	}
	for {
		var n int
		var failure error
		var buffer *[32 << 10]byte
		err := raw.Read(func(fd uintptr) bool {
			buffer = p.buffers.Get().(*[32 << 10]byte)
			for {
				n, failure = syscall.Read(int(fd), buffer[:])
				if failure != syscall.EINTR {
					break
				}
			}
			if failure == syscall.EAGAIN {
				p.buffers.Put(buffer)
				return false
			}
			return true
		})
		if err != nil {
			return err, nil
		}
		if failure == nil && n > 0 {
			each()
			_, err = dst.Write(buffer[:n])
		}
		p.buffers.Put(buffer)
		switch {
		case failure != nil:
			return failure, nil
		case n == 0:
			return nil, nil
		case err != nil:
			return nil, err
		}
	}
}

// dialing is how a server is dialled.
type dialing struct {
	patience time.Duration
	others   bool // there are other servers to go to
}

// dial connects to a server. A peer that vanished without a word is noticed by the
// kernel: within two seconds if there are others to go to, for then it costs a
// client nothing to be cut; or else with the patience that a bad line needs.
func (b *Balancer) dial(ctx context.Context, d dialing, addr string) (*net.TCPConn, error) {
	alive := net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}
	lost := 30 * time.Second
	if d.others {
		alive = net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 2}
		lost = 2 * time.Second
	}
	dialer := net.Dialer{
		Timeout:         d.patience,
		KeepAliveConfig: alive,
		Control: func(_, _ string, raw syscall.RawConn) error {
			return raw.Control(func(fd uintptr) {
				// Without it a dead peer is noticed later, no more.
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(lost.Milliseconds()))
			})
		},
	}
	c, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// reachable is the check for callers that have none.
func (b *Balancer) reachable(ctx context.Context, addr string) error {
	c, err := b.dial(ctx, dialing{patience: b.pace.patience}, addr)
	if err != nil {
		return err
	}
	return c.Close()
}

// vanished reports whether an error says that the server's machine is out of reach.
// Anything else, an ordinary end included, may happen to a server that is well.
func vanished(err error) bool {
	return errors.Is(err, syscall.ETIMEDOUT) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH)
}
