package etcd

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestCreateSurvivesAJoin: data that was made with a raised revision is the same on a
// member that joins, which is sent it and does not make it from the log.
func TestCreateSurvivesAJoin(t *testing.T) {
	tr := newTrust(t)
	a := newServer(t, tr, "a")
	const after = 5_000_000
	began := time.Now()
	err := New(a.cfg, slog.New(slog.NewTextHandler(&a.log, nil))).Create(t.Context(), after, func(ctx context.Context, c *clientv3.Client) error {
		for i := range 50 {
			if _, err := c.Put(ctx, fmt.Sprintf("/registry/%d", i), "value"); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, a.log.String())
	}
	t.Logf("made in %s", time.Since(began).Round(time.Millisecond))
	a.start(t)
	b := newServer(t, tr, "b", a).start(t)

	sum := func(s *server) (uint32, int64) {
		s.mu.Lock()
		defer s.mu.Unlock()
		h, at, err := s.live.Server.KV().HashStorage().HashByRev(0)
		if err != nil {
			t.Fatal(err)
		}
		return h.Hash, at
	}
	if _, err := b.client.Put(t.Context(), "/registry/new", "value"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both members hold the same", func() bool {
		one, at := sum(a)
		other, then := sum(b)
		return one == other && at == then && at > after+50
	})
	res, err := b.client.Get(t.Context(), "/registry/", clientv3.WithPrefix())
	if err != nil || len(res.Kvs) != 51 || res.Kvs[0].ModRevision <= after {
		t.Errorf("the member that joined has %d keys, %v; want 51 beyond revision %d", len(res.Kvs), err, after)
	}
	b.stop(t)
	a.cancel()
}
