package metrics

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"k8s.io/apimachinery/pkg/types"
)

// at is a moment by a node's clock, which need not agree with ours.
func at(second int) time.Time { return time.Unix(1700000000+int64(second), 0) }

func TestSeries(t *testing.T) {
	type step struct {
		point
		began time.Time
	}
	p := func(second int, cpu float64) step { return step{point: point{at(second), cpu, 100}} }
	since := func(began int, s step) step { s.began = at(began); return s }
	tests := map[string]struct {
		steps  []step
		silent time.Duration // since the last
		want   float64       // cores; negative: not known
		window time.Duration
	}{
		"nothing":                         {want: -1},
		"one point":                       {steps: []step{p(0, 7)}, want: -1},
		"two":                             {steps: []step{p(0, 7), p(15, 10)}, want: 0.2, window: 15 * time.Second},
		"three":                           {steps: []step{p(0, 7), p(15, 10), p(25, 15)}, want: 0.5, window: 10 * time.Second},
		"the same point again":            {steps: []step{p(0, 7), p(15, 10), p(15, 10)}, want: 0.2, window: 15 * time.Second},
		"an older one":                    {steps: []step{p(0, 7), p(15, 10), p(5, 1)}, want: 0.2, window: 15 * time.Second},
		"too close":                       {steps: []step{p(0, 7), p(1, 8)}, want: -1},
		"begun lately":                    {steps: []step{since(-10, p(0, 5))}, want: 0.5, window: 10 * time.Second},
		"just begun":                      {steps: []step{since(-2, p(0, 2))}, want: -1},
		"begun long ago":                  {steps: []step{since(-3600, p(0, 5))}, want: -1},
		"started again":                   {steps: []step{since(-99, p(0, 50)), since(5, p(15, 1))}, want: 0.1, window: 10 * time.Second},
		"started again, and done more":    {steps: []step{since(-99, p(0, 1)), since(5, p(15, 5))}, want: 0.5, window: 10 * time.Second},
		"a counter that went back":        {steps: []step{p(0, 50), p(15, 1)}, want: -1},
		"an answer that is a minute old":  {steps: []step{p(0, 7), p(15, 10)}, silent: time.Minute, want: 0.2, window: 15 * time.Second},
		"an answer that is too old":       {steps: []step{p(0, 7), p(15, 10)}, silent: 2 * time.Minute, want: -1},
		"a long pause between the two":    {steps: []step{p(0, 7), p(100, 17)}, want: 0.1, window: 100 * time.Second},
		"a pause, and a new one meantime": {steps: []step{since(-99, p(0, 7)), since(90, p(100, 3))}, want: 0.3, window: 10 * time.Second},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var s series
			now := time.Now()
			for _, x := range tt.steps {
				s.add(x.point, x.began, now)
			}
			u, known := s.usage(now.Add(tt.silent))
			if known != (tt.want >= 0) {
				t.Fatalf("known %v, %+v", known, u)
			}
			if known && (math.Abs(u.cores-tt.want) > 1e-9 || u.window != tt.window || u.memory != 100) {
				t.Errorf("usage %+v, want %v cores over %s", u, tt.want, tt.window)
			}
		})
	}
}

const answer = `# TYPE container_cpu_usage_seconds_total counter
container_cpu_usage_seconds_total{container="app",namespace="ns",pod="whole"} 1.5 1700000000000
container_cpu_usage_seconds_total{container="side",namespace="ns",pod="whole"} 0.25 1700000001000
container_cpu_usage_seconds_total{container="app",namespace="ns",pod="half"} 1 1700000000000
container_cpu_usage_seconds_total{container="app",namespace="ns",pod="other"} 1 1700000000000
# TYPE container_memory_working_set_bytes gauge
container_memory_working_set_bytes{container="app",namespace="ns",pod="whole"} 1.048576e+06 1700000000000
container_memory_working_set_bytes{container="side",namespace="ns",pod="whole"} 4096 1700000001000
container_memory_working_set_bytes{container="app",namespace="ns",pod="other"} 1 1700000000000
container_memory_working_set_bytes{container="side",namespace="ns",pod="other"} 1 1700000000000
# TYPE container_start_time_seconds gauge
container_start_time_seconds{container="app",namespace="ns",pod="whole"} 1.6999999905e+09
# TYPE container_swap_usage_bytes gauge
container_swap_usage_bytes{container="app",namespace="ns",pod="nobody"} 0 1700000000000
# TYPE node_cpu_usage_seconds_total counter
node_cpu_usage_seconds_total 99 1700000000000
# TYPE node_memory_working_set_bytes gauge
node_memory_working_set_bytes 5e+08 1700000000000
`

func TestRead(t *testing.T) {
	r, err := read(strings.NewReader(answer), expfmt.NewFormat(expfmt.TypeTextPlain))
	if err != nil {
		t.Fatal(err)
	}
	if want := (point{at(0), 99, 5e8}); r.node != want {
		t.Errorf("node %+v, want %+v", r.node, want)
	}
	whole := r.containers[types.NamespacedName{Namespace: "ns", Name: "whole"}]
	if len(r.containers) != 1 || len(whole) != 2 {
		t.Fatalf("containers %+v, want the two of the one pod of which all is told", r.containers)
	}
	if want := (began{point{at(0), 1.5, 1 << 20}, at(-10).Add(500 * time.Millisecond)}); whole["app"] != want {
		t.Errorf("app %+v, want %+v", whole["app"], want)
	}
	if want := (point{at(1), 0.25, 4096}); whole["side"].point != want {
		t.Errorf("side %+v, want %+v", whole["side"], want)
	}
	if _, err := read(strings.NewReader("<html>"), expfmt.NewFormat(expfmt.TypeTextPlain)); err == nil {
		t.Error("a page passed for an answer")
	}
}

func TestStore(t *testing.T) {
	s := store{nodes: map[string]*node{}}
	pod := types.NamespacedName{Namespace: "ns", Name: "p"}
	tell := func(second int, containers map[string]began) {
		r := reading{node: point{at(second), float64(second), 1}, containers: map[types.NamespacedName]map[string]began{}}
		if containers != nil {
			r.containers[pod] = containers
		}
		s.add("a", r)
	}
	c := func(second int, cpu float64) began { return began{point: point{at(second), cpu, 1}} }
	tell(0, map[string]began{"x": c(0, 1), "a": c(0, 2)})
	tell(15, map[string]began{"x": c(15, 4), "a": c(15, 2)})
	got := s.pod(pod)
	if len(got) != 2 || got[0].container != "a" || got[0].cores != 0 || got[1].container != "x" || got[1].cores != 0.2 {
		t.Errorf("pod %+v", got)
	}
	if u, known := s.node("a"); !known || u.cores != 1 {
		t.Errorf("node %+v, %v", u, known)
	}
	tell(30, map[string]began{"x": c(30, 4), "a": c(30, 2), "new": c(30, 1)})
	if got := s.pod(pod); got != nil {
		t.Errorf("pod %+v, with a container of which too little is known", got)
	}
	tell(45, nil)
	if got := s.pod(pod); got != nil {
		t.Errorf("pod %+v, which is gone", got)
	}
	s.keep(map[string]bool{"b": true})
	if _, known := s.node("a"); known {
		t.Error("a node that is gone is still known")
	}
}
