package cluster

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

// balanced are two Services at nodes' addresses: by whichever node, and by the one that
// the pod is on.
const balanced = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: one}
spec:
  selector: {matchLabels: {app: one}}
  template:
    metadata: {labels: {app: one}}
    spec:
      nodeName: one
      terminationGracePeriodSeconds: 1
      tolerations: [{operator: Exists}]
      containers:
      - name: one
        image: $AGNHOST
        imagePullPolicy: Never
        args: [netexec, --http-port=8080, --udp-port=8081]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: anywhere}
spec:
  type: LoadBalancer
  selector: {app: one}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: udp, port: 80, targetPort: 8081, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: {app: one}
  ports: [{port: 81, targetPort: 8080}]
`

// published waits until a Service has exactly the addresses of these hosts.
func (s *scene) published(server *hosts.Host, limit time.Duration, service string, at ...*hosts.Host) {
	s.Helper()
	var want []string
	for _, h := range at {
		want = append(want, h.IP())
	}
	slices.Sort(want)
	s.within(limit, fmt.Sprintf("%s published at %v", service, want), func() error {
		out, err := server.Kubectl("get", "service", service, "-o", `jsonpath={.status.loadBalancer.ingress[*].ip} {.status.conditions}`)
		if err != nil {
			return err
		}
		list, why, _ := strings.Cut(out, "[")
		if got := slices.Sorted(slices.Values(strings.Fields(list))); !slices.Equal(got, want) {
			return fmt.Errorf("at %v: %s", got, why)
		}
		return nil
	})
}

// answered waits until a page that is asked for at an address begins so.
func (s *scene) answered(from *hosts.Host, address, path, want string) {
	s.Helper()
	s.within(20*time.Second, address+path+" from "+from.Name(), func() error {
		got, err := s.get(from, address, path)
		if err == nil && !strings.HasPrefix(got, want) {
			err = fmt.Errorf("it says %q, want %q", got, want)
		}
		return err
	})
}

// TestServicesAtNodesAddresses: a server, two agents, and a machine that is none of them.
func TestServicesAtNodesAddresses(t *testing.T) {
	s := begin(t)
	server := s.server("server")
	one := s.agent("one", server)
	two := s.net.Host("two")
	process := s.join(two, server)
	client := s.net.Host("client")
	s.ready(server, server, one, two)
	s.apply(server, balanced)
	s.running(server, "app=one")
	pod, _ := s.podOn(server, one, "one")

	s.published(server, 20*time.Second, "anywhere", server, one, two)
	s.published(server, 20*time.Second, "local", one)
	for _, n := range []*hosts.Host{server, one, two} {
		s.answered(client, net.JoinHostPort(n.IP(), "80"), "/hostname", pod)
		s.answered(n, net.JoinHostPort(n.IP(), "80"), "/hostname", pod) // from the node itself
		s.hears(client, net.JoinHostPort(n.IP(), "80"), pod)
	}
	// The client's own address is what the pod sees.
	s.answered(client, net.JoinHostPort(one.IP(), "81"), "/clientip", client.IP()+":")
	if _, err := s.get(client, net.JoinHostPort(two.IP(), "81"), "/hostname"); err == nil {
		t.Error("port 81 answers where no endpoint is")
	}

	// Only some may send.
	s.kubectl(server, "patch", "service", "local", "-p", `{"spec":{"loadBalancerSourceRanges":["`+server.IP()+`/32"]}}`)
	s.within(20*time.Second, "a client that is not allowed is dropped", func() error {
		if _, err := s.get(client, net.JoinHostPort(one.IP(), "81"), "/hostname"); err == nil {
			return fmt.Errorf("it is answered")
		}
		return nil
	})
	s.answered(server, net.JoinHostPort(one.IP(), "81"), "/hostname", pod)
	s.kubectl(server, "patch", "service", "local", "-p", `{"spec":{"loadBalancerSourceRanges":null}}`)
	s.answered(client, net.JoinHostPort(one.IP(), "81"), "/hostname", pod)

	// People choose.
	s.kubectl(server, "label", "node", "two", "svccontroller.k3s.cattle.io/enablelb=true")
	s.published(server, 20*time.Second, "anywhere", two)
	s.published(server, 20*time.Second, "local")
	s.kubectl(server, "label", "node", "one", "podo.dev/load-balancer=true", "podo.dev/load-balancer-pool=dmz")
	s.published(server, 20*time.Second, "anywhere", one, two)
	s.kubectl(server, "label", "service", "anywhere", "podo.dev/load-balancer-pool=dmz")
	s.published(server, 20*time.Second, "anywhere", one)
	s.kubectl(server, "label", "service", "anywhere", "podo.dev/load-balancer-pool-")
	s.kubectl(server, "label", "node", "--all", "svccontroller.k3s.cattle.io/enablelb-", "podo.dev/load-balancer-", "podo.dev/load-balancer-pool-")
	s.published(server, 20*time.Second, "anywhere", server, one, two)
	s.published(server, 20*time.Second, "local", one)

	// Ports that are taken are respected, and the Service says so.
	s.kubectl(server, "expose", "deployment", "one", "--name=api", "--type=LoadBalancer", "--port=6443", "--target-port=8080")
	s.published(server, 20*time.Second, "api", one, two)
	s.kubectl(server, "expose", "deployment", "one", "--name=late", "--type=LoadBalancer", "--port=80", "--target-port=8080")
	s.published(server, 20*time.Second, "late")
	s.within(20*time.Second, "the Service says why it is not published", func() error {
		out, err := server.Kubectl("describe", "service", "late")
		if err != nil {
			return err
		}
		for _, want := range []string{"PortTaken", "port 80/TCP of node one belongs to Service default/anywhere"} {
			if !strings.Contains(out, want) {
				return fmt.Errorf("nothing of %q in %s", want, out)
			}
		}
		return nil
	})
	s.kubectl(server, "delete", "service", "anywhere", "--timeout=20s")
	s.published(server, 20*time.Second, "late", server, one, two)
	s.answered(client, net.JoinHostPort(two.IP(), "80"), "/hostname", pod)

	s.resolverGoesOn(server, one, two)

	// A node that is lost is withdrawn, and comes back.
	s.kill(process)
	s.published(server, 90*time.Second, "late", server, one)
	s.start(two, "agent", "--server", url(server))
	s.published(server, 60*time.Second, "late", server, one, two)

	// Metrics of all of them, by the tunnels.
	s.within(60*time.Second, "what every node and the pod use", func() error {
		out, err := server.Kubectl("top", "nodes", "--no-headers")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		if n := strings.Count(out, "%"); n != 6 {
			return fmt.Errorf("not of every node:\n%s", out)
		}
		if out, err = server.Kubectl("top", "pod", pod); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// TestServicesAndMetricsWithoutAServer: of three servers each tells what nodes use, and
// the loss of the one that publishes Services keeps nobody waiting.
func TestServicesAndMetricsWithoutAServer(t *testing.T) {
	s := begin(t)
	servers, agent := s.three()
	for _, m := range servers {
		s.within(60*time.Second, "what all nodes use, told by "+m.Name(), func() error {
			out, err := m.Kubectl("top", "nodes", "--no-headers")
			if err == nil && strings.Count(out, "%") != 8 {
				err = fmt.Errorf("not of every node:\n%s", out)
			}
			return err
		})
	}
	one := servers[0].Host
	holder := s.kubectl(one, "-n", "kube-system", "get", "lease", "podo-load-balancer", "-o", "jsonpath={.spec.holderIdentity}")
	at := slices.IndexFunc(servers, func(m *station) bool { return strings.HasPrefix(holder, m.Name()+"-") })
	if at < 0 {
		t.Fatalf("the lease is held by %q", holder)
	}
	lost, others := servers[at], slices.Delete(slices.Clone(servers), at, at+1)
	lost.down()
	began := time.Now()
	api := others[0].Host
	s.within(20*time.Second, "a Service is made", func() error {
		out, err := api.Kubectl("create", "service", "loadbalancer", "web", "--tcp=80:8080")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	s.within(30*time.Second, "it is published", func() error {
		out, err := api.Kubectl("get", "service", "web", "-o", `jsonpath={.status.loadBalancer.ingress[*].ip}`)
		if err == nil && !strings.Contains(out, agent.IP()) {
			err = fmt.Errorf("at %q", out)
		}
		return err
	})
	s.figure("loss of the server that publishes Services, to the next one published", time.Since(began).Seconds(), "s")
	s.published(api, 90*time.Second, "web", others[0].Host, others[1].Host, agent)
}

// resolverGoesOn has two replicas of CoreDNS, which are on two nodes and of which one is
// drained at a time, answer every question meanwhile.
func (s *scene) resolverGoesOn(server *hosts.Host, nodes ...*hosts.Host) {
	s.Helper()
	const pods = "k8s-app=kube-dns"
	places := func() (out []string, err error) {
		said, err := server.Kubectl("-n", "kube-system", "get", "pods", "-l", pods, "-o", `jsonpath={range .items[*]}{.spec.nodeName} {.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}`)
		for line := range strings.Lines(said) {
			if at, ready, _ := strings.Cut(strings.TrimSpace(line), " "); ready == "True" {
				out = append(out, at)
			}
		}
		return out, err
	}
	spread := func() error {
		at, err := places()
		if err == nil && (len(at) != 2 || at[0] == at[1]) {
			err = fmt.Errorf("it is on %v", at)
		}
		return err
	}
	s.kubectl(server, "-n", "kube-system", "scale", "deployment/coredns", "--replicas=2")
	s.within(60*time.Second, "CoreDNS is on two nodes", spread)
	at, err := places()
	if err != nil {
		s.Fatal(err)
	}

	done, failed := make(chan struct{}), make(chan []error, 1)
	asked := 0
	go func() {
		var errs []error
		for {
			select {
			case <-done:
				failed <- errs
				return
			case <-s.Context().Done(): // the hosts go
				return
			case <-time.After(20 * time.Millisecond):
			}
			asked++
			if err := s.resolved(server, "10.43.0.10", "kubernetes.default.svc.cluster.local.", "10.43.0.1"); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", time.Now().Format(time.TimeOnly), err))
			}
		}
	}()
	drain := func(node string) error {
		_, err := server.Kubectl("drain", node, "--pod-selector="+pods, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=8s")
		return err
	}
	s.kubectl(server, append([]string{"cordon", server.Name()}, names(nodes)...)...) // another replica has no place
	if err := drain(at[0]); err != nil {
		s.Errorf("the first of two is not drained: %v", err)
	}
	if err := drain(at[1]); err == nil || !strings.Contains(err.Error(), "disruption budget") {
		s.Errorf("the second of two is drained beside the first: %v", err)
	}
	// The one that waits takes the first place there is, so that the other's node comes last.
	rest := slices.DeleteFunc(append([]string{server.Name()}, names(nodes)...), func(n string) bool { return n == at[1] })
	s.kubectl(server, append([]string{"uncordon"}, append(rest, at[1])...)...)
	s.within(60*time.Second, "CoreDNS is on two nodes again", spread)
	s.kubectl(server, "-n", "kube-system", "scale", "deployment/coredns", "--replicas=1")
	time.Sleep(time.Second)
	close(done)
	if errs := <-failed; len(errs) > 0 || asked < 100 {
		s.Errorf("of %d questions %d had no answer: %v", asked, len(errs), errs[:min(len(errs), 5)])
	}
}

func names(list []*hosts.Host) (out []string) {
	for _, h := range list {
		out = append(out, h.Name())
	}
	return out
}

// hears waits until a Service answers over UDP.
func (s *scene) hears(from *hosts.Host, address, want string) {
	s.Helper()
	s.within(20*time.Second, address+" over UDP from "+from.Name(), func() error {
		c, err := from.Dial("udp", address, 2*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
			return err
		}
		if _, err := c.Write([]byte("hostname")); err != nil {
			return err
		}
		buf := make([]byte, 200)
		n, err := c.Read(buf)
		if err == nil && !strings.HasPrefix(string(buf[:n]), want) {
			err = fmt.Errorf("it says %q", buf[:n])
		}
		return err
	})
}
