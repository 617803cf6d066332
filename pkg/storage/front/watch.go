package front

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/server"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// progressEvery is how often a watch that asked for it is told the current
// revision although nothing happened. It keeps idle watches ahead of compaction,
// which leaves at least five minutes of history.
const progressEvery = time.Minute

// watches serves etcd's Watch calls from kine's log. kine's own server keeps a
// 100 ms ticker for every stream; the API server opens sixty, and those wake-ups
// were a third of what an idle podo spent (kine 0.16).
type watches struct {
	backend server.Backend
	log     *slog.Logger
}

// Watch serves one stream, which carries any number of watches.
func (w watches) Watch(stream etcdserverpb.Watch_WatchServer) error {
	ctx, end := context.WithCancel(stream.Context())
	s := &watchStream{watches: w, stream: stream, cancel: map[int64]context.CancelFunc{}}
	defer s.running.Wait()
	defer end()
	for {
		req, err := stream.Recv()
		if err != nil {
			if err == io.EOF || ctx.Err() != nil {
				return nil
			}
			return err
		}
		switch {
		case req.GetCreateRequest() != nil:
			s.create(ctx, req.GetCreateRequest())
		case req.GetCancelRequest() != nil:
			s.end(req.GetCancelRequest().WatchId, 0, "")
		case req.GetProgressRequest() != nil:
			// The version that we say we are has no such request.
			return status.Error(codes.Unimplemented, "progress requests are not supported")
		}
	}
}

// watchStream is the state of one stream.
type watchStream struct {
	watches
	running sync.WaitGroup

	sending sync.Mutex // the stream takes one message at a time
	stream  etcdserverpb.Watch_WatchServer

	mu     sync.Mutex
	last   int64
	cancel map[int64]context.CancelFunc
}

// apiCompactKey is where kine keeps what the API server believes to be its own
// note of how far the history is compacted; kine uses that key itself.
const (
	compactKey    = "compact_rev_key"
	apiCompactKey = "compact_rev_key_apiserver"
)

func (s *watchStream) create(ctx context.Context, r *etcdserverpb.WatchCreateRequest) {
	if r.WatchId != 0 || r.StartRevision < 0 {
		s.send(&etcdserverpb.WatchResponse{WatchId: -1, Created: true, Canceled: true, CancelReason: server.ErrInvalidWatch.Error()})
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	s.mu.Lock()
	s.last++
	id := s.last
	s.cancel[id] = cancel
	s.mu.Unlock()
	key := string(r.Key)
	if key == compactKey {
		key = apiCompactKey
	}
	s.running.Go(func() { s.follow(ctx, id, key, string(r.RangeEnd), r.StartRevision, r.ProgressNotify) })
}

// follow sends what happens to the keys of one watch until that is cancelled.
func (s *watchStream) follow(ctx context.Context, id int64, key, end string, from int64, progress bool) {
	s.send(&etcdserverpb.WatchResponse{WatchId: id, Created: true})
	result := s.backend.Watch(ctx, key, end, from)
	if result.CompactRevision != 0 {
		s.sendCompacted(id, result)
		return
	}
	var tick <-chan time.Time
	var (
		before int64 // the revision at the last tick
		sent   int64 // the newest revision told of; it must not go back
	)
	if progress {
		t := time.NewTicker(progressEvery)
		defer t.Stop()
		tick = t.C
	}
	for {
		select {
		case events, ok := <-result.Events:
			if !ok {
				reason := ""
				select {
				case err := <-result.Errorc:
					reason = err.Error()
				default:
				}
				s.end(id, 0, reason)
				return
			}
			sent = max(sent, s.sendEvents(id, key, end, from, events))
		case err := <-result.Errorc:
			// The first watch after a database was lost ends without its events being
			// closed (kine 0.16).
			s.end(id, 0, err.Error())
			return
		case <-tick:
			// All events up to a revision of a minute ago have been sent. Of the newest,
			// some may still be on their way to us.
			if before > sent {
				s.send(&etcdserverpb.WatchResponse{Header: header(before), WatchId: id})
				sent = before
			}
			if now, err := s.backend.CurrentRevision(ctx); err == nil {
				before = now
			}
		}
	}
}

// sendEvents returns the revision that was told of, or 0.
func (s *watchStream) sendEvents(id int64, key, end string, from int64, events []*server.Event) int64 {
	if len(events) == 0 {
		return 0
	}
	revision := events[len(events)-1].KV.ModRevision
	if revision < from {
		return 0
	}
	out := make([]*mvccpb.Event, 0, len(events))
	for _, e := range events {
		if e.InRange(key, end) { // NATS tells a watch of one key of its neighbours too (kine 0.16)
			out = append(out, event(e))
		}
	}
	if len(out) == 0 {
		return 0
	}
	s.send(&etcdserverpb.WatchResponse{Header: header(revision), WatchId: id, Events: out})
	return revision
}

func (s *watchStream) sendCompacted(id int64, r server.WatchResult) {
	if s.forget(id) {
		s.send(&etcdserverpb.WatchResponse{
			Header: header(r.CurrentRevision), WatchId: id, Canceled: true,
			CompactRevision: r.CompactRevision, CancelReason: server.ErrCompacted.Error(),
		})
	}
}

// end cancels a watch and tells the client, once.
func (s *watchStream) end(id, revision int64, reason string) {
	if s.forget(id) {
		s.send(&etcdserverpb.WatchResponse{Header: header(revision), WatchId: id, Canceled: true, CancelReason: reason})
	}
}

func (s *watchStream) forget(id int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	cancel, ok := s.cancel[id]
	if ok {
		cancel()
		delete(s.cancel, id)
	}
	return ok
}

// send drops what cannot be sent: the stream is gone then, and its context ends
// every watch on it.
func (s *watchStream) send(r *etcdserverpb.WatchResponse) {
	if r.Header == nil {
		r.Header = header(0)
	}
	s.sending.Lock()
	defer s.sending.Unlock()
	if err := s.stream.Send(r); err != nil && s.stream.Context().Err() == nil {
		s.log.Debug("watch not sent", "component", "datastore", "err", err)
	}
}

func header(revision int64) *etcdserverpb.ResponseHeader {
	return &etcdserverpb.ResponseHeader{Revision: revision}
}

func event(e *server.Event) *mvccpb.Event {
	out := &mvccpb.Event{Type: mvccpb.PUT, Kv: keyValue(e.KV)}
	if e.Delete {
		out.Type = mvccpb.DELETE
	}
	if !e.Create {
		out.PrevKv = keyValue(e.PrevKV)
	}
	return out
}

func keyValue(kv *server.KeyValue) *mvccpb.KeyValue {
	if kv == nil {
		return nil
	}
	out := &mvccpb.KeyValue{
		Key: []byte(kv.Key), Value: kv.Value, Version: kv.Version,
		Lease: kv.Lease, CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision,
	}
	if kv.Key == apiCompactKey {
		out.Key = []byte(compactKey)
		out.Version, out.Value = server.DecodeVersion(kv.Value)
	}
	return out
}
