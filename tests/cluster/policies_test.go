package cluster

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/podo-dev/podo/pkg/machine"
	"github.com/podo-dev/podo/tests/hosts"
)

// matrix is nine pods, a, b and c in each of the namespaces x, y and z, on two nodes:
// b on the agent, the others on the server. Each listens at 80 and 81, TCP and UDP, and
// has a Service. What passes between them is found out from their own networks.
type matrix struct {
	*scene
	server *hosts.Host
	names  []string            // x/a
	places map[string]*os.File // the network of each
	addrs  map[string][]string // IPv4, IPv6
	vips   map[string]string   // of its Service
}

const nine = `
apiVersion: v1
kind: Pod
metadata: {name: $POD, namespace: $NS, labels: {pod: $POD}}
spec:
  nodeName: $NODE
  terminationGracePeriodSeconds: 1
  containers:
  - name: one
    image: $AGNHOST
    imagePullPolicy: Never
    args: [netexec, --http-port=80, --udp-port=80]
    ports: [{name: serve-80-tcp, containerPort: 80}, {name: serve-80-udp, containerPort: 80, protocol: UDP}]
    readinessProbe: {httpGet: {path: /healthz, port: 80}, periodSeconds: 1, failureThreshold: 2}
  - name: two
    image: $AGNHOST
    imagePullPolicy: Never
    args: [netexec, --http-port=81, --udp-port=81]
    ports: [{name: serve-81-tcp, containerPort: 81}, {name: serve-81-udp, containerPort: 81, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: $POD, namespace: $NS}
spec:
  selector: {pod: $POD}
  ports:
  - {name: tcp-80, port: 80}
  - {name: udp-80, port: 80, protocol: UDP}
  - {name: tcp-81, port: 81}
  - {name: udp-81, port: 81, protocol: UDP}
---
`

// newMatrix starts a cluster of two nodes with the nine pods.
func newMatrix(t *testing.T) (m *matrix, agent *hosts.Host, podo *hosts.Process) {
	s := begin(t, hosts.IPv4, hosts.IPv6)
	server := s.net.Host("server")
	podo = s.start(server, "server", "--cluster-cidr", "10.42.0.0/16,fd42::/56", "--service-cidr", "10.43.0.0/16,fd43::/112",
		"--node-ip", strings.Join(server.IPs(), ","))
	agent = s.agent("agent", server)
	s.ready(server, server, agent)
	m = &matrix{scene: s, server: server, places: map[string]*os.File{}, addrs: map[string][]string{}, vips: map[string]string{}}
	var text strings.Builder
	for _, ns := range []string{"x", "y", "z"} {
		fmt.Fprintf(&text, "apiVersion: v1\nkind: Namespace\nmetadata: {name: %q, labels: {ns: %q}}\n---\n", ns, ns)
		for _, pod := range []string{"a", "b", "c"} {
			node := server
			if pod == "b" {
				node = agent
			}
			m.names = append(m.names, ns+"/"+pod)
			text.WriteString(strings.NewReplacer("$POD", pod, "$NS", `"`+ns+`"`, "$NODE", node.Name()).Replace(nine))
		}
	}
	s.stocked()
	s.within(30*time.Second, "pods made", func() error { // service accounts come after their namespaces
		out, err := server.Apply(images(text.String()))
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	for _, ns := range []string{"x", "y", "z"} {
		s.within(90*time.Second, "pods of "+ns, func() error {
			out, err := server.Kubectl("-n", ns, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=5s")
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}
	for _, name := range m.names {
		ns, pod, _ := strings.Cut(name, "/")
		m.addrs[name] = strings.Fields(s.kubectl(server, "-n", ns, "get", "pod", pod, "-o", "jsonpath={.status.podIPs[*].ip}"))
		m.vips[name] = s.kubectl(server, "-n", ns, "get", "service", pod, "-o", "jsonpath={.spec.clusterIP}")
		m.places[name] = s.inside(m.addrs[name][0])
	}
	return m, agent, podo
}

// inside opens the network of the pod that has an address, by one of its processes.
func (s *scene) inside(addr string) *os.File {
	s.Helper()
	var found *os.File
	s.within(30*time.Second, "an agnhost has "+addr, func() error {
		for _, pid := range s.net.Pids("agnhost") { // other networks have the same addresses
			f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
			if err != nil {
				continue
			}
			has := false
			err = machine.In(f, func() error {
				all, err := net.InterfaceAddrs()
				has = slices.ContainsFunc(all, func(a net.Addr) bool { return strings.HasPrefix(a.String(), addr+"/") })
				return err
			})
			if err == nil && has {
				found = f
				return nil
			}
			f.Close()
		}
		return errors.New("none has")
	})
	s.Cleanup(func() { found.Close() })
	return found
}

const patience = 700 * time.Millisecond // with a probe that may be dropped

// probe asks an agnhost for its name, from the network of a pod.
func probe(from *os.File, protocol, target string) error {
	return machine.In(from, func() error {
		c, err := net.DialTimeout(protocol, target, patience)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		if protocol == "tcp" {
			return nil
		}
		if _, err := io.WriteString(c, "hostname\n"); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 100))
		return err
	})
}

// passes is what may go from pod to pod, by name. What a pod sends itself always may.
type passes func(from, to string) bool

func all(string, string) bool { return true }

// expect waits until exactly what may pass does, by the pods' addresses and by those
// of Services.
func (m *matrix) expect(what, protocol, port string, may passes) {
	m.Helper()
	began := time.Now()
	for {
		wrong := m.look(protocol, port, may)
		if len(wrong) == 0 {
			return
		}
		if time.Since(began) > 15*time.Second {
			m.Errorf("%s: %s %s: %d of %d are wrong:\n%s", what, protocol, port, len(wrong), 3*len(m.names)*len(m.names), strings.Join(wrong[:min(len(wrong), 20)], "\n"))
			return
		}
	}
}

func (m *matrix) look(protocol, port string, may passes) []string {
	var mu sync.Mutex
	var wrong []string
	var rest sync.WaitGroup
	for _, from := range m.names {
		for _, to := range m.names {
			for _, ip := range append([]string{m.vips[to]}, m.addrs[to]...) {
				rest.Go(func() {
					want := from == to || may(from, to)
					err := probe(m.places[from], protocol, net.JoinHostPort(ip, port))
					if got := err == nil; got != want {
						mu.Lock()
						wrong = append(wrong, fmt.Sprintf("%s to %s at %s: passes %t, want %t (%v)", from, to, ip, got, want, err))
						mu.Unlock()
					}
				})
			}
		}
	}
	rest.Wait()
	slices.Sort(wrong)
	return wrong
}

// policy is a NetworkPolicy of a namespace with a spec in one line.
func policy(ns, name, spec string) string {
	return fmt.Sprintf("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: %q, name: %s}\nspec: %s\n---\n", ns, name, spec)
}

// forget deletes all policies.
func (m *matrix) forget() {
	m.Helper()
	for _, ns := range []string{"x", "y", "z"} {
		m.kubectl(m.server, "-n", ns, "delete", "networkpolicy", "--all", "--wait=false")
	}
}

// to has a rule for what goes to some pods, and lets the rest pass; from has one for what
// comes from some.
func to(target string, may passes) passes {
	return func(from, to string) bool { return !strings.HasPrefix(to, target) || may(from, to) }
}

func from(source string, may passes) passes {
	return func(from, to string) bool { return !strings.HasPrefix(from, source) || may(from, to) }
}

func none(string, string) bool { return false }

func among(names ...string) passes {
	return func(from, _ string) bool {
		return slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(from, n) })
	}
}

func targets(names ...string) passes {
	return func(_, to string) bool {
		return slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(to, n) })
	}
}

func both(a, b passes) passes {
	return func(from, to string) bool { return a(from, to) && b(from, to) }
}

// TestNetworkPolicies: the cases of Kubernetes' own suite (test/e2e/network/netpol),
// over IPv4, IPv6 and Services, within a node and between nodes.
func TestNetworkPolicies(t *testing.T) {
	m, agent, podo := newMatrix(t)
	m.expect("before any policy", "tcp", "80", all)
	block := func(to string) string { return m.addrs[to][0] + "/32" }
	block6 := func(to string) string { return m.addrs[to][1] + "/128" }

	type check struct {
		protocol, port string
		may            passes
	}
	tests := []struct {
		name     string
		policies string
		checks   []check
	}{
		{"deny ingress", policy("x", "deny", `{podSelector: {}}`), []check{
			{"tcp", "80", to("x", none)}, {"udp", "80", to("x", none)}}},
		{"deny all", policy("x", "deny", `{podSelector: {}, policyTypes: [Ingress, Egress]}`), []check{
			{"tcp", "80", both(to("x", none), from("x", none))}, {"udp", "81", both(to("x", none), from("x", none))}}},
		{"pods of the same namespace", policy("x", "p", `{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}`), []check{
			{"tcp", "80", to("x/a", among("x/b"))}}},
		{"all namespaces", policy("x", "p", `{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {}}]}]}`) +
			policy("y", "p", `{podSelector: {}}`), []check{{"tcp", "80", to("y", none)}}},
		{"another namespace", policy("x", "p", `{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: "y"}}}]}]}`), []check{
			{"tcp", "80", to("x/a", among("y"))}}},
		{"expressions about pods", policy("x", "p", `{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchExpressions: [{key: pod, operator: In, values: [b]}]}}]}]}`), []check{
			{"tcp", "80", to("x/a", among("x/b"))}}},
		{"expressions about namespaces", policy("x", "p", `{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: ns, operator: In, values: ["y"]}]}}]}]}`), []check{
			{"tcp", "80", to("x/a", among("y"))}}},
		{"pods or namespaces", policy("x", "p", `{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}, {namespaceSelector: {matchLabels: {ns: "y"}}}]}]}`), []check{
			{"tcp", "80", to("x/a", among("x/b", "y"))}}},
		{"pods of namespaces", policy("x", "p", `{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: "y"}}, podSelector: {matchLabels: {pod: b}}}]}]}`), []check{
			{"tcp", "80", to("x/a", among("y/b"))}}},
		{"several of both", policy("x", "p", `{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}, podSelector: {matchExpressions: [{key: pod, operator: In, values: [b, c]}]}}]}]}`), []check{
			{"tcp", "80", to("x/a", among("y/b", "y/c", "z/b", "z/c"))}}},
		{"any of several pods", policy("x", "p", `{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}, {podSelector: {matchLabels: {pod: c}}}]}]}`), []check{
			{"tcp", "80", to("x/a", among("x/b", "x/c"))}}},
		{"ports", policy("x", "p", `{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: "y"}}}], ports: [{port: 81}]}]}`), []check{
			{"tcp", "81", to("x/a", among("y"))}, {"tcp", "80", to("x/a", none)}, {"udp", "81", to("x/a", none)}}},
		{"ranges of ports", policy("x", "p", `{podSelector: {}, ingress: [{ports: [{port: 81, endPort: 90}]}]}`), []check{
			{"tcp", "81", all}, {"tcp", "80", to("x", none)}}},
		{"stacked", policy("x", "one", `{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: "y"}}}], ports: [{port: 80}]}]}`) +
			policy("x", "two", `{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}], ports: [{port: 81}]}]}`), []check{
			{"tcp", "80", to("x/a", among("y"))}, {"tcp", "81", to("x/a", among("z"))}}},
		{"allow all over deny", policy("x", "deny", `{podSelector: {}}`) + policy("x", "allow", `{podSelector: {}, ingress: [{}]}`), []check{{"tcp", "80", all}, {"udp", "80", all}}},
		{"named port", policy("x", "p", `{podSelector: {}, ingress: [{ports: [{port: serve-81-tcp}]}]}`), []check{
			{"tcp", "81", all}, {"tcp", "80", to("x", none)}, {"udp", "81", to("x", none)}}},
		{"named port of a namespace", policy("x", "p", `{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: x}}}], ports: [{port: serve-80-tcp}]}]}`), []check{
			{"tcp", "80", to("x/a", among("x"))}, {"tcp", "81", to("x/a", none)}}},
		{"named port on the way out", policy("x", "p", `{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{ports: [{port: serve-80-tcp}]}]}`), []check{
			{"tcp", "80", all}, {"tcp", "81", from("x/a", none)}}},
		{"deny egress of a pod", policy("x", "p", `{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress]}`), []check{{"tcp", "80", from("x/a", none)}}},
		{"deny egress of a namespace", policy("x", "p", `{podSelector: {}, policyTypes: [Egress]}`), []check{{"tcp", "80", from("x", none)}, {"udp", "80", from("x", none)}}},
		{"both directions", policy("x", "p", `{podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}], egress: [{ports: [{port: 80}]}]}`), []check{
			{"tcp", "80", to("x/a", among("x/b"))}, {"tcp", "81", both(to("x/a", among("x/b")), from("x/a", none))}}},
		{"denied by the client's side", policy("x", "p", `{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {ns: z}}}]}]}`) +
			policy("y", "p", `{podSelector: {}, ingress: [{}]}`), []check{{"tcp", "80", from("x/a", targets("z"))}}},
		{"egress to pods of namespaces", policy("x", "p", `{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {ns: "y"}}, podSelector: {matchLabels: {pod: a}}}]}]}`), []check{
			{"tcp", "80", from("x/a", targets("y/a"))}}},
		{"any port of a protocol", policy("x", "p", `{podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{protocol: TCP}]}]}`), []check{
			{"tcp", "80", all}, {"tcp", "81", all}, {"udp", "80", to("x/a", none)}}},
		{"allow all egress over some", policy("x", "some", `{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {pod: b}}}]}]}`) +
			policy("x", "all", `{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{}]}`), []check{{"tcp", "80", all}}},
		{"egress to a block", policy("x", "p", fmt.Sprintf(`{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: %s}}, {ipBlock: {cidr: "%s"}}]}]}`, block("y/b"), block6("y/b"))), []check{
			{"tcp", "80", from("x/a", targets("y/b"))}}},
		{"egress to a block but for one", policy("x", "p", fmt.Sprintf(`{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.42.0.0/16, except: [%s]}}, {ipBlock: {cidr: "fd42::/56", except: ["%s"]}}]}]}`, block("x/b"), block6("x/b"))), []check{
			{"tcp", "80", from("x/a", func(_, to string) bool { return to != "x/b" })}}},
		{"one block's exception is another's", policy("x", "p", fmt.Sprintf(`{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.42.0.0/16, except: [%s]}}, {ipBlock: {cidr: "::/0", except: ["%s"]}}]}, {to: [{ipBlock: {cidr: %s}}, {ipBlock: {cidr: "%s"}}]}]}`,
			block("x/b"), block6("x/b"), block("x/b"), block6("x/b"))), []check{{"tcp", "80", all}}},
		{"ingress from a block", policy("x", "p", fmt.Sprintf(`{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{ipBlock: {cidr: %s}}, {ipBlock: {cidr: "%s"}}]}]}`, block("z/c"), block6("z/c"))), []check{
			{"tcp", "80", to("x/a", among("z/c"))}}},
		{"directions apart", policy("x", "in", `{podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}`) +
			policy("x", "out", `{podSelector: {matchLabels: {pod: b}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {pod: a}}}]}]}`), []check{
			{"tcp", "80", both(to("x/a", among("x/b")), from("x/b", targets("x/a")))}}},
		{"SCTP is not TCP", policy("x", "p", `{podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{port: 80, protocol: SCTP}]}]}`), []check{
			{"tcp", "80", to("x/a", none)}, {"udp", "80", to("x/a", none)}}},
		{"UDP is not TCP", policy("x", "p", `{podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{port: 81, protocol: UDP}]}]}`), []check{
			{"tcp", "81", to("x/a", none)}, {"udp", "81", all}, {"udp", "80", to("x/a", none)}}},
		{"the label that every namespace has", policy("x", "p", `{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: "y"}}}]}]}`), []check{
			{"tcp", "80", to("x/a", among("y"))}}},
		{"nobody", policy("x", "p", `{podSelector: {matchLabels: {pod: nobody}}}`), []check{{"tcp", "80", all}}},
	}
	for _, tt := range tests {
		m.apply(m.server, tt.policies)
		for _, c := range tt.checks {
			m.expect(tt.name, c.protocol, c.port, c.may)
		}
		m.forget()
	}
	m.expect("after all policies", "tcp", "80", all)
	m.expect("after all policies", "udp", "81", all)
	m.policiesFollow()
	m.policiesStay(agent, podo)
}

// policiesFollow: what is changed counts, for connections that are established too.
func (m *matrix) policiesFollow() {
	x := func(spec string) { m.apply(m.server, policy("x", "p", spec)) }
	x(`{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: "y"}}}]}]}`)
	m.expect("as it was", "tcp", "80", to("x/a", among("y")))
	x(`{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]}`)
	m.expect("the policy was changed", "tcp", "80", to("x/a", among("z")))
	m.kubectl(m.server, "label", "namespace", "y", "ns=z", "--overwrite")
	m.expect("a namespace was changed", "tcp", "80", to("x/a", among("y", "z")))
	m.kubectl(m.server, "label", "namespace", "y", "ns=y", "--overwrite")
	x(`{podSelector: {matchLabels: {marked: "yes"}}, ingress: [{from: [{podSelector: {matchLabels: {friend: "yes"}}}]}]}`)
	m.expect("nobody is selected", "tcp", "81", all)
	m.kubectl(m.server, "-n", "x", "label", "pod", "b", "marked=yes")
	m.expect("a pod was changed, and is selected", "tcp", "81", to("x/b", none))
	m.kubectl(m.server, "-n", "x", "label", "pod", "c", "friend=yes")
	m.expect("a pod was changed, and is a peer", "tcp", "81", to("x/b", among("x/c")))
	m.kubectl(m.server, "-n", "x", "label", "pod", "b", "marked-")
	m.expect("a pod was changed, and is not selected", "tcp", "81", all)
	x(`{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]}`)
	m.expect("as before", "tcp", "81", to("x/a", among("z")))

	for _, client := range []string{"z/c", "z/b"} { // on the same node, and on the other
		line := m.open(client, "x/a")
		if err := line.tell(); err != nil {
			m.Errorf("%s has a connection that does not work: %v", client, err)
		}
		x(`{podSelector: {matchLabels: {pod: a}}}`)
		m.expect("denied", "tcp", "80", to("x/a", none))
		if err := line.tell(); err == nil {
			m.Errorf("%s: a connection outlives the policy that allowed it", client)
		}
		x(`{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]}`)
		m.expect("allowed again", "tcp", "80", to("x/a", among("z")))
		line.Close()
	}
	m.forget()
	m.expect("all policies forgotten", "tcp", "80", all)
}

// A line is a connection to the web server of a pod.
type line struct {
	net.Conn
	read *bufio.Reader
}

func (m *matrix) open(from, to string) line {
	m.Helper()
	var c net.Conn
	err := machine.In(m.places[from], func() (err error) {
		c, err = net.DialTimeout("tcp", net.JoinHostPort(m.addrs[to][0], "80"), 2*time.Second)
		return err
	})
	if err != nil {
		m.Fatal(err)
	}
	return line{c, bufio.NewReader(c)}
}

// tell asks for a page.
func (l line) tell() error {
	l.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := io.WriteString(l, "GET /hostname HTTP/1.1\r\nHost: pod\r\n\r\n"); err != nil {
		return err
	}
	for {
		text, err := l.read.ReadString('\n')
		if err != nil {
			return err
		}
		if text == "\r\n" { // the head ends; the body is the pod's name, of one letter
			_, err := l.read.Discard(1)
			return err
		}
	}
}

// policiesStay: policies hold while podo is away, after it comes back, and for new
// pods from their first packet; the kubelet's probes pass; other nodes' hosts do not.
func (m *matrix) policiesStay(agent *hosts.Host, podo *hosts.Process) {
	deny := policy("x", "deny", `{podSelector: {}, policyTypes: [Ingress, Egress]}`)
	m.apply(m.server, deny)
	denied := both(to("x", none), from("x", none))
	m.expect("denied", "tcp", "80", denied)
	target := net.JoinHostPort(m.addrs["x/a"][0], "80")
	if _, err := m.get(m.server, target, "/hostname"); err != nil {
		m.Errorf("the pod's own node does not reach it: %v", err)
	}
	if _, err := m.get(agent, target, "/hostname"); err == nil {
		m.Error("another node reaches a pod that nobody may")
	}
	m.firstPackets()

	time.Sleep(4 * time.Second) // for probes to fail twice
	if out := m.kubectl(m.server, "-n", "x", "get", "pods", "-l", "pod", "-o", `jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}`); strings.Contains(out, "False") {
		m.Errorf("the kubelet's probes do not pass: %s", out)
	}

	m.kill(podo)
	if wrong := m.look("tcp", "80", denied); len(wrong) > 0 {
		m.Errorf("while podo is away:\n%s", strings.Join(wrong, "\n"))
	}
	watch := make(chan error, 1)
	stop := make(chan struct{})
	go func() { watch <- m.never(stop, "z/c", "x/a") }()
	m.start(m.server, "server", "--cluster-cidr", "10.42.0.0/16,fd42::/56", "--service-cidr", "10.43.0.0/16,fd43::/112",
		"--node-ip", strings.Join(m.server.IPs(), ","))
	m.ready(m.server, m.server, agent)
	m.expect("after a restart", "udp", "80", denied)
	close(stop)
	if err := <-watch; err != nil {
		m.Errorf("while podo started: %v", err)
	}
	m.forget()
	m.expect("forgotten after a restart", "tcp", "80", all)
}

// never has one pod try another until stop, and reports whether it ever came through.
func (m *matrix) never(stop chan struct{}, from, to string) error {
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		if probe(m.places[from], "tcp", net.JoinHostPort(m.addrs[to][0], "80")) == nil {
			return errors.New(from + " reaches " + to)
		}
	}
}

const hasty = `
apiVersion: v1
kind: Pod
metadata: {name: $NAME, namespace: x, labels: {kind: hasty, may: "$MAY"}}
spec:
  nodeName: $NODE
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - name: one
    image: $AGNHOST
    imagePullPolicy: Never
    args: [connect, --timeout=2s, "$TARGET"]
---
`

// firstPackets starts pods that try to get out at once: none that may not ever does,
// those that may do so soon.
func (m *matrix) firstPackets() {
	m.apply(m.server, policy("x", "may", `{podSelector: {matchLabels: {may: "yes"}}, policyTypes: [Egress], egress: [{}]}`))
	var text strings.Builder
	for i := range 8 {
		node := []string{"server", "agent"}[i/4]
		text.WriteString(strings.NewReplacer("$NAME", fmt.Sprint("hasty-", i), "$MAY", []string{"yes", "no"}[i%2], "$NODE", node,
			"$TARGET", net.JoinHostPort(m.addrs["y/a"][i/2%2], "80")).Replace(hasty))
	}
	m.apply(m.server, text.String())
	m.within(60*time.Second, "hasty pods done", func() error {
		out := m.kubectl(m.server, "-n", "x", "get", "pods", "-l", "kind=hasty", "-o",
			`jsonpath={range .items[*]}{.metadata.labels.may}={.status.phase} {end}`)
		if n := strings.Count(out, "=Succeeded") + strings.Count(out, "=Failed"); n != 8 {
			return errors.New(out)
		}
		if strings.Count(out, "yes=Succeeded") != 4 || strings.Count(out, "no=Failed") != 4 {
			m.Errorf("new pods that may get out, or not: %s", out)
			for i := range 8 {
				m.Logf("hasty-%d: %s", i, m.kubectl(m.server, "-n", "x", "logs", fmt.Sprint("hasty-", i)))
			}
		}
		return nil
	})
	m.kubectl(m.server, "-n", "x", "delete", "pod", "-l", "kind=hasty", "--wait=false")
}

const twoAtHome = `
apiVersion: v1
kind: Pod
metadata: {name: $NAME, labels: {app: $NAME}}
spec:
  nodeName: one
  terminationGracePeriodSeconds: 1
  containers:
  - name: $NAME
    image: $AGNHOST
    imagePullPolicy: Never
    args: [netexec, --http-port=80]
---
`

// TestPoliciesOutliveABoot: an agent that boots while no server answers holds its pods,
// at their new addresses, to the policies that it last knew. An agent of a cluster whose
// policies were switched off heeds none.
func TestPoliciesOutliveABoot(t *testing.T) {
	s := begin(t)
	server := s.net.Host("server")
	s.start(server, "server")
	one := s.agent("one", server)
	s.ready(server, server, one)
	s.apply(server, strings.ReplaceAll(twoAtHome, "$NAME", "shut")+strings.ReplaceAll(twoAtHome, "$NAME", "open"))
	s.running(server, "app in (shut,open)")
	s.apply(server, policy("default", "p", `{podSelector: {matchLabels: {app: shut}}}`))
	look := func(may bool) func() error {
		_, shut := s.container(one, "shut", time.Minute)
		_, open := s.container(one, "open", time.Minute)
		from, beside := s.inside(shut), s.inside(open)
		return func() error {
			if err := probe(from, "tcp", net.JoinHostPort(open, "80")); err != nil {
				return fmt.Errorf("nothing passes: %w", err)
			}
			if err := probe(beside, "tcp", net.JoinHostPort(shut, "80")); (err == nil) != may {
				return fmt.Errorf("what the policy is about passes: %t, want %t (%v)", err == nil, may, err)
			}
			return nil
		}
	}
	tries := func(what string, may bool) { s.within(30*time.Second, what, look(may)) }
	tries("the policy", false)
	server.Off()
	one.Reboot()
	agent := s.start(one, "agent", "--server", url(server))
	tries("the policy after a boot without a server", false)
	server.On()
	s.start(server, "server", "--disable", "network-policy")
	s.ready(server, server, one)
	tries("the policy until the agent starts again", false)
	passes := look(true) // while there is an engine to ask; the pods stay
	s.end(agent)
	s.within(3*time.Minute, "no policies any more", func() error {
		agent := s.start(one, "agent", "--server", url(server))
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			if passes() == nil {
				return nil
			}
			if strings.Contains(agent.Tail(100), "settings have changed since this node started") {
				break // the server was slow to answer, and it began with what it knew
			}
		}
		s.end(agent)
		return errors.New("the agent has not heard of it")
	})
}
