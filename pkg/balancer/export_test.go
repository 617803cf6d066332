package balancer

import "time"

// Hurry makes b wait for nothing long, and check healthy servers each steady.
func (b *Balancer) Hurry(steady time.Duration) {
	b.pace = pace{
		steady:   steady,
		hurry:    60 * time.Millisecond,
		least:    10 * time.Millisecond,
		patience: 150 * time.Millisecond,
		silence:  50 * time.Millisecond,
		glance:   20 * time.Millisecond,
		drain:    100 * time.Millisecond,
		linger:   100 * time.Millisecond,
		away:     time.Hour,
	}
}

// Limit bounds the connections passed at once.
func (b *Balancer) Limit(n int) { b.most = n }
