package join

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// What one source may ask, as a rate and a burst. Ten machines behind one address
// that join at once stay well below; guessing a password of 128 bits does not.
const (
	perSecond = 5
	burst     = 50
	// wrong is what a wrong credential costs, in requests.
	wrong = 10
	// most sources remembered at once; beyond that, new ones share one limit.
	most = 4096
)

// limiter holds each source to its rate. An IPv6 source is its /64.
type limiter struct {
	mu      sync.Mutex
	sources map[netip.Prefix]*source
	rest    *rate.Limiter
}

type source struct {
	rate *rate.Limiter
	last time.Time
}

func newLimiter() *limiter {
	return &limiter{sources: map[netip.Prefix]*source{}, rest: rate.NewLimiter(perSecond, burst)}
}

// allow takes n requests' worth from a source, and reports whether it had them.
func (l *limiter) allow(from netip.Addr, n int, now time.Time) bool {
	return l.of(from, now).AllowN(now, n)
}

func (l *limiter) of(from netip.Addr, now time.Time) *rate.Limiter {
	from = from.Unmap()
	bits := 32
	if from.Is6() {
		bits = 64
	}
	key, err := from.WithZone("").Prefix(bits)
	if err != nil {
		return l.rest
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.sources[key]; s != nil {
		s.last = now
		return s.rate
	}
	if len(l.sources) >= most {
		l.forget(now)
	}
	if len(l.sources) >= most {
		return l.rest
	}
	s := &source{rate: rate.NewLimiter(perSecond, burst), last: now}
	l.sources[key] = s
	return s.rate
}

// forget drops sources whose limit has filled up again, as if they had never come.
func (l *limiter) forget(now time.Time) {
	for key, s := range l.sources {
		if now.Sub(s.last) > burst/perSecond*time.Second {
			delete(l.sources, key)
		}
	}
}
