package server

import (
	"log/slog"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/podo-dev/podo/pkg/gate"
	"github.com/podo-dev/podo/pkg/plan"
)

// TestOwner: whose an address is, with a pod network that keeps to the nodes' ranges and
// with one that does not.
func TestOwner(t *testing.T) {
	nodes, pods := cache.NewIndexer(cache.MetaNamespaceKeyFunc, nil), cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{byAddress: addressesOf})
	for name, n := range map[string]struct{ ip, cidr string }{"here": {"10.0.0.1", "10.42.0.0/24"}, "one": {"10.0.0.2", "10.42.1.0/24"}, "two": {"10.0.0.3", "10.42.2.0/24"}, "10.0.0.2": {"10.0.0.9", "10.42.3.0/24"}} {
		nodes.Add(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: []string{n.cidr}},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: n.ip}}}})
	}
	for name, p := range map[string]struct {
		node, ip string
		host     bool
		phase    corev1.PodPhase
	}{
		"stranger": {node: "two", ip: "10.42.1.7"},
		"own":      {node: "here", ip: "10.42.2.7"},
		"on host":  {node: "one", ip: "10.0.0.3", host: true},
		"ended":    {node: "two", ip: "10.42.1.8", phase: corev1.PodSucceeded},
		"claims":   {node: "impostor", ip: "10.0.0.3"},
		"outside":  {node: "impostor", ip: "10.0.0.4"},
		"twice a":  {node: "one", ip: "10.42.2.9"},
		"twice b":  {node: "two", ip: "10.42.2.9"},
	} {
		kept, err := addressesOnly(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{NodeName: p.node, HostNetwork: p.host},
			Status: corev1.PodStatus{Phase: p.phase, PodIPs: []corev1.PodIP{{IP: p.ip}}}})
		if err != nil {
			t.Fatal(err)
		}
		pods.Add(kept)
	}
	s := newSupervisor(plan.Server{NodeName: "here"}, nil, nil, gate.New(), slog.New(slog.DiscardHandler))
	client, err := kubernetes.NewForConfig(&rest.Config{Host: "http://127.0.0.1:1"}) // never asked
	if err != nil {
		t.Fatal(err)
	}
	s.client, s.nodes = client, corelisters.NewNodeLister(nodes)
	for _, tt := range []struct {
		host string
		pods bool
		node string
		pod  bool
		why  string
	}{
		{"two", false, "", false, "a name"},
		{"10.0.0.2", false, "one", false, "a node's address, though another is called so"},
		{"10.0.0.4", true, "impostor", true, "a pod's alone"},
		{"10.0.0.3", false, "two", false, "a node's address"},
		{"10.0.0.3", true, "two", false, "a node's address, though pods on others have it"},
		{"10.42.1.7", false, "one", true, "by the ranges"},
		{"10.42.1.7", true, "two", true, "by the pod"},
		{"10.42.1.8", true, "one", true, "the pod has ended"},
		{"10.42.2.7", true, "", false, "a pod of this very node is dialled"},
		{"10.42.2.9", true, "two", true, "two pods claim it"},
		{"10.42.0.4", false, "", false, "this node's range is dialled"},
		{"192.0.2.1", true, "", false, "nobody's"},
	} {
		s.pods = nil
		if tt.pods {
			s.pods = pods
		}
		p, known := s.owner(tt.host)
		if known != (tt.node != "") || known && (p.Node != tt.node || p.Pod != tt.pod) {
			t.Errorf("%s (%s): %+v, %v; want node %q, pod %v", tt.host, tt.why, p, known, tt.node, tt.pod)
		}
	}
	if p, known := s.named("two"); !known || p.Node != "two" || p.Addr != "10.0.0.3" {
		t.Errorf("two by its name: %+v, %v", p, known)
	}
	if p, known := s.named("nobody"); known {
		t.Errorf("no node of that name: %+v", p)
	}
}
