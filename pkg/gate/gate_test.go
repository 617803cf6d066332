package gate_test

import (
	"context"
	"errors"
	"net"
	"testing"
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
