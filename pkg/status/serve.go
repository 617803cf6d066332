package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/podo-dev/podo/pkg/lifecycle"
)

// Serve answers questions about this process on a unix socket that only its owner
// can open. It needs no other part, so it can tell what a boot is waiting for.
// report is called once a question, by several goroutines, with the asker's context. So is
// endPods, which returns when all have ended or when the asker does not wait any longer.
//
// A socket that nobody serves any more is replaced; one that is served is an error.
func Serve(socket string, report func(context.Context) Report, endPods func(context.Context) error, log *slog.Logger) lifecycle.Component {
	return lifecycle.Func("status", func(ctx context.Context, ready func()) error {
		l, err := listen(ctx, socket)
		if err != nil {
			return err
		}
		mux := http.NewServeMux()
		mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			if err := json.NewEncoder(w).Encode(report(r.Context())); err != nil {
				log.Debug("status answer cut short", "component", "status", "err", err)
			}
		})
		mux.HandleFunc("POST /end-pods", func(w http.ResponseWriter, r *http.Request) {
			within, err := time.ParseDuration(r.FormValue("within"))
			if err != nil {
				http.Error(w, "within: "+err.Error(), http.StatusBadRequest)
				return
			}
			ctx, end := context.WithTimeout(r.Context(), within)
			defer end()
			switch err := endPods(ctx); {
			case errors.Is(err, context.DeadlineExceeded):
				w.WriteHeader(http.StatusGatewayTimeout)
			case err != nil:
				http.Error(w, err.Error(), http.StatusConflict)
			}
		})
		srv := &http.Server{
			Handler:           mux,
			ReadHeaderTimeout: 5 * time.Second,
			BaseContext:       func(net.Listener) context.Context { return ctx },
			ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		}
		stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
		defer stop()
		ready()
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("status: serve %s: %w", socket, err)
		}
		return nil
	})
}

func listen(ctx context.Context, socket string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return nil, fmt.Errorf("status: %w", err)
	}
	var d net.Dialer
	switch c, err := d.DialContext(ctx, "unix", socket); {
	case err == nil:
		_ = c.Close()
		return nil, fmt.Errorf("status: another podo serves %s", socket)
	case errors.Is(err, syscall.ECONNREFUSED):
		if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("status: replace stale socket: %w", err)
		}
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
		return nil, fmt.Errorf("status: %w", err)
	}
	return l, nil
}
