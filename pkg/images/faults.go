package images

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typed "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
)

// How long what failed waits for the next try.
const (
	firstPause = time.Second
	lastPause  = 5 * time.Minute
)

// Faults are what keeps files from being imported.
type faults struct {
	tell  func(path string, err error)
	known map[string]fault // by path
}

func newFaults(tell func(path string, err error)) faults {
	return faults{tell: tell, known: map[string]fault{}}
}

type fault struct {
	of    stamp
	err   error
	room  int64 // that there was
	again time.Time
	pause time.Duration
}

// due reports whether to try a file: one that has no fault, or has changed, or whose
// fault may have passed. There has to be a good deal more room for one that took too
// much, since it takes long to find out.
func (f faults) due(s source, room int64) bool {
	was, ok := f.known[s.path]
	switch {
	case !ok || was.of != s.stamp:
		return true
	case errors.Is(was.err, errBad):
		return false
	case errors.Is(was.err, errFull):
		return room > was.room+was.room/8
	}
	return !time.Now().Before(was.again)
}

// note keeps what an attempt came to, and tells of what is new.
func (f faults) note(s source, room int64, err error) {
	if err == nil {
		delete(f.known, s.path)
		return
	}
	was, ok := f.known[s.path]
	if !ok || was.of != s.stamp {
		was = fault{}
	}
	if was.err == nil || was.err.Error() != err.Error() {
		f.tell(s.path, err)
	}
	pause := min(max(2*was.pause, firstPause), lastPause)
	f.known[s.path] = fault{of: s.stamp, err: err, room: room, again: time.Now().Add(pause), pause: pause}
}

// forget drops the faults of files that are gone.
func (f faults) forget(isThere func(path string) bool) {
	for path := range f.known {
		if !isThere(path) {
			delete(f.known, path)
		}
	}
}

// next is how long it is to the next try that time alone leads to; 0 if there is none.
func (f faults) next() time.Duration {
	var next time.Duration
	for _, was := range f.known {
		if errors.Is(was.err, errBad) || errors.Is(was.err, errFull) {
			continue
		}
		if left := max(time.Until(was.again), time.Millisecond); next == 0 || left < next {
			next = left
		}
	}
	return next
}

// A teller says which files are left out: in the log, and in events of the node.
type teller struct {
	node   string
	client func() (kubernetes.Interface, error)
	log    *slog.Logger
	queue  chan string
}

func (t *teller) about(path string, err error) {
	t.log.Error("images left out", "path", path, "err", err)
	select {
	case t.queue <- fmt.Sprintf("%s: %v", path, err):
	default: // the log has it
	}
}

// run sends events until ctx ends. It makes a client for the first: most nodes need none,
// and one that joins may have archives before it has certificates.
func (t *teller) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case first := <-t.queue:
			api, err := t.client()
			for ; err != nil && ctx.Err() == nil; api, err = t.client() {
				wait(ctx, 5*time.Second)
			}
			if err == nil {
				t.send(ctx, api, first)
			}
		}
	}
}

func (t *teller) send(ctx context.Context, api kubernetes.Interface, text string) {
	sender := record.NewBroadcaster()
	defer sender.Shutdown()
	sender.StartRecordingToSink(&typed.EventSinkImpl{Interface: api.CoreV1().Events("")})
	events := sender.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "podo", Host: t.node})
	for {
		// As the kubelet does, by the node's name for its UID.
		events.Event(&corev1.ObjectReference{Kind: "Node", Name: t.node, UID: types.UID(t.node)}, corev1.EventTypeWarning, "ImagesLeftOut", text)
		select {
		case <-ctx.Done():
			return
		case text = <-t.queue:
		}
	}
}
