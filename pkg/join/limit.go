package join

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// What one source may ask, as a rate and a burst. Ten machines behind one address
// that join at once stay well below; guessing a password does not.
const (
	perSecond = 5
	burst     = 50
	// wrong is what a wrong credential costs on top, in requests. It may leave the
	// source in debt.
	wrong = 10
	// most sources remembered at once; beyond that, new ones share one limit.
	most = 4096
)

// limiter holds each source to its rate. An IPv6 source is its /64.
type limiter struct {
	mu      sync.Mutex
	sources map[netip.Prefix]*rate.Limiter
	rest    *rate.Limiter
	swept   time.Time
}

func newLimiter() *limiter {
	return &limiter{sources: map[netip.Prefix]*rate.Limiter{}, rest: rate.NewLimiter(perSecond, burst)}
}

// allow takes n requests' worth from a source, and reports whether it had them.
// With 0 it reports whether the source is free of debt.
func (l *limiter) allow(from netip.Addr, n int, now time.Time) bool {
	return l.of(from, now).AllowN(now, n)
}

// punish takes what a wrong credential costs, whether the source has it or not.
func (l *limiter) punish(from netip.Addr, now time.Time) {
	l.of(from, now).ReserveN(now, wrong)
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
		return s
	}
	if len(l.sources) >= most {
		l.forget(now)
	}
	if len(l.sources) >= most {
		return l.rest
	}
	s := rate.NewLimiter(perSecond, burst)
	l.sources[key] = s
	return s
}

// forget drops sources whose limit has filled up again, as if they had never come.
// Looking at all of them for each new one would itself be work for an attacker.
func (l *limiter) forget(now time.Time) {
	if now.Sub(l.swept).Abs() < time.Second {
		return
	}
	l.swept = now
	for key, s := range l.sources {
		if s.TokensAt(now) >= burst {
			delete(l.sources, key)
		}
	}
}
