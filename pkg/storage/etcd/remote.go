package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/balancer"
	"github.com/podo-dev/podo/pkg/plan"
)

// lookAround is how often a server without a member asks who the members are.
const lookAround = 10 * time.Second

// Remote is the datastore of a server that runs no member: the etcd of the cluster's
// other servers. What asks for it dials a port on loopback, and is passed to a member
// that answers, so that it need not be told when members come and go.
type Remote struct {
	cfg      plan.Remote
	asker    *Store // dials members, and is never run
	balancer *balancer.Balancer
	log      *slog.Logger

	mu      sync.Mutex
	client  *clientv3.Client // nil unless some member has answered
	waiting string
}

// NewRemote returns a datastore that is not reached yet.
func NewRemote(cfg plan.Remote, log *slog.Logger) *Remote {
	r := &Remote{cfg: cfg, log: log.With("component", "datastore"), asker: New(plan.Etcd{CA: cfg.CA, Caller: cfg.Caller}, log)}
	r.balancer = balancer.New(balancer.Options{
		Listen: cfg.Listen, File: cfg.File, First: cfg.First, What: "etcd member", Healthy: r.healthy, Log: log,
	})
	return r
}

// Name is the component's name.
func (r *Remote) Name() string { return "datastore" }

// Waiting says what is waited for, or nothing.
func (r *Remote) Waiting() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waiting
}

// Run passes connections to members until ctx ends. It is ready once the members
// answer as a quorum, for which it waits as long as it takes.
func (r *Remote) Run(ctx context.Context, ready func()) error {
	r.balancer.Set(addresses(r.cfg.Join))
	life, end := context.WithCancelCause(ctx)
	var passing sync.WaitGroup
	defer passing.Wait()
	defer end(nil)
	passing.Go(func() {
		if err := r.balancer.Run(life, func() {}); err != nil {
			end(err)
		}
	})
	err := r.follow(life, ready)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// follow keeps the list of members.
func (r *Remote) follow(ctx context.Context, ready func()) error {
	c, err := r.asker.dial(ctx, []string{r.url()})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := r.untilRead(ctx, c); err != nil {
		return err
	}
	if _, err := atomicfile.WriteIfChanged(r.cfg.Marker, []byte("remote\n"), 0o600); err != nil {
		return err
	}
	r.mu.Lock()
	r.client, r.waiting = c, ""
	r.mu.Unlock()
	ready()
	for {
		if members, err := list(ctx, c); err == nil {
			var urls []string
			for _, m := range members {
				if !m.IsLearner {
					urls = append(urls, m.ClientURLs...)
				}
			}
			r.balancer.Set(addresses(urls))
		}
		if err := sleep(ctx, lookAround); err != nil {
			return err
		}
	}
}

// untilRead waits until the members answer a read that must be current.
func (r *Remote) untilRead(ctx context.Context, c *clientv3.Client) error {
	for {
		_, err := read(ctx, c, 2*time.Second)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if r.wait("etcd of the other servers: " + r.silence()) {
			r.log.Info("datastore waits", "for", "etcd of the other servers")
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}

// wait notes what is waited for, and reports whether nothing was before.
func (r *Remote) wait(text string) (first bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	first = r.waiting == ""
	r.waiting = text
	return first
}

// silence says why no member answers.
func (r *Remote) silence() string {
	var out []string
	for _, s := range r.balancer.Servers() {
		if s.Healthy {
			continue
		}
		text := s.Addr
		if s.Err != "" {
			text += ": " + s.Err
		}
		out = append(out, text)
	}
	if len(out) == 0 {
		return "no answer yet"
	}
	return strings.Join(out, "; ")
}

// healthy asks one member a question that it can only answer with a quorum.
func (r *Remote) healthy(ctx context.Context, addr string) error {
	c, err := r.asker.dial(ctx, []string{"https://" + addr})
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Get(ctx, "health")
	if errors.Is(err, context.DeadlineExceeded) { // the client says no more than that
		if why := r.asker.reach(context.WithoutCancel(ctx), []string{"https://" + addr}, r.cfg.Caller); why != nil {
			err = why
		}
	}
	return err
}

// Health asks the members one small question and returns their size in bytes and how
// long the answer took.
func (r *Remote) Health(ctx context.Context) (bytes int64, latency time.Duration, err error) {
	r.mu.Lock()
	c, waiting := r.client, r.waiting
	r.mu.Unlock()
	if c == nil {
		if waiting == "" {
			waiting = "its start"
		}
		return 0, 0, errors.New("waits for " + waiting)
	}
	began := time.Now()
	if _, err := c.Get(ctx, "health"); err != nil {
		return 0, 0, fmt.Errorf("etcd of the other servers: %s: %w", r.silence(), err)
	}
	latency = time.Since(began)
	st, err := c.Status(ctx, r.url())
	if err != nil {
		return 0, 0, err
	}
	return st.DbSize, latency, nil
}

// Admin returns a way to ask and change who is a member. It is not to be closed.
func (r *Remote) Admin() (*Admin, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.client == nil {
		return nil, errors.New("etcd: no member has answered yet")
	}
	return &Admin{r.asker, r.client}, nil
}

func (r *Remote) url() string { return "https://" + r.cfg.Listen.String() }

// addresses are the host:port of URLs.
func addresses(urls []string) []string {
	var out []string
	for _, text := range urls {
		if u, err := url.Parse(text); err == nil {
			out = append(out, u.Host)
		}
	}
	return out
}
