package loadbalancer

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"

	"github.com/podo-dev/podo/pkg/plan"
)

// machine is a node that is ready, at an address.
func machine(name, address string, change ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}},
		Status: corev1.NodeStatus{
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: name}, {Type: corev1.NodeInternalIP, Address: address}},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
		},
	}
	for _, c := range change {
		c(n)
	}
	return n
}

func labelled(pairs ...string) func(*corev1.Node) {
	return func(n *corev1.Node) {
		for i := 0; i < len(pairs); i += 2 {
			n.Labels[pairs[i]] = pairs[i+1]
		}
	}
}

func also(kind corev1.NodeAddressType, address string) func(*corev1.Node) {
	return func(n *corev1.Node) {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: kind, Address: address})
	}
}

func is(status corev1.ConditionStatus) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Status.Conditions[0].Status = status }
}

// service is one that asks for TCP port 80; the later its name, the younger it is.
func service(name string, change ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: map[string]string{}, CreationTimestamp: metav1.NewTime(time.Unix(int64(name[0]), 0))},
		Spec: corev1.ServiceSpec{
			Type:       corev1.ServiceTypeLoadBalancer,
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports:      []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}},
		},
	}
	for _, c := range change {
		c(s)
	}
	return s
}

func port80(number int32, protocol corev1.Protocol) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.Ports[0].Port, s.Spec.Ports[0].Protocol = number, protocol }
}

func local(s *corev1.Service) {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

// at has a Service published at addresses with the ports that it has.
func at(addresses ...string) func(*corev1.Service) {
	return func(s *corev1.Service) {
		var ports []corev1.PortStatus
		for _, p := range s.Spec.Ports {
			ports = append(ports, corev1.PortStatus{Port: p.Port, Protocol: p.Protocol})
		}
		for _, a := range addresses {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a, Ports: ports})
		}
	}
}

// behind has a Service's endpoints on nodes: "a", or "-a" for one that is not ready.
func behind(service string, nodes ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Labels: map[string]string{discoveryv1.LabelServiceName: service}}}
	for _, n := range nodes {
		name, down := strings.CutPrefix(n, "-")
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{NodeName: &name, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(!down)}})
	}
	return s
}

func pod(node, hostIP string, number int32, protocol corev1.Protocol, phase corev1.PodPhase) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: "pod"},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{HostIP: hostIP, HostPort: number, Protocol: protocol}}}}},
		Status:     corev1.PodStatus{Phase: phase},
	}
}

func TestDecide(t *testing.T) {
	a, b := machine("a", "10.0.0.1"), machine("b", "10.0.0.2")
	both := []*corev1.Node{b, a}
	nodes := func(n ...*corev1.Node) []*corev1.Node { return n }
	services := func(s ...*corev1.Service) []*corev1.Service { return s }
	const v4, v6 = corev1.IPv4Protocol, corev1.IPv6Protocol
	dual := func(families ...corev1.IPFamily) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Spec.IPFamilies = families }
	}
	pooled := func(key, value string) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Labels[key] = value }
	}
	const (
		tcp, udp = corev1.ProtocolTCP, corev1.ProtocolUDP
		pool     = "podo.dev/load-balancer-pool"
		enable   = "podo.dev/load-balancer"
		k3sPool  = "svccontroller.k3s.cattle.io/lbpool"
		k3sOn    = "svccontroller.k3s.cattle.io/enablelb"
	)
	tests := map[string]struct {
		cluster Cluster
		want    string // "service: reason addresses; …", in order of age
		message string // in one of the verdicts
	}{
		"all nodes": {Cluster{Services: services(service("s")), Nodes: both}, "s: Published 10.0.0.1 10.0.0.2", "at the addresses of nodes"},
		"not a load balancer": {Cluster{Nodes: both, Services: services(service("s", func(s *corev1.Service) {
			s.Spec.Type = corev1.ServiceTypeNodePort
		}))}, "", ""},
		"of another class": {Cluster{Nodes: both, Services: services(service("s", func(s *corev1.Service) {
			s.Spec.LoadBalancerClass = ptr.To("example.com/other")
		}))}, "", ""},
		"of our class": {Cluster{Nodes: both, Services: services(service("s", func(s *corev1.Service) {
			s.Spec.LoadBalancerClass = ptr.To("podo.dev/node")
		}))}, "s: Published 10.0.0.1 10.0.0.2", ""},
		"to be deleted": {Cluster{Nodes: both, Services: services(service("s", func(s *corev1.Service) {
			s.DeletionTimestamp = ptr.To(metav1.Now())
		}))}, "", ""},

		"external addresses count more": {Cluster{Services: services(service("s")), Nodes: nodes(machine("a", "10.0.0.1", also(corev1.NodeExternalIP, "192.0.2.1")), b)},
			"s: Published 192.0.2.1 10.0.0.2", ""},
		"an external address of another family does not": {Cluster{Services: services(service("s")), Nodes: nodes(machine("a", "10.0.0.1", also(corev1.NodeExternalIP, "2001:db8::1")))},
			"s: Published 10.0.0.1", ""},
		"both families in the order of the Service": {Cluster{Services: services(service("s", dual(v6, v4))), Nodes: nodes(machine("a", "10.0.0.1", also(corev1.NodeInternalIP, "fd00::1")))},
			"s: Published fd00::1 10.0.0.1", ""},
		"a node without the family": {Cluster{Services: services(service("s", dual(v6))), Nodes: nodes(a, machine("b", "10.0.0.2", also(corev1.NodeInternalIP, "fd00::2")))},
			"s: Published fd00::2", ""},
		"no node with the family": {Cluster{Services: services(service("s", dual(v6))), Nodes: both}, "s: NoNodes", "has an address of the Service's families"},

		"local without endpoints":   {Cluster{Services: services(service("s", local)), Nodes: both}, "s: NoEndpoints", "no node has a ready endpoint"},
		"local":                     {Cluster{Services: services(service("s", local)), Nodes: both, Slices: []*discoveryv1.EndpointSlice{behind("s", "-a", "b", "b"), behind("t", "a")}}, "s: Published 10.0.0.2", ""},
		"local, several slices":     {Cluster{Services: services(service("s", local)), Nodes: both, Slices: []*discoveryv1.EndpointSlice{behind("s", "a"), behind("s", "b")}}, "s: Published 10.0.0.1 10.0.0.2", ""},
		"local, outside the pool":   {Cluster{Services: services(service("s", local)), Nodes: nodes(a, machine("b", "10.0.0.2", labelled(enable, "true"))), Slices: []*discoveryv1.EndpointSlice{behind("s", "a")}}, "s: NoEndpoints", ""},
		"endpoints are of no worth": {Cluster{Services: services(service("s")), Nodes: both, Slices: []*discoveryv1.EndpointSlice{behind("s", "a")}}, "s: Published 10.0.0.1 10.0.0.2", ""},

		"a node that was never ready":   {Cluster{Services: services(service("s")), Nodes: nodes(machine("a", "10.0.0.1", is(corev1.ConditionFalse)), b)}, "s: Published 10.0.0.2", ""},
		"a kubelet that has a trouble":  {Cluster{Services: services(service("s", at("10.0.0.1"))), Nodes: nodes(machine("a", "10.0.0.1", is(corev1.ConditionFalse)), b)}, "s: Published 10.0.0.1 10.0.0.2", ""},
		"a lost node is withdrawn":      {Cluster{Services: services(service("s", at("10.0.0.1", "10.0.0.2"))), Nodes: nodes(machine("a", "10.0.0.1", is(corev1.ConditionUnknown)), b)}, "s: Published 10.0.0.2", ""},
		"the last lost one is not":      {Cluster{Services: services(service("s", at("10.0.0.1"))), Nodes: nodes(machine("a", "10.0.0.1", is(corev1.ConditionUnknown)))}, "s: Published 10.0.0.1", ""},
		"unless it is to be deleted":    {Cluster{Services: services(service("s", at("10.0.0.1"))), Nodes: nodes(machine("a", "10.0.0.1", func(n *corev1.Node) { n.DeletionTimestamp = ptr.To(metav1.Now()) }))}, "s: NoNodes", ""},
		"no ready node yet":             {Cluster{Services: services(service("s")), Nodes: nodes(machine("a", "10.0.0.1", is(corev1.ConditionUnknown)))}, "s: NoNodes", "no node is ready"},
		"a node without any conditions": {Cluster{Services: services(service("s")), Nodes: nodes(machine("a", "10.0.0.1", func(n *corev1.Node) { n.Status.Conditions = nil }), b)}, "s: Published 10.0.0.2", ""},

		"excluded by Kubernetes' label":   {Cluster{Services: services(service("s")), Nodes: nodes(machine("a", "10.0.0.1", labelled("node.kubernetes.io/exclude-from-external-load-balancers", "")), b)}, "s: Published 10.0.0.2", ""},
		"one node chosen":                 {Cluster{Services: services(service("s")), Nodes: nodes(machine("a", "10.0.0.1", labelled(enable, "true")), b)}, "s: Published 10.0.0.1", ""},
		"one node chosen as with k3s":     {Cluster{Services: services(service("s")), Nodes: nodes(machine("a", "10.0.0.1", labelled(k3sOn, "true")), b)}, "s: Published 10.0.0.1", ""},
		"one node left out":               {Cluster{Services: services(service("s")), Nodes: nodes(machine("a", "10.0.0.1", labelled(enable, "false")), b)}, "s: Published 10.0.0.2", ""},
		"our label counts more":           {Cluster{Services: services(service("s")), Nodes: nodes(machine("a", "10.0.0.1", labelled(k3sOn, "true", enable, "false")), b)}, "s: Published 10.0.0.2", ""},
		"a pool":                          {Cluster{Services: services(service("s", pooled(pool, "dmz"))), Nodes: nodes(machine("a", "10.0.0.1", labelled(pool, "dmz")), b)}, "s: Published 10.0.0.1", ""},
		"a pool as with k3s":              {Cluster{Services: services(service("s", pooled(k3sPool, "dmz"))), Nodes: nodes(a, machine("b", "10.0.0.2", labelled(k3sPool, "dmz", k3sOn, "true")))}, "s: Published 10.0.0.2", ""},
		"an empty pool":                   {Cluster{Services: services(service("s", pooled(pool, "dmz"))), Nodes: both}, "s: NoNodes", ""},
		"without a pool all nodes, again": {Cluster{Services: services(service("s")), Nodes: nodes(machine("a", "10.0.0.1", labelled(pool, "dmz")), b)}, "s: Published 10.0.0.1 10.0.0.2", ""},

		"the older Service has the port": {Cluster{Services: services(service("t"), service("s")), Nodes: nodes(a)}, "s: Published 10.0.0.1; t: PortTaken", "port 80/TCP of node a belongs to Service ns/s"},
		"another port":                   {Cluster{Services: services(service("t", port80(81, tcp)), service("s")), Nodes: nodes(a)}, "s: Published 10.0.0.1; t: Published 10.0.0.1", ""},
		"another protocol":               {Cluster{Services: services(service("t", port80(80, udp)), service("s")), Nodes: nodes(a)}, "s: Published 10.0.0.1; t: Published 10.0.0.1", ""},
		"who has the port keeps it":      {Cluster{Services: services(service("t", at("10.0.0.1")), service("s")), Nodes: nodes(a)}, "s: PortTaken; t: Published 10.0.0.1", "Service ns/t"},
		"a port that is added takes nothing": {Cluster{Nodes: nodes(a), Services: services(service("t", port80(443, tcp), at("10.0.0.1")), service("s", at("10.0.0.1"), func(s *corev1.Service) {
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Port: 443, Protocol: tcp})
		}))}, "s: PortTaken; t: Published 10.0.0.1", "port 443/TCP of node a belongs to Service ns/t"},
		"two Services on two nodes": {Cluster{Nodes: both, Slices: []*discoveryv1.EndpointSlice{behind("s", "a"), behind("t", "b")},
			Services: services(service("s", local), service("t", local))}, "s: Published 10.0.0.1; t: Published 10.0.0.2", ""},

		"a pod has the port":             {Cluster{Services: services(service("s")), Nodes: both, Pods: []*corev1.Pod{pod("a", "", 80, tcp, corev1.PodPending)}}, "s: PortTaken 10.0.0.2", "port 80/TCP of node a belongs to pod other/pod"},
		"a pod takes it back":            {Cluster{Services: services(service("s", at("10.0.0.1", "10.0.0.2"))), Nodes: both, Pods: []*corev1.Pod{pod("a", "0.0.0.0", 80, tcp, corev1.PodRunning)}}, "s: PortTaken 10.0.0.2", ""},
		"a pod on the address itself":    {Cluster{Services: services(service("s")), Nodes: both, Pods: []*corev1.Pod{pod("a", "10.0.0.1", 80, tcp, corev1.PodRunning)}}, "s: PortTaken 10.0.0.2", ""},
		"a pod on loopback":              {Cluster{Services: services(service("s")), Nodes: both, Pods: []*corev1.Pod{pod("a", "127.0.0.1", 80, tcp, corev1.PodRunning)}}, "s: Published 10.0.0.1 10.0.0.2", ""},
		"a pod that has ended":           {Cluster{Services: services(service("s")), Nodes: both, Pods: []*corev1.Pod{pod("a", "", 80, tcp, corev1.PodSucceeded)}}, "s: Published 10.0.0.1 10.0.0.2", ""},
		"a pod with it on another proto": {Cluster{Services: services(service("s")), Nodes: both, Pods: []*corev1.Pod{pod("a", "", 80, udp, corev1.PodRunning)}}, "s: Published 10.0.0.1 10.0.0.2", ""},

		"another's node port": {Cluster{Nodes: nodes(a), Services: services(service("s", port80(30080, tcp)), service("n", func(s *corev1.Service) {
			s.Spec.Type, s.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30080
		}))}, "s: PortTaken", "port 30080/TCP of node a belongs to the node port of Service ns/n"},
		"its own node port": {Cluster{Nodes: nodes(a), Services: services(service("s", port80(30080, tcp), func(s *corev1.Service) { s.Spec.Ports[0].NodePort = 30080 }))}, "s: Published 10.0.0.1", ""},
		"another's health check": {Cluster{Nodes: nodes(a), Services: services(service("s", port80(32000, tcp)), service("t", func(s *corev1.Service) {
			s.Spec.HealthCheckNodePort = 32000
		}))}, "s: PortTaken; t: Published 10.0.0.1", "the health check of Service ns/t"},

		"a program of the machine has the port": {Cluster{Services: services(service("s", port80(22, tcp)), service("t", port80(22, udp))), Nodes: nodes(machine("a", "10.0.0.1", func(n *corev1.Node) {
			n.Annotations = map[string]string{"podo.dev/host-ports": "nonsense 22/TCP 99999999/UDP"}
		}), b)}, "s: PortTaken 10.0.0.2; t: Published 10.0.0.1 10.0.0.2", "port 22/TCP of node a belongs to a program of the machine"},

		"the API's port, on a server": {Cluster{Services: services(service("s", port80(6443, tcp))), Nodes: nodes(machine("a", "10.0.0.1", labelled("node-role.kubernetes.io/control-plane", "true")), b), Ports: plan.LoadBalancer{Servers: []plan.Port{{Number: 6443, Protocol: "TCP"}}}},
			"s: PortTaken 10.0.0.2", "port 6443/TCP of node a belongs to podo itself"},
		"the kubelet's": {Cluster{Services: services(service("s", port80(10250, tcp))), Nodes: nodes(machine("a", "10.0.0.1", func(n *corev1.Node) { n.Status.DaemonEndpoints.KubeletEndpoint.Port = 10250 }))}, "s: PortTaken", "podo itself"},
		"the overlay's": {Cluster{Services: services(service("s", port80(8472, udp))), Nodes: both, Ports: plan.LoadBalancer{Nodes: []plan.Port{{Number: 8472, Protocol: "UDP"}}}}, "s: PortTaken", "podo itself"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var got, messages []string
			for _, v := range Decide(tt.cluster) {
				line := v.Service.Name + ": " + v.Reason
				for _, i := range v.Ingress {
					line += " " + i.IP
					if *i.IPMode != corev1.LoadBalancerIPModeVIP || len(i.Ports) != len(v.Service.Spec.Ports) {
						t.Errorf("ingress %+v", i)
					}
				}
				if (v.Status == metav1.ConditionTrue) != (len(v.Ingress) > 0) {
					t.Errorf("%s: status %s", line, v.Status)
				}
				got, messages = append(got, line), append(messages, v.Message)
			}
			if s := strings.Join(got, "; "); s != tt.want {
				t.Errorf("got  %s\nwant %s\nmessages %q", s, tt.want, messages)
			}
			if !slices.ContainsFunc(messages, func(m string) bool { return strings.Contains(m, tt.message) }) && tt.message != "" {
				t.Errorf("messages %q, want %q in one", messages, tt.message)
			}
		})
	}
}

// TestEssenceIsEnough: what is kept of objects in memory decides as the objects do.
func TestEssenceIsEnough(t *testing.T) {
	kept := func(o runtime.Object) runtime.Object {
		e, err := essence(o.DeepCopyObject())
		if err != nil {
			t.Fatal(err)
		}
		return e.(runtime.Object)
	}
	node := machine("a", "10.0.0.1", also(corev1.NodeExternalIP, "192.0.2.1"), labelled("podo.dev/load-balancer", "true"), func(n *corev1.Node) {
		n.Annotations = map[string]string{portsAnnotation: "22/TCP"}
		n.Status.DaemonEndpoints.KubeletEndpoint.Port = 10250
	})
	whole := Cluster{
		Nodes:    []*corev1.Node{node, machine("b", "10.0.0.2"), machine("c", "10.0.0.3", labelled("podo.dev/load-balancer", "true"), is(corev1.ConditionUnknown))},
		Services: []*corev1.Service{service("s"), service("t", local, port80(81, corev1.ProtocolTCP)), service("u", port80(22, corev1.ProtocolTCP)), service("v", port80(82, corev1.ProtocolTCP)), service("w", port80(10250, corev1.ProtocolTCP))},
		Slices:   []*discoveryv1.EndpointSlice{behind("t", "a", "-c")},
		Pods:     []*corev1.Pod{pod("a", "", 82, corev1.ProtocolTCP, corev1.PodRunning), pod("a", "", 80, corev1.ProtocolTCP, corev1.PodFailed)},
	}
	var small Cluster
	for _, n := range whole.Nodes {
		small.Nodes = append(small.Nodes, kept(n).(*corev1.Node))
	}
	for _, s := range whole.Services {
		small.Services = append(small.Services, kept(s).(*corev1.Service))
	}
	for _, s := range whole.Slices {
		small.Slices = append(small.Slices, kept(s).(*discoveryv1.EndpointSlice))
	}
	for _, p := range whole.Pods {
		small.Pods = append(small.Pods, kept(p).(*corev1.Pod))
	}
	text := func(c Cluster) (out []string) {
		for _, v := range Decide(c) {
			out = append(out, fmt.Sprintf("%s %s %d %s", v.Service.Name, v.Reason, len(v.Ingress), v.Message))
		}
		return out
	}
	want := text(whole)
	if got := text(small); !slices.Equal(got, want) || !strings.HasPrefix(want[1], "t Published 1") {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	beat := node.DeepCopy()
	beat.ResourceVersion, beat.Status.Conditions[0].LastHeartbeatTime = "2", metav1.Now()
	if !same(kept(node), kept(beat)) {
		t.Error("a heartbeat is news")
	}
	beat.Status.Conditions[0].Status = corev1.ConditionUnknown
	if same(kept(node), kept(beat)) {
		t.Error("the loss of a node is none")
	}
	if plain := pod("a", "", 0, corev1.ProtocolTCP, corev1.PodRunning); matters(kept(plain)) || !matters(kept(whole.Pods[0])) {
		t.Error("a pod matters by its ports of the host, and by nothing else")
	}
}

// TestDecisionsSettle: what was decided, written down and decided again, stays.
func TestDecisionsSettle(t *testing.T) {
	c := Cluster{
		Nodes:    []*corev1.Node{machine("a", "10.0.0.1"), machine("b", "10.0.0.2")},
		Services: []*corev1.Service{service("t", at("10.0.0.1")), service("s"), service("u", local), service("v", port80(81, corev1.ProtocolUDP))},
		Slices:   []*discoveryv1.EndpointSlice{behind("u", "b")},
		Pods:     []*corev1.Pod{pod("b", "", 81, corev1.ProtocolUDP, corev1.PodRunning)},
	}
	text := func() string {
		var out []string
		for _, v := range Decide(c) {
			v.Service.Status.LoadBalancer.Ingress = v.Ingress
			out = append(out, fmt.Sprint(v.Service.Name, v.Reason, v.Message, len(v.Ingress)))
		}
		return strings.Join(out, "\n")
	}
	first := text()
	second := text()
	if third := text(); third != second || first == "" {
		t.Errorf("second:\n%s\nthird:\n%s", second, third)
	}
}

func TestLongRefusalsAreCutShort(t *testing.T) {
	c := Cluster{Services: []*corev1.Service{service("s")}}
	for i := range 8 {
		name := fmt.Sprintf("n%d", i)
		c.Nodes = append(c.Nodes, machine(name, fmt.Sprintf("10.0.0.%d", i+1)))
		c.Pods = append(c.Pods, pod(name, "", 80, corev1.ProtocolTCP, corev1.PodRunning))
	}
	m := Decide(c)[0].Message
	if strings.Count(m, "belongs to") != 5 || !strings.HasSuffix(m, "; and 3 more") {
		t.Errorf("message %q", m)
	}
}

func BenchmarkDecide(b *testing.B) {
	c := Cluster{}
	for i := range 20 {
		c.Nodes = append(c.Nodes, machine(fmt.Sprintf("n%d", i), fmt.Sprintf("10.0.0.%d", i+1)))
	}
	for i := range 1000 {
		c.Services = append(c.Services, service(fmt.Sprintf("s%d", i), port80(int32(1000+i), corev1.ProtocolTCP)))
	}
	for b.Loop() {
		Decide(c)
	}
}
