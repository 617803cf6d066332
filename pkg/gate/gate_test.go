package gate_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/podo-dev/podo/pkg/gate"
)

func listen(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
		}
	}()
	return l.Addr().String()
}

// TestPass: behind a gate that is closed, a part ends when it is told to, and not before.
func TestPass(t *testing.T) {
	open := gate.New()
	open.Open()
	if !open.Pass(t.Context()) {
		t.Error("an open gate lets nobody pass")
	}
	ctx, stop := context.WithCancel(t.Context())
	shut, passed := gate.New(), make(chan bool)
	shut.Abandon()
	go func() { passed <- shut.Pass(ctx) }()
	select {
	case <-passed:
		t.Fatal("a closed gate ended a part that nobody had told to end")
	case <-time.After(50 * time.Millisecond):
	}
	stop()
	if <-passed {
		t.Error("a closed gate let a part pass")
	}
}

func TestDialWaitsForOpen(t *testing.T) {
	g, addr := gate.New(), listen(t)
	ctx, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	if _, err := g.Dial(ctx, "tcp", addr); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("dial through a shut gate: err = %v, want deadline exceeded", err)
	}
	g.Open()
	g.Open()
	c, err := g.Dial(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestCloseCutsAndRefuses(t *testing.T) {
	g, addr := gate.New(), listen(t)
	pending := make(chan error, 1)
	shut := gate.New()
	go func() {
		_, err := shut.Dial(t.Context(), "tcp", addr)
		pending <- err
	}()
	shut.Close()
	if err := <-pending; !errors.Is(err, gate.ErrClosed) {
		t.Errorf("pending dial: err = %v, want ErrClosed", err)
	}

	g.Open()
	c, err := g.Dial(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	g.Close()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after Close: err = %v, want net.ErrClosed", err)
	}
	if _, err := g.Dial(t.Context(), "tcp", addr); !errors.Is(err, gate.ErrClosed) {
		t.Errorf("dial after Close: err = %v, want ErrClosed", err)
	}
}

func TestWait(t *testing.T) {
	ended, end := context.WithCancel(t.Context())
	end()
	tests := map[string]struct {
		ctx   context.Context
		first func(*gate.Gate)
		want  error
	}{
		"open":                {t.Context(), (*gate.Gate).Open, nil},
		"closed":              {t.Context(), (*gate.Gate).Close, gate.ErrClosed},
		"nobody waits longer": {ended, func(*gate.Gate) {}, context.Canceled},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			g := gate.New()
			tt.first(g)
			if err := g.Wait(tt.ctx); !errors.Is(err, tt.want) {
				t.Errorf("err = %v, want %v", err, tt.want)
			}
		})
	}
}

func TestAnnounce(t *testing.T) {
	tests := map[string]struct {
		event func(g *gate.Gate, stop func())
		want  int
	}{
		"opened":  {func(g *gate.Gate, _ func()) { g.Open() }, 1},
		"closed":  {func(g *gate.Gate, _ func()) { g.Close() }, 0},
		"stopped": {func(_ *gate.Gate, stop func()) { stop() }, 0},
		"nothing": {func(*gate.Gate, func()) {}, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, calls := gate.New(), atomic.Int32{}
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				g.Announce(ctx, func() { calls.Add(1) })
				synctest.Wait()
				if n := calls.Load(); n != 0 {
					t.Fatalf("announced %d times before anything happened", n)
				}
				tt.event(g, stop)
				synctest.Wait()
				if n := calls.Load(); int(n) != tt.want {
					t.Errorf("announced %d times, want %d", n, tt.want)
				}
			})
		})
	}
}

func TestConnectionsSpeakUntilTheGateCloses(t *testing.T) {
	g := gate.New()
	g.Open()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
	var conns []net.Conn
	for range 3 {
		c, err := g.Dial(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	conns[0].Close()
	for i, c := range conns[1:] {
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Errorf("connection %d: %v", i+1, err)
		}
	}
	g.Close()
	g.Close()
	for i, c := range conns[1:] {
		if _, err := c.Write([]byte("x")); err == nil {
			t.Errorf("connection %d outlived the gate", i+1)
		}
	}
}

func TestAbandon(t *testing.T) {
	g, addr := gate.New(), listen(t)
	pending := make(chan error, 1)
	go func() {
		_, err := g.Dial(t.Context(), "tcp", addr)
		pending <- err
	}()
	g.Abandon()
	if err := <-pending; !errors.Is(err, gate.ErrClosed) {
		t.Errorf("pending dial of an abandoned gate: err = %v, want ErrClosed", err)
	}
	opened := gate.New()
	opened.Open()
	opened.Abandon()
	c, err := opened.Dial(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatalf("an open gate was abandoned: %v", err)
	}
	c.Close()
}
