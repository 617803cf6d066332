package netpol

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/knftables"

	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/plan"
)

// engine is a container engine that has sandboxes and nothing else.
type engine struct {
	cri.UnimplementedRuntimeServiceServer
	mu     sync.Mutex
	boxes  map[string]*cri.PodSandboxStatus
	events chan *cri.ContainerEventResponse
}

func (e *engine) ListPodSandbox(context.Context, *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := &cri.ListPodSandboxResponse{}
	for id := range e.boxes {
		out.Items = append(out.Items, &cri.PodSandbox{Id: id})
	}
	return out, nil
}

func (e *engine) PodSandboxStatus(_ context.Context, r *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.boxes[r.PodSandboxId] == nil {
		return nil, errors.New("no such sandbox")
	}
	return &cri.PodSandboxStatusResponse{Status: e.boxes[r.PodSandboxId]}, nil
}

func (e *engine) GetContainerEvents(_ *cri.GetEventsRequest, s grpc.ServerStreamingServer[cri.ContainerEventResponse]) error {
	for {
		select {
		case event := <-e.events:
			if err := s.Send(event); err != nil {
				return err
			}
		case <-s.Context().Done():
			return nil
		}
	}
}

// has starts or stops a sandbox, and tells whoever listens if that is wanted.
func (e *engine) has(id, addr string, tell bool) {
	status := &cri.PodSandboxStatus{
		Id: id, State: cri.PodSandboxState_SANDBOX_READY,
		Metadata: &cri.PodSandboxMetadata{Namespace: "x", Name: id, Uid: id},
		Labels:   map[string]string{"pod": id},
		Network:  &cri.PodSandboxNetworkStatus{Ip: addr},
	}
	e.mu.Lock()
	e.boxes[id] = status
	if addr == "" {
		delete(e.boxes, id)
		status.State = cri.PodSandboxState_SANDBOX_NOTREADY
	}
	e.mu.Unlock()
	if tell {
		e.events <- &cri.ContainerEventResponse{ContainerId: id, PodSandboxStatus: status, CreatedAt: time.Now().UnixNano()}
	}
}

// serve is a client of an engine.
func (e *engine) serve(t *testing.T) cri.RuntimeServiceClient {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "cri.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(s, e)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return cri.NewRuntimeServiceClient(conn)
}

// run runs a keeper until the test ends or stop is called.
func run(t *testing.T, dir string, e *engine, client *fake.Clientset) (nft *knftables.Fake, stop func()) {
	t.Helper()
	nft = knftables.NewFake(knftables.InetFamily, Table)
	frames := knftables.NewFake(knftables.BridgeFamily, Table)
	changed := make(chan struct{}, 1)
	poke := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	k := keeper{
		Enforcer: New(plan.Policy{Paths: paths.Paths{Data: dir}, PodCIDR: ranges(t)[:1]}, "cni0", nil, slog.New(slog.DiscardHandler)),
		packets:  &table{nft: nft},
		frames:   &table{nft: frames},
		own:      &sandboxes{engine: e.serve(t), known: map[string]pod{}, changed: poke},
		source:   newSource(client, poke),
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := k.begin(ctx); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- k.keep(ctx, changed) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return nft, stop
}

// shows waits until the table has all of some lines and none of others, which begin
// with a "!"; a table that is gone has none.
func shows(t *testing.T, nft *knftables.Fake, what string, lines ...string) {
	t.Helper()
	var text string
	for began := time.Now(); time.Since(began) < 10*time.Second; time.Sleep(10 * time.Millisecond) {
		nft.RLock()
		text = ""
		if nft.Table != nil {
			text = nft.Dump()
		}
		nft.RUnlock()
		wrong := false
		for _, l := range lines {
			l, not := strings.CutPrefix(l, "!")
			wrong = wrong || strings.Contains(text, l) == not
		}
		if !wrong {
			return
		}
	}
	t.Fatalf("%s: want %q in:\n%s", what, lines, text)
}

func TestKeeper(t *testing.T) {
	dir := t.TempDir()
	e := &engine{boxes: map[string]*cri.PodSandboxStatus{}, events: make(chan *cri.ContainerEventResponse)}
	e.has("old", "10.42.0.2", false)

	// A node that remembers nothing, and hears nothing: who was there goes on.
	deaf := fake.NewClientset()
	deaf.PrependReactor("*", "*", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, errors.New("no server") })
	deaf.PrependWatchReactor("*", clienttesting.DefaultWatchReactor(nil, errors.New("no server")))
	nft, stop := run(t, dir, e, deaf)
	shows(t, nft, "nothing known", "pods4 { 10.42.0.2 }", "ip daddr != @pods4 drop", "!jump")
	e.has("new", "10.42.0.3", false)
	shows(t, nft, "nothing known of a new pod", "!10.42.0.3")
	stop()

	// No policies.
	client := fake.NewClientset()
	nft, stop = run(t, dir, e, client)
	shows(t, nft, "no policies", "!table")

	// The first policy, a new pod, and one that ends.
	ctx := t.Context()
	policy := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "deny"},
		Spec: networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"pod": "new"}}}}
	if _, err := client.NetworkingV1().NetworkPolicies("x").Create(ctx, policy, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	shows(t, nft, "a policy", "pods4 { 10.42.0.2 }", "ingress4 { 10.42.0.3 : jump in-", "!ingress4 { 10.42.0.2")
	e.has("newer", "10.42.0.4", true)
	shows(t, nft, "a new pod", "pods4 { 10.42.0.4 }")
	e.has("old", "", true)
	shows(t, nft, "a pod less", "!10.42.0.2")

	// Somebody deletes the table: the next change makes all of it.
	tx := nft.NewTransaction()
	tx.Delete(&knftables.Table{})
	if err := nft.Run(ctx, tx); err != nil {
		t.Fatal(err)
	}
	e.has("newest", "10.42.0.5", true)
	shows(t, nft, "made again", "pods4 { 10.42.0.5 }", "ingress4 { 10.42.0.3 : jump in-")
	stop()

	// A boot while no server answers: pods have other addresses.
	e.has("new", "10.42.0.7", false)
	nft, stop = run(t, dir, e, deaf)
	shows(t, nft, "remembered", "ingress4 { 10.42.0.7 : jump in-", "pods4 { 10.42.0.4 }")
	e.has("last", "10.42.0.8", true)
	shows(t, nft, "a pod while no server answers", "pods4 { 10.42.0.8 }")
	stop()

	// The policy goes, and is not remembered.
	nft, stop = run(t, dir, e, client)
	shows(t, nft, "a policy", "jump in-")
	if err := client.NetworkingV1().NetworkPolicies("x").Delete(ctx, "deny", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	shows(t, nft, "no policy any more", "!table")
	stop()
	nft, _ = run(t, dir, e, deaf)
	shows(t, nft, "remembered that there is none", "!table")
}

// TestFrames: frames are held while packets are, and a kernel that cannot does with the packets.
func TestFrames(t *testing.T) {
	frames := knftables.NewFake(knftables.BridgeFamily, Table)
	k := keeper{
		Enforcer: New(plan.Policy{PodCIDR: ranges(t)}, "cni0", nil, slog.New(slog.DiscardHandler)),
		packets:  &table{nft: knftables.NewFake(knftables.InetFamily, Table)}, frames: &table{nft: frames},
	}
	for _, held := range []bool{true, false} {
		if err := k.apply(t.Context(), compile(cluster{}, nil, k.at, held)); err != nil {
			t.Fatal(err)
		}
		if got := frames.Table != nil; got != held {
			t.Errorf("frames are held: %t, want %t", got, held)
		}
	}

	var log bytes.Buffer
	k.log = slog.New(slog.NewTextHandler(&log, nil))
	blind := &refusing{Interface: frames}
	k.frames = &table{nft: blind}
	for range 3 { // with nobody's policies that is no loss
		if err := k.apply(t.Context(), compile(cluster{}, nil, k.at, true)); err != nil || log.Len() > 0 {
			t.Errorf("%v, and the log says %q", err, &log)
		}
	}
	k.last = &cluster{Policies: []*networkingv1.NetworkPolicy{{}}}
	for range 3 {
		if err := k.apply(t.Context(), compile(cluster{}, nil, k.at, true)); err != nil {
			t.Error(err)
		}
	}
	if got := strings.Count(log.String(), "no such family"); got != 1 || blind.asked != 1 || len(k.packets.inForce.chains) == 0 {
		t.Errorf("told %d times, tried %d times, want one; packets are held by %d chains", got, blind.asked, len(k.packets.inForce.chains))
	}
	k.look(t.Context())
	if err := k.apply(t.Context(), compile(cluster{}, nil, k.at, true)); err != nil || blind.asked != 2 {
		t.Errorf("%v after a look, tried %d times, want two", err, blind.asked)
	}
}

// refusing is a kernel that holds no rules of a family, and counts how often it was asked.
type refusing struct {
	knftables.Interface
	asked int
}

func (r *refusing) Run(context.Context, *knftables.Transaction) error {
	r.asked++
	return errors.New("no such family")
}

// TestNews: what happened before the list is none, but a clock that was set back hides nobody.
func TestNews(t *testing.T) {
	began := time.Unix(1000, 0)
	tests := map[string]struct {
		at    time.Time
		since time.Duration
		want  bool
	}{
		"since the list":     {began.Add(time.Millisecond), 0, true},
		"before the list":    {began.Add(-time.Millisecond), 0, false},
		"by another clock":   {began.Add(-time.Hour), backlog + 1, true},
		"some time after it": {began.Add(time.Hour), time.Hour, true},
	}
	for name, tt := range tests {
		if got := news(tt.at.UnixNano(), began, tt.since); got != tt.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

func TestAddresses(t *testing.T) {
	host := &cri.PodSandboxStatus{Network: &cri.PodSandboxNetworkStatus{Ip: "192.0.2.1"},
		Linux: &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{Options: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}}}}
	if got := addresses(host); got != nil {
		t.Errorf("a pod in the host's network has %v", got)
	}
	two := &cri.PodSandboxStatus{Network: &cri.PodSandboxNetworkStatus{Ip: "10.42.0.2", AdditionalIps: []*cri.PodIP{{Ip: "fd42::2"}}}}
	if got := addresses(two); len(got) != 2 || got[1] != netip.MustParseAddr("fd42::2") {
		t.Errorf("addresses %v", got)
	}
}
