package kube_test

import (
	"bytes"
	"fmt"
	"runtime/pprof"
	"testing"
	"time"

	"k8s.io/client-go/util/workqueue"
	"k8s.io/component-base/metrics/legacyregistry"
)

// published is what the metrics of all components tell of a queue.
func published(t *testing.T, queue string) map[string]float64 {
	t.Helper()
	families, err := legacyregistry.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			if len(m.Label) != 1 || m.Label[0].GetName() != "name" || m.Label[0].GetValue() != queue {
				continue
			}
			switch {
			case m.Gauge != nil:
				out[f.GetName()] = m.Gauge.GetValue()
			case m.Counter != nil:
				out[f.GetName()] = m.Counter.GetValue()
			case m.Histogram != nil:
				out[f.GetName()] = float64(m.Histogram.GetSampleCount())
			}
		}
	}
	return out
}

// wakers counts the goroutines that wake for nothing but metrics.
func wakers(t *testing.T) int {
	t.Helper()
	var all bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&all, 2); err != nil {
		t.Fatal(err)
	}
	return bytes.Count(all.Bytes(), []byte("updateUnfinishedWorkLoop("))
}

func TestIdleQueuesSleep(t *testing.T) {
	before := wakers(t)
	var queues []workqueue.TypedRateLimitingInterface[string]
	for i := range 10 {
		queues = append(queues, workqueue.NewTypedRateLimitingQueueWithConfig(
			workqueue.DefaultTypedControllerRateLimiter[string](), workqueue.TypedRateLimitingQueueConfig[string]{Name: fmt.Sprintf("idle-%d", i)}))
	}
	until := func(is func(n int) bool) (n int) {
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			if n = wakers(t); is(n) {
				break
			}
		}
		return n
	}
	if n := until(func(n int) bool { return n > before }); n <= before {
		t.Fatalf("%d goroutines wake for metrics, as before there were ten queues: upstream has changed, and this test sees nothing", n)
	}
	if n := until(func(n int) bool { return n <= before }); n > before {
		t.Errorf("%d goroutines wake for metrics of idle queues, want %d", n, before)
	}
	for _, q := range queues {
		q.Add("item")
		if item, _ := q.Get(); item != "item" {
			t.Errorf("got %q", item)
		}
		q.Done("item")
		q.ShutDown() // waits for that goroutine
	}
}

func TestQueuesPublishWork(t *testing.T) {
	name := fmt.Sprint("busy-", time.Now().UnixNano()) // metrics outlive the test
	q := workqueue.NewTypedWithConfig(workqueue.TypedQueueConfig[string]{Name: name})
	defer q.ShutDown()
	begin := func(item string) {
		q.Add(item)
		if got, _ := q.Get(); got != item {
			t.Fatalf("got %q, want %q", got, item)
		}
	}
	begin("one")
	time.Sleep(700 * time.Millisecond)
	begin("two")
	begin("three")
	time.Sleep(600 * time.Millisecond)

	// The last time was after a second, when one was that old and the others 0.3 s.
	got := published(t, name)
	if v := got["workqueue_longest_running_processor_seconds"]; v < 0.9 || v > 3 {
		t.Errorf("the oldest is %.2f s old, want about 1", v)
	}
	if v := got["workqueue_unfinished_work_seconds"]; v < 1.4 || v > 5 {
		t.Errorf("%.2f s of work are unfinished, want about 1.6", v)
	}
	q.Done("one")
	q.Add("two") // to be done once more
	q.Done("two")
	time.Sleep(600 * time.Millisecond)
	oldest := published(t, name)["workqueue_longest_running_processor_seconds"]
	if v := got["workqueue_longest_running_processor_seconds"]; oldest <= 0 || oldest > v+0.5 {
		t.Errorf("with one left that began later, the oldest is %.2f s old, before %.2f", oldest, v)
	}
	q.Done("three")
	begin("two")
	q.Done("two")
	for metric, want := range map[string]float64{
		"workqueue_adds_total": 4, "workqueue_depth": 0,
		"workqueue_queue_duration_seconds": 4, "workqueue_work_duration_seconds": 4,
		"workqueue_unfinished_work_seconds": 0, "workqueue_longest_running_processor_seconds": 0,
	} {
		if v, ok := published(t, name)[metric]; !ok || v != want {
			t.Errorf("%s is %v, want %v", metric, v, want)
		}
	}
}
