package tunnel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/podo-dev/podo/pkg/lifecycle"
)

// patient bounds a dial that the API server waits for: it does not give up by
// itself (Kubernetes 1.36), and this is what it allows a dial of its own.
const patient = 30 * time.Second

// Connect serves h to the API server on a unix socket that only its owner can open,
// as the HTTP CONNECT proxy that [EgressConfig] names. Whatever is at the path is
// replaced. When it stops it ends the tunnels of h for good, so it must start
// before the API server and stop after it.
func Connect(h *Hub, socket string) lifecycle.Component {
	return lifecycle.Func("egress", func(ctx context.Context, ready func()) error {
		l, err := listen(ctx, socket)
		if err != nil {
			return fmt.Errorf("egress: %w", err)
		}
		ctx, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		defer wg.Wait()
		defer h.close()
		defer cancel()
		defer context.AfterFunc(ctx, func() { _ = l.Close() })()
		ready()
		for {
			conn, err := l.AcceptUnix()
			switch {
			case ctx.Err() != nil:
				if err == nil {
					_ = conn.Close()
				}
				return nil
			case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ECONNABORTED):
				h.log.Warn("cannot accept", "component", "egress", "path", socket, "err", err)
				select {
				case <-ctx.Done():
				case <-time.After(100 * time.Millisecond):
				}
			case err != nil:
				return fmt.Errorf("egress: %w", err)
			default:
				wg.Go(func() { h.proxy(ctx, conn) })
			}
		}
	})
}

// proxy serves one connection of the API server.
func (h *Hub) proxy(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	_ = conn.SetReadDeadline(time.Now().Add(handshake))
	br := bufio.NewReader(conn)
	req, err := http.ReadRequest(br)
	if err != nil {
		return
	}
	if req.Method != http.MethodConnect {
		refuse(conn, http.StatusMethodNotAllowed, "use CONNECT")
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	dialCtx, cancel := context.WithTimeout(ctx, patient)
	defer cancel()
	target, err := h.Dial(dialCtx, "tcp", req.Host)
	if err != nil {
		refuse(conn, http.StatusBadGateway, err.Error())
		return
	}
	far, ok := target.(half)
	if !ok {
		_ = target.Close()
		refuse(conn, http.StatusInternalServerError, "not a stream")
		return
	}
	defer far.Close()
	// The API server takes it as an error if anything follows the empty line before
	// it has spoken, so nothing is read from far until this is out.
	if _, err := conn.Write([]byte("HTTP/1.1 200 Connection established\r\n\r\n")); err != nil {
		return
	}
	if early, _ := br.Peek(br.Buffered()); len(early) > 0 {
		if _, err := far.Write(early); err != nil {
			return
		}
	}
	splice(ctx, conn, far)
}

// refuse puts the reason into the status line, the one part of an answer that the
// API server passes on.
func refuse(conn net.Conn, code int, reason string) {
	reason = strings.Join(strings.Fields(reason), " ")
	_ = conn.SetWriteDeadline(time.Now().Add(handshake))
	_, _ = fmt.Fprintf(conn, "HTTP/1.1 %d %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", code, reason[:min(len(reason), maxFrame)])
}

func listen(ctx context.Context, socket string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return nil, err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	// Linux gives the socket file the mode that the socket has when it is bound, so
	// there is no moment at which others could connect.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var chmod error
		err := c.Control(func(fd uintptr) { chmod = syscall.Fchmod(int(fd), 0o600) })
		return errors.Join(err, chmod)
	}}
	l, err := lc.Listen(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	return l.(*net.UnixListener), nil
}
