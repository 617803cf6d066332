package balancer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// pace says how long things take.
type pace struct {
	steady   time.Duration // between two checks of a healthy server
	hurry    time.Duration // between two of one that is not
	least    time.Duration // between two of any
	patience time.Duration // for the answer to one check, or one dial
	silence  time.Duration // a request without an answer for so long calls for a check
	glance   time.Duration // between two looks for such requests
	drain    time.Duration // that connections to a server off the list still have
	linger   time.Duration // that a server has to end a connection its client has ended
	away     time.Duration // after which an unhealthy server is checked as seldom as a healthy one
}

// usual adds up to less than three seconds between a server's hanging and its
// clients' being with another: silence, glance and patience in a row.
func usual() pace {
	return pace{
		steady:   10 * time.Second,
		hurry:    1500 * time.Millisecond,
		least:    500 * time.Millisecond,
		patience: 1500 * time.Millisecond,
		silence:  500 * time.Millisecond,
		glance:   500 * time.Millisecond,
		drain:    3 * time.Second,
		linger:   time.Minute,
		away:     time.Minute,
	}
}

type health int

const (
	unknown health = iota
	healthy
	unhealthy
)

// A server is known as long as it is on the list, a last resort, or has connections.
type server struct {
	addr   string
	listed bool
	last   bool      // a last resort
	leave  time.Time // when its connections are cut, since it left the list; zero if they are not

	state health
	since time.Time
	err   error // why it is unhealthy
	doubt bool  // healthy when last checked, but something has failed since

	checking bool
	again    bool // became suspect while it was being checked
	checked  time.Time
	due      time.Time // of the next check

	pairs map[*pair]struct{}
}

func (s *server) usable() bool { return s.listed || s.last }

func (s *server) good() bool { return s.state == healthy && !s.doubt }

// rank orders servers by how likely they are to serve; lower is better.
func (s *server) rank() int {
	rank := 2
	switch {
	case s.good():
		rank = 0
	case s.state == unhealthy:
		rank = 4
	}
	if !s.listed {
		rank++
	}
	return rank
}

func (s *server) cut() {
	for p := range s.pairs {
		p.close()
	}
}

// Of the methods below, turn, check, suspect, pick, join and part take the lock, and
// stir needs none. All others are called with it held.

func (b *Balancer) find(addr string) *server {
	for _, s := range b.servers {
		if s.addr == addr {
			return s
		}
	}
	return nil
}

func (b *Balancer) add(addr string) *server {
	s := &server{addr: addr, pairs: map[*pair]struct{}{}}
	b.servers = append(b.servers, s)
	return s
}

func (b *Balancer) list() []string {
	var out []string
	for _, s := range b.servers {
		if s.listed {
			out = append(out, s.addr)
		}
	}
	slices.Sort(out)
	return out
}

// replace makes list the list and reports whether it was another.
func (b *Balancer) replace(list []string) bool {
	if slices.Equal(list, b.list()) {
		return false
	}
	for _, s := range b.servers {
		stays := slices.Contains(list, s.addr)
		if s.listed && !stays {
			s.leave = time.Now().Add(b.pace.drain)
		}
		s.listed = stays
	}
	for _, addr := range list {
		s := b.find(addr)
		if s == nil {
			s = b.add(addr)
		}
		s.listed, s.leave = true, time.Time{}
	}
	close(b.changed)
	b.changed = make(chan struct{})
	return true
}

// remembered is how many servers that left the list are kept in mind.
const remembered = 8

// resort makes last resorts of those to begin with, and of former servers that are not on
// the list now.
func (b *Balancer) resort(former []string) {
	var kept []string
	for _, addr := range former {
		s := b.find(addr)
		if len(kept) < remembered && (s == nil || !s.listed) && !slices.Contains(kept, addr) && !slices.Contains(b.first, addr) {
			kept = append(kept, addr)
		}
	}
	b.former = kept
	resorts := slices.Concat(b.first, kept)
	for _, addr := range resorts {
		if b.find(addr) == nil {
			b.add(addr)
		}
	}
	for _, s := range b.servers {
		s.last = slices.Contains(resorts, s.addr)
	}
}

// serving reports whether some server is good, and whether one on the list is.
func (b *Balancer) serving() (any, listed bool) {
	for _, s := range b.servers {
		any = any || s.usable() && s.good()
		listed = listed || s.listed && s.good()
	}
	return any, listed
}

// settle cuts the connections that are better off elsewhere, and forgets servers
// that nothing needs any more.
func (b *Balancer) settle(now time.Time) {
	serving, listed := b.serving()
	for _, s := range b.servers {
		if s.state == unhealthy && serving {
			s.cut()
		}
		if !s.leave.IsZero() && !now.Before(s.leave) && listed {
			s.cut()
			s.leave = time.Time{} // what a last resort is given later may stay
		}
	}
	b.servers = slices.DeleteFunc(b.servers, func(s *server) bool {
		return !s.usable() && len(s.pairs) == 0 && !s.checking
	})
}

// turn does what is due and returns how long until something else is.
func (b *Balancer) turn(ctx context.Context) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	next := b.pace.steady
	b.stirred.Store(false)
	if b.glance(now) {
		b.stirred.Store(true)
		next = b.pace.glance
	}
	b.settle(now)
	_, listed := b.serving()
	for _, s := range b.servers {
		if s.leave.After(now) {
			next = min(next, s.leave.Sub(now))
		}
		// A last resort that nobody resorts to need not be known.
		if !s.usable() || s.checking || !s.listed && listed && len(s.pairs) == 0 {
			continue
		}
		if s.due.After(now) {
			next = min(next, s.due.Sub(now))
			continue
		}
		s.checking = true
		b.work.Go(func() { b.check(ctx, s) })
	}
	return next
}

// stir has the balancer glance at its connections: there may be one to look after.
// A connection on which nothing is asked costs nothing.
func (b *Balancer) stir() {
	if b.stirred.CompareAndSwap(false, true) {
		b.rouse()
	}
}

// glance looks for requests that nobody answers, and for connections that only the
// server has not ended. It reports whether to look again.
func (b *Balancer) glance(now time.Time) (again bool) {
	at := now.Sub(b.born)
	for _, s := range b.servers {
		for p := range s.pairs {
			asked, answered := p.asked.at(), p.answered.at()
			if asked > answered && p.noticed != asked {
				if at-asked > b.pace.silence {
					p.noticed = asked
					b.hasten(s, now)
				} else {
					again = true
				}
			}
			if ended := p.ended.at(); ended > 0 {
				if at-max(ended, answered) > b.pace.linger {
					p.close()
				}
				again = true
			}
		}
	}
	return again
}

// check asks one server how it is.
func (b *Balancer) check(ctx context.Context, s *server) {
	asking, stop := context.WithTimeout(ctx, b.pace.patience)
	err := b.opts.Healthy(asking, s.addr)
	stop()
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %s: %w", b.pace.patience, err)
	}

	b.mu.Lock()
	defer b.mu.Unlock()
	s.checking = false
	if ctx.Err() != nil {
		return
	}
	now, was := time.Now(), s.state
	s.state, s.err, s.doubt, s.checked = healthy, err, false, now
	if err != nil {
		s.state = unhealthy
	}
	if s.state != was {
		s.since = now
		switch {
		case s.state == unhealthy:
			b.log.Warn("server is not well", "what", b.opts.What, "addr", s.addr, "err", err)
		case was == unhealthy:
			b.log.Info("server is well again", "what", b.opts.What, "addr", s.addr)
		default:
			b.log.Debug("server is well", "what", b.opts.What, "addr", s.addr)
		}
	}
	s.due = now.Add(b.pause(s, now))
	if s.again {
		s.again = false
		s.due = now.Add(b.pace.least)
	}
	if serving, _ := b.serving(); !serving && was == healthy {
		soon := now.Add(b.pace.least)
		for _, other := range b.servers { // one that was given up on may be back
			if soon.Before(other.due) {
				other.due = soon
			}
		}
	}
	b.settle(now)
	b.rouse()
}

// pause is how long a server is left alone after a check. The nodes of a cluster
// must not fall into step.
func (b *Balancer) pause(s *server, now time.Time) time.Duration {
	d := b.pace.steady
	if serving, _ := b.serving(); s.state == unhealthy && (!serving || now.Sub(s.since) < b.pace.away) {
		d = b.pace.hurry
	}
	return d*3/4 + rand.N(d/2)
}

// hasten brings a healthy server's next check forward.
func (b *Balancer) hasten(s *server, now time.Time) {
	if s.state != healthy {
		return // checked often enough
	}
	if s.checking {
		s.again = true
		return
	}
	soon := s.checked.Add(b.pace.least)
	if soon.Before(now) {
		soon = now
	}
	if soon.Before(s.due) {
		s.due = soon
		b.rouse()
	}
}

// suspect has a server checked soon. With doubt, new connections avoid it until then.
func (b *Balancer) suspect(s *server, doubt bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s.doubt = s.doubt || doubt
	b.hasten(s, time.Now())
}

// pick returns the best server that has not been tried, and how to dial it. Among
// equals the one in use is best, or else the one with the fewest connections.
func (b *Balancer) pick(tried map[*server]bool) (best *server, d dialing) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ties, usable := 0, 0
	for _, s := range b.servers {
		if !s.usable() {
			continue
		}
		usable++
		if tried[s] {
			continue
		}
		switch c := b.compare(s, best); {
		case c < 0:
			best, ties = s, 1
		case c == 0:
			// Any of them, or the nodes of a cluster would all choose the same one.
			if ties++; rand.N(ties) == 0 {
				best = s
			}
		}
	}
	return best, dialing{patience: b.pace.patience, others: usable > 1}
}

func (b *Balancer) compare(s, best *server) int {
	switch {
	case best == nil:
		return -1
	case s.rank() != best.rank():
		return s.rank() - best.rank()
	case s == b.present:
		return -1
	case best == b.present:
		return 1
	}
	return len(s.pairs) - len(best.pairs)
}

// join counts p among the connections of s, unless it no longer should be.
func (b *Balancer) join(ctx context.Context, s *server, p *pair) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if serving, _ := b.serving(); ctx.Err() != nil || !s.usable() || s.state == unhealthy && serving {
		return false
	}
	s.pairs[p] = struct{}{}
	b.present = s
	return true
}

func (b *Balancer) part(s *server, p *pair) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(s.pairs, p)
}
