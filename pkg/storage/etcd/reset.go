package etcd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/podo-dev/podo/pkg/atomicfile"
)

// Reset makes this server's data a cluster of one member, whatever the others hold,
// and returns where the data as it was is kept. It is for a quorum that is lost for
// good: what the others acknowledged and this member never saw is lost, so it refuses
// while any of them runs. An old member that starts later and reaches this one learns that it was removed; a
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
	if err := s.othersRest(ctx, id); err != nil {
		return "", err
	}
	if kept, err = asideName(dir); err != nil {
		return "", err
	}
	if err := copyFolder(kept, dir); err != nil {
		return "", errors.Join(fmt.Errorf("keep a copy of %s: %w", dir, err), os.RemoveAll(kept))
	}
	err = s.alone(ctx, id.Name, func(ec *embed.Config) { ec.ForceNewCluster = true }, func(ctx context.Context, e *embed.Etcd, c *clientv3.Client) error {
		return s.announce(ctx, e, c)
	})
	if err != nil {
		return kept, fmt.Errorf("reset etcd: %w; the data as it was is in %s", err, kept)
	}
	*id = identity{Name: id.Name, Started: true, Peer: s.peerURL()}
	if err := id.save(dir); err != nil {
		return kept, err
	}
	return kept, remember(dir)
}

// othersRest reports an error that names those of the other members that run.
func (s *Store) othersRest(ctx context.Context, id *identity) error {
	run := make([]bool, len(id.Others))
	var asking sync.WaitGroup
	for i, other := range id.Others {
		asking.Go(func() { run[i] = listens(ctx, other) })
	}
	asking.Wait()
	var who []string
	for i, other := range id.Others {
		if run[i] {
			who = append(who, other)
		}
	}
	if len(who) == 0 {
		return nil
	}
	return fmt.Errorf("other members of the etcd cluster run: %s; stop podo on every other server first (pods go on)", strings.Join(who, ", "))
}

// listens reports whether anybody does at a URL's address. A member that is too busy to
// say more than that runs too.
func listens(ctx context.Context, member string) bool {
	u, err := url.Parse(member)
	if err != nil {
		return false
	}
	conn, err := (&net.Dialer{Timeout: 3 * time.Second}).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return false
	}
	conn.Close()
	return true
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
