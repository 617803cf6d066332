// Package migrate copies a cluster from one datastore to another while no server runs.
//
// The source is only read. The target must be empty, and serves no cluster before it is
// whole: one on this server is made aside and put in place at the end, and one
// elsewhere bears a mark until then. Every revision in the target is beyond all of the
// source's, so no client's goes backwards, and old ones are told that they are gone.
package migrate

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/storage/etcd"
	"github.com/podo-dev/podo/pkg/storage/external"
	"github.com/podo-dev/podo/pkg/storage/sqlite"
	"github.com/podo-dev/podo/pkg/storage/vault"
)

var (
	// ErrNotEmpty means that the target holds something already.
	ErrNotEmpty = errors.New("holds data already")

	errDiffers = errors.New("what was copied is not what is there now")
)

// first and beyond enclose every key that Kubernetes and podo have: they begin with a
// slash. What kine and the API server keep beside them is about revisions that are gone.
const first, beyond = "/", "0"

// health is a key that kine makes in every database by itself.
const health = "/registry/health"

// ours reports whether a key is no part of the cluster.
func ours(key string) bool { return key == health || key == vault.PartialKey }

// A Record is one key.
type Record struct {
	Key   string
	Value []byte
	TTL   int64 // in seconds; 0: for good
}

// A Tally is what was seen of a datastore: how many keys, and a sum over all of them
// that does not depend on their order.
type Tally struct {
	Keys     int
	Revision int64
	sum      [sha256.Size]byte
}

func (t *Tally) add(r Record) {
	h := sha256.New()
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(r.Key)))
	h.Write(n[:])
	h.Write([]byte(r.Key))
	h.Write(r.Value)
	for i, b := range h.Sum(nil) {
		t.sum[i] ^= b
	}
	t.Keys++
}

// Options are how a copy is made.
type Options struct {
	// Sealed is what servers share, for a target elsewhere; see package vault.
	Sealed []byte
	// Tell is called now and then with how far the copy has come.
	Tell func(text string)
	Log  *slog.Logger
}

// Copy copies everything, compares, and puts the target in place. Dir is the folder
// of this server's datastores. It returns what the target holds.
func Copy(ctx context.Context, from, to plan.Storage, o Options) (Tally, error) {
	if o.Tell == nil {
		o.Tell = func(string) {}
	}
	var done Tally
	err := read(ctx, from, o.Log, func(ctx context.Context, src source) error {
		revision, err := src.revision(ctx)
		if err != nil {
			return fmt.Errorf("read %s: %w", Name(from), err)
		}
		src = sealed{src, o.Sealed, to.External != nil}
		done, err = write(ctx, to, src, revision, o)
		if err != nil {
			return fmt.Errorf("write %s: %w", Name(to), err)
		}
		return nil
	})
	return done, err
}

// Name is what people call a datastore.
func Name(s plan.Storage) string {
	switch {
	case s.SQLite != nil:
		return s.SQLite.DB
	case s.Etcd != nil:
		return s.Etcd.Dir
	}
	return s.External.Product() + " at " + s.External.Where
}

// A source yields every record once.
type source interface {
	revision(ctx context.Context) (int64, error)
	each(ctx context.Context, yield func(Record) error) error
}

// sealed is a source whose sealed secrets are replaced.
type sealed struct {
	source
	bundle  []byte
	replace bool
}

func (s sealed) each(ctx context.Context, yield func(Record) error) error {
	err := s.source.each(ctx, func(r Record) error {
		if s.replace && r.Key == vault.SealedKey {
			return nil
		}
		return yield(r)
	})
	if err == nil && s.replace {
		err = yield(Record{Key: vault.SealedKey, Value: s.bundle})
	}
	return err
}

// read opens a source for as long as do takes.
func read(ctx context.Context, from plan.Storage, log *slog.Logger, do func(context.Context, source) error) error {
	switch {
	case from.SQLite != nil:
		if err := sqlite.Check(ctx, from.SQLite.DB); err != nil {
			return err
		}
		db, err := openSQLite(from.SQLite.DB)
		if err != nil {
			return err
		}
		defer db.Close()
		return do(ctx, table{db: db})
	case from.Etcd != nil:
		return etcd.New(*from.Etcd, log).Inspect(ctx, func(ctx context.Context, c *clientv3.Client) error {
			return do(ctx, &keys{client: c, real: true})
		})
	case from.External.Kind == "etcd":
		c, err := vault.Dial(ctx, from.Client())
		if err != nil {
			return err
		}
		defer c.Close()
		return do(ctx, &keys{client: c, real: true})
	case from.External.Kind == "nats":
		return fronted(ctx, *from.External, log, func(ctx context.Context, c *clientv3.Client) error {
			return do(ctx, &keys{client: c})
		})
	}
	db, err := external.OpenSQL(*from.External)
	if err != nil {
		return err
	}
	defer db.Close()
	return do(ctx, table{db: db, numbered: from.External.Kind == "postgres"})
}

// write fills a target with all that src yields, compares, and puts it in place.
func write(ctx context.Context, to plan.Storage, src source, after int64, o Options) (Tally, error) {
	switch {
	case to.SQLite != nil:
		return toSQLite(ctx, *to.SQLite, src, after, o)
	case to.Etcd != nil:
		return toEtcd(ctx, *to.Etcd, src, after, o)
	case to.External.Kind == "etcd":
		c, err := vault.Dial(ctx, to.Client())
		if err != nil {
			return Tally{}, err
		}
		defer c.Close()
		return marked(ctx, &keys{client: c, real: true}, src, after, o)
	case to.External.Kind == "nats":
		var done Tally
		err := fronted(ctx, *to.External, o.Log, func(ctx context.Context, c *clientv3.Client) (err error) {
			done, err = marked(ctx, &keys{client: c}, src, after, o)
			return err
		})
		return done, err
	}
	// The store makes the tables.
	if err := serve(ctx, external.New(withSocket(*to.External), o.Log), func(context.Context) error { return nil }); err != nil {
		return Tally{}, err
	}
	db, err := external.OpenSQL(*to.External)
	if err != nil {
		return Tally{}, err
	}
	defer db.Close()
	return fill(ctx, table{db: db, numbered: to.External.Kind == "postgres"}, src, after, o)
}

// toSQLite makes the file aside.
func toSQLite(ctx context.Context, to plan.SQLite, src source, after int64, o Options) (Tally, error) {
	if _, err := os.Lstat(to.DB); err == nil {
		return Tally{}, fmt.Errorf("%s %w; move it away first, with the -wal and -shm files beside it", to.DB, ErrNotEmpty)
	}
	folder := filepath.Join(filepath.Dir(to.DB), "sqlite.partial")
	kind := folder + ".kind"
	if err := errors.Join(os.RemoveAll(folder), os.RemoveAll(kind)); err != nil {
		return Tally{}, err
	}
	defer func() { os.RemoveAll(folder); os.RemoveAll(kind) }()
	aside := plan.SQLite{DB: filepath.Join(folder, "state.db"), Socket: filepath.Join(folder, "socket")}
	if err := atomicfile.EnsureDir(folder, 0o700); err != nil {
		return Tally{}, err
	}
	if err := serve(ctx, sqlite.New(aside, o.Log), func(context.Context) error { return nil }); err != nil {
		return Tally{}, err
	}
	db, err := openToWrite(aside.DB)
	if err != nil {
		return Tally{}, err
	}
	done, err := fill(ctx, table{db: db}, src, after, o)
	if err == nil {
		// One file, whole by itself: version 0 says that it needs no log beside it.
		_, err = db.ExecContext(ctx, "PRAGMA user_version = 0; PRAGMA wal_checkpoint(TRUNCATE)")
	}
	if err := errors.Join(err, db.Close()); err != nil {
		return done, err
	}
	if err := os.Rename(aside.DB, to.DB); err != nil {
		return done, err
	}
	return done, atomicfile.SyncDir(filepath.Dir(to.DB))
}

// toEtcd makes the folder aside.
func toEtcd(ctx context.Context, to plan.Etcd, src source, after int64, o Options) (Tally, error) {
	if _, err := os.Lstat(to.Dir); err == nil {
		return Tally{}, fmt.Errorf("%s %w; move it away first", to.Dir, ErrNotEmpty)
	}
	aside := to
	aside.Dir = to.Dir + ".partial"
	if err := os.RemoveAll(aside.Dir); err != nil {
		return Tally{}, err
	}
	defer os.RemoveAll(aside.Dir)
	var done Tally
	err := etcd.New(aside, o.Log).Create(ctx, after, func(ctx context.Context, c *clientv3.Client) (err error) {
		done, err = copyAll(ctx, &keys{client: c, real: true}, src, o)
		return err
	})
	if err != nil {
		return done, err
	}
	if err := os.Rename(aside.Dir, to.Dir); err != nil {
		return done, err
	}
	return done, atomicfile.SyncDir(filepath.Dir(to.Dir))
}

// Before is what a start with an etcd of its own does first on a server that has its
// cluster in SQLite. Which of the two counts is decided by one file, which is written
// when the etcd is whole; killed at any moment, the server has one of them.
func Before(p plan.Storage, log *slog.Logger) lifecycle.Component {
	log = log.With("component", "migration")
	return lifecycle.Task("migration", func(ctx context.Context) error {
		if _, err := os.Lstat(p.Etcd.Dir); err == nil {
			// From a start that came to no end, or from before SQLite.
			kept, err := etcd.SetAside(p.Etcd.Dir)
			if err != nil {
				return err
			}
			log.Info("folder that is no datastore of this server set aside", "path", kept)
		}
		began := time.Now()
		log.Info("taking the cluster over from SQLite to etcd", "path", p.From.DB)
		done, err := Copy(ctx, plan.Storage{SQLite: p.From}, plan.Storage{Etcd: p.Etcd}, Options{
			Log: log, Tell: func(text string) { log.Info("taking the cluster over", "progress", text) },
		})
		if err != nil {
			return err
		}
		if err := Switch(p.Etcd.Dir, "etcd"); err != nil {
			return err
		}
		kept, err := keepAside(p.From.DB)
		if err != nil {
			return err
		}
		log.Info("cluster taken over", "keys", done.Keys, "revision", done.Revision, "kept", kept, "took", time.Since(began).Round(time.Millisecond))
		return nil
	})
}

// Switch makes kind the datastore that counts, of a server that has its datastores
// beside path.
func Switch(path, kind string) error {
	return atomicfile.Write(filepath.Dir(path)+".kind", []byte(kind+"\n"), 0o600)
}

// keepAside renames a SQLite file and what is beside it.
func keepAside(path string) (string, error) {
	to := path + "-old-" + time.Now().UTC().Format("20060102T150405Z")
	for _, part := range []string{"-wal", "-shm", ""} {
		if err := os.Rename(path+part, to+part); err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
	}
	return to, atomicfile.SyncDir(filepath.Dir(path))
}

// fronted serves NATS by a socket of its own for as long as do takes.
func fronted(ctx context.Context, x plan.External, log *slog.Logger, do func(context.Context, *clientv3.Client) error) error {
	x = withSocket(x)
	return serve(ctx, external.New(x, log), func(ctx context.Context) error {
		c, err := vault.Dial(ctx, plan.Storage{External: &x}.Client())
		if err != nil {
			return err
		}
		defer c.Close()
		return do(ctx, c)
	})
}

func withSocket(x plan.External) plan.External {
	x.Socket = strings.TrimSuffix(x.Socket, ".sock") + "-migrate.sock"
	return x
}

// patience is how long a datastore elsewhere may keep a copy waiting.
const patience = 30 * time.Second

// serve runs a store for as long as do takes.
func serve(ctx context.Context, store lifecycle.Component, do func(context.Context) error) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- store.Run(ctx, func() { close(ready) }) }()
	select {
	case err := <-ended:
		return err
	case <-time.After(patience):
		err := fmt.Errorf("no answer within %s", patience)
		if w, ok := store.(interface{ Waiting() string }); ok {
			err = fmt.Errorf("no answer within %s: %s", patience, w.Waiting())
		}
		end(nil)
		<-ended
		return err
	case <-ready:
	}
	err := do(ctx)
	end(nil)
	return errors.Join(err, <-ended)
}
