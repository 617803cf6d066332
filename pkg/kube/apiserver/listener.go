package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/podo-dev/podo/pkg/gate"
)

// goodbye is how long requests in flight may take once the server is told to stop.
// Watches of pods and people never end by themselves, and upstream would wait a
// minute for them.
const goodbye = time.Second

// listener remembers the connections that it accepted, so that they can be cut.
type listener struct {
	net.Listener
	gate.Conns
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
	return &listener{Listener: l}, nil
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.Keep(c), nil
}
