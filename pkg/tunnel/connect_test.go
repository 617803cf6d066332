package tunnel

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func bufioReader(r io.Reader) *bufio.Reader { return bufio.NewReader(r) }

// accepted reads a hub's consent and returns what follows.
func accepted(t *testing.T, c net.Conn) *link {
	t.Helper()
	br := bufioReader(c)
	res, err := http.ReadResponse(br, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("upgrade: %v, %v", res, err)
	}
	return &link{c, br, time.Minute}
}

// proxy runs Connect for h and returns its socket.
func proxy(t *testing.T, h *Hub) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "egress.sock")
	if err := os.WriteFile(socket, nil, 0o644); err != nil { // left by an earlier run
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- Connect(h, socket).Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("egress: %v", err)
			}
		case <-time.After(time.Second):
			t.Error("egress does not stop within a second")
		}
	})
	return socket
}

// connect asks the proxy for addr.
func connect(t *testing.T, socket, addr string) (*net.UnixConn, *http.Response) {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", addr)
	br := bufioReader(c)
	res, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	if br.Buffered() > 0 {
		t.Errorf("%d bytes follow the answer", br.Buffered())
	}
	return c.(*net.UnixConn), res
}

func TestConnect(t *testing.T) {
	h := NewHub(ModeAgent, farNode("n1"), quiet())
	srv := serveTLS(t, h, "n1")
	start(t, AgentOptions{Servers: fixed(srv.Listener.Addr().String()), Kubelet: listenTCP(t, "127.0.0.1:0", echo)})
	awaitNodes(t, h, "n1")
	socket := proxy(t, h)
	if info, err := os.Stat(socket); err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
	direct := listenTCP(t, "127.0.0.1:0", echo)
	for what, addr := range map[string]string{"kubelet": far + ":10250", "direct": direct} {
		c, res := connect(t, socket, addr)
		if res.StatusCode != 200 {
			t.Errorf("%s: %s", what, res.Status)
			continue
		}
		io.WriteString(c, what)
		c.CloseWrite()
		if got, err := io.ReadAll(c); string(got) != what || err != nil {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
}

func TestConnectGivesTheReason(t *testing.T) {
	h := NewHub(ModeAgent, farNode("n1"), quiet())
	srv := serveTLS(t, h, "n1")
	start(t, AgentOptions{Servers: fixed(srv.Listener.Addr().String()), Kubelet: "127.0.0.1:1"})
	awaitNodes(t, h, "n1")
	socket := proxy(t, h)
	for addr, want := range map[string]string{
		far + ":10250": "node n1: dial tcp 127.0.0.1:1: connect: connection refused",
		"127.0.0.1:1":  "connection refused",
		"nowhere":      "missing port",
	} {
		if _, res := connect(t, socket, addr); res.StatusCode != http.StatusBadGateway || !strings.Contains(res.Status, want) {
			t.Errorf("%s: %q, want %q", addr, res.Status, want)
		}
	}
}

func TestConnectClosesBothEnds(t *testing.T) {
	h := NewHub(ModeAgent, farNode("n1"), quiet())
	srv := serveTLS(t, h, "n1")
	gone := make(chan struct{}, 1)
	start(t, AgentOptions{
		Servers: fixed(srv.Listener.Addr().String()),
		Kubelet: listenTCP(t, "127.0.0.1:0", func(c *net.TCPConn) {
			for b := make([]byte, 1); ; { // a log that goes on, cut short by its reader's leaving
				c.SetReadDeadline(time.Now().Add(time.Millisecond))
				if _, err := c.Read(b); err != nil && !os.IsTimeout(err) {
					gone <- struct{}{}
					return
				}
				io.WriteString(c, "line\n")
			}
		}),
	})
	awaitNodes(t, h, "n1")
	c, _ := connect(t, proxy(t, h), far+":10250")
	if _, err := io.ReadFull(c, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	select {
	case <-gone:
	case <-time.After(2 * time.Second):
		t.Error("kubelet still writes")
	}
}
