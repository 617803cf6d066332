package etcd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.uber.org/zap"

	"github.com/podo-dev/podo/pkg/atomicfile"
)

// Create makes the data of a cluster of this one member in a folder that does not
// exist, and has fill write what is to be in it. Every revision of it is beyond after:
// whoever remembers one of another datastore is told that it is gone.
func (s *Store) Create(ctx context.Context, after int64, fill func(context.Context, *clientv3.Client) error) error {
	dir := s.cfg.Dir
	if _, err := os.Lstat(dir); err == nil {
		return fmt.Errorf("%s is there already", dir)
	}
	if err := atomicfile.EnsureDir(dir, 0o700); err != nil {
		return err
	}
	id := newIdentity(s.cfg.Node)
	if err := id.save(dir); err != nil {
		return err
	}
	nothing := func(context.Context, *embed.Etcd, *clientv3.Client) error { return nil }
	if err := s.alone(ctx, id.Name, nil, nothing); err != nil {
		return err
	}
	if err := raise(dir, after); err != nil {
		return fmt.Errorf("raise the revision of %s: %w", dir, err)
	}
	// A member that joins later replays the log, and the log knows nothing of the raised
	// revision. After a snapshot it does not reach so far back, and the member is sent
	// the data itself.
	often := func(ec *embed.Config) { ec.SnapshotCount, ec.SnapshotCatchUpEntries = 1, 1 }
	err := s.alone(ctx, id.Name, often, func(ctx context.Context, _ *embed.Etcd, c *clientv3.Client) error {
		for range 5 {
			if _, err := c.Put(ctx, raisedKey, ""); err != nil {
				return err
			}
		}
		_, err := c.Delete(ctx, raisedKey)
		return err
	})
	if err != nil {
		return err
	}
	err = s.alone(ctx, id.Name, nil, func(ctx context.Context, _ *embed.Etcd, c *clientv3.Client) error {
		if _, err := c.Compact(ctx, after); err != nil {
			return err
		}
		return fill(ctx, c)
	})
	if err != nil {
		return err
	}
	id.Started, id.Peer = true, s.peerURL()
	return id.save(dir)
}

// raisedKey is written and deleted while a member is made.
const raisedKey = "podo/raised"

// raise gives the data of a member that does not run a revision of at least to, in the
// way of etcdutl's restore: by a change of nothing at that revision (etcd 3.6).
func raise(dir string, to int64) error {
	b := backend.NewDefaultBackend(zap.NewNop(), filepath.Join(dir, "member", "snap", "db"))
	tx := b.BatchTx()
	tx.LockOutsideApply()
	tx.UnsafePut(schema.Key, mvcc.RevToBytes(mvcc.Revision{Main: to}, mvcc.NewRevBytes()), nil)
	tx.Unlock()
	b.ForceCommit()
	return b.Close()
}

// Inspect calls look with a client of what the member holds, while podo does not run.
// It works on a copy, which needs no other member.
func (s *Store) Inspect(ctx context.Context, look func(context.Context, *clientv3.Client) error) (err error) {
	dir := s.cfg.Dir
	if !hasData(dir) {
		return fmt.Errorf("no etcd data in %s", dir)
	}
	id, err := loadIdentity(dir)
	if err != nil {
		return err
	}
	if id == nil {
		id = newIdentity(s.cfg.Node)
	}
	if err := s.othersRest(ctx, id); err != nil {
		return err
	}
	aside := &Store{cfg: s.cfg, log: s.log, pulse: s.pulse, every: s.every}
	aside.cfg.Dir = dir + ".copy"
	if err := os.RemoveAll(aside.cfg.Dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(aside.cfg.Dir)) }()
	if err := copyFolder(aside.cfg.Dir, dir); err != nil {
		return fmt.Errorf("copy %s: %w", dir, err)
	}
	return aside.alone(ctx, id.Name, func(ec *embed.Config) { ec.ForceNewCluster = true }, func(ctx context.Context, _ *embed.Etcd, c *clientv3.Client) error {
		return look(ctx, c)
	})
}

// alone runs the member without others for as long as do takes.
func (s *Store) alone(ctx context.Context, name string, adjust func(*embed.Config), do func(context.Context, *embed.Etcd, *clientv3.Client) error) error {
	if err := os.MkdirAll(filepath.Dir(s.cfg.Socket), 0o711); err != nil {
		return err
	}
	ec, err := s.config(name)
	if err != nil {
		return err
	}
	if adjust != nil {
		adjust(ec)
	}
	r, err := s.start(ctx, ec)
	if err != nil {
		return err
	}
	defer r.stop()
	life, end := context.WithCancelCause(ctx)
	defer end(nil)
	go func() { end(r.wait(life)) }()
	limit := time.AfterFunc(time.Minute, func() { end(errors.New("the member does not become ready alone")) })
	defer limit.Stop()
	if err := s.untilReady(life, r.etcd); err != nil {
		return err
	}
	client := v3client.New(r.etcd.Server)
	defer client.Close()
	if err := s.untilRead(life, r.etcd, client); err != nil {
		return err
	}
	limit.Stop()
	if err := do(life, r.etcd, client); err != nil {
		if cause := context.Cause(life); cause != nil {
			err = cause
		}
		return err
	}
	return nil
}

// SetAside moves a folder of data out of the way, keeps it, and returns where.
func SetAside(dir string) (string, error) { return setAside(dir) }
