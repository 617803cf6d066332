package cluster

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

const allFamilies = `
apiVersion: v1
kind: Service
metadata: {name: all}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
`

// TestDualStackCluster: pods, Services, DNS and node ports of a server and an agent
// work over IPv4 and over IPv6. What pods send out of the cluster has their node's address,
// and an Ingress answers without the server.
func TestDualStackCluster(t *testing.T) {
	s := begin(t, hosts.IPv4, hosts.IPv6)
	server := s.net.Host("server")
	args := []string{"server", "--cluster-cidr", "10.42.0.0/16,fd42::/56", "--service-cidr", "10.43.0.0/16,fd43::/112",
		"--node-ip", strings.Join(server.IPs(), ","), "--flannel-ipv6-masq", "--disable", "metrics-server"}
	process := s.start(server, args...)
	agent := s.agent("agent", server)
	s.ready(server, server, agent)
	s.everyFamily(server, 2, server, agent)

	outside := s.net.Host("outside")
	for _, node := range []*hosts.Host{server, agent} {
		pod, _ := s.podOn(server, node, "web")
		for i, at := range outside.IPs() {
			s.arrivesFrom(server, pod, outside, at, node.IPs()[i])
		}
	}
	s.ingressGoesOn(outside, server, agent, func() {
		s.kill(process)
		time.Sleep(3 * time.Second)
		s.start(server, args...)
		s.ready(server, server, agent)
	})
}

const toAll = `
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: all}
spec: {rules: [{http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: all, port: {number: 80}}}}]}}]}
`

// ingressGoesOn has Traefik run on the agent, and answer every request from outside, at
// every address of both nodes, while something happens to the server.
func (s *scene) ingressGoesOn(outside, server, agent *hosts.Host, happens func()) {
	s.Helper()
	s.within(60*time.Second, "Traefik is there", func() error {
		_, err := server.Kubectl("-n", "kube-system", "rollout", "status", "deployment/traefik", "--timeout=5s")
		return err
	})
	s.kubectl(server, "cordon", server.Name())
	s.kubectl(server, "-n", "kube-system", "delete", "pod", "-l", "app.kubernetes.io/name=traefik", "--wait")
	s.within(60*time.Second, "Traefik runs on the agent", func() error {
		out, err := server.Kubectl("-n", "kube-system", "get", "pods", "-l", "app.kubernetes.io/name=traefik", "-o", "jsonpath={.items[*].spec.nodeName} {.items[*].status.containerStatuses[*].ready}")
		if err == nil && out != agent.Name()+" true" {
			err = fmt.Errorf("%q", out)
		}
		return err
	})
	s.kubectl(server, "uncordon", server.Name())
	s.apply(server, toAll)
	var ways []string
	for _, ip := range append(server.IPs(), agent.IPs()...) {
		ways = append(ways, net.JoinHostPort(ip, "80"))
		s.answered(outside, net.JoinHostPort(ip, "80"), "/hostname", "web-")
	}
	done := make(chan struct{})
	var all sync.WaitGroup
	failed, asked := make([][]error, len(ways)), make([]int, len(ways))
	for i, way := range ways {
		all.Go(func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(20 * time.Millisecond):
				}
				asked[i]++
				if _, err := s.get(outside, way, "/hostname"); err != nil {
					failed[i] = append(failed[i], fmt.Errorf("%s: %w", time.Now().Format(time.TimeOnly), err))
				}
			}
		})
	}
	happens()
	time.Sleep(5 * time.Second)
	close(done)
	all.Wait()
	for i, way := range ways {
		if n := len(failed[i]); n > 0 || asked[i] < 50 {
			s.Errorf("of %d requests to %s %d failed: %v", asked[i], way, n, failed[i][:min(n, 5)])
		}
	}
}

// TestClusterOfIPv6Alone: three servers and an agent that know no other family work,
// and go on without one of the servers. Pods keep their addresses outside, as nobody asked
// for others.
func TestClusterOfIPv6Alone(t *testing.T) {
	s := begin(t, hosts.IPv6)
	servers, agent := s.three("--cluster-cidr", "fd42::/56", "--service-cidr", "fd43::/112")
	one, two, three := servers[0], servers[1], servers[2]
	s.everyFamily(one.Host, 1, one.Host, two.Host, three.Host, agent)
	s.advertised(one.Host, one.Host, two.Host, three.Host)
	pod, ip := s.podOn(one.Host, agent, "web")
	outside := s.net.Host("outside")
	s.arrivesFrom(one.Host, pod, outside, outside.IP(), ip)

	two.down() // by which the agent has joined
	client := s.through(agent, one.Host)
	s.within(10*time.Second, "the agent's balancer without server two", func() error {
		_, err := client.Discovery().ServerVersion()
		return err
	})
	old, _ := s.podOn(one.Host, agent, "web")
	s.kubectl(one.Host, "delete", "pod", old)
	var fresh string
	s.within(30*time.Second, "another pod on the agent", func() (err error) {
		if fresh, _, err = s.lookFor(one.Host, agent, "web"); err == nil && (fresh == "" || fresh == old) {
			err = fmt.Errorf("pod %q", fresh)
		}
		return err
	})
	s.reached(one.Host, fresh)
}

// arrivesFrom has a pod send to an address of a machine outside the cluster, which looks
// whom that comes from. It is UDP, since an answer finds no way back to a pod's own address.
func (s *scene) arrivesFrom(server *hosts.Host, pod string, outside *hosts.Host, at, want string) {
	s.Helper()
	var c net.PacketConn
	if err := outside.In(func() (err error) { c, err = net.ListenPacket("udp", net.JoinHostPort(at, "0")); return err }); err != nil {
		s.Fatal(err)
	}
	defer c.Close()
	s.within(20*time.Second, fmt.Sprintf("what %s sends to %s comes from %s", pod, at, want), func() error {
		_, sent := server.Kubectl("exec", pod, "--", "/agnhost", "connect", "--protocol=udp", "--udp-data=echo", "--timeout=100ms", c.LocalAddr().String())
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		_, from, err := c.ReadFrom(make([]byte, 100))
		if err != nil {
			return fmt.Errorf("nothing came: %w; agnhost says: %v", err, sent)
		}
		if ip := from.(*net.UDPAddr).IP.String(); ip != want {
			return fmt.Errorf("it comes from %s", ip)
		}
		return nil
	})
}

// everyFamily has a pod on each node reach every other and a Service, by every address
// that they have, and asks for the Service by DNS and at every node's port. Families
// says how many there are.
func (s *scene) everyFamily(server *hosts.Host, families int, nodes ...*hosts.Host) {
	s.Helper()
	s.apply(server, twoPlaces+"---"+allFamilies)
	s.rolledOut(server, "web")
	service := strings.Fields(s.kubectl(server, "get", "service", "all", "-o", `jsonpath={.spec.clusterIPs[*]} {.spec.ports[0].nodePort}`))
	clusterIPs, nodePort := service[:len(service)-1], service[len(service)-1]
	if len(clusterIPs) != families {
		s.Fatalf("the Service has %v, want %d", clusterIPs, families)
	}
	targets := []string{"all.default.svc.cluster.local:80"}
	for _, ip := range clusterIPs {
		targets = append(targets, net.JoinHostPort(ip, "80"))
	}
	pods := map[string][]string{}
	for line := range strings.Lines(s.kubectl(server, "get", "pods", "-l", "app=web", "-o", `jsonpath={range .items[*]}{.metadata.name} {.status.podIPs[*].ip}{"\n"}{end}`)) {
		f := strings.Fields(line)
		pods[f[0]] = f[1:]
		if len(f)-1 != families {
			s.Errorf("pod %s has %v, want %d", f[0], f[1:], families)
		}
		for _, ip := range f[1:] {
			targets = append(targets, net.JoinHostPort(ip, "8080"))
		}
	}
	if len(pods) != len(nodes) {
		s.Fatalf("pods %v, want %d", pods, len(nodes))
	}
	for name := range pods {
		for _, target := range targets {
			s.within(20*time.Second, name+" to "+target, func() error {
				out, err := server.Kubectl("exec", name, "--", "/agnhost", "connect", "--timeout=2s", target)
				if err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
				return nil
			})
		}
		s.says(s.kubectl(server, "logs", name), "Started HTTP server")
	}
	dns := strings.Fields(s.kubectl(server, "-n", "kube-system", "get", "service", "kube-dns", "-o", "jsonpath={.spec.clusterIPs[*]}"))
	if len(dns) != families {
		s.Errorf("DNS is at %v, want %d", dns, families)
	}
	for _, node := range nodes {
		for _, at := range dns {
			for _, ip := range clusterIPs {
				s.within(20*time.Second, "DNS at "+at+" from "+node.Name()+" tells "+ip, func() error { return s.resolves(node, at, ip) })
			}
		}
		for _, other := range nodes {
			for _, ip := range other.IPs() {
				s.within(20*time.Second, node.Name()+" to the node port at "+ip, func() error {
					_, err := s.get(node, net.JoinHostPort(ip, nodePort), "/hostname")
					return err
				})
			}
		}
	}
}

// resolves asks a DNS server from a host for the Service's address of one family.
func (s *scene) resolves(from *hosts.Host, dns, want string) error {
	return s.resolved(from, dns, "all.default.svc.cluster.local.", want)
}

// resolved asks a DNS server from a host for the address of a name.
func (s *scene) resolved(from *hosts.Host, dns, name, want string) error {
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		if err := ctx.Err(); err != nil {
			return nil, err // the host may be gone too
		}
		return from.Dial(network, net.JoinHostPort(dns, "53"), 2*time.Second)
	}}
	network := "ip4"
	if strings.Contains(want, ":") {
		network = "ip6"
	}
	ctx, stop := context.WithTimeout(s.Context(), 3*time.Second)
	defer stop()
	got, err := r.LookupNetIP(ctx, network, name)
	if err == nil && (len(got) != 1 || got[0].Unmap() != netip.MustParseAddr(want)) {
		err = fmt.Errorf("answer %v", got)
	}
	return err
}
