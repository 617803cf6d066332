package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/podo-dev/podo/pkg/gate"
)

// A Listener remembers the connections that it accepted, so that they can be cut.
type Listener struct {
	net.Listener
	gate.Conns
}

// Listen opens the port of a server, before anything is built that serves it: clients
// that come early wait in the handshake instead of being refused.
func Listen(ctx context.Context, addr netip.Addr, port int) (*Listener, error) {
	var lc net.ListenConfig
	at := netip.AddrPortFrom(addr, uint16(port)).String()
	l, err := lc.Listen(ctx, "tcp", at)
	if errors.Is(err, syscall.EADDRNOTAVAIL) {
		return nil, fmt.Errorf("%w; give --bind-address an address of this machine", err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w; free the port or choose another with --https-listen-port", err)
	}
	return &Listener{Listener: l}, nil
}

// Accept waits for a connection.
func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.Keep(c), nil
}
