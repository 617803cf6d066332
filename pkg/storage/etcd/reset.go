package etcd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"github.com/podo-dev/podo/pkg/atomicfile"
)

// Reset makes this server's data a cluster of one member, whatever the others hold,
// and returns where the data as it was is kept. It is for a quorum that is lost for
// good: what the others acknowledged and this member never saw is lost. An
// old member that starts later and reaches this one learns that it was removed; a
// majority of them that reaches only itself would go on as the old cluster.
func (s *Store) Reset(ctx context.Context) (kept string, err error) {
	dir := s.cfg.Dir
	if !hasData(dir) {
		return "", fmt.Errorf("no etcd data in %s: run this on a server that was a member of the cluster", dir)
	}
	id, err := loadIdentity(dir)
	if err != nil {
		return "", err
	}
	if id == nil {
		id = newIdentity(s.cfg.Node)
	}
	if err := os.MkdirAll(filepath.Dir(s.cfg.Socket), 0o711); err != nil {
		return "", err
	}
	if kept, err = asideName(dir); err != nil {
		return "", err
	}
	if err := copyFolder(kept, dir); err != nil {
		return "", errors.Join(fmt.Errorf("keep a copy of %s: %w", dir, err), os.RemoveAll(kept))
	}
	ec, err := s.config(id.Name)
	if err != nil {
		return kept, err
	}
	ec.ForceNewCluster = true
	r, err := s.start(ctx, ec)
	if err != nil {
		return kept, err
	}
	defer r.stop()
	life, end := context.WithCancelCause(ctx)
	defer end(nil)
	go func() { end(r.wait(life)) }()
	limit := time.AfterFunc(time.Minute, func() { end(errors.New("the member does not become ready alone")) })
	defer limit.Stop()
	if err := s.untilReady(life, r.etcd); err != nil {
		return kept, fmt.Errorf("reset etcd: %w; the data as it was is in %s", err, kept)
	}
	client := v3client.New(r.etcd.Server)
	defer client.Close()
	if err := s.untilRead(life, r.etcd, client); err != nil {
		return kept, fmt.Errorf("reset etcd: %w; the data as it was is in %s", err, kept)
	}
	if err := s.announce(life, r.etcd, client); err != nil {
		return kept, err
	}
	*id = identity{Name: id.Name, Started: true, Peer: s.peerURL()}
	if err := id.save(dir); err != nil {
		return kept, err
	}
	return kept, remember(dir)
}

// copyFolder copies regular files and folders, and waits for the disk.
func copyFolder(to, from string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case d.IsDir():
			return atomicfile.EnsureDir(target, 0o700)
		case d.Type().IsRegular():
			return copyFile(target, path)
		}
		return nil
	})
}

func copyFile(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := out.ReadFrom(in); err != nil { // shares the blocks where the file system can
		return err
	}
	return out.Sync()
}
