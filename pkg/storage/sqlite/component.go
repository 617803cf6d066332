// Package sqlite keeps the cluster's state in one SQLite file.
//
// kine speaks the etcd protocol over a unix socket in front of it. The parts of
// kine are assembled here rather than by its endpoint package, which would link
// every database it knows. A file that is damaged, or missing beside a cluster
// that once had it, is refused: starting empty would lose the cluster silently.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/drivers"
	kine "github.com/k3s-io/kine/pkg/drivers/sqlite"
	"github.com/k3s-io/kine/pkg/server"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/plan"
)

// Store is the datastore.
type Store struct {
	plan plan.SQLite
	log  *slog.Logger

	mu      sync.Mutex
	backend server.Backend // nil until Run has opened the file
}

// New returns a store that is not open yet.
func New(p plan.SQLite, log *slog.Logger) *Store { return &Store{plan: p, log: log} }

// Name is the component's name.
func (s *Store) Name() string { return "datastore" }

// Run serves the store until ctx ends. What was acknowledged is on disk by then.
func (s *Store) Run(ctx context.Context, ready func()) error {
	if err := s.prepare(ctx); err != nil {
		return err
	}
	// The backend outlives ctx by the time that requests in flight need.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	var rest sync.WaitGroup
	defer rest.Wait()
	defer end()
	backend, engine, err := kine.NewVariant(life, &rest, "sqlite3", &drivers.Config{
		// WAL with NORMAL loses nothing when a process is killed. The file is not
		// compacted at each start: rewriting it all is what flash memory dies of.
		DataSourceName: s.plan.DB + "?_journal_mode=WAL&_busy_timeout=30000&_synchronous=NORMAL&_txlock=immediate" +
			"&_stmt_cache_size=20&cache=shared&_kine_disable_startup_vacuum=true",
		CompactInterval:       5 * time.Minute,
		CompactIntervalJitter: 5,
		CompactTimeout:        5 * time.Second,
		CompactMinRetain:      1000,
		CompactBatchSize:      1000,
		PollBatchSize:         500,
	})
	if err != nil {
		return fmt.Errorf("open %s: %w", s.plan.DB, err)
	}
	if err := backend.Start(life); err != nil {
		return fmt.Errorf("open %s: %w", s.plan.DB, err)
	}
	if err := s.remember(); err != nil {
		return err
	}
	s.mu.Lock()
	s.backend = backend
	s.mu.Unlock()

	listener, err := listen(ctx, s.plan.Socket)
	if err != nil {
		return err
	}
	g := newServer(backend, s.log)
	done := make(chan error, 1)
	go func() { done <- g.Serve(listener) }()
	ready()
	select {
	case err := <-done:
		return fmt.Errorf("serve %s: %w", s.plan.Socket, err)
	case <-ctx.Done():
	}
	late := time.AfterFunc(2*time.Second, g.Stop)
	defer late.Stop()
	g.GracefulStop()
	<-done
	s.settle(life, engine.DB)
	return nil
}

// settle moves the write-ahead log into the file and syncs it, so that the file is
// whole by itself. SQLite would do so when the last connection closes, but kine
// leaks one (0.16).
func (s *Store) settle(ctx context.Context, db *sql.DB) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if _, err := db.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		s.log.Warn("datastore left its latest writes in the log beside it", "component", s.Name(), "path", s.plan.DB+"-wal", "err", err)
	}
}

// Health asks the store one small question and returns its size in bytes and how
// long the answer took.
func (s *Store) Health(ctx context.Context) (bytes int64, latency time.Duration, err error) {
	s.mu.Lock()
	backend := s.backend
	s.mu.Unlock()
	if backend == nil {
		return 0, 0, errors.New("not open yet")
	}
	began := time.Now()
	if _, _, err := backend.Get(ctx, server.HealthKey, 0, true); err != nil {
		return 0, 0, err
	}
	latency = time.Since(began)
	bytes, err = backend.DbSize(ctx)
	return bytes, latency, err
}

// Kubernetes' storage of this version believes an etcd before 3.5.13 to be without
// progress requests, and then reads from SQLite whatever must be current. With
// progress requests it waits up to a second for kine's poll loop to report a
// revision that has long been delivered, after every write (kine 0.16).
const emulatedEtcd = "3.5.12"

func newServer(backend server.Backend, log *slog.Logger) *grpc.Server {
	g := grpc.NewServer(
		grpc.UnaryInterceptor((&health{log: log}).note),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 2 * time.Hour, Timeout: 20 * time.Second}),
		grpc.MaxConcurrentStreams(math.MaxUint32),
		grpc.MaxRecvMsgSize(2<<20), // as etcd: an object of 1.5 MiB and room around it
		grpc.MaxSendMsgSize(math.MaxInt32),
	)
	bridge := server.New(backend, "unix", progressEvery, emulatedEtcd)
	etcdserverpb.RegisterKVServer(g, bridge)
	etcdserverpb.RegisterLeaseServer(g, bridge)
	etcdserverpb.RegisterClusterServer(g, bridge)
	etcdserverpb.RegisterMaintenanceServer(g, bridge)
	etcdserverpb.RegisterWatchServer(g, watches{backend, log})
	return g
}

func listen(ctx context.Context, socket string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o711); err != nil {
		return nil, err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	return l, os.Chmod(socket, 0o600)
}

// marker lies beside the folder of the file, and says that there is a file.
func (s *Store) marker() string { return filepath.Dir(s.plan.DB) + ".kind" }

func (s *Store) remember() error {
	_, err := atomicfile.WriteIfChanged(s.marker(), []byte("sqlite\n"), 0o600)
	return err
}

// prepare makes the folder and looks the file over before anything writes to it.
func (s *Store) prepare(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(s.plan.DB), 0o700); err != nil {
		return err
	}
	_, err := os.Stat(s.marker())
	known := err == nil
	_, err = os.Stat(s.plan.DB)
	if errors.Is(err, fs.ErrNotExist) {
		if known {
			return fmt.Errorf("%w: %s is missing, but this server has a cluster: put the file back from a backup, together with the -wal and -shm files beside it if the backup has them; "+
				"to give the cluster up and start an empty one, run podo uninstall first", ErrDamaged, s.plan.DB)
		}
		return nil
	}
	if err != nil {
		return err
	}
	return check(ctx, s.plan.DB, known)
}
