// Package external keeps the cluster's state in a datastore that others look after:
// PostgreSQL, MySQL or MariaDB, NATS, or an etcd elsewhere.
//
// Several servers may share one. A start waits for as long as the datastore does not
// answer, and says so once; what is lost later comes back by itself, since every
// request is one of its own. Nothing here prints the endpoint, which may hold a
// password.
package external

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"strings"
	"sync"
	"time"

	mysqldriver "github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/k3s-io/kine/pkg/drivers"
	"github.com/k3s-io/kine/pkg/drivers/mysql"
	"github.com/k3s-io/kine/pkg/drivers/nats"
	"github.com/k3s-io/kine/pkg/drivers/pgsql"
	"github.com/k3s-io/kine/pkg/server"
	"github.com/k3s-io/kine/pkg/tls"
	natsclient "github.com/nats-io/nats.go"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/storage/front"
	"github.com/podo-dev/podo/pkg/storage/vault"
)

// ErrRefused means that the datastore does not let this server in. Trying again is no
// use.
var ErrRefused = errors.New("refused by the datastore")

// Store is the datastore as this server reaches it.
type Store struct {
	plan  plan.External
	log   *slog.Logger
	pause time.Duration // between two tries

	mu      sync.Mutex
	backend server.Backend // of a kind that is no etcd; nil until it is open
	waiting string
}

// New returns a store that is not open yet.
func New(p plan.External, log *slog.Logger) *Store {
	return &Store{plan: p, log: log.With("component", "datastore"), pause: time.Second, waiting: "its start"}
}

// Name is the component's name.
func (s *Store) Name() string { return "datastore" }

// Waiting says what the store waits for, or nothing.
func (s *Store) Waiting() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting
}

// Run makes the datastore answer to the API server until ctx ends.
func (s *Store) Run(ctx context.Context, ready func()) error {
	if s.plan.Kind == "etcd" {
		if err := s.await(ctx, s.askEtcd); err != nil || ctx.Err() != nil {
			return err
		}
		ready()
		<-ctx.Done()
		return nil
	}
	var rest sync.WaitGroup
	backend, end, err := s.open(ctx, &rest)
	if err != nil || ctx.Err() != nil {
		return err
	}
	defer settle(&rest)
	defer end()
	return front.Serve(ctx, s.plan.Socket, backend, s.log, ready)
}

// settle gives the connections a moment to close. A database that does not answer
// would keep them open for long.
func settle(rest *sync.WaitGroup) {
	done := make(chan struct{})
	go func() { rest.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(2 * time.Second):
	}
}

// open waits for the database, and makes kine's tables in it if they are missing. What
// it returns ends with end, which is to be called after the last request.
func (s *Store) open(ctx context.Context, rest *sync.WaitGroup) (backend server.Backend, end func(), err error) {
	// The driver would write to the terminal what is returned as an error anyway.
	mysqldriver.SetLogger(stdlog.New(io.Discard, "", 0))
	err = s.await(ctx, func(ctx context.Context) error {
		if err := s.ping(ctx); err != nil {
			return err
		}
		type result struct {
			backend server.Backend
			err     error
		}
		life, stop := context.WithCancel(context.WithoutCancel(ctx))
		began, made := time.Now(), make(chan result, 1)
		go func() {
			b, err := s.connect(life, rest)
			if err == nil {
				err = b.Start(life)
			}
			made <- result{b, err}
		}()
		select {
		case r := <-made:
			// If the database went away just now, kine tries for five minutes, and would
			// close a handle then that it never had (0.16).
			if r.err != nil && time.Since(began) < 4*time.Minute {
				stop()
			}
			backend, end = r.backend, stop
			if s.plan.Kind == "nats" {
				begun := time.Now()
				end = func() { time.Sleep(time.Until(begun.Add(natsBegins))); stop() }
			}
			return r.err
		case <-ctx.Done():
			stop()
			return ctx.Err()
		}
	})
	if err != nil || ctx.Err() != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	s.backend = backend
	s.mu.Unlock()
	return backend, end, nil
}

// natsBegins is how long kine's watch of compactions may take to begin after the start.
// Ended before that, it ends the process (0.16).
const natsBegins = 500 * time.Millisecond

// connect opens the database with the driver of its kind.
func (s *Store) connect(life context.Context, rest *sync.WaitGroup) (server.Backend, error) {
	c, x := front.Config(), s.plan
	c.BackendTLSConfig = tls.Config{CAFile: x.CA, CertFile: x.Files.Cert, KeyFile: x.Files.Key}
	var open drivers.Constructor
	switch x.Kind {
	case "postgres":
		open, c.DataSourceName = pgsql.New, strings.TrimPrefix(string(x.URL), "postgres://")
	case "mysql":
		open, c.DataSourceName = mysql.New, string(x.URL)
	case "nats":
		open, c.Endpoint = nats.New, string(x.URL)
	default:
		return nil, fmt.Errorf("no driver for %q", x.Kind)
	}
	_, backend, err := open(life, rest, &c)
	return backend, err
}

// await tries until it works. A refusal is returned; anything else may get better.
func (s *Store) await(ctx context.Context, try func(context.Context) error) error {
	what := s.plan.Product() + " at " + s.plan.Where
	for ctx.Err() == nil {
		err := try(ctx)
		if err == nil {
			s.wait("")
			return nil
		}
		if ctx.Err() != nil {
			return nil
		}
		err = clean(s.plan.URL, err)
		if refusal(err) {
			return fmt.Errorf("%w: %s: %w", ErrRefused, what, err)
		}
		s.wait(what + ": " + plain(err))
		select {
		case <-ctx.Done():
		case <-time.After(s.pause):
		}
	}
	return nil
}

// wait notes what is waited for, and logs it when the waiting begins and ends.
func (s *Store) wait(text string) {
	s.mu.Lock()
	before := s.waiting
	s.waiting = text
	s.mu.Unlock()
	switch waited := before != "" && before != "its start"; {
	case text != "" && !waited:
		s.log.Warn("datastore waits", "for", text)
	case text == "" && waited:
		s.log.Info("datastore answers", "addr", s.plan.Where)
	}
}

func (s *Store) ping(ctx context.Context) error {
	if s.plan.Kind == "nats" {
		return nil // connecting fails at once
	}
	db, err := OpenSQL(s.plan)
	if err != nil {
		return err
	}
	defer db.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := db.PingContext(ctx); err != nil && !absent(err) {
		return err
	}
	return nil
}

func (s *Store) askEtcd(ctx context.Context) error {
	c, err := vault.Dial(ctx, plan.Storage{External: &s.plan}.Client())
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	_, err = c.Get(ctx, "health")
	return err
}

// Health asks the store one small question and returns its size in bytes and how
// long the answer took.
func (s *Store) Health(ctx context.Context) (bytes int64, latency time.Duration, err error) {
	if waiting := s.Waiting(); waiting != "" {
		return 0, 0, errors.New("waits for " + waiting)
	}
	if s.plan.Kind == "etcd" {
		c, err := vault.Dial(ctx, plan.Storage{External: &s.plan}.Client())
		if err != nil {
			return 0, 0, err
		}
		defer c.Close()
		began := time.Now()
		if _, err := c.Get(ctx, "health"); err != nil {
			return 0, 0, err
		}
		latency = time.Since(began)
		st, err := c.Status(ctx, c.Endpoints()[0])
		if err != nil {
			return 0, 0, err
		}
		return st.DbSizeInUse, latency, nil
	}
	s.mu.Lock()
	backend := s.backend
	s.mu.Unlock()
	bytes, latency, err = front.Health(ctx, backend)
	return bytes, latency, clean(s.plan.URL, err)
}

// absent reports whether the server answered, and only the database is missing. kine
// makes it.
func absent(err error) bool {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code == "3D000"
	}
	e, ok := errors.AsType[*mysqldriver.MySQLError](err)
	return ok && e.Number == 1049
}

// refusal tells a datastore that will never let this server in from one that cannot
// at the moment.
func refusal(err error) bool {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return strings.HasPrefix(e.Code, "28") || e.Code == "42501" || e.Code == "3D000"
	}
	if e, ok := errors.AsType[*mysqldriver.MySQLError](err); ok {
		return e.Number == 1044 || e.Number == 1045 || e.Number == 1142 || e.Number == 1698
	}
	return errors.Is(err, natsclient.ErrAuthorization) || errors.Is(err, natsclient.ErrAuthExpired)
}

// plain is an error on one line.
func plain(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// clean takes the endpoint and its password out of an error, in case a driver should
// quote them. An error that quotes neither is returned as it is.
func clean(secret config.Secret, err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	for _, s := range []string{string(secret), password(secret)} {
		if s != "" {
			text = strings.ReplaceAll(text, s, "[redacted]")
		}
	}
	if text == err.Error() {
		return err
	}
	return errors.New(text)
}

// password is what stands between the user and the host.
func password(secret config.Secret) string {
	_, rest, ok := strings.Cut(string(secret), "://")
	if !ok {
		rest = string(secret)
	}
	at := strings.LastIndexByte(rest, '@')
	if at < 0 {
		return ""
	}
	_, password, _ := strings.Cut(rest[:at], ":")
	return password
}

// OpenSQL returns a handle on a SQL database itself, which need not answer.
func OpenSQL(x plan.External) (*sql.DB, error) {
	var db *sql.DB
	var err error
	switch x.Kind {
	case "postgres":
		db, err = openPostgres(x)
	case "mysql":
		db, err = openMySQL(x)
	default:
		return nil, fmt.Errorf("%s is no SQL database", x.Product())
	}
	if err != nil {
		return nil, clean(x.URL, err)
	}
	return db, nil
}
