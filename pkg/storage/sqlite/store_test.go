package sqlite

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/k3s-io/kine/pkg/server"
	"github.com/sirupsen/logrus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/podo-dev/podo/pkg/lifecycle/lifecycletest"
	"github.com/podo-dev/podo/pkg/plan"
)

func TestMain(m *testing.M) {
	logrus.SetOutput(io.Discard)
	os.Exit(m.Run())
}

func newStore(dir string) *Store {
	return New(plan.SQLite{DB: filepath.Join(dir, "db", "state.db"), Socket: filepath.Join(dir, "k.sock")}, slog.New(slog.DiscardHandler))
}

// running is a store that serves, and a client of it.
type running struct {
	*Store
	*clientv3.Client
	cancel context.CancelFunc
	done   chan error
}

func start(t *testing.T, dir string) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Store: newStore(dir), cancel: cancel, done: make(chan error, 1)}
	ready := make(chan struct{})
	go func() { r.done <- r.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-r.done:
		t.Fatalf("store ended before it was ready: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("store is not ready after 30s")
	}
	var err error
	r.Client, err = clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + r.Store.plan.Socket}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); r.cancel() })
	return r
}

// stop ends the store and fails if that was no orderly end.
func (r *running) stop(t *testing.T) {
	t.Helper()
	r.Close()
	r.cancel()
	select {
	case err := <-r.done:
		if err != nil {
			t.Fatalf("stop: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("store did not stop within 10s")
	}
}

// put creates a key as Kubernetes does, in a transaction that fails if it is there.
func (r *running) put(t *testing.T, key, value string) (revision int64) {
	t.Helper()
	res, err := r.Txn(t.Context()).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, value)).
		Else(clientv3.OpGet(key)).Commit()
	if err != nil || !res.Succeeded {
		t.Fatalf("create %s: %v, succeeded %v", key, err, res != nil && res.Succeeded)
	}
	return res.Header.Revision
}

// update changes a key that is at revision; it reports whether it still was.
func (r *running) update(t *testing.T, key, value string, revision int64) bool {
	t.Helper()
	res, err := r.Txn(t.Context()).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", revision)).
		Then(clientv3.OpPut(key, value)).
		Else(clientv3.OpGet(key)).Commit()
	if err != nil {
		t.Fatalf("update %s: %v", key, err)
	}
	return res.Succeeded
}

func (r *running) get(t *testing.T, key string) string {
	t.Helper()
	res, err := r.Client.Get(t.Context(), key)
	if err != nil {
		t.Fatalf("get %s: %v", key, err)
	}
	if len(res.Kvs) == 0 {
		return "(none)"
	}
	return string(res.Kvs[0].Value)
}

func TestStoreRoundTrip(t *testing.T) {
	s := start(t, filepath.Join(t.TempDir(), "server"))
	watch := s.Watch(t.Context(), "/registry/", clientv3.WithPrefix())

	first := s.put(t, "/registry/a", "1")
	if !s.update(t, "/registry/a", "2", first) {
		t.Error("an update of the current revision was refused")
	}
	if s.update(t, "/registry/a", "3", first) {
		t.Error("an update of an old revision was taken")
	}
	if got := s.get(t, "/registry/a"); got != "2" {
		t.Errorf("value %q, want 2", got)
	}
	for i := range 5 {
		s.put(t, fmt.Sprintf("/registry/list/%d", i), "x")
	}
	page, err := s.Client.Get(t.Context(), "/registry/list/", clientv3.WithPrefix(), clientv3.WithLimit(2))
	if err != nil || len(page.Kvs) != 2 || !page.More || page.Count != 5 {
		t.Errorf("a page of two: %d keys, more %v, count %d, %v", len(page.Kvs), page.More, page.Count, err)
	}
	var events []string
	deadline := time.After(10 * time.Second)
	for len(events) < 7 {
		select {
		case w := <-watch:
			for _, e := range w.Events {
				if string(e.Kv.Key) == server.HealthKey {
					continue // kine's own
				}
				events = append(events, string(e.Kv.Key)+"="+string(e.Kv.Value))
			}
		case <-deadline:
			t.Fatalf("watch delivered only %v", events)
		}
	}
	if events[0] != "/registry/a=1" || events[1] != "/registry/a=2" {
		t.Errorf("events = %v", events)
	}
	bytes, _, err := s.Health(t.Context())
	if err != nil || bytes <= 0 {
		t.Errorf("health: %d bytes, %v", bytes, err)
	}
	s.stop(t)
}

// TestStoreIsWholeAfterwards opens a copy of the files of a store that still runs,
// which is what a killed process leaves, and the one file after an orderly stop.
func TestStoreIsWholeAfterwards(t *testing.T) {
	s := start(t, filepath.Join(t.TempDir(), "server"))
	var last int64
	for i := range 100 {
		last = s.put(t, fmt.Sprintf("/registry/pods/%d", i), "value")
	}
	killed := collect(t, s.Store.plan.DB)
	s.stop(t)
	stopped := collect(t, s.Store.plan.DB)

	for name, files := range map[string]folder{"killed": killed, "stopped": {"": stopped[""]}} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Dir(filepath.Dir(files.lay(t)))
			if err := os.WriteFile(newStore(dir).marker(), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			again := start(t, dir)
			defer again.stop(t)
			res, err := again.Client.Get(t.Context(), "/registry/pods/", clientv3.WithPrefix(), clientv3.WithCountOnly())
			if err != nil || res.Count != 100 {
				t.Errorf("%d objects, want 100 (%v)", res.Count, err)
			}
			if next := again.put(t, "/registry/next", "value"); next <= last {
				t.Errorf("revision %d after %d: it must only grow", next, last)
			}
		})
	}
}

func TestStoreSocketIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "server")
	s := start(t, dir)
	info, err := os.Stat(s.Store.plan.Socket)
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); mode != 0o600 {
		t.Errorf("socket has mode %o, want 600", mode)
	}
	s.stop(t)
	// A socket that a killed process left behind is no hindrance.
	if err := os.WriteFile(s.Store.plan.Socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, dir).stop(t)
}

func TestHealthBeforeTheStart(t *testing.T) {
	if _, _, err := newStore(t.TempDir()).Health(t.Context()); err == nil {
		t.Error("a store that is not open calls itself healthy")
	}
}

func TestRunSaysWhatCannotBeOpened(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "db"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := newStore(dir).Run(ctx, cancel)
	var path *os.PathError
	if !errors.As(err, &path) || path.Path != filepath.Join(dir, "db") {
		t.Errorf("err = %v, want one that names %s", err, filepath.Join(dir, "db"))
	}
}

func TestContract(t *testing.T) { lifecycletest.Check(t, newStore(t.TempDir())) }

// TestSmallWritesAreSmall: a new file has small pages, one of before keeps its own, and what
// a kill left of the making of one is no hindrance.
func TestSmallWritesAreSmall(t *testing.T) {
	size := func(path string) int {
		t.Helper()
		header, err := os.ReadFile(path)
		if err != nil || len(header) < 100 {
			t.Fatal(len(header), err)
		}
		return int(binary.BigEndian.Uint16(header[16:]))
	}
	dir := filepath.Join(t.TempDir(), "server")
	s := newStore(dir)
	if err := os.MkdirAll(filepath.Dir(s.plan.DB), 0o700); err != nil {
		t.Fatal(err)
	}
	killed, _ := databases(t)
	for end, text := range map[string][]byte{".new": []byte("half of it"), ".new-journal": []byte("half of it"), "-wal": killed["-wal"]} {
		if err := os.WriteFile(s.plan.DB+end, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := start(t, dir)
	r.put(t, "/registry/a", "1")
	if res, err := r.Get(t.Context(), "/registry/pods/", clientv3.WithPrefix()); err != nil || len(res.Kvs) > 0 {
		t.Errorf("a new file beside the log of one that is gone holds %v, %v", res, err)
	}
	r.stop(t)
	if got := size(s.plan.DB); got != pageSize {
		t.Errorf("a new file has pages of %d bytes, want %d", got, pageSize)
	}
	left, _ := filepath.Glob(s.plan.DB + ".new*")
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}

	old := newStore(filepath.Join(t.TempDir(), "server"))
	db, err := sql.Open("sqlite3", old.plan.DB)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(old.plan.DB), 0o700)
	}
	if err == nil {
		_, err = db.Exec("PRAGMA user_version = 0")
	}
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	r = start(t, filepath.Dir(filepath.Dir(old.plan.DB)))
	r.put(t, "/registry/a", "1")
	r.stop(t)
	if got := size(old.plan.DB); got != 4096 {
		t.Errorf("a file of before has pages of %d bytes, want 4096", got)
	}
}
