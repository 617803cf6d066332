package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// goodbye is how long requests in flight may take once the server is told to stop.
// Watches of pods and people never end by themselves, and upstream would wait a
// minute for them.
const goodbye = time.Second

// listener remembers the connections that it accepted, so that they can be cut.
type listener struct {
	net.Listener

	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

// listen opens the port before the server is built: clients that come early wait
// in the handshake instead of being refused.
func listen(ctx context.Context, addr netip.Addr, port int) (*listener, error) {
	var lc net.ListenConfig
	at := netip.AddrPortFrom(addr, uint16(port)).String()
	l, err := lc.Listen(ctx, "tcp", at)
	if errors.Is(err, syscall.EADDRNOTAVAIL) {
		return nil, fmt.Errorf("%w; give --bind-address an address of this machine", err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w; free the port or choose another with --https-listen-port", err)
	}
	return &listener{Listener: l, conns: map[net.Conn]struct{}{}}, nil
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns[c] = struct{}{}
	return &accepted{c, l}, nil
}

// cut closes every connection.
func (l *listener) cut() {
	l.mu.Lock()
	conns := l.conns
	l.conns = map[net.Conn]struct{}{}
	l.mu.Unlock()
	for c := range conns {
		c.Close()
	}
}

type accepted struct {
	net.Conn
	from *listener
}

func (a *accepted) Close() error {
	a.from.mu.Lock()
	delete(a.from.conns, a.Conn)
	a.from.mu.Unlock()
	return a.Conn.Close()
}
