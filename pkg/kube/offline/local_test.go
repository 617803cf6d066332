package offline

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// engine is a container engine with pods, by UID.
type engine struct {
	cri.RuntimeServiceClient
	mu   sync.Mutex
	pods map[string][]string
	err  error
}

func (e *engine) set(pods map[string][]string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.pods, e.err = pods, nil
}

func (e *engine) ListPodSandbox(context.Context, *cri.ListPodSandboxRequest, ...grpc.CallOption) (*cri.ListPodSandboxResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := &cri.ListPodSandboxResponse{}
	for uid := range e.pods {
		out.Items = append(out.Items, &cri.PodSandbox{Id: uid, Metadata: &cri.PodSandboxMetadata{Uid: uid}})
	}
	return out, e.err
}

func (e *engine) PodSandboxStatus(_ context.Context, r *cri.PodSandboxStatusRequest, _ ...grpc.CallOption) (*cri.PodSandboxStatusResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := &cri.PodSandboxStatus{Id: r.PodSandboxId}
	addrs := e.pods[r.PodSandboxId]
	if len(addrs) == 0 {
		s.Linux = &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{Options: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}}}
		return &cri.PodSandboxStatusResponse{Status: s}, nil
	}
	s.Network = &cri.PodSandboxNetworkStatus{Ip: addrs[0]}
	for _, a := range addrs[1:] {
		s.Network.AdditionalIps = append(s.Network.AdditionalIps, &cri.PodIP{Ip: a})
	}
	return &cri.PodSandboxStatusResponse{Status: s}, nil
}

const slicesPath = "/apis/discovery.k8s.io/v1/endpointslices"

func endpointSlice(kind discoveryv1.AddressType, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, AddressType: kind, Endpoints: endpoints}
}

func endpoint(node, uid, address string) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{Addresses: []string{address}, NodeName: &node, TargetRef: &corev1.ObjectReference{Kind: "Pod", UID: types.UID(uid)}}
}

func addressesOf(s *discoveryv1.EndpointSlice) (out []string) {
	for _, e := range s.Endpoints {
		out = append(out, e.Addresses...)
	}
	return out
}

func TestAdapt(t *testing.T) {
	tests := map[string]struct {
		kind discoveryv1.AddressType
		want []string
	}{
		"IPv4": {discoveryv1.AddressTypeIPv4, []string{"10.1.1.99", "10.1.1.3", "10.1.2.1"}},
		"IPv6": {discoveryv1.AddressTypeIPv6, []string{"fd00::99", "10.1.1.3", "10.1.2.1"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m := &Memory{local: &local{node: "box"}}
			s := endpointSlice(tt.kind, endpoint("box", "moved", "10.1.1.1"), endpoint("box", "gone", "10.1.1.2"),
				endpoint("box", "host", "10.1.1.3"), endpoint("far", "gone", "10.1.2.1"))
			s.ResourceVersion = "500"
			raw, _ := s.Marshal()
			text, _ := seal("discovery.k8s.io/v1", "EndpointSlice", raw)
			got, err := m.adapt(text, map[string][]netip.Addr{
				"moved": {netip.MustParseAddr("10.1.1.99"), netip.MustParseAddr("fd00::99")}, "host": nil,
			})
			if err != nil {
				t.Fatal(err)
			}
			o, err := open(got)
			if err != nil {
				t.Fatal(err)
			}
			var now discoveryv1.EndpointSlice
			if err := now.Unmarshal(o.Raw); err != nil {
				t.Fatal(err)
			}
			if got := addressesOf(&now); !slices.Equal(got, tt.want) || now.ResourceVersion != "1" || now.Name != "web" {
				t.Errorf("%q at version %s, want %q", got, now.ResourceVersion, tt.want)
			}
			if same, err := m.adapt(text, nil); err != nil || &same[0] != &text[0] {
				t.Errorf("while pods are not known, a slice is changed: %v", err)
			}
		})
	}
}

// TestOwnPodsMove: while no server answers, Services lead to where this node's pods
// are after the boot.
func TestOwnPodsMove(t *testing.T) {
	a, dir := newAPI(t), t.TempDir()
	a.set(slicesPath, "EndpointSlice", endpointSlice(discoveryv1.AddressTypeIPv4, endpoint("box", "one", "10.1.1.1"), endpoint("far", "two", "10.1.2.1")))
	inform := func(n *node) cache.SharedIndexInformer {
		return n.inform(t, "", "", func(f informers.SharedInformerFactory) cache.SharedIndexInformer {
			return f.Discovery().V1().EndpointSlices().Informer()
		})
	}
	n := a.node(t, dir)
	has(t, inform(n), "default/web")
	a.turn(true)
	n.end()

	n = a.node(t, dir)
	if err := n.memory.Watch("box", dir+"/none"); err != nil {
		t.Fatal(err)
	}
	machine := &engine{err: errors.New("it starts")}
	n.memory.local.engine = machine
	i := inform(n)
	heard := make(chan []string, 100)
	if _, err := i.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { heard <- addressesOf(o.(*discoveryv1.EndpointSlice)) },
		UpdateFunc: func(_, o any) { heard <- addressesOf(o.(*discoveryv1.EndpointSlice)) },
	}); err != nil {
		t.Fatal(err)
	}
	expect := func(want ...string) {
		t.Helper()
		select {
		case got := <-heard:
			if !slices.Equal(got, want) {
				t.Fatalf("addresses %q, want %q", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("nothing heard, want %q", want)
		}
	}
	expect("10.1.1.1", "10.1.2.1")
	for _, step := range []struct {
		pods map[string][]string
		want []string
	}{
		{map[string][]string{}, []string{"10.1.2.1"}},
		{map[string][]string{"one": {"10.1.1.7"}}, []string{"10.1.1.7", "10.1.2.1"}},
		{map[string][]string{}, []string{"10.1.2.1"}},
	} {
		machine.set(step.pods)
		n.memory.look()
		expect(step.want...)
	}
	a.turn(false)
	expect("10.1.1.1", "10.1.2.1")
}
