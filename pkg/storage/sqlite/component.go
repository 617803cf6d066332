// Package sqlite keeps the cluster's state in one SQLite file.
//
// Package front speaks the etcd protocol over a unix socket before it. A file that
// is damaged, or missing beside a cluster that once had it, is refused: starting
// empty would lose the cluster silently.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	kine "github.com/k3s-io/kine/pkg/drivers/sqlite"
	"github.com/k3s-io/kine/pkg/query"
	"github.com/k3s-io/kine/pkg/server"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/storage/front"
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
	config := front.Config()
	config.DataSourceName = source(s.plan.DB)
	backend, engine, err := kine.NewVariant(life, &rest, "sqlite3", &config)
	if err != nil {
		return fmt.Errorf("open %s: %w", s.plan.DB, err)
	}
	engine.PostCompactSQL = query.New("PRAGMA wal_checkpoint(FULL)", "?", false, "PostCompactSQL") // as without that parameter
	s.settle(life, engine.DB, marked)
	if err := backend.Start(life); err != nil {
		return fmt.Errorf("open %s: %w", s.plan.DB, err)
	}
	if err := s.remember(); err != nil {
		return err
	}
	s.mu.Lock()
	s.backend = backend
	s.mu.Unlock()
	if err := front.Serve(ctx, s.plan.Socket, backend, s.log, ready); err != nil {
		return err
	}
	s.settle(life, engine.DB, whole)
	return nil
}

// source is the file with how kine is to use it.
//
// FULL syncs the log with each transaction: with NORMAL, kine's own choice, the last ones
// would go with the power. The file is not compacted at each start: rewriting it all is what
// flash memory dies of. Nor does kine move the log into it then, which on a full disk would
// end the start (0.16).
func source(file string) string {
	return file + "?_journal_mode=WAL&_busy_timeout=30000&_synchronous=FULL&_txlock=immediate" +
		"&_stmt_cache_size=20&cache=shared&_kine_disable_startup_vacuum=true&_kine_disable_compact_wal_checkpoint=true"
}

// settle moves the write-ahead log into the file and syncs it, so that the file is
// whole by itself; mark says whether it stays so. SQLite would do so when the last connection
// closes, but kine leaks one (0.16).
func (s *Store) settle(ctx context.Context, db *sql.DB, mark int) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := db.Conn(ctx)
	if err == nil {
		_, err = conn.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", mark))
		_, stuck := conn.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)") // may work where the disk has no room for more
		err = errors.Join(err, stuck)
	}
	if err != nil {
		// Nor may another connection be the last to close: it would remove the log that the
		// file says it needs. This one is not given back.
		s.log.Warn("datastore left its latest writes in the log beside it", "component", s.Name(), "path", s.plan.DB+"-wal", "err", err)
		return
	}
	conn.Close()
}

// Health asks the store one small question and returns its size in bytes and how
// long the answer took.
func (s *Store) Health(ctx context.Context) (bytes int64, latency time.Duration, err error) {
	s.mu.Lock()
	backend := s.backend
	s.mu.Unlock()
	return front.Health(ctx, backend)
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
		return create(ctx, s.plan.DB)
	}
	if err != nil {
		return err
	}
	return check(ctx, s.plan.DB, known)
}

// pageSize is that of a new file, in bytes. A small write, such as the lease that a node
// renews every ten seconds, changes a page of the table and one of each of kine's indices:
// with SQLite's usual 4096 bytes it writes twice as much, and a list of a thousand pods
// takes two thirds of the time.
const pageSize = 1024

// create makes an empty file, which is there as a whole or not at all.
func create(ctx context.Context, path string) error {
	fresh := path + ".new"
	// What a kill left of it, and logs of a file that is gone: SQLite would take them for
	// those of this one, and itself removes them where it finds no file.
	for _, left := range []string{fresh, fresh + "-journal", path + "-wal", path + "-shm", path + "-journal"} {
		if err := os.Remove(left); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	db, err := sql.Open("sqlite3", fresh+"?_synchronous=FULL")
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(1) // the first statement is for the connection of the second
	_, err = db.ExecContext(ctx, fmt.Sprintf("PRAGMA page_size = %d; PRAGMA user_version = %d", pageSize, whole))
	if err := errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("make %s: %w", fresh, err)
	}
	if err := os.Rename(fresh, path); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(path))
}
