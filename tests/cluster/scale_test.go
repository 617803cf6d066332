package cluster

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	"github.com/podo-dev/podo/tests/hosts"
)

// What a thousand services and five hundred policies may cost.
const (
	manyServices, endpointsEach, manyPolicies = 1000, 5, 500
	soonProgrammed                            = 30 * time.Second
	mostOfAProcessor                          = 0.10                   // at rest, of each node's podo
	mostLatency                               = 200 * time.Microsecond // that they add to a connection
)

// webOfServer makes a cluster of two nodes, and on the server a pod of agnhost with these
// arguments, labelled app=web.
func (s *scene) webOfServer(args ...string) (server, agent *hosts.Host) {
	s.Helper()
	server = s.server("server")
	agent = s.agent("agent", server)
	s.ready(server, server, agent)
	s.apply(server, `
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  nodeName: server
  terminationGracePeriodSeconds: 1
  containers: [{name: web, image: $AGNHOST, imagePullPolicy: Never, workingDir: /, args: [`+strings.Join(args, ", ")+`]}]
`)
	s.running(server, "app=web")
	return server, agent
}

// TestManyServicesAndPolicies_alone: a thousand services of five endpoints and five hundred
// policies, ten of them for one pod, are soon in force, cost little while nothing changes,
// and do not slow down connections to it from another node.
func TestManyServicesAndPolicies_alone(t *testing.T) {
	s := alone(t)
	server, agent := s.webOfServer("netexec", "--http-port=8080")
	client := s.throughWithin(30*time.Second, agent, server)

	first := s.service(client, "first", map[string]string{"app": "web"})
	s.connects(agent, first, soonProgrammed)
	median, slow := s.latency(agent, first)
	t.Logf("a connection from another node: median %s, 99 of 100 within %s", median, slow)

	began := time.Now()
	var all sync.WaitGroup
	for part := range 8 {
		all.Go(func() {
			for i := part; i < manyServices; i += 8 {
				name := fmt.Sprint("many-", i)
				s.service(client, name, nil)
				s.endpoints(client, name, i)
			}
		})
	}
	all.Wait()
	written := time.Since(began)
	last := s.service(client, "last", map[string]string{"app": "web"})
	began = time.Now()
	s.connects(agent, last, soonProgrammed)
	t.Logf("%d services of %d endpoints written in %s, the next one in force after %s", manyServices, endpointsEach,
		written.Round(10*time.Millisecond), time.Since(began).Round(10*time.Millisecond))
	s.figure("1,000 services, the next one in force after", time.Since(began).Seconds(), "s")

	// None of those for the pod but the last lets the other node in.
	for i := range manyPolicies - 1 {
		app := fmt.Sprint("app-", i)
		if i%55 == 0 {
			app = "web"
		}
		s.policy(client, fmt.Sprint("many-", i), app, fmt.Sprintf("172.16.%d.%d/32", i/200, i%200))
	}
	s.within(soonProgrammed, "policies are in force", func() error {
		if c, err := agent.Dial("tcp", last, 300*time.Millisecond); err == nil {
			c.Close()
			return fmt.Errorf("%s connects", last)
		}
		return nil
	})
	began = time.Now()
	s.policy(client, "last", "web", "10.42.0.0/16")
	s.connects(agent, last, soonProgrammed)
	t.Logf("the last of %d policies in force after %s", manyPolicies, time.Since(began).Round(10*time.Millisecond))
	s.figure("the last of 500 policies in force after", time.Since(began).Seconds(), "s")

	medianThen, slowThen := s.latency(agent, last)
	t.Logf("a connection among them: median %s, 99 of 100 within %s", medianThen, slowThen)
	s.figure("connection from another node, 99 of 100 within", float64(slow)/float64(time.Millisecond), "ms")
	s.figure("the same with 1,000 services and 500 policies", float64(slowThen)/float64(time.Millisecond), "ms")
	if medianThen > 2*median && medianThen-median > mostLatency {
		t.Errorf("the median of connections went from %s to %s", median, medianThen)
	}

	time.Sleep(15 * time.Second) // for what follows the changes
	const span = 20 * time.Second
	nodes := []*hosts.Host{server, agent}
	before := []time.Duration{s.used(server), s.used(agent)}
	time.Sleep(span)
	for i, h := range nodes {
		share := (s.used(h) - before[i]).Seconds() / span.Seconds()
		t.Logf("podo on %s uses %.1f %% of a processor at rest", h.Name(), 100*share)
		s.figure("podo at rest among them, on "+h.Name(), 100*share, "%")
		if share > mostOfAProcessor {
			t.Errorf("podo on %s uses %.1f %% of a processor while nothing changes, at most %.0f are wanted", h.Name(), 100*share, 100*mostOfAProcessor)
		}
	}
}

// service makes a service and returns its address.
func (s *scene) service(client kubernetes.Interface, name string, selector map[string]string) string {
	svc, err := client.CoreV1().Services("default").Create(s.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Selector: selector, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}}},
	}, metav1.CreateOptions{})
	if err != nil {
		s.Error(err)
		return ""
	}
	return net.JoinHostPort(svc.Spec.ClusterIP, "80")
}

// endpoints gives a service without a selector some that nobody answers at.
func (s *scene) endpoints(client kubernetes.Interface, service string, i int) {
	port, name := int32(8080), ""
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: service, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}
	for e := range endpointsEach {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("172.20.%d.%d", i/50, i%50*endpointsEach+e)}})
	}
	if _, err := client.DiscoveryV1().EndpointSlices("default").Create(s.Context(), slice, metav1.CreateOptions{}); err != nil {
		s.Error(err)
	}
}

// policy lets a range of addresses reach the pods of an app.
func (s *scene) policy(client kubernetes.Interface, name, app, from string) {
	s.Helper()
	_, err := client.NetworkingV1().NetworkPolicies("default").Create(s.Context(), &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": app}},
			Ingress:     []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: from}}}}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		s.Fatal(err)
	}
}

func (s *scene) connects(from *hosts.Host, address string, limit time.Duration) {
	s.Helper()
	s.within(limit, address+" answers from "+from.Name(), func() error {
		c, err := from.Dial("tcp", address, time.Second)
		if err == nil {
			c.Close()
		}
		return err
	})
}

// latency is how long a thousand connections take, one after the other: half of them, and
// 99 of 100.
func (s *scene) latency(from *hosts.Host, address string) (median, slow time.Duration) {
	s.Helper()
	took := make([]time.Duration, 1000)
	if err := from.In(func() error {
		for i := range took {
			began := time.Now()
			c, err := net.DialTimeout("tcp", address, time.Second)
			if err != nil {
				return err
			}
			took[i] = time.Since(began)
			c.Close()
		}
		return nil
	}); err != nil {
		s.Fatal(err)
	}
	slices.Sort(took)
	return took[len(took)/2], took[len(took)*99/100]
}

// used is the time on a processor that podo has had on a host.
func (s *scene) used(h *hosts.Host) (sum time.Duration) {
	s.Helper()
	for _, p := range s.processes(h) {
		if strings.HasPrefix(p.name, "podo") {
			sum += p.cpu
		}
	}
	if sum == 0 {
		s.Fatalf("no podo runs on %s", h.Name())
	}
	return sum
}
