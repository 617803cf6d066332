package kubelet

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"
	_ "unsafe" // for go:linkname

	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/kubelet/nodeshutdown/systemd"
)

// The kubelet (1.36) ends a node's pods in good order when systemd-logind tells it that the
// machine shuts down, and at no other word. Where there is no logind, podo is the one it
// asks. The variable is upstream's; its type there has no name that could be used here, and
// the same methods.
//
//go:linkname systemBus k8s.io/kubernetes/pkg/kubelet/nodeshutdown.systemDbus
var systemBus func() (logind, error)

// logind is what the kubelet wants of it.
type logind interface {
	CurrentInhibitDelay() (time.Duration, error)
	InhibitShutdown() (systemd.InhibitLock, error)
	ReleaseInhibitLock(systemd.InhibitLock) error
	ReloadLogindConf() error
	MonitorShutdown(klog.Logger) (<-chan bool, error)
	OverrideInhibitDelay(time.Duration) error
}

// ErrDeaf means that pods cannot be ended through this podo.
var ErrDeaf = errors.New("no kubelet here listens: it has not started, its shutdownGracePeriod is 0, or it listens to systemd-logind alone")

// An Ending has the kubelet of this process end the node's pods, with their preStop hooks
// and each within its own grace, critical ones last, and take no others. The zero value is one that no
// kubelet listens to yet.
type Ending struct {
	mu     sync.Mutex
	events chan bool           // to the kubelet: whether the node shuts down
	lock   systemd.InhibitLock // that the kubelet holds until its pods have ended
	ended  chan struct{}       // closed then
	back   bool                // the last that was said is that it does not
}

// End returns when all pods have ended, or when ctx does. If ctx is cancelled, the kubelet
// takes pods again once those that it was told to end have; not so if its time is over.
func (e *Ending) End(ctx context.Context) error {
	ended, err := e.begin()
	if err != nil {
		return err
	}
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.say(false)
	}
	return ctx.Err()
}

// begin tells the kubelet, unless it was told already.
func (e *Ending) begin() (<-chan struct{}, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.events == nil {
		return nil, ErrDeaf
	}
	if e.ended == nil || e.back {
		e.say(true)
	}
	if e.ended == nil {
		e.ended = make(chan struct{})
	}
	return e.ended, nil
}

// say is called with the lock.
func (e *Ending) say(shuttingDown bool) {
	e.back = !shuttingDown
	e.events <- shuttingDown
}

// inhibitor is an Ending as the kubelet knows it.
type inhibitor struct{ *Ending }

// MonitorShutdown is called once, by the goroutine that hears what is said then and does it.
func (i inhibitor) MonitorShutdown(klog.Logger) (<-chan bool, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.events = make(chan bool, 64) // nobody waits for the kubelet to hear
	return i.events, nil
}

func (i inhibitor) InhibitShutdown() (systemd.InhibitLock, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.lock++
	return i.lock, nil
}

// ReleaseInhibitLock is called when all pods have ended, and for the lock of before when
// the kubelet takes pods again.
func (i inhibitor) ReleaseInhibitLock(lock systemd.InhibitLock) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if lock == i.lock && i.ended != nil {
		close(i.ended)
		i.ended = nil
	}
	return nil
}

// CurrentInhibitDelay is as long as anybody may want.
func (i inhibitor) CurrentInhibitDelay() (time.Duration, error) { return math.MaxInt64, nil }

func (i inhibitor) OverrideInhibitDelay(time.Duration) error { return nil }

func (i inhibitor) ReloadLogindConf() error { return nil }
