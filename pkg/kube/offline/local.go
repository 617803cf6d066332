package offline

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	discoveryv1 "k8s.io/api/discovery/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A pod has another address after a boot, and without a server nobody writes it into
// its EndpointSlices. So a Memory that knows this node's pods serves the slices with
// their addresses of now.

// local is what the container engine says of this node's pods.
type local struct {
	node   string
	engine cri.RuntimeServiceClient

	// Below is under the memory's lock.
	pods    map[string][]netip.Addr // by UID; without addresses if it has the node's. Nil if not known
	seen    map[string][]netip.Addr // by sandbox
	changed chan struct{}           // closed when pods is another
	version int                     // of what is made up
}

// Watch has the memory ask the container engine at socket for the addresses of node's
// pods, as long as no server answers.
func (m *Memory) Watch(node, socket string) error {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	context.AfterFunc(m.ctx, func() { conn.Close() })
	m.local = &local{node: node, engine: cri.NewRuntimeServiceClient(conn), seen: map[string][]netip.Addr{}, changed: make(chan struct{})}
	return nil
}

// look asks the engine once.
func (m *Memory) look() {
	l := m.local
	if l == nil {
		return
	}
	ctx, cancel := context.WithTimeout(m.ctx, 2*time.Second)
	defer cancel()
	pods, err := m.running(ctx)
	if err != nil {
		m.log.Debug("addresses of pods not known", "err", err)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if l.pods != nil && maps.EqualFunc(l.pods, pods, slices.Equal) {
		return
	}
	l.pods = pods
	close(l.changed)
	l.changed = make(chan struct{})
}

func (m *Memory) running(ctx context.Context) (map[string][]netip.Addr, error) {
	l := m.local
	ready := &cri.PodSandboxFilter{State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}}
	list, err := l.engine.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: ready})
	if err != nil {
		return nil, err
	}
	pods, seen := map[string][]netip.Addr{}, map[string][]netip.Addr{}
	m.mu.Lock()
	known := l.seen
	m.mu.Unlock()
	for _, box := range list.Items {
		addrs, ok := known[box.Id]
		if !ok {
			answer, err := l.engine.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: box.Id})
			if err != nil {
				return nil, err
			}
			if addrs, err = addresses(answer.Status); err != nil {
				return nil, err
			}
		}
		seen[box.Id], pods[box.Metadata.GetUid()] = addrs, addrs
	}
	m.mu.Lock()
	l.seen = seen
	m.mu.Unlock()
	return pods, nil
}

// addresses are a sandbox's own, so none if it has the node's.
func addresses(s *cri.PodSandboxStatus) ([]netip.Addr, error) {
	if s.GetLinux().GetNamespaces().GetOptions().GetNetwork() == cri.NamespaceMode_NODE {
		return nil, nil
	}
	texts := []string{s.GetNetwork().GetIp()}
	for _, more := range s.GetNetwork().GetAdditionalIps() {
		texts = append(texts, more.Ip)
	}
	var out []netip.Addr
	for _, text := range texts {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("address of sandbox %s: %w", s.GetId(), err)
		}
		out = append(out, a)
	}
	return out, nil
}

// present says what is new on this node since the caller's last look, which is nil at
// first.
func (m *Memory) present() (pods map[string][]netip.Addr, changed <-chan struct{}) {
	if m.local == nil {
		return nil, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.local.pods, m.local.changed
}

// adapts reports whether a view is one of what this node's pods are part of.
func adapts(view string) bool {
	path, _, _ := strings.Cut(view, "?")
	_, _, resource, _, _ := parse(path)
	return resource == "endpointslices"
}

// adapt gives an EndpointSlice this node's pods as they are: at their addresses of
// now, and without those that do not run. A slice without pods of this node is as it
// was.
func (m *Memory) adapt(text []byte, pods map[string][]netip.Addr) ([]byte, error) {
	if pods == nil {
		return text, nil
	}
	o, err := open(text)
	if err != nil {
		return nil, err
	}
	slice := &discoveryv1.EndpointSlice{}
	if err := slice.Unmarshal(o.Raw); err != nil {
		return nil, err
	}
	var out []discoveryv1.Endpoint
	differs := false
	for _, e := range slice.Endpoints {
		if e.NodeName == nil || *e.NodeName != m.local.node || e.TargetRef == nil || e.TargetRef.Kind != "Pod" {
			out = append(out, e)
			continue
		}
		addrs, runs := pods[string(e.TargetRef.UID)]
		if !runs {
			differs = true
			continue
		}
		var now []string
		for _, a := range addrs {
			if a.Is4() == (slice.AddressType == discoveryv1.AddressTypeIPv4) {
				now = append(now, a.String())
			}
		}
		if now != nil && !slices.Equal(now, e.Addresses) {
			differs = true
			e.Addresses = now
		}
		out = append(out, e)
	}
	if !differs {
		return text, nil
	}
	slice.Endpoints = out
	// Readers take an object of the same version for the same object. Small numbers
	// are never those of real objects, nor ahead of a server's.
	m.mu.Lock()
	m.local.version++
	slice.ResourceVersion = strconv.Itoa(m.local.version)
	m.mu.Unlock()
	raw, err := slice.Marshal()
	if err != nil {
		return nil, err
	}
	return seal(o.APIVersion, o.Kind, raw)
}

// update is what a reader of a view has to be told when this node's pods changed.
func (m *Memory) update(view string, pods map[string][]netip.Addr) []byte {
	_, objects, err := m.objects(view)
	if err != nil {
		return nil
	}
	var buf []byte
	for _, text := range objects {
		if !touches(text, m.local.node) {
			continue
		}
		now, err := m.adapt(text, pods)
		if err == nil {
			buf, err = frame(buf, "MODIFIED", now)
		}
		if err != nil {
			m.log.Warn("remembered object not readable", "path", view, "err", err)
		}
	}
	return buf
}

// touches reports whether an object may have to do with a node, at little cost.
func touches(text []byte, node string) bool { return strings.Contains(string(text), node) }
