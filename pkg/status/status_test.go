package status_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/lifecycle/lifecycletest"
	"github.com/podo-dev/podo/pkg/status"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func serve(t *testing.T, socket string, report func(context.Context) status.Report) {
	t.Helper()
	serveEnding(t, socket, report, nil)
}

func serveEnding(t *testing.T, socket string, report func(context.Context) status.Report, endPods func(context.Context) error) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	up, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- status.Serve(socket, report, endPods, quiet).Run(ctx, func() { close(up) }) }()
	select {
	case <-up:
	case err := <-done:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("socket after stop: %v", err)
		}
	})
}

func up(states ...lifecycle.State) status.Report {
	r := status.Report{Version: "v1", Node: &status.Node{Name: "n", Ready: true}}
	for i, s := range states {
		r.Components = append(r.Components, lifecycle.Status{Name: string(rune('a' + i)), State: s, Since: time.Unix(1e9, 0).UTC()})
	}
	return r
}

func TestFetch(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "run", "podo.sock")
	serve(t, socket, func(context.Context) status.Report { return up(lifecycle.Ready) })
	r, err := status.Fetch(t.Context(), socket)
	if err != nil || r.Version != "v1" || len(r.Components) != 1 || !r.Ready() {
		t.Errorf("Fetch = %+v, %v", r, err)
	}
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket mode = %v, %v; want 0600", info.Mode(), err)
	}
	err = status.Serve(socket, nil, nil, quiet).Run(t.Context(), func() {})
	if err == nil || !strings.Contains(err.Error(), "another podo serves") {
		t.Errorf("second Serve = %v", err)
	}
}

func TestFetchSaysWhatToDo(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale.sock")
	l, err := net.Listen("unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	for name, socket := range map[string]string{"absent": filepath.Join(dir, "none.sock"), "stale": stale} {
		_, err := status.Fetch(t.Context(), socket)
		if !errors.Is(err, status.ErrNotRunning) || !strings.Contains(err.Error(), socket) || !strings.Contains(err.Error(), "podo server") {
			t.Errorf("%s: err = %v", name, err)
		}
	}
	serve(t, stale, func(context.Context) status.Report { return up(lifecycle.Ready) })
	if _, err := status.Fetch(t.Context(), stale); err != nil {
		t.Errorf("stale socket was not replaced: %v", err)
	}
}

func TestWait(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "podo.sock")
	var asked atomic.Int32
	told := 0
	done := make(chan error, 1)
	go func() {
		_, err := status.Wait(t.Context(), socket, func(status.Report) { told++ })
		done <- err
	}()
	time.Sleep(20 * time.Millisecond) // Wait begins before podo does
	serve(t, socket, func(context.Context) status.Report {
		if asked.Add(1) < 3 {
			return up(lifecycle.Ready, lifecycle.Starting)
		}
		return up(lifecycle.Ready, lifecycle.Ready)
	})
	if err := <-done; err != nil || told != 3 {
		t.Errorf("Wait = %v after %d reports, want 3", err, told)
	}
}

func TestWaitEnds(t *testing.T) {
	tests := map[string]struct {
		report status.Report
		want   error
		text   string
	}{
		"part failed": {up(lifecycle.Ready, lifecycle.Failed), status.ErrFailed, "b"},
		"too slow":    {up(lifecycle.Ready, lifecycle.Starting), context.DeadlineExceeded, "b is starting"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "podo.sock")
			serve(t, socket, func(context.Context) status.Report { return tt.report })
			ctx, stop := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer stop()
			_, err := status.Wait(ctx, socket, func(status.Report) {})
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("Wait = %v, want %v with %q", err, tt.want, tt.text)
			}
		})
	}
	ctx, stop := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer stop()
	if _, err := status.Wait(ctx, filepath.Join(t.TempDir(), "no.sock"), nil); !errors.Is(err, status.ErrNotRunning) {
		t.Errorf("Wait without podo = %v", err)
	}
}

func TestEndPods(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "podo.sock")
	if err := status.EndPods(t.Context(), socket, time.Second); !errors.Is(err, status.ErrNotRunning) {
		t.Errorf("without podo: %v", err)
	}
	report := func(context.Context) status.Report { return status.Report{} }
	ends := make(chan error, 1)
	gone := make(chan error, 1)
	serveEnding(t, socket, report, func(ctx context.Context) error {
		select {
		case err := <-ends:
			return err
		case <-ctx.Done():
			gone <- ctx.Err()
			return ctx.Err()
		}
	})
	ends <- nil
	if err := status.EndPods(t.Context(), socket, time.Minute); err != nil {
		t.Errorf("pods that end: %v", err)
	}
	ends <- errors.New("nobody listens")
	if err := status.EndPods(t.Context(), socket, time.Minute); err == nil || !strings.Contains(err.Error(), "nobody listens") {
		t.Errorf("nobody to end them: %v", err)
	}
	if err := status.EndPods(t.Context(), socket, 50*time.Millisecond); !errors.Is(err, status.ErrCutOff) || !errors.Is(<-gone, context.DeadlineExceeded) {
		t.Errorf("pods that do not end: %v", err)
	}
	// Who goes away is told from one whose time is over.
	ctx, stop := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, stop)
	if err := status.EndPods(ctx, socket, time.Minute); !errors.Is(err, context.Canceled) || !errors.Is(<-gone, context.Canceled) {
		t.Errorf("somebody who goes away: %v", err)
	}
}

func TestMissing(t *testing.T) {
	r := up(lifecycle.Ready, lifecycle.Waiting)
	r.Components[1].WaitOn = []string{"a"}
	r.Node = &status.Node{Name: "n", Reason: "no network"}
	r.Datastore = &status.Datastore{Error: "disk full"}
	r.API = &status.API{}
	want := "b waits for a; the datastore is not healthy (disk full); the API does not answer; node n is not Ready (no network)"
	if got := strings.Join(r.Missing(), "; "); got != want {
		t.Errorf("Missing = %s\nwant %s", got, want)
	}
	if (status.Report{}).Ready() {
		t.Error("an empty report is ready")
	}
}

func TestContract(t *testing.T) {
	lifecycletest.Check(t, status.Serve(filepath.Join(t.TempDir(), "s"), nil, nil, quiet))
}
