package local

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// openPassage runs a passage for the test, and returns where it listens.
func openPassage(t *testing.T, from netip.Addr, protocol string, to netip.AddrPort) netip.AddrPort {
	t.Helper()
	at, err := listen(from, 0, protocol)
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error)
	go func() {
		done <- passage{Port{Listen: at, Protocol: protocol}, to, slog.New(slog.DiscardHandler)}.Run(ctx, func() { close(ready) })
	}()
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

// TestPassageHasOneFamily: all addresses of one family are none of the other, whose port of
// the same number is free.
func TestPassageHasOneFamily(t *testing.T) {
	if _, err := listen(netip.IPv6Loopback(), 0, "tcp"); err != nil {
		t.Skip("there is no IPv6 here: ", err)
	}
	for _, protocol := range []string{"tcp", "udp"} {
		for _, from := range [][2]netip.Addr{{netip.IPv4Unspecified(), netip.IPv6Unspecified()}, {netip.IPv6Unspecified(), netip.IPv4Unspecified()}} {
			var err error
			for range 5 { // somebody else may have one of them
				at := openPassage(t, from[0], protocol, netip.MustParseAddrPort("127.0.0.1:9"))
				if _, err = listen(from[1], int32(at.Port()), protocol); err == nil {
					break
				}
			}
			if err != nil {
				t.Errorf("beside %s of %s: %v", protocol, from[0], err)
			}
		}
	}
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
	at := openPassage(t, netip.AddrFrom4([4]byte{127, 0, 0, 1}), "tcp", netip.MustParseAddrPort(l.Addr().String()))
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

// shouting is a node whose UDP port says what it hears in capitals.
func shouting(t *testing.T) netip.AddrPort {
	t.Helper()
	node, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { node.Close() })
	go func() {
		text := make([]byte, 64<<10)
		for {
			n, from, err := node.ReadFrom(text)
			if err != nil {
				return
			}
			_, _ = node.WriteTo([]byte(strings.ToUpper(string(text[:n]))), from)
		}
	}()
	return netip.MustParseAddrPort(node.LocalAddr().String())
}

// tell is what a client is answered.
func tell(c net.Conn, words string, patience time.Duration) (string, error) {
	if _, err := io.WriteString(c, words); err != nil {
		return "", err
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	text := make([]byte, 64<<10)
	n, err := c.Read(text)
	return string(text[:n]), err
}

// TestPassageAnswersEachClient: datagrams of two clients are not mixed, also large ones.
func TestPassageAnswersEachClient(t *testing.T) {
	at := openPassage(t, netip.AddrFrom4([4]byte{127, 0, 0, 1}), "udp", shouting(t))
	for _, words := range []string{"one", "two", strings.Repeat("three", 12000)} {
		c, err := net.Dial("udp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for i := range 3 {
			said := fmt.Sprintf("%s %d", words, i)
			if got, err := tell(c, said, 5*time.Second); err != nil || got != strings.ToUpper(said) {
				t.Errorf("got %.20q, %v; want %.20q", got, err, strings.ToUpper(said))
			}
		}
	}
}

// TestPassageIsFull: a port has so many clients and no more. Those that it has are answered.
func TestPassageIsFull(t *testing.T) {
	at := openPassage(t, netip.AddrFrom4([4]byte{127, 0, 0, 1}), "udp", shouting(t))
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("udp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first, last := dial(), dial()
	defer first.Close()
	defer last.Close()
	if _, err := tell(first, "first", 5*time.Second); err != nil {
		t.Fatal(err)
	}
	var others []net.Conn // open, so that none has the port of another
	for range crowd - 1 {
		c := dial()
		defer c.Close()
		others = append(others, c)
	}
	for i, c := range others {
		if _, err := tell(c, "other", 5*time.Second); err != nil {
			t.Fatalf("client %d: %v", i+2, err)
		}
	}
	if got, err := tell(last, "last", 300*time.Millisecond); err == nil {
		t.Errorf("one more is answered %q", got)
	}
	if _, err := tell(first, "first", 5*time.Second); err != nil {
		t.Errorf("the first one is forgotten: %v", err)
	}
}
