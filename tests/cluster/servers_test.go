package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/podo-dev/podo/tests/hosts"
)

// serverToken is the token that lets servers join.
func (s *scene) serverToken(server *hosts.Host) string {
	s.Helper()
	return s.file(server, "/var/lib/podo/server/token")
}

// peer turns a host on and makes it one more server of a cluster. It is started again
// whenever it ends, as a service manager would.
func (s *scene) peer(name string, server *hosts.Host, args ...string) *station {
	s.Helper()
	return s.station(name, append([]string{"server", "--server", url(server), "--token", s.serverToken(server)}, args...)...)
}

// A station is a host whose podo is started again when it ends.
type station struct {
	*hosts.Host
	scene *scene
	args  []string

	mu      sync.Mutex
	process *hosts.Process
	off     bool
}

// station turns a host on and keeps podo running there.
func (s *scene) station(name string, args ...string) *station {
	s.Helper()
	return s.keep(s.net.Host(name), args...)
}

// keep keeps podo running on a host.
func (s *scene) keep(h *hosts.Host, args ...string) *station {
	s.Helper()
	m := &station{Host: h, scene: s, args: args}
	m.start()
	return m
}

// start starts podo, and keeps it running as its unit would, which has nothing to hope
// for from exit code 2, until stop, Off or the end of the test.
func (m *station) start() {
	m.scene.Helper()
	p := m.scene.start(m.Host, m.args...)
	m.mu.Lock()
	m.process, m.off = p, false
	m.mu.Unlock()
	go func() {
		for {
			<-p.Ended()
			code, _ := p.Wait(time.Second)
			m.mu.Lock()
			if m.off || code == 2 || m.scene.Context().Err() != nil {
				m.mu.Unlock()
				return
			}
			time.Sleep(200 * time.Millisecond)
			p = m.Host.Start(append([]string{"podo"}, m.args...)...)
			m.process = p
			m.mu.Unlock()
		}
	}()
}

// crash ends podo at once. It comes back by itself.
func (m *station) crash() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.process.Signal(syscall.SIGKILL)
}

// log is what the podo that runs there has said.
func (m *station) log() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.process.Log()
}

// down takes the host away, for start to bring back.
func (m *station) down() {
	m.mu.Lock()
	m.off = true
	m.mu.Unlock()
	m.Host.Off()
}

// up brings it back.
func (m *station) up() {
	m.Host.On()
	m.start()
}

// members waits until the cluster has so many members, which all answer and vote.
func (s *scene) members(server *hosts.Host, n int) {
	s.Helper()
	s.within(60*time.Second, fmt.Sprintf("%d members", n), func() error {
		out, err := server.Run("podo", "etcd", "member-list", "-o", "json")
		if err != nil {
			return err
		}
		var list []struct {
			Learner bool
			Err     string
		}
		decode(s.T, out, &list)
		for _, m := range list {
			if m.Learner || m.Err != "" {
				return fmt.Errorf("%s", out)
			}
		}
		if len(list) != n {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
}

// whole waits until a server that was away is one of three again: it may have lost leases,
// and starts anew then, as late as when it is back. Balancers look again after a moment.
func (s *scene) whole(m *station) {
	s.Helper()
	s.podo(m.Host, "status", "--wait=60s")
	s.members(m.Host, 3)
	time.Sleep(3 * time.Second)
}

// through is a client of the API by a node's balancer, with the rights of an
// administrator. What a server that dies has taken is not answered: it waits for a second.
func (s *scene) through(node, server *hosts.Host) kubernetes.Interface {
	s.Helper()
	return s.throughWithin(time.Second, node, server)
}

// throughWithin is through for who can wait longer.
func (s *scene) throughWithin(patience time.Duration, node, server *hosts.Host) kubernetes.Interface {
	s.Helper()
	return s.dial(patience, node, "6444", server)
}

// at is a client of a server's own API, which no balancer leads elsewhere.
func (s *scene) at(server *hosts.Host, patience time.Duration) kubernetes.Interface {
	s.Helper()
	return s.dial(patience, server, "6443", server)
}

func (s *scene) dial(patience time.Duration, node *hosts.Host, port string, server *hosts.Host) kubernetes.Interface {
	s.Helper()
	rc, err := clientcmd.RESTConfigFromKubeConfig([]byte(s.file(server, "/etc/podo/podo.yaml")))
	if err != nil {
		s.Fatal(err)
	}
	loopback := "127.0.0.1"
	if strings.Contains(node.IP(), ":") {
		loopback = "::1"
	}
	rc.Host, rc.QPS, rc.Timeout = "https://"+net.JoinHostPort(loopback, port), -1, patience
	rc.Dial = func(_ context.Context, network, addr string) (net.Conn, error) {
		return node.Dial(network, addr, 2*time.Second)
	}
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		s.Fatal(err)
	}
	return client
}

// A writer writes ten objects a second with each worker, and remembers those that were
// acknowledged.
type writer struct {
	scene  *scene
	client kubernetes.Interface
	stop   context.CancelFunc
	done   sync.WaitGroup

	mu   sync.Mutex
	kept []string
	last time.Time
	gap  time.Duration // the longest between two acknowledgements
}

// write writes a hundred objects a second.
func (s *scene) write(client kubernetes.Interface) *writer { return s.writeAs("w", 10, client) }

// writeAs is write with so many workers, whose objects have names of their own.
func (s *scene) writeAs(prefix string, workers int, client kubernetes.Interface) *writer {
	ctx, stop := context.WithCancel(s.Context())
	w := &writer{scene: s, client: client, stop: stop, last: time.Now()}
	for worker := range workers {
		w.done.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				name := fmt.Sprintf("%s%d-%d", prefix, worker, i)
				_, err := client.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
				if err == nil || apierrors.IsAlreadyExists(err) {
					w.mu.Lock()
					w.kept = append(w.kept, name)
					w.gap, w.last = max(w.gap, time.Since(w.last)), time.Now()
					w.mu.Unlock()
				}
				time.Sleep(100 * time.Millisecond)
			}
		})
	}
	return w
}

// reset forgets the longest gap.
func (w *writer) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gap, w.last = 0, time.Now()
}

func (w *writer) longest() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return max(w.gap, time.Since(w.last))
}

// verify ends the writing and looks for every acknowledged object.
func (w *writer) verify() {
	w.scene.Helper()
	w.stop()
	w.done.Wait()
	have := map[string]bool{}
	for page := (metav1.ListOptions{Limit: 1000}); ; { // one answer has a second
		list, err := w.client.CoreV1().ConfigMaps("default").List(w.scene.Context(), page)
		if err != nil {
			w.scene.Fatal(err)
		}
		for _, c := range list.Items {
			have[c.Name] = true
		}
		if page.Continue = list.Continue; page.Continue == "" {
			break
		}
	}
	lost := 0
	for _, name := range w.kept {
		if !have[name] {
			lost++
			w.scene.Errorf("acknowledged and lost: %s", name)
		}
	}
	w.scene.Logf("%d writes acknowledged, %d lost", len(w.kept), lost)
	if len(w.kept) == 0 {
		w.scene.Error("no write was acknowledged, so nothing is shown")
	}
}

// three begins a cluster of three servers, each with further arguments, and an agent.
func (s *scene) three(args ...string) (servers []*station, agent *hosts.Host) {
	s.Helper()
	one := s.station("one", append([]string{"server", "--cluster-init"}, args...)...)
	s.ready(one.Host, one.Host)
	two, three := s.peer("two", one.Host, args...), s.peer("three", one.Host, args...)
	s.ready(one.Host, two.Host, three.Host)
	s.members(one.Host, 3)
	agent = s.agent("agent", two.Host)
	s.ready(one.Host, agent)
	return []*station{one, two, three}, agent
}

// TestAnyServerMayBeLost_alone: of three servers each is killed in turn, while a hundred
// writes a second go through the balancer of an agent. None that was acknowledged is
// lost, and the API answers again within three seconds.
func TestAnyServerMayBeLost_alone(t *testing.T) {
	s := alone(t)
	servers, agent := s.three()
	w := s.write(s.through(agent, servers[0].Host))
	for _, m := range servers {
		leads := s.leader(servers) == m
		time.Sleep(2 * time.Second)
		w.reset()
		m.crash()
		time.Sleep(8 * time.Second)
		gap := w.longest()
		if leads {
			s.figure("loss of the server that leads, to the next write through a balancer", gap.Seconds(), "s")
		}
		t.Logf("kill -9 of %s: longest time without an acknowledged write %s", m.Name(), gap.Round(10*time.Millisecond))
		if gap > 3*time.Second {
			t.Errorf("%s was lost: no write for %s, want 3s at most", m.Name(), gap)
		}
		s.whole(m)
	}
	w.verify()
}

// TestIsolatedServerComesBack_alone: each server is cut off in turn and rejoins, while the
// others go on, with a new leader within moments if it was that. Alone it acknowledges no
// write and shows nothing that may be old, and nor does any of three that are all apart.
func TestIsolatedServerComesBack_alone(t *testing.T) {
	s := alone(t)
	servers, agent := s.three()
	w := s.write(s.through(agent, servers[0].Host))
	for _, m := range servers {
		led := s.leader(servers) == m
		w.reset()
		began := time.Now()
		s.net.Isolate(m.Host)
		if led {
			s.elected(m, servers, 3*time.Second)
		}
		s.cutOff(m)
		time.Sleep(8*time.Second - time.Since(began))
		gap := w.longest()
		t.Logf("%s isolated (leader: %t): longest time without an acknowledged write %s", m.Name(), led, gap.Round(10*time.Millisecond))
		if gap > 5*time.Second {
			t.Errorf("%s was isolated: no write for %s, want 5s at most", m.Name(), gap)
		}
		s.net.Heal()
		s.whole(m)
	}

	for i, m := range servers {
		s.net.Cut(m.Host, servers[(i+1)%3].Host)
	}
	time.Sleep(3 * time.Second) // what was under way is acknowledged
	before := w.count()
	s.cutOff(servers...)
	if n := w.count() - before; n > 0 {
		t.Errorf("%d writes were acknowledged while no server reached another", n)
	}
	s.net.Heal()
	healed := time.Now()
	s.within(60*time.Second, "writes after the split", func() error {
		if w.count() == before {
			return errors.New("none is acknowledged")
		}
		return nil
	})
	t.Logf("writes %s after a split of three ways", time.Since(healed).Round(10*time.Millisecond))
	s.members(servers[0].Host, 3)
	w.verify()
}

// elected waits until one of the servers leads the others, in place of one that is lost.
func (s *scene) elected(lost *station, servers []*station, limit time.Duration) {
	s.Helper()
	began := time.Now()
	for time.Since(began) < limit+10*time.Second {
		for _, m := range servers {
			if m == lost {
				continue // it may take seconds to answer
			}
			text, err := s.get(m.Host, "127.0.0.1:2381", "/metrics")
			if err != nil || !strings.Contains(text, "\netcd_server_is_leader 1\n") {
				continue
			}
			took := time.Since(began)
			s.Logf("%s leads %s after %s was lost", m.Name(), took.Round(10*time.Millisecond), lost.Name())
			if took > limit {
				s.Errorf("a new leader after %s, want %s at most", took, limit)
			}
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	s.Errorf("no new leader %s after %s was lost", time.Since(began), lost.Name())
}

// cutOff holds that servers without the majority answer with an error what they cannot
// know: a write, and reads of what is so now, of one object and of many.
func (s *scene) cutOff(servers ...*station) {
	s.Helper()
	const patience = 12 * time.Second
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	var asked sync.WaitGroup
	for _, m := range servers {
		maps := s.at(m.Host, patience).CoreV1().ConfigMaps("kube-public")
		for what, ask := range map[string]func() error{
			"a write": func() error {
				_, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "of-" + m.Name()}}, metav1.CreateOptions{})
				return err
			},
			"a read": func() error {
				_, err := maps.Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
				return err
			},
			"a list": func() error {
				_, err := maps.List(ctx, metav1.ListOptions{})
				return err
			},
		} {
			asked.Go(func() {
				began := time.Now()
				err := ask()
				s.Logf("%s, cut off, is asked for %s and says after %s: %v", m.Name(), what, time.Since(began).Round(10*time.Millisecond), err)
				if err == nil {
					s.Errorf("%s, cut off, answers %s", m.Name(), what)
				}
			})
		}
	}
	asked.Wait()
}

// TestWipedServerRejoins: a server whose disk was lost joins again under its name, in the
// place of its member, while the API takes writes by an agent's balancer. It was the
// server that the agent joined by: meanwhile the agent starts anew with those it has on
// its disk.
func TestWipedServerRejoins(t *testing.T) {
	s := begin(t)
	const parts = "servicelb,traefik"
	servers, agent := s.three("--disable", parts)
	one, two := servers[0], servers[1]
	w := s.writeAs("lost", 2, s.through(agent, one.Host))
	two.down()
	two.Host.Wipe()
	s.within(90*time.Second, "node two noticed as gone", func() error {
		out, err := one.Kubectl("get", "node", "two", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
		if err != nil || out == "True" {
			return fmt.Errorf("Ready is %q, %v", out, err)
		}
		return nil
	})
	s.gap(w, "a server is lost")
	w.verify()

	agent.Reboot()
	s.start(agent, "agent", "--server", url(two.Host)) // no token
	s.podo(agent, "status", "--wait=60s")
	if c, err := agent.Dial("tcp", two.IP()+":6443", time.Second); err == nil {
		c.Close()
		t.Error("the server that the agent joined by is there: nothing is shown")
	}
	w = s.writeAs("back", 2, s.through(agent, one.Host))
	s.within(10*time.Second, "writes by the agent's balancer", func() error {
		if w.count() == 0 {
			return errors.New("none is acknowledged")
		}
		return nil
	})
	w.reset()
	two.args[slices.Index(two.args, parts)] = "traefik,servicelb" // the same
	two.start()
	s.members(one.Host, 3)
	s.ready(one.Host, two.Host, agent)
	s.members(two.Host, 3)
	s.gap(w, "it joins again")
	w.verify()
}

// gap judges the longest time without a write while other tests run beside.
func (s *scene) gap(w *writer, when string) {
	s.Helper()
	gap := w.longest()
	s.Logf("while %s: longest time without an acknowledged write %s", when, gap.Round(10*time.Millisecond))
	if gap > 10*time.Second {
		s.Errorf("no write for %s while %s, want 10s at most", gap, when)
	}
}

// TestDeletedServerLeavesEtcd: etcd forgets a server that is gone when its node is deleted, and
// keeps one that runs, which has its node back when it is started anew. One that comes back
// all the same joins anew.
func TestDeletedServerLeavesEtcd(t *testing.T) {
	s := begin(t)
	servers, _ := s.three()
	one, two, three := servers[0], servers[1], servers[2]
	three.down()
	s.kubectl(one.Host, "delete", "node", "three", "two")
	s.within(4*time.Minute, "three out of etcd", func() error {
		out, err := one.Run("podo", "etcd", "member-list")
		if err != nil || strings.Contains(out, "three-") {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	s.members(one.Host, 2) // two is one of them
	two.crash()
	s.ready(one.Host, two.Host)
	s.members(one.Host, 2)

	three.up()
	s.ready(one.Host, three.Host)
	s.members(one.Host, 3)
}

// TestLostQuorumIsResetByOneCommand: two of three servers are gone for good; the third
// is made a cluster of one, with every write in it that the majority acknowledged, and
// others join it. Its old data is kept.
func TestLostQuorumIsResetByOneCommand(t *testing.T) {
	s := begin(t)
	servers, agent := s.three()
	one := servers[0]
	w := s.writeAs("w", 3, s.through(agent, one.Host))
	servers[1].down()
	before := w.count()
	s.within(20*time.Second, "writes to the two that are left", func() error {
		if w.count() < before+20 {
			return fmt.Errorf("%d, and %d more", before, w.count()-before)
		}
		return nil
	})
	one.mu.Lock()
	one.off = true
	one.mu.Unlock()
	one.process.Signal(syscall.SIGTERM)
	one.process.Wait(15 * time.Second)
	said, code := s.try(one.Host, 15*time.Second, "server", "--cluster-reset")
	if code != 1 {
		t.Fatalf("reset while another server runs: exit code %d, want 1\n%s", code, said)
	}
	s.says(said, servers[2].IP(), "stop podo on every other server first")
	servers[2].down()
	if said, code = s.try(one.Host, time.Minute, "server", "--cluster-reset"); code != 0 {
		t.Fatalf("reset: exit code %d\n%s", code, said)
	}
	_, kept, _ := strings.Cut(said, "The data as it was is kept in\n")
	kept, _, _ = strings.Cut(kept, "\n")
	if info, err := os.Stat(one.Path(filepath.Join("/", kept, "member/snap/db"))); kept == "" || err != nil || info.Size() == 0 {
		t.Errorf("the old data is not kept in %q: %v\n%s", kept, err, said)
	}
	one.start()
	s.ready(one.Host, one.Host)
	w.stop()
	w.done.Wait()
	w.client = s.at(one.Host, 20*time.Second)
	w.verify()
	s.members(one.Host, 1)
	four := s.peer("four", one.Host)
	s.ready(one.Host, four.Host)
	s.members(one.Host, 2)

	s.podo(four.Host, "etcd", "member-remove", "one")
	code, err := one.process.Wait(30 * time.Second)
	if err != nil || code != 2 {
		t.Errorf("removed, with no server to join anew: exit code %d, %v; want 2", code, err)
	}
	s.says(one.process.Log(), "start it with --server")
	s.members(four.Host, 1)
}
