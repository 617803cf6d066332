package cluster

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

// TestBadServersCauseNoStorm_alone: of three servers one stands still for half a minute, one
// is not heard by the others, and one has a link that comes and goes each second. Pods
// and their connections are untouched, the API takes writes through an agent's balancer,
// none is lost, and elections are few.
func TestBadServersCauseNoStorm_alone(t *testing.T) {
	s := alone(t)
	servers, agent := s.three()
	s.apply(servers[0].Host, twoPlaces)
	s.rolledOut(servers[0].Host, "web")
	pods := s.pods(servers[0].Host)
	w := s.write(s.through(agent, servers[0].Host))

	t.Run("frozen", func(t *testing.T) { s.in(t).frozen(servers, agent, w) })
	t.Run("not heard", func(t *testing.T) {
		s := s.in(t)
		bad := s.leader(servers)
		elections := s.elections(servers)
		for _, m := range servers {
			if m != bad {
				s.net.CutOneWay(bad.Host, m.Host)
			}
		}
		s.net.CutOneWay(bad.Host, agent)
		time.Sleep(5 * time.Second) // what was under way may fail once
		s.steady(w, 15*time.Second, func() {})
		s.net.Heal()
		s.whole(bad)
		elections(2)
	})
	t.Run("flapping", func(t *testing.T) {
		s := s.in(t)
		bad := s.leader(servers)
		elections := s.elections(servers)
		plugged := true
		s.steady(w, 20*time.Second, func() {
			if plugged = !plugged; plugged {
				s.net.Heal()
			} else {
				s.net.Isolate(bad.Host)
			}
		})
		s.net.Heal()
		s.whole(bad)
		elections(2)
	})
	s.ready(servers[0].Host, servers[0].Host, servers[1].Host, servers[2].Host, agent)
	if now := s.pods(servers[0].Host); now != pods {
		t.Errorf("pods before:\n%s\nafter:\n%s", pods, now)
	}
	w.verify()
}

// frozen stops the server that leads for half a minute.
func (s *scene) frozen(servers []*station, agent *hosts.Host, w *writer) {
	bad := s.leader(servers)
	other := servers[(slices.Index(servers, bad)+1)%3]
	_, ip := s.podOn(other.Host, bad.Host, "web")
	talk := s.talk(agent, ip)
	before := s.nodeChanges(other.Host, bad.Name())

	w.reset()
	s.signal(bad, syscall.SIGSTOP)
	time.Sleep(30 * time.Second)
	s.signal(bad, syscall.SIGCONT)
	s.Logf("longest time without an acknowledged write %s", w.longest().Round(10*time.Millisecond))
	if gap := w.longest(); gap > 5*time.Second {
		s.Errorf("no write for %s, want 5s at most", gap)
	}
	began := time.Now()
	// The scheduler, or its successor, and the kubelet there go on.
	s.apply(other.Host, strings.ReplaceAll(late, "$NODE", bad.Name()))
	s.running(other.Host, "app=late")
	s.Logf("a pod that is new runs on the server that stood still %s after it goes on", time.Since(began).Round(100*time.Millisecond))
	s.whole(bad)
	if err := talk(); err != nil {
		s.Errorf("a connection to a pod on the server that stood still: %v", err)
	}
	if after := s.nodeChanges(other.Host, bad.Name()); after != before {
		s.Errorf("nodes became not Ready or pods were evicted: %s", after)
	}
}

const late = `
apiVersion: v1
kind: Pod
metadata: {name: late, labels: {app: late}}
spec:
  nodeSelector: {kubernetes.io/hostname: $NODE}
  terminationGracePeriodSeconds: 1
  containers:
  - name: late
    image: $AGNHOST
    imagePullPolicy: Never
    args: [pause]
`

func (s *scene) signal(m *station, what syscall.Signal) {
	s.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.process.Signal(what); err != nil {
		s.Fatal(err)
	}
}

// pods are the web pods, each with its container and how often that was restarted.
func (s *scene) pods(server *hosts.Host) string {
	s.Helper()
	return s.kubectl(server, "get", "pods", "-l", "app=web", "--sort-by=.metadata.name", "-o",
		`jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}{"\n"}{end}`)
}

// nodeChanges are the events that tell of a node that was given up. A kubelet that stood
// still for half a minute may have doubts about its own engine, and is not counted, nor that
// its pods were to go in some minutes if it had kept them.
func (s *scene) nodeChanges(server *hosts.Host, stood string) string {
	s.Helper()
	var out []string
	for _, reason := range []string{"NodeNotReady", "TaintManagerEviction"} {
		events := s.kubectl(server, "get", "events", "-A", "--field-selector", "reason="+reason, "-o",
			`jsonpath={range .items[*]}{.source.component} {.involvedObject.name}|{.message}{"\n"}{end}`)
		for line := range strings.Lines(events) {
			of, message, _ := strings.Cut(strings.TrimSpace(line), "|")
			if of != "kubelet "+stood && !strings.HasPrefix(message, "Cancelling deletion") {
				out = append(out, reason+": "+of)
			}
		}
	}
	return strings.Join(out, ", ")
}

// talk has a conversation with a pod by one connection, a sentence a second, until the
// function that it returns is called, which tells what went wrong.
func (s *scene) talk(from *hosts.Host, ip string) func() error {
	s.Helper()
	c, err := from.Dial("tcp", net.JoinHostPort(ip, "8080"), 2*time.Second)
	if err != nil {
		s.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan error)
	go func() {
		defer c.Close()
		r := bufio.NewReader(c)
		for {
			_ = c.SetDeadline(time.Now().Add(2 * time.Second))
			if _, err := fmt.Fprint(c, "GET /hostname HTTP/1.1\r\nHost: pod\r\n\r\n"); err != nil {
				done <- err
				return
			}
			res, err := http.ReadResponse(r, nil)
			if err != nil {
				done <- err
				return
			}
			_, err = io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if err != nil {
				done <- err
				return
			}
			select {
			case <-stop:
				done <- nil
				return
			case <-time.After(time.Second):
			}
		}
	}()
	return func() error { close(stop); return <-done }
}

// leader is the server whose member leads.
func (s *scene) leader(servers []*station) *station {
	s.Helper()
	var found *station
	s.within(15*time.Second, "a leader", func() error {
		out, err := servers[0].Run("podo", "etcd", "member-list", "-o", "json")
		if err != nil {
			return err
		}
		var members []struct {
			Node   string
			Leader bool
		}
		decode(s.T, out, &members)
		for _, m := range members {
			i := slices.IndexFunc(servers, func(h *station) bool { return h.Name() == m.Node })
			if m.Leader && i >= 0 {
				found = servers[i]
				return nil
			}
		}
		return fmt.Errorf("none in %s", out)
	})
	return found
}

// elections returns a function that judges whether no member has seen more changes of
// the leader since.
func (s *scene) elections(servers []*station) func(most int) {
	s.Helper()
	seen := func() (out []int) {
		for _, m := range servers {
			text, err := s.get(m.Host, "127.0.0.1:2381", "/metrics")
			if err != nil {
				s.Fatal(err)
			}
			for line := range strings.Lines(text) {
				if value, ok := strings.CutPrefix(line, "etcd_server_leader_changes_seen_total "); ok {
					n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
					if err != nil {
						s.Fatal(err)
					}
					out = append(out, int(n))
				}
			}
		}
		if len(out) != len(servers) {
			s.Fatalf("changes of the leader: %v, want one number of each server", out)
		}
		return out
	}
	before := seen()
	return func(most int) {
		s.Helper()
		after := seen()
		s.Logf("changes of the leader that each server has seen: %v, before: %v", after, before)
		for i := range after {
			if n := after[i] - before[i]; n > most {
				s.Errorf("%s has seen %d changes of the leader, want %d at most", servers[i].Name(), n, most)
			}
		}
	}
}

// steady measures for how much of a time the API took writes: the part of seconds with
// an acknowledged one. Meanwhile is called twice in each.
func (s *scene) steady(w *writer, lasts time.Duration, meanwhile func()) {
	s.Helper()
	seconds, good := 0, 0
	w.reset()
	for end := time.Now().Add(lasts); time.Now().Before(end); seconds++ {
		before := w.count()
		for range 2 {
			meanwhile()
			time.Sleep(500 * time.Millisecond)
		}
		if w.count() > before {
			good++
		}
	}
	share := 100 * float64(good) / float64(seconds)
	s.Logf("writes in %.0f %% of the seconds, the longest time without one %s", share, w.longest().Round(10*time.Millisecond))
	if share < 95 {
		s.Errorf("writes in %.0f %% of the seconds, want 95", share)
	}
}

func (w *writer) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.kept)
}
