// Package etcd keeps the cluster's state in an etcd that runs inside this process,
// one member on each server.
//
// A member begins a cluster, joins one, or goes on with what is on its disk; which
// of them follows from the disk and the plan, never from a guess. Everything that
// changes the membership asks the cluster first, one step at a time, so that no
// start of a server can cost the others their quorum. Data that is given up is moved
// aside and kept. DESIGN.md tells the cases.
package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"

	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/plan"
)

var (
	// ErrRemoved means that the other members took this one out of the cluster.
	ErrRemoved = errors.New("removed from the etcd cluster")

	// ErrDamaged means that the data cannot be what the member left there. Nothing has
	// been written to it.
	ErrDamaged = errors.New("datastore damaged")

	// ErrTaken means that a live member has this server's name or address.
	ErrTaken = errors.New("already a member of the etcd cluster")

	errStopped = errors.New("etcd stopped")
)

// Store is the datastore.
type Store struct {
	cfg   plan.Etcd
	log   *slog.Logger
	pulse time.Duration // between looks at leader and alarms
	every time.Duration // between looks at the size

	mu      sync.Mutex
	live    *embed.Etcd      // nil unless the member takes part
	client  *clientv3.Client // of live, without a network
	waiting string
}

// New returns a member that is not started yet.
func New(cfg plan.Etcd, log *slog.Logger) *Store {
	return &Store{cfg: cfg, log: log.With("component", "datastore"), pulse: 5 * time.Second, every: time.Minute}
}

// Name is the component's name.
func (s *Store) Name() string { return "datastore" }

// Waiting says what the member waits for, or nothing.
func (s *Store) Waiting() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting
}

// wait notes what is waited for, and logs it if it is of another kind than before.
func (s *Store) wait(kind, detail string) {
	text := kind
	if detail != "" {
		text += ": " + detail
	}
	s.mu.Lock()
	news := kind != "" && !sameKind(s.waiting, kind)
	s.waiting = text
	say := s.log.Info
	if s.live != nil {
		say = s.log.Warn
	}
	s.mu.Unlock()
	if news {
		say("datastore waits", "for", text)
	}
}

func sameKind(text, kind string) bool { return text == kind || strings.HasPrefix(text, kind+":") }

// Run is the member until ctx ends. A start without quorum waits for the others for
// as long as it takes; Waiting tells. A member that was removed joins anew if the plan
// says where to, unless it had been ready: then a new start does that.
func (s *Store) Run(ctx context.Context, ready func()) error {
	for {
		id, ec, err := s.prepare(ctx)
		served := false
		if err == nil {
			err = s.serve(ctx, id, ec, func() { served = true; ready() })
		}
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, ErrRemoved) && id != nil && !served && len(s.cfg.Join) > 0 {
			continue
		}
		return err
	}
}

// serve starts etcd and stays with it.
func (s *Store) serve(ctx context.Context, id *identity, ec *embed.Config, ready func()) error {
	r, err := s.start(ctx, ec)
	if err != nil {
		return err
	}
	life, end := context.WithCancelCause(ctx)
	defer end(nil)
	go func() { end(r.wait(life)) }()
	err = s.take(life, r, id, ready)
	if cause := context.Cause(life); cause != nil && ctx.Err() == nil {
		err = cause
	}
	if errors.Is(err, errStopped) && s.expelled(ctx, r.etcd, id) {
		id.Removed = true
		if err := id.save(s.cfg.Dir); err != nil {
			return err
		}
		err = s.removed()
	}
	s.mu.Lock()
	s.live, s.client = nil, nil
	s.mu.Unlock()
	r.stop()
	return err
}

// take leads a member that runs into the cluster, and keeps it in order there.
func (s *Store) take(ctx context.Context, r *running, id *identity, ready func()) error {
	e := r.etcd
	if err := s.untilReady(ctx, e); err != nil {
		return err
	}
	if err := s.promote(ctx, e); err != nil {
		return err
	}
	client := v3client.New(e.Server)
	defer client.Close()
	if err := s.untilRead(ctx, e, client); err != nil {
		return err
	}
	if err := s.announce(ctx, e, client); err != nil {
		return err
	}
	id.Started, id.Peer = true, s.peerURL()
	id.note(e)
	if err := id.save(s.cfg.Dir); err != nil {
		return err
	}
	if err := remember(s.cfg.Dir); err != nil {
		return err
	}
	s.mu.Lock()
	s.live, s.client = e, client
	s.mu.Unlock()
	s.wait("", "")
	ready()
	return s.keep(ctx, e, client, id)
}

// untilReady waits for the member to be known to a majority.
func (s *Store) untilReady(ctx context.Context, e *embed.Etcd) error {
	tick := time.NewTicker(min(s.pulse, 2*time.Second))
	defer tick.Stop()
	for {
		select {
		case <-e.Server.ReadyNotify():
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
			s.awaitQuorum(ctx, e)
		}
	}
}

const (
	forQuorum = "quorum of the etcd cluster"
	forLeader = "leader of the etcd cluster"
)

func (s *Store) awaitQuorum(ctx context.Context, e *embed.Etcd) {
	voters, answer := 0, 1
	var mu sync.Mutex
	var asked sync.WaitGroup
	for _, m := range e.Server.Cluster().Members() {
		if m.IsLearner {
			continue
		}
		voters++
		if m.ID != e.Server.MemberID() {
			asked.Go(func() {
				if s.answers(ctx, m.PeerURLs) {
					mu.Lock()
					answer++
					mu.Unlock()
				}
			})
		}
	}
	asked.Wait()
	select {
	case <-e.Server.ReadyNotify():
		if e.Server.Leader() != 0 {
			return
		}
	default:
	}
	if answer > voters/2 {
		s.wait(forLeader, "")
		return
	}
	s.wait(forQuorum, fmt.Sprintf("%d of %d members answer", answer, voters))
}

// promote makes a member that still learns a full one. Only the leader knows how far
// it has come, and etcd passes the question on to it.
func (s *Store) promote(ctx context.Context, e *embed.Etcd) error {
	for e.Server.IsLearner() {
		once, cancel := context.WithTimeout(ctx, changeWithin)
		_, err := e.Server.PromoteMember(once, uint64(e.Server.MemberID()))
		cancel()
		if err != nil {
			s.wait("copy of the datastore", fmt.Sprintf("%d of %d entries", e.Server.AppliedIndex(), e.Server.CommittedIndex()))
		}
		for range 10 { // the answer comes before the member has read of it
			if err := sleep(ctx, 50*time.Millisecond); err != nil {
				return err
			}
			if !e.Server.IsLearner() {
				break
			}
		}
	}
	return nil
}

// untilRead waits until the cluster answers a read that must be current.
func (s *Store) untilRead(ctx context.Context, e *embed.Etcd, client *clientv3.Client) error {
	for {
		if _, err := read(ctx, client, 2*time.Second); err == nil {
			return nil
		}
		s.awaitQuorum(ctx, e)
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}

// announce tells the cluster where this member is now, if it believes otherwise.
func (s *Store) announce(ctx context.Context, e *embed.Etcd, client *clientv3.Client) error {
	me, url := e.Server.MemberID(), s.peerURL()
	for _, m := range e.Server.Cluster().Members() {
		if m.ID == me && !slices.Equal(m.PeerURLs, []string{url}) {
			if _, err := client.MemberUpdate(ctx, uint64(me), []string{url}); err != nil {
				return fmt.Errorf("tell the etcd cluster the new address %s: %w", url, err)
			}
			s.log.Info("etcd member has a new address", "member", m.Name, "addr", url)
		}
	}
	return nil
}

// read asks a question that only a member with a quorum can answer. The key is
// etcd's own for the purpose, and need not exist.
func read(ctx context.Context, client *clientv3.Client, within time.Duration) (*clientv3.GetResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	return client.Get(ctx, "health")
}

// Health asks the store one small question and returns its size in bytes and how
// long the answer took.
func (s *Store) Health(ctx context.Context) (bytes int64, latency time.Duration, err error) {
	s.mu.Lock()
	e, client, waiting := s.live, s.client, s.waiting
	s.mu.Unlock()
	if e == nil {
		if waiting == "" {
			waiting = "the member's start"
		}
		return 0, 0, errors.New("waits for " + waiting)
	}
	began := time.Now()
	if _, err := client.Get(ctx, "health"); err != nil {
		if waiting != "" {
			err = fmt.Errorf("waits for %s: %w", waiting, err)
		}
		return 0, 0, err
	}
	return e.Server.Backend().Size(), time.Since(began), nil
}

func (s *Store) peerURL() string   { return "https://" + s.cfg.Peer.String() }
func (s *Store) clientURL() string { return "https://" + s.cfg.Client.String() }

// dial returns a client of other members.
func (s *Store) dial(ctx context.Context, urls []string) (*clientv3.Client, error) {
	config, err := transport.TLSInfo{CertFile: s.cfg.Caller.Cert, KeyFile: s.cfg.Caller.Key, TrustedCAFile: s.cfg.CA}.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("etcd client: %w", err)
	}
	c, err := clientv3.New(clientv3.Config{Context: ctx, Endpoints: urls, TLS: config, Logger: zap.NewNop(),
		DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 5 * time.Second})
	if err != nil {
		return nil, fmt.Errorf("etcd client: %w", err)
	}
	return c, nil
}

// answers reports whether a member listens at one of its peer URLs, whether or not
// it has a quorum.
func (s *Store) answers(ctx context.Context, urls []string) bool {
	return s.reach(ctx, urls, s.cfg.Member) == nil
}

// reach connects to one of urls, and says why it cannot.
func (s *Store) reach(ctx context.Context, urls []string, as paths.Pair) error {
	config, err := transport.TLSInfo{CertFile: as.Cert, KeyFile: as.Key, TrustedCAFile: s.cfg.CA}.ClientConfig()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	dialer := tls.Dialer{NetDialer: &net.Dialer{}, Config: config}
	err = errors.New("no address known")
	for _, text := range urls {
		u, bad := url.Parse(text)
		if bad != nil {
			err = bad
			continue
		}
		var conn net.Conn
		if conn, err = dialer.DialContext(ctx, "tcp", u.Host); err == nil {
			conn.Close()
			return nil
		}
	}
	return err
}

// sleep waits, or returns why it was not let to.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
