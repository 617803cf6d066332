package cluster

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

// TestPodsOutliveTheServer: while the server is stopped, killed, or gone when the
// agent itself is started again, or stands still for half a minute, the agent's pods answer
// without a pause and are not started anew. When the server is back, exec and logs reach
// them soon.
func TestPodsOutliveTheServer(t *testing.T) {
	s := begin(t)
	server := s.net.Host("server")
	p := s.start(server, "server")
	one := s.net.Host("one")
	a := s.join(one, server)
	s.ready(server, server, one)
	s.apply(server, twoPlaces)
	s.rolledOut(server, "web")
	pod, ip := s.podOn(server, one, "web")
	service := s.kubectl(server, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	containers := s.podo(one, "crictl", "ps", "-q")
	s.reached(server, pod)

	for _, c := range []struct {
		name  string
		apart func()
	}{
		{"stopped", func() { s.end(p) }},
		{"killed", func() { s.kill(p) }},
		{"agent started again meanwhile", func() {
			s.end(p)
			s.end(a)
			a = s.start(one, "agent", "--server", url(server))
			s.within(20*time.Second, "the agent's kubelet runs", func() error { return contains(a.Log(), "kubelet running") })
		}},
		{"both killed", func() {
			s.kill(p)
			s.kill(a)
			a = s.start(one, "agent", "--server", url(server))
			s.within(20*time.Second, "the agent's kubelet runs", func() error { return contains(a.Log(), "kubelet running") })
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := s.in(t)
			silent := s.watch(one, ip+":8080", service+":80")
			c.apart()
			time.Sleep(3 * time.Second)
			p = s.start(server, "server")
			began := time.Now()
			s.within(15*time.Second, "exec and logs through the agent", func() error {
				if out, err := server.Kubectl("exec", pod, "--", "/agnhost", "--help"); err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
				return nil
			})
			t.Logf("exec works %s after the server's start", time.Since(began).Round(100*time.Millisecond))
			s.reached(server, pod)
			s.ready(server, one)
			if failed := silent(); len(failed) > 0 {
				t.Errorf("%d requests had no answer, the first: %v", len(failed), failed[0])
			}
			if now := s.podo(one, "crictl", "ps", "-q"); now != containers {
				t.Errorf("containers on the agent:\n%s\nbefore:\n%s", now, containers)
			}
			if out, err := one.Run("podo", "status", "--wait=30s"); err != nil {
				t.Errorf("the agent's status: %v\n%s", err, out)
			}
		})
	}
	t.Run("frozen", func(t *testing.T) {
		s := s.in(t)
		silent := s.watch(one, ip+":8080", service+":80")
		before := s.nodeChanges(server, "server")
		lookout := server.Start("podo", "kubectl", "get", "configmaps", "--watch", "-o", "name")
		s.within(15*time.Second, "a watch", func() error { return contains(lookout.Log(), "kube-root-ca.crt") })
		if err := p.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		if err := p.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		s.within(20*time.Second, "a write", func() error {
			out, err := server.Kubectl("create", "configmap", "thawed")
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
		s.within(20*time.Second, "the watch goes on", func() error { return contains(lookout.Log(), "thawed") })
		t.Logf("a write, and its event in a watch, %s after half a minute's pause", time.Since(began).Round(100*time.Millisecond))
		s.apply(server, strings.ReplaceAll(late, "$NODE", one.Name())) // the scheduler and both kubelets go on
		s.running(server, "app=late")
		s.reached(server, pod)
		if failed := silent(); len(failed) > 0 {
			t.Errorf("%d requests had no answer, the first: %v", len(failed), failed[0])
		}
		if now := s.podo(one, "crictl", "ps", "-q"); !strings.HasSuffix(now, containers) {
			t.Errorf("containers on the agent:\n%s\nbefore:\n%s", now, containers)
		}
		if after := s.nodeChanges(server, "server"); after != before {
			t.Errorf("nodes became not Ready or pods were evicted: %s", after)
		}
		if !p.Running() {
			t.Errorf("the server ended:\n%s", p.Tail(20))
		}
		s.end(lookout)
	})
}

// reached has exec and logs reach a pod.
func (s *scene) reached(server *hosts.Host, pod string) {
	s.Helper()
	if out := s.kubectl(server, "exec", pod, "--", "/agnhost", "connect", "--timeout=2s", "127.0.0.1:8080"); out != "" {
		s.Errorf("exec in %s: %q", pod, out)
	}
	s.says(s.kubectl(server, "logs", pod), "Started HTTP server")
}

// watch asks addresses on a host ten times a second until the function that it
// returns is called, which returns what went wrong.
func (s *scene) watch(h *hosts.Host, addresses ...string) func() []error {
	stop, done := make(chan struct{}), make(chan []error)
	go func() {
		var failed []error
		began, asked := time.Now(), 0
		for {
			for _, a := range addresses {
				asked++
				if _, err := s.get(h, a, "/hostname"); err != nil {
					failed = append(failed, fmt.Errorf("%s after %s: %w", a, time.Since(began).Round(time.Millisecond), err))
				}
			}
			select {
			case <-stop:
				if asked < 20 {
					failed = append(failed, fmt.Errorf("only %d requests were made", asked))
				}
				done <- failed
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	return func() []error { close(stop); return <-done }
}

// TestNodeBehindNAT: a node that servers cannot connect to serves all that they ask
// of nodes, since it has connected to them.
func TestNodeBehindNAT(t *testing.T) {
	s := begin(t)
	server := s.server("server")
	one := s.agent("one", server)
	s.ready(server, server, one)
	s.apply(server, twoPlaces)
	s.rolledOut(server, "web")
	const nft = "/var/lib/podo/bin/current/nft"
	if out, err := one.Run(nft, "add table inet nat; add chain inet nat in { type filter hook input priority -300; }; "+
		"add rule inet nat in iifname eth0 tcp flags & (syn | ack) == syn drop"); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if c, err := server.Dial("tcp", one.IP()+":10250", time.Second); err == nil {
		c.Close()
		t.Fatal("the server still connects to the kubelet: nothing is shown")
	}
	pod, _ := s.podOn(server, one, "web")
	s.reached(server, pod)
	s.says(s.kubectl(server, "get", "--raw", "/api/v1/nodes/one/proxy/stats/summary"), `"nodeName": "one"`, pod)
	s.says(s.kubectl(server, "get", "--raw", "/api/v1/nodes/one/proxy/metrics/resource"), "node_cpu_usage_seconds_total", pod)
	if s.hasMetrics(server) {
		s.within(60*time.Second, "kubectl top node one", func() error {
			out, err := server.Kubectl("top", "node", "one")
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}
	s.forwards(server, pod)

	// It stays so when the connection breaks, which a router that forgets causes.
	s.net.Isolate(one)
	time.Sleep(5 * time.Second)
	s.net.Heal()
	s.within(15*time.Second, "exec after a break", func() error {
		out, err := server.Kubectl("exec", pod, "--", "/agnhost", "--help")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

func (s *scene) hasMetrics(server *hosts.Host) bool {
	out, err := server.Kubectl("get", "apiservice", "v1beta1.metrics.k8s.io", "--ignore-not-found", "-o", "name")
	return err == nil && strings.TrimSpace(out) != ""
}

// forwards has port-forward reach a pod, on a server.
func (s *scene) forwards(server *hosts.Host, pod string) {
	s.Helper()
	p := server.Start("podo", "kubectl", "port-forward", pod, "18080:8080")
	defer s.end(p)
	s.within(15*time.Second, "port-forward to "+pod, func() error {
		out, err := s.get(server, "127.0.0.1:18080", "/hostname")
		if err == nil && out != pod {
			err = fmt.Errorf("%q answers", out)
		}
		return err
	})
}
