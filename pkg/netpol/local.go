package netpol

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// sandboxes are this node's pods, as the container engine tells of them.
type sandboxes struct {
	engine  cri.RuntimeServiceClient
	changed func()

	mu    sync.Mutex
	known map[string]pod // by sandbox; only those with addresses of their own
}

// pods are the pods, in the order of their sandboxes.
func (s *sandboxes) pods() []pod {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]string, 0, len(s.known))
	for id := range s.known {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	out := make([]pod, 0, len(ids))
	for _, id := range ids {
		out = append(out, s.known[id])
	}
	return out
}

// list asks for all.
func (s *sandboxes) list(ctx context.Context) error {
	ctx, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	ready := &cri.PodSandboxFilter{State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}}
	list, err := s.engine.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: ready}, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, box := range list.Items {
		there[box.Id] = true
		if s.knows(box.Id) {
			continue
		}
		answer, err := s.engine.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: box.Id})
		if err != nil {
			continue // it has just gone
		}
		s.note(box.Id, answer.Status)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.known {
		if !there[id] {
			delete(s.known, id)
		}
	}
	return nil
}

func (s *sandboxes) knows(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.known[id]
	return ok
}

// note takes down what is said of a sandbox and reports whether that is new.
func (s *sandboxes) note(id string, status *cri.PodSandboxStatus) bool {
	addrs := addresses(status)
	s.mu.Lock()
	defer s.mu.Unlock()
	_, had := s.known[id]
	if len(addrs) == 0 || status.GetState() != cri.PodSandboxState_SANDBOX_READY {
		delete(s.known, id)
		return had
	}
	s.known[id] = pod{
		Namespace: status.GetMetadata().GetNamespace(),
		Name:      status.GetMetadata().GetName(),
		UID:       status.GetMetadata().GetUid(),
		Labels:    status.GetLabels(),
		Addrs:     addrs,
	}
	return !had
}

// follow hears of pods until ctx ends. The engine waits for who follows it and does
// not read, so nothing is done here but taking notes.
func (s *sandboxes) follow(ctx context.Context, log *slog.Logger) {
	for ctx.Err() == nil {
		if err := s.hear(ctx); err != nil && ctx.Err() == nil {
			log.Debug("container engine not heard", "err", err)
		}
		wait(ctx, time.Second)
	}
}

// hear takes down what one stream tells. The engine keeps what happens while nobody
// listens for those who come next, so nothing is lost between the list and the stream,
// and what happened before the list is not news.
func (s *sandboxes) hear(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	stream, err := s.engine.GetContainerEvents(ctx, &cri.GetEventsRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	began := time.Now()
	if err := s.list(ctx); err != nil {
		return err
	}
	listed := time.Now()
	s.changed()
	for {
		event, err := stream.Recv()
		if err != nil {
			return err
		}
		id := event.GetPodSandboxStatus().GetId()
		if id == "" {
			id = event.GetContainerId()
		}
		if news(event.GetCreatedAt(), began, time.Since(listed)) && s.note(id, event.GetPodSandboxStatus()) {
			s.changed()
		}
	}
}

// backlog is how long what a stream tells first may be older than the list.
const backlog = 5 * time.Second

// news reports whether an event is not older than the list. Later on all are news: what the
// clock said then would be wrong for long if it was set back.
func news(at int64, began time.Time, since time.Duration) bool {
	return since > backlog || at >= began.UnixNano()
}

// addresses are a sandbox's own, so none if it has the node's.
func addresses(s *cri.PodSandboxStatus) []netip.Addr {
	if s.GetLinux().GetNamespaces().GetOptions().GetNetwork() == cri.NamespaceMode_NODE {
		return nil
	}
	texts := []string{s.GetNetwork().GetIp()}
	for _, more := range s.GetNetwork().GetAdditionalIps() {
		texts = append(texts, more.Ip)
	}
	var out []netip.Addr
	for _, text := range texts {
		if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, a)
		}
	}
	return out
}
