package migrate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/pki"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/storage/etcd"
	"github.com/podo-dev/podo/pkg/storage/external/externaltest"
	"github.com/podo-dev/podo/pkg/storage/sqlite"
	"github.com/podo-dev/podo/pkg/storage/vault"
)

func TestMain(m *testing.M) {
	externaltest.Main()
	logrus.SetOutput(io.Discard)
	os.Exit(m.Run())
}

// A place is a server's folder of datastores.
type place struct {
	*testing.T
	paths paths.Paths
}

func newPlace(t *testing.T) place {
	dir := t.TempDir()
	p := place{t, paths.Paths{Data: dir, Run: filepath.Join(dir, "run")}}
	names := pki.Names{Node: "one", NodeIPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, ServiceIPs: []netip.Addr{netip.MustParseAddr("10.43.0.1")}, ClusterDomain: "cluster.local", Etcd: true}
	if _, _, err := pki.Ensure(p.paths, pki.Table(names), time.Now); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(p.paths.DB(), 0o700); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p place) sqlite() plan.Storage {
	return plan.Storage{SQLite: &plan.SQLite{DB: p.paths.StateDB(), Socket: filepath.Join(p.paths.Run, "kine.sock")}}
}

func (p place) etcd() plan.Storage {
	p.Helper()
	port := func() netip.AddrPort {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			p.Fatal(err)
		}
		defer l.Close()
		return netip.MustParseAddrPort(l.Addr().String())
	}
	return plan.Storage{Etcd: &plan.Etcd{
		Node: "one", Dir: p.paths.EtcdData(), Socket: filepath.Join(p.paths.Run, "etcd.sock"), Peer: port(), Client: port(),
		CA: p.paths.CA(pki.EtcdCA).Cert, Server: p.paths.ServerLeaf("etcd-server"), Member: p.paths.ServerLeaf("etcd-peer"), Caller: p.paths.ServerLeaf("etcd-client"),
	}}
}

// with runs the store of s, and do with a client of it.
func (p place) with(s plan.Storage, do func(c *clientv3.Client)) {
	p.Helper()
	quiet := slog.New(slog.DiscardHandler)
	var store interface {
		Name() string
		Run(context.Context, func()) error
	}
	if s.Etcd != nil {
		store = etcd.New(*s.Etcd, quiet)
	} else {
		store = sqlite.New(*s.SQLite, quiet)
	}
	err := serve(p.Context(), store, func(ctx context.Context) error {
		c, err := vault.Dial(ctx, s.Client())
		if err != nil {
			return err
		}
		defer c.Close()
		do(c)
		return nil
	})
	if err != nil {
		p.Fatal(err)
	}
}

// populate writes and deletes, and returns what remains and the revision.
func (p place) populate(c *clientv3.Client, n int) (map[string]string, int64) {
	p.Helper()
	k := &keys{client: c}
	want := map[string]string{}
	for i := range n {
		r := Record{Key: fmt.Sprintf("/registry/things/%d", i), Value: []byte(strings.Repeat("x", i%50) + "\x00\xff")}
		if i%7 == 0 {
			r.TTL = 3600
		}
		for range 1 + i%3 { // so that keys have a past
			if err := k.put(p.Context(), r); err != nil {
				p.Fatal(err)
			}
		}
		if i%5 == 0 {
			now, err := c.Get(p.Context(), r.Key)
			if err != nil || len(now.Kvs) != 1 {
				p.Fatal(err)
			}
			if _, err := c.Txn(p.Context()).If(clientv3.Compare(clientv3.ModRevision(r.Key), "=", now.Kvs[0].ModRevision)).Then(clientv3.OpDelete(r.Key)).Else(clientv3.OpGet(r.Key)).Commit(); err != nil {
				p.Fatal(err)
			}
			continue
		}
		want[r.Key] = string(r.Value)
	}
	at, err := k.revision(p.Context())
	if err != nil {
		p.Fatal(err)
	}
	return want, at
}

// check compares what a store serves, and that its revisions are all beyond at.
func (p place) check(c *clientv3.Client, want map[string]string, at int64) {
	p.Helper()
	res, err := c.Get(p.Context(), "/registry/things/", clientv3.WithRange("/registry/things0"))
	if err != nil {
		p.Fatal(err)
	}
	if len(res.Kvs) != len(want) {
		p.Errorf("%d keys, want %d", len(res.Kvs), len(want))
	}
	for _, kv := range res.Kvs {
		if want[string(kv.Key)] != string(kv.Value) {
			p.Errorf("%s = %q, want %q", kv.Key, kv.Value, want[string(kv.Key)])
		}
		if kv.ModRevision <= at {
			p.Errorf("%s has revision %d, which is not beyond %d", kv.Key, kv.ModRevision, at)
		}
	}
	if res.Header.Revision <= at {
		p.Errorf("revision %d, want one beyond %d", res.Header.Revision, at)
	}
	// Somebody who remembers the source is told that its history is gone.
	ctx, cancel := context.WithTimeout(p.Context(), 5*time.Second)
	defer cancel()
	for r := range c.Watch(ctx, "/registry/", clientv3.WithPrefix(), clientv3.WithRev(max(at-3, 1))) {
		if r.CompactRevision == 0 {
			p.Errorf("a watch from revision %d, before the copy, got %d events and %v, want it told that it is compacted", at-3, len(r.Events), r.Err())
		}
		return
	}
	p.Error("a watch from before the copy ended without a word")
}

func (p place) copy(from, to plan.Storage) Tally {
	p.Helper()
	began := time.Now()
	done, err := Copy(p.Context(), from, to, Options{Sealed: []byte("sealed"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		p.Fatalf("%s to %s: %v", Name(from), Name(to), err)
	}
	p.Logf("%s to %s: %d keys in %s", Name(from), Name(to), done.Keys, time.Since(began).Round(time.Millisecond))
	return done
}

func TestSQLiteToEtcdAndBack(t *testing.T) {
	p := newPlace(t)
	var want map[string]string
	var at int64
	p.with(p.sqlite(), func(c *clientv3.Client) { want, at = p.populate(c, 1200) })
	before, err := os.ReadFile(p.paths.StateDB())
	if err != nil {
		t.Fatal(err)
	}
	p.copy(p.sqlite(), p.etcd())
	if after, err := os.ReadFile(p.paths.StateDB()); err != nil || string(after) != string(before) {
		t.Errorf("the source was touched, %v", err)
	}
	var then int64
	p.with(p.etcd(), func(c *clientv3.Client) {
		p.check(c, want, at)
		_, then = p.populate(c, 0)
	})
	if _, err := Copy(t.Context(), p.etcd(), p.sqlite(), Options{Log: slog.New(slog.DiscardHandler)}); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("a copy over something: %v, want ErrNotEmpty", err)
	}
	if err := os.Remove(p.paths.StateDB()); err != nil {
		t.Fatal(err)
	}
	p.copy(p.etcd(), p.sqlite())
	p.with(p.sqlite(), func(c *clientv3.Client) { p.check(c, want, then) })
}

// TestDamagedSource: what a kill left without its log is not taken over as if that were all.
func TestDamagedSource(t *testing.T) {
	p := newPlace(t)
	p.with(p.sqlite(), func(c *clientv3.Client) {
		p.populate(c, 10)
		if err := os.CopyFS(p.paths.DB()+"-killed", os.DirFS(p.paths.DB())); err != nil {
			t.Fatal(err)
		}
	})
	killed := p.sqlite()
	killed.SQLite.DB = filepath.Join(p.paths.DB()+"-killed", filepath.Base(p.paths.StateDB()))
	if err := os.Remove(killed.SQLite.DB + "-wal"); err != nil {
		t.Fatal(err)
	}
	to := p.etcd()
	if _, err := Copy(t.Context(), killed, to, Options{Log: slog.New(slog.DiscardHandler)}); !errors.Is(err, sqlite.ErrDamaged) {
		t.Errorf("err = %v, want ErrDamaged", err)
	}
	if _, err := os.Lstat(to.Etcd.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an etcd was made: %v", err)
	}
}

// TestStartTakesOver: whenever a start with etcd is cut off, the server has one whole
// datastore, and the next start finishes.
func TestStartTakesOver(t *testing.T) {
	p := newPlace(t)
	var want map[string]string
	var at int64
	p.with(p.sqlite(), func(c *clientv3.Client) { want, at = p.populate(c, 300) })
	s := p.etcd()
	s.From = p.sqlite().SQLite
	// Traces of starts that were killed: while copying, and before the switch.
	for _, trace := range []string{s.Etcd.Dir + ".partial/member/wal/x", s.Etcd.Dir + "/member/x"} {
		if err := os.MkdirAll(filepath.Dir(trace), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(trace, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	err := serve(t.Context(), Before(s, slog.New(slog.NewTextHandler(t.Output(), nil))), func(context.Context) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if kind, err := os.ReadFile(p.paths.DatastoreKind()); err != nil || string(kind) != "etcd\n" {
		t.Errorf("kind %q, %v", kind, err)
	}
	kept, err := filepath.Glob(p.paths.StateDB() + "-old-*")
	if err != nil || len(kept) == 0 {
		t.Errorf("kept %v, %v; want a file", kept, err)
	}
	p.with(s, func(c *clientv3.Client) { p.check(c, want, at) })
}

// TestExternal: from SQLite to every kind of datastore elsewhere, on to etcd, and back.
func TestExternal(t *testing.T) {
	for _, kind := range []string{"postgres", "mysql", "nats", "etcd"} {
		t.Run(kind, func(t *testing.T) {
			p := newPlace(t)
			db := externaltest.Start(t, kind)
			x := db.External()
			x.Socket, x.Marker = filepath.Join(p.paths.Run, "kine.sock"), p.paths.DatastoreKind()
			elsewhere := plan.Storage{External: &x}
			var want map[string]string
			var at int64
			p.with(p.sqlite(), func(c *clientv3.Client) { want, at = p.populate(c, 600) })
			done := p.copy(p.sqlite(), elsewhere)
			if done.Revision <= at {
				t.Errorf("revision %d, want one beyond %d", done.Revision, at)
			}
			if done.Keys != len(want)+1 {
				t.Errorf("%d keys, want %d and the sealed secrets", done.Keys, len(want))
			}
			if _, err := Copy(t.Context(), p.sqlite(), elsewhere, Options{Log: slog.New(slog.DiscardHandler)}); !errors.Is(err, ErrNotEmpty) {
				t.Errorf("a copy over something: %v, want ErrNotEmpty", err)
			}
			p.copy(elsewhere, p.etcd())
			p.with(p.etcd(), func(c *clientv3.Client) { p.check(c, want, done.Revision) })
		})
	}
}
