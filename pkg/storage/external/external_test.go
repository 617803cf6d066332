package external

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/pki"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/storage/external/externaltest"
	"github.com/podo-dev/podo/pkg/storage/vault"
)

func TestMain(m *testing.M) {
	externaltest.Main()
	logrus.SetOutput(io.Discard)
	os.Exit(m.Run())
}

// kinds runs a test with a database of every kind.
func kinds(t *testing.T, test func(t *testing.T, db *externaltest.Database)) {
	for _, kind := range []string{"postgres", "mysql", "nats", "etcd"} {
		t.Run(kind, func(t *testing.T) { test(t, externaltest.Start(t, kind)) })
	}
}

// running is a store that was started.
type running struct {
	*Store
	t     *testing.T
	log   *text
	ready chan struct{}
	done  chan error
	end   context.CancelFunc
}

type text struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *text) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *text) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

func start(t *testing.T, x plan.External) *running {
	t.Helper()
	r := &running{t: t, log: &text{}, ready: make(chan struct{}), done: make(chan error, 1)}
	x.Socket = filepath.Join(t.TempDir(), "s")
	r.Store = New(x, slog.New(slog.NewTextHandler(r.log, nil)))
	r.pause = 100 * time.Millisecond
	var ctx context.Context
	ctx, r.end = context.WithCancel(context.Background())
	go func() { r.done <- r.Run(ctx, func() { close(r.ready) }) }()
	t.Cleanup(r.end)
	return r
}

func (r *running) await() {
	r.t.Helper()
	select {
	case <-r.ready:
	case err := <-r.done:
		r.t.Fatalf("ended: %v", err)
	case <-time.After(30 * time.Second):
		r.t.Fatalf("not ready; waits for %q", r.Waiting())
	}
	if r.plan.Kind == "nats" {
		time.Sleep(natsBegins) // before that, the loss of its server ends the process
	}
}

func (r *running) stop() {
	r.t.Helper()
	r.end()
	select {
	case err := <-r.done:
		if err != nil {
			r.t.Errorf("stop: %v", err)
		}
	case <-time.After(8 * time.Second):
		r.t.Error("did not stop within 8s")
	}
	if strings.Contains(r.log.String(), externaltest.Password) {
		r.t.Errorf("the password is in the log:\n%s", r.log)
	}
}

func (r *running) client() *clientv3.Client {
	r.t.Helper()
	c, err := vault.Dial(r.t.Context(), plan.Storage{External: &r.plan}.Client())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

func create(ctx context.Context, c *clientv3.Client, key string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	res, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, "value")).Commit()
	if err == nil && !res.Succeeded {
		err = fmt.Errorf("%s is there", key)
	}
	return err
}

func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	var err error
	for began := time.Now(); time.Since(began) < 30*time.Second; time.Sleep(50 * time.Millisecond) {
		if err = try(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// TestServersShareIt: what one server writes, another reads, and its watches hear of.
func TestServersShareIt(t *testing.T) {
	kinds(t, func(t *testing.T, db *externaltest.Database) {
		a, b := start(t, db.External()), start(t, db.External())
		a.await()
		b.await()
		heard := b.client().Watch(t.Context(), "/registry/x")
		time.Sleep(time.Second)
		if err := create(t.Context(), a.client(), "/registry/x"); err != nil {
			t.Fatal(err)
		}
		if err := create(t.Context(), b.client(), "/registry/x"); err == nil {
			t.Error("both made the same key")
		}
		select {
		case r := <-heard:
			if len(r.Events) == 0 || string(r.Events[0].Kv.Key) != "/registry/x" {
				t.Errorf("heard %+v", r)
			}
		case <-time.After(5 * time.Second):
			t.Error("a watch on the other server hears nothing")
		}
		if _, _, err := a.Health(t.Context()); err != nil {
			t.Error(err)
		}
		a.stop()
		b.stop()
	})
}

// TestGoneAtStart: a start waits for the database, and says so once.
func TestGoneAtStart(t *testing.T) {
	kinds(t, func(t *testing.T, db *externaltest.Database) {
		db.Off()
		s := start(t, db.External())
		eventually(t, "it says what it waits for", func() error {
			_, _, err := s.Health(t.Context())
			if err == nil || !strings.Contains(err.Error(), s.plan.Where) {
				return fmt.Errorf("health: %v", err)
			}
			return nil
		})
		time.Sleep(time.Second)
		if n := strings.Count(s.log.String(), "datastore waits"); n != 1 {
			t.Errorf("said %d times that it waits\n%s", n, s.log)
		}
		db.On()
		s.await()
		if err := create(t.Context(), s.client(), "/registry/x"); err != nil {
			t.Error(err)
		}
		s.stop()
		db.Off()
		late := start(t, db.External())
		time.Sleep(300 * time.Millisecond)
		late.stop() // a wait ends as well
	})
}

// TestGoneLater: without the database requests fail, and work again once it is back.
func TestGoneLater(t *testing.T) {
	kinds(t, func(t *testing.T, db *externaltest.Database) {
		s := start(t, db.External())
		s.await()
		c := s.client()
		if err := create(t.Context(), c, "/registry/before"); err != nil {
			t.Fatal(err)
		}
		db.Off()
		if err := create(t.Context(), c, "/registry/meanwhile"); err == nil {
			t.Error("a write was acknowledged without the database")
		}
		time.Sleep(2 * time.Second)
		select {
		case err := <-s.done:
			t.Fatalf("the store ended with the database: %v", err)
		default:
		}
		db.On()
		eventually(t, "writes work again", func() error {
			err := create(t.Context(), c, "/registry/after")
			if err != nil && strings.Contains(err.Error(), "is there") {
				err = nil // acknowledged too late
			}
			return err
		})
		if res, err := c.Get(t.Context(), "/registry/before"); err != nil || len(res.Kvs) != 1 {
			t.Errorf("what was written before: %v, %v", res, err)
		}
		db.Off()
		s.stop()
	})
}

func TestRefused(t *testing.T) {
	for _, kind := range []string{"postgres", "mysql", "nats"} {
		t.Run(kind, func(t *testing.T) {
			db := externaltest.Start(t, kind)
			const wrong = "open-sesame"
			e, err := config.ParseEndpoint(config.Secret(strings.Replace(db.URL(), externaltest.Password, wrong, 1)))
			if err != nil {
				t.Fatal(err)
			}
			s := start(t, plan.External{Endpoint: e})
			select {
			case err := <-s.done:
				if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), e.Where) || strings.Contains(err.Error(), wrong) {
					t.Errorf("err = %v, want ErrRefused with the address and without the password", err)
				}
			case <-time.After(20 * time.Second):
				t.Fatalf("goes on with a wrong password; waits for %q", s.Waiting())
			}
			if strings.Contains(s.log.String(), wrong) {
				t.Errorf("the password is in the log:\n%s", s.log)
			}
		})
	}
}

// TestSecured: a database that wants TLS is used by who knows its authority, and by nobody
// who does not.
func TestSecured(t *testing.T) {
	elsewhere := paths.New(t.TempDir())
	if _, err := pki.EnsureCAs(elsewhere, time.Now); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"postgres", "mysql", "nats"} {
		t.Run(kind, func(t *testing.T) {
			db := externaltest.StartSecured(t, kind)
			s := start(t, db.External())
			s.await()
			if err := create(t.Context(), s.client(), "/registry/x"); err != nil {
				t.Error(err)
			}
			s.stop()
			x := db.External()
			x.CA = elsewhere.CA(pki.ServerCA).Cert
			wrong := start(t, x)
			eventually(t, "it says why it waits", func() error {
				if w := wrong.Waiting(); !strings.Contains(w, x.Where) || !strings.Contains(w, "unknown authority") {
					return fmt.Errorf("waits for %q", w)
				}
				return nil
			})
			select {
			case <-wrong.ready:
				t.Error("ready though another authority signed the database's certificate")
			case <-time.After(time.Second):
			}
			wrong.stop()
		})
	}
}

// TestEtcdWantsACertificate: an etcd elsewhere is reached by the files alone.
func TestEtcdWantsACertificate(t *testing.T) {
	db := externaltest.Start(t, "etcd")
	x := db.External()
	x.Files = paths.Pair{}
	s := start(t, x)
	eventually(t, "it says that it waits", func() error {
		if w := s.Waiting(); !strings.Contains(w, x.Where) {
			return fmt.Errorf("waits for %q", w)
		}
		return nil
	})
	select {
	case <-s.ready:
		t.Error("ready without a certificate to show")
	case <-time.After(3 * time.Second):
	}
	s.stop()
	start(t, db.External()).await()
}

func TestClean(t *testing.T) {
	for _, url := range []config.Secret{"postgres://u:hush@db/podo", "u:hu@sh@tcp(db)/podo", "nats://u:hush@db"} {
		err := clean(url, fmt.Errorf("cannot reach %s with %q: %w", string(url), password(url), io.EOF))
		if strings.Contains(err.Error(), "hush") || strings.Contains(err.Error(), "hu@sh") {
			t.Errorf("%v", err)
		}
		if err := clean(url, io.EOF); err != io.EOF {
			t.Errorf("err = %v, want EOF untouched", err)
		}
	}
}
