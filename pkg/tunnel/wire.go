package tunnel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
)

// Path is where a server takes tunnels, and Protocol what a node asks for there.
const (
	Path     = "/v1-podo/tunnel"
	Protocol = "podo-tunnel/1"
)

const (
	// toKubelet is the target of a stream to the node's kubelet, whatever its port.
	toKubelet = "kubelet"

	// heartbeat is how often a node pings. It makes bytes flow both ways, so that
	// whoever hears nothing for silence has lost the other side.
	heartbeat = 5 * time.Second
	silence   = 12 * time.Second

	// handshake bounds everything said before the first byte of payload.
	handshake = 10 * time.Second

	// linger is how long the second half of a connection may be idle after the
	// first has ended, for peers that do not close in answer.
	linger = 5 * time.Minute

	// chunk is the largest frame: a stream waits at most for one of every other.
	chunk = 16 << 10
)

// settings of both ends. A stream that its reader neglects holds a window of 256
// KiB and no more. Liveness is judged by silence rather than by a ping's return,
// which on a slow link queues behind the data that proves the link alive.
func settings(log *slog.Logger) *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false
	c.StreamOpenTimeout = 0
	c.StreamCloseTimeout = time.Hour
	c.ConnectionWriteTimeout = time.Minute
	c.LogOutput = nil
	c.Logger = slog.NewLogLogger(log.Handler(), slog.LevelDebug)
	return c
}

// link is the connection below a tunnel.
type link struct {
	net.Conn
	r       io.Reader // Conn, or what has been read of it too early and then Conn
	silence time.Duration
}

func (l *link) Read(b []byte) (int, error) {
	if err := l.SetReadDeadline(time.Now().Add(l.silence)); err != nil {
		return 0, err
	}
	return l.r.Read(b)
}

// Close does not wait for a dead peer: TLS says goodbye first, and may do so for
// five seconds.
func (l *link) Close() error {
	if t, ok := l.Conn.(interface{ NetConn() net.Conn }); ok {
		defer time.AfterFunc(200*time.Millisecond, func() { _ = t.NetConn().Close() }).Stop()
	}
	return l.Conn.Close()
}

// stream is a yamux stream that closes like a TCP connection.
type stream struct {
	*yamux.Stream
	reading sync.Mutex
	closed  atomic.Bool
}

// Read tells an end from a loss: yamux reports both as io.EOF.
func (s *stream) Read(b []byte) (int, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	if s.closed.Load() {
		return 0, net.ErrClosed
	}
	n, err := s.Stream.Read(b)
	switch {
	case err != nil && s.closed.Load():
		return n, net.ErrClosed
	case errors.Is(err, io.EOF) && s.Session().IsClosed():
		return n, io.ErrUnexpectedEOF
	}
	return n, err
}

// CloseWrite ends what we send; the peer reads io.EOF, and may go on sending.
func (s *stream) CloseWrite() error { return s.Stream.Close() }

// Close ends both directions. yamux cannot say "stop sending" before an hour is
// over, so what still arrives is thrown away until the peer has noticed.
func (s *stream) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	err := s.Stream.Close()
	_ = s.SetDeadline(time.Unix(1, 0))
	go func() {
		s.reading.Lock()
		defer s.reading.Unlock()
		for buf := make([]byte, chunk); ; {
			_ = s.SetReadDeadline(time.Now().Add(linger))
			if _, err := s.Stream.Read(buf); err != nil {
				return
			}
		}
	}()
	return err
}

// half is a connection that can be closed one way.
type half interface {
	net.Conn
	CloseWrite() error
}

// splice passes bytes between a and b until both have ended, one has failed or ctx
// is over, and closes them. The end of one direction is passed on as such.
func splice(ctx context.Context, a, b half) {
	shut := func() { _, _ = a.Close(), b.Close() }
	defer shut()
	defer context.AfterFunc(ctx, shut)()

	var lone atomic.Bool
	patience := func() {
		t := time.Now().Add(linger)
		_, _ = a.SetDeadline(t), b.SetDeadline(t)
	}
	pump := func(dst, src half) error {
		for buf := make([]byte, chunk); ; {
			n, err := src.Read(buf)
			if n > 0 {
				if _, err := dst.Write(buf[:n]); err != nil {
					return err
				}
			}
			if errors.Is(err, io.EOF) {
				return dst.CloseWrite()
			}
			if err != nil {
				return err
			}
			if lone.Load() {
				patience()
			}
		}
	}
	done := make(chan error, 2)
	go func() { done <- pump(a, b) }()
	go func() { done <- pump(b, a) }()
	if err := <-done; err != nil {
		shut()
	} else {
		lone.Store(true)
		patience()
	}
	<-done
}

// maxFrame is more than any address or reason needs.
const maxFrame = 1 << 10

func writeFrame(w io.Writer, text string) error {
	text = text[:min(len(text), maxFrame)]
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(text))), text...))
	return err
}

func readFrame(r io.Reader) (string, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return "", err
	}
	n := binary.BigEndian.Uint16(size[:])
	if n > maxFrame {
		return "", fmt.Errorf("frame of %d bytes", n)
	}
	text := make([]byte, n)
	_, err := io.ReadFull(r, text)
	return string(text), err
}
