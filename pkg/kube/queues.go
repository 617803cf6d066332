package kube

import (
	"runtime"
	"slices"
	"sync"
	"time"
	_ "unsafe" // for go:linkname

	"k8s.io/client-go/util/workqueue"
)

// Each work queue of Kubernetes (1.36; a server has a hundred) wakes twice a second to
// publish for how long its items have been worked on, though there are none. Those
// wake-ups are most of an idle server's, and nothing can be set to avoid them, nor can
// another provider of metrics than the first to be set, which is Prometheus'.
//
//go:linkname queueMetrics k8s.io/client-go/util/workqueue.globalMetricsProvider
var queueMetrics workqueue.MetricsProvider

// calmQueues has the same metrics published only while a queue's items are worked on.
func calmQueues() {
	queueMetrics = &calm{MetricsProvider: queueMetrics, work: map[string]*work{}}
}

// calm is a provider of metrics that learns from some of them when items come and go,
// and so can do without what a queue would publish twice a second.
type calm struct {
	workqueue.MetricsProvider

	mu   sync.Mutex
	work map[string]*work // by name of the queue
}

func (c *calm) of(name string) *work {
	c.mu.Lock()
	defer c.mu.Unlock()
	w, ok := c.work[name]
	if !ok {
		w = &work{
			total:  c.MetricsProvider.NewUnfinishedWorkSecondsMetric(name),
			oldest: c.MetricsProvider.NewLongestRunningProcessorSecondsMetric(name),
		}
		w.tick = time.AfterFunc(publishEvery, w.publish)
		c.work[name] = w
	}
	return w
}

// NewLatencyMetric returns the histogram to which a queue tells how long an item waited,
// whenever work on one begins.
func (c *calm) NewLatencyMetric(name string) workqueue.HistogramMetric {
	return told{c.MetricsProvider.NewLatencyMetric(name), func(float64) { c.of(name).begin() }}
}

// NewWorkDurationMetric returns the histogram to which a queue tells how long the work
// on an item took, whenever that ends.
func (c *calm) NewWorkDurationMetric(name string) workqueue.HistogramMetric {
	return told{c.MetricsProvider.NewWorkDurationMetric(name), func(seconds float64) { c.of(name).end(seconds) }}
}

// NewUnfinishedWorkSecondsMetric returns the gauge that a queue sets first when it wakes
// to publish. It never wakes again.
func (c *calm) NewUnfinishedWorkSecondsMetric(string) workqueue.SettableGaugeMetric { return last{} }

// told passes what it observes on to somebody else as well.
type told struct {
	workqueue.HistogramMetric
	tell func(float64)
}

func (t told) Observe(v float64) {
	t.HistogramMetric.Observe(v)
	t.tell(v)
}

// last ends the goroutine that sets it. A queue gives one to the waking alone, which
// releases by deferred calls what it holds.
type last struct{}

func (last) Set(float64) { runtime.Goexit() }

// publishEvery is upstream's own pace.
const publishEvery = 500 * time.Millisecond

// work is what goes on with the items of all queues of one name.
type work struct {
	total, oldest workqueue.SettableGaugeMetric

	mu    sync.Mutex
	began []time.Time // one for each item that is worked on
	tick  *time.Timer
}

func (w *work) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.began = append(w.began, time.Now())
	if len(w.began) == 1 {
		w.tick.Reset(publishEvery)
	}
}

// end forgets the item that began as long ago as the work took.
func (w *work) end(seconds float64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.began) == 0 {
		return
	}
	began := time.Now().Add(-time.Duration(seconds * float64(time.Second)))
	best := 0
	for i, t := range w.began {
		if t.Sub(began).Abs() < w.began[best].Sub(began).Abs() {
			best = i
		}
	}
	w.began = slices.Delete(w.began, best, best+1)
	if len(w.began) == 0 {
		w.tick.Stop()
		w.total.Set(0)
		w.oldest.Set(0)
	}
}

func (w *work) publish() {
	w.mu.Lock()
	defer w.mu.Unlock()
	var total, oldest float64
	for _, t := range w.began {
		age := time.Since(t).Seconds()
		total, oldest = total+age, max(oldest, age)
	}
	w.total.Set(total)
	w.oldest.Set(oldest)
	if len(w.began) > 0 {
		w.tick.Reset(publishEvery)
	}
}
