package metrics

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"k8s.io/apimachinery/pkg/types"
)

// young is the least time over which what is used of a CPU is told: over less, the
// start of a program would pass for its habit. old is how long an answer is good for.
const (
	young = 5 * time.Second
	old   = 90 * time.Second
)

// A point is what something had used of a CPU, in seconds, and uses of memory, in
// bytes, at a moment by its node's clock.
type point struct {
	at     time.Time
	cpu    float64
	memory float64
}

// series are the last two points of something.
type series struct {
	last, before point
	began        time.Time // zero if that is not known
	heard        time.Time // by our clock
}

// add takes a point down. One that is not newer than the last is that one again.
func (s *series) add(p point, began, now time.Time) {
	if !p.at.After(s.last.at) {
		return
	}
	if p.cpu < s.last.cpu || began.After(s.last.at) {
		s.last = point{} // another one, of the same name
	}
	*s = series{last: p, before: s.last, began: began, heard: now}
}

// usage is what something uses, on average over the window before a moment.
type usage struct {
	at     time.Time
	window time.Duration
	cores  float64
	memory float64
}

// usage is false if too little is known. Of something that has just begun, the
// beginning serves as the first point.
func (s *series) usage(now time.Time) (usage, bool) {
	before := s.before
	if before.at.IsZero() {
		if s.began.IsZero() || s.last.at.Sub(s.began) > old {
			return usage{}, false
		}
		before.at = s.began
	}
	window := s.last.at.Sub(before.at)
	if window < young || now.Sub(s.heard) > old {
		return usage{}, false
	}
	return usage{s.last.at, window, (s.last.cpu - before.cpu) / window.Seconds(), s.last.memory}, true
}

// A reading is one answer of a kubelet.
type reading struct {
	node       point
	containers map[types.NamespacedName]map[string]began
}

// began is a point of a container, and when that was started.
type began struct {
	point
	since time.Time
}

// read decodes an answer. A container of which the memory or the CPU is not told is
// left out, and so is its pod, since half a pod would pass for a small one.
func read(r io.Reader, format expfmt.Format) (reading, error) {
	out := reading{containers: map[types.NamespacedName]map[string]began{}}
	type told struct{ cpu, memory bool }
	have := map[types.NamespacedName]map[string]told{}
	families := expfmt.NewDecoder(r, format)
	for {
		var f dto.MetricFamily
		err := families.Decode(&f)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return reading{}, fmt.Errorf("what the kubelet says is not readable: %w", err)
		}
		for _, m := range f.GetMetric() {
			value := m.GetCounter().GetValue() + m.GetGauge().GetValue() // it is one of the two
			at := time.UnixMilli(m.GetTimestampMs())
			switch f.GetName() {
			case "node_cpu_usage_seconds_total":
				out.node.cpu, out.node.at = value, at
				continue
			case "node_memory_working_set_bytes":
				out.node.memory = value
				continue
			case "container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_start_time_seconds":
			default:
				continue
			}
			pod, name := of(m)
			if out.containers[pod] == nil {
				out.containers[pod], have[pod] = map[string]began{}, map[string]told{}
			}
			c, h := out.containers[pod][name], have[pod][name]
			switch f.GetName() {
			case "container_cpu_usage_seconds_total":
				c.cpu, c.at, h.cpu = value, at, true
			case "container_memory_working_set_bytes":
				c.memory, h.memory = value, true
			case "container_start_time_seconds":
				c.since = time.UnixMilli(int64(value * 1000))
			}
			out.containers[pod][name], have[pod][name] = c, h
		}
	}
	for pod, containers := range have {
		for _, h := range containers {
			if !h.cpu || !h.memory {
				delete(out.containers, pod)
			}
		}
	}
	return out, nil
}

// of is the container that a metric is about.
func of(m *dto.Metric) (pod types.NamespacedName, container string) {
	for _, l := range m.GetLabel() {
		switch l.GetName() {
		case "namespace":
			pod.Namespace = l.GetValue()
		case "pod":
			pod.Name = l.GetValue()
		case "container":
			container = l.GetValue()
		}
	}
	return pod, container
}

// A store holds what is known of each node.
type store struct {
	mu    sync.Mutex
	nodes map[string]*node
}

type node struct {
	itself series
	pods   map[types.NamespacedName]map[string]*series // by container
}

// add takes down what a node's kubelet has said. What it no longer tells of is gone.
func (s *store) add(name string, r reading) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	n := s.nodes[name]
	if n == nil {
		n = &node{}
		s.nodes[name] = n
	}
	n.itself.add(r.node, time.Time{}, now)
	pods := make(map[types.NamespacedName]map[string]*series, len(r.containers))
	for pod, containers := range r.containers {
		pods[pod] = make(map[string]*series, len(containers))
		for name, c := range containers {
			known := n.pods[pod][name]
			if known == nil {
				known = &series{}
			}
			known.add(c.point, c.since, now)
			pods[pod][name] = known
		}
	}
	n.pods = pods
}

// keep forgets all nodes but these.
func (s *store) keep(names map[string]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.nodes, func(name string, _ *node) bool { return !names[name] })
}

func (s *store) node(name string) (usage, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.nodes[name]
	if n == nil {
		return usage{}, false
	}
	return n.itself.usage(time.Now())
}

// used is what one container uses.
type used struct {
	container string
	usage
}

// pod is what a pod's containers use, in the order of their names. All are known, or
// none is told.
func (s *store) pod(pod types.NamespacedName) []used {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, n := range s.nodes {
		containers, here := n.pods[pod]
		if !here {
			continue
		}
		var out []used
		for _, name := range slices.Sorted(maps.Keys(containers)) {
			u, known := containers[name].usage(now)
			if !known {
				out = nil
				break
			}
			out = append(out, used{name, u})
		}
		if out != nil {
			return out
		}
	}
	return nil
}
