package local

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// open runs a passage for the test, and returns where it listens.
func openPassage(t *testing.T, protocol string, to netip.AddrPort) netip.AddrPort {
	t.Helper()
	at, err := listen(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0, protocol)
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error)
	go func() { done <- passage{Port{Listen: at, Protocol: protocol}, to}.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		end()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("passage: %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("the passage outlives its context")
		}
	})
	return at
}

// TestPassageKeepsHalves: what a client says before it hangs up its half is answered, as
// programs that read to the end expect.
func TestPassageKeepsHalves(t *testing.T) {
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
			go func() {
				defer c.Close()
				text, _ := io.ReadAll(c)
				fmt.Fprintf(c, "%d bytes", len(text))
			}()
		}
	}()
	at := openPassage(t, "tcp", netip.MustParseAddrPort(l.Addr().String()))
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != "1048576 bytes" {
		t.Errorf("got %q, %v", got, err)
	}
	idle, err := net.Dial("tcp", at.String()) // one that is open when the passage closes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { idle.Close() })
}

// TestPassageAnswersEachClient: datagrams of two clients are not mixed.
func TestPassageAnswersEachClient(t *testing.T) {
	node, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	go func() {
		text := make([]byte, 1500)
		for {
			n, from, err := node.ReadFrom(text)
			if err != nil {
				return
			}
			_, _ = node.WriteTo([]byte(strings.ToUpper(string(text[:n]))), from)
		}
	}()
	at := openPassage(t, "udp", netip.MustParseAddrPort(node.LocalAddr().String()))
	for _, words := range []string{"one", "two"} {
		c, err := net.Dial("udp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for i := range 3 {
			if _, err := fmt.Fprintf(c, "%s %d", words, i); err != nil {
				t.Fatal(err)
			}
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			text := make([]byte, 1500)
			n, err := c.Read(text)
			if want := strings.ToUpper(fmt.Sprintf("%s %d", words, i)); err != nil || string(text[:n]) != want {
				t.Errorf("got %q, %v; want %q", text[:n], err, want)
			}
		}
	}
}
