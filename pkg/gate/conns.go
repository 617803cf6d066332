package gate

import (
	"net"
	"sync"
)

// Conns remembers connections, so that they can be cut. The zero value holds none.
type Conns struct {
	mu   sync.Mutex
	open map[net.Conn]struct{}
}

// Keep returns c, remembered until it is closed.
func (s *Conns) Keep(c net.Conn) net.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = map[net.Conn]struct{}{}
	}
	s.open[c] = struct{}{}
	return &kept{c, s}
}

// Cut closes every connection.
func (s *Conns) Cut() {
	s.mu.Lock()
	conns := s.open
	s.open = nil
	s.mu.Unlock()
	for c := range conns {
		c.Close()
	}
}

type kept struct {
	net.Conn
	in *Conns
}

func (k *kept) Close() error {
	k.in.mu.Lock()
	delete(k.in.open, k.Conn)
	k.in.mu.Unlock()
	return k.Conn.Close()
}
