// Package offline lets a node that boots while no server answers run what it last had.
//
// The kubelet and kube-proxy know their pods, services and secrets from the API alone,
// and after a boot they know nothing. A Memory stands between them and the API: it
// keeps what they read in a file, and answers from it when no server can be reached.
// It is at the level of HTTP, because that is where all of it passes.
//
// While a server answers, requests pass as they are. What is kept is the kubelet's
// own view: every list and watch that it has seen complete, the claims and volumes of
// its pods, and the tokens that it was given for them. Secrets, ConfigMaps and tokens
// are forgotten together with the last pod that needs them.
//
// When no server answers, a list is what it was, and a watch begins with the same and
// is then silent. As soon as a server is ready again such watches end as expired,
// which makes their reader list anew: what was changed or deleted meanwhile is changed
// or deleted then. Only the addresses of the node's own pods, which are others after a
// boot, are kept up to date in between. Writes are never answered.
package offline

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/podo-dev/podo/pkg/atomicfile"
)

// pace says how long things take.
type pace struct {
	patience time.Duration // with servers that do not answer, before memory does
	silence  time.Duration // of one server that was asked
	again    time.Duration // between two attempts to reach one
}

// A server that restarts, or a balancer that has not looked around yet, should not
// have a node start pods that were deleted while it was off. A host that is off is
// noticed in one and a half seconds.
func usual() pace {
	return pace{patience: 3 * time.Second, silence: 10 * time.Second, again: time.Second}
}

// A Memory is what one component has read from the API.
type Memory struct {
	ctx     context.Context
	journal *journal
	log     *slog.Logger
	pace    pace
	local   *local // nil if it need not know

	mu   sync.Mutex
	back chan struct{} // closed when a server is ready again; nil if one is
	pods bool          // pods have come or gone since the last sweep
}

// Open reads what the component called name knew, below dir. It works until ctx ends
// or it is closed.
func Open(ctx context.Context, dir, name string, log *slog.Logger) (*Memory, error) {
	if err := atomicfile.EnsureDir(dir, 0o700); err != nil {
		return nil, err
	}
	m := &Memory{ctx: ctx, log: log.With("component", name), pace: usual()}
	var err error
	m.journal, err = openJournal(filepath.Join(dir, name), m.log, m.sweep)
	return m, err
}

// Close keeps what is not on disk yet.
func (m *Memory) Close() { m.journal.close() }

// Serve puts the memory between clients made from c and the API.
func (m *Memory) Serve(c *rest.Config) {
	c.Wrap(func(next http.RoundTripper) http.RoundTripper { return &transport{m, next} })
}

// away reports whether no server answers, with what is closed when one does.
func (m *Memory) away() (back <-chan struct{}, away bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.back, m.back != nil
}

// transport is one client's way through the memory.
type transport struct {
	memory *Memory
	next   http.RoundTripper
}

// WrappedRoundTripper lets client-go find the transport below.
func (t *transport) WrappedRoundTripper() http.RoundTripper { return t.next }

// RoundTrip passes a request on and remembers the answer, or answers itself.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	q := understand(r)
	switch {
	case q.kind == other:
		return t.next.RoundTrip(r)
	case q.kind == follow || !t.memory.knows(q):
		res, err := t.next.RoundTrip(r)
		return t.memory.hear(q, res), err
	}
	res, err := t.ask(r)
	if err == nil || r.Context().Err() != nil {
		return t.memory.hear(q, res), err
	}
	if answer := t.memory.answer(r, q); answer != nil {
		return answer, nil
	}
	return nil, err
}

// ask puts a question that memory could answer. It returns an error if no server is
// ready, after some patience.
func (t *transport) ask(r *http.Request) (*http.Response, error) {
	began := time.Now()
	for {
		if _, away := t.memory.away(); away {
			return nil, errAway
		}
		res, err := t.once(r)
		if err == nil || r.Context().Err() != nil {
			return res, err
		}
		if time.Since(began) > t.memory.pace.patience {
			t.memory.leave(t.next, r, err)
			return nil, err
		}
		select {
		case <-r.Context().Done():
			return nil, r.Context().Err()
		case <-time.After(t.memory.pace.again / 4):
		}
	}
}

// once asks once. A server that does not begin to answer is as good as none.
func (t *transport) once(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	try := r.Clone(ctx)
	if r.GetBody != nil {
		body, err := r.GetBody()
		if err != nil {
			cancel(nil)
			return nil, err
		}
		try.Body = body
	}
	timer := time.AfterFunc(t.memory.pace.silence, func() { cancel(errSilent) })
	res, err := t.next.RoundTrip(try)
	timer.Stop()
	if err == nil && unready(res.StatusCode) {
		io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10))
		res.Body.Close()
		err = &notReady{res.Status}
	}
	if err != nil {
		if context.Cause(ctx) == errSilent {
			err = errSilent
		}
		cancel(nil)
		return nil, err
	}
	res.Body = &ending{res.Body, func() { cancel(nil) }}
	return res, nil
}

// unready reports whether a status says that nobody was there to judge the request.
func unready(status int) bool {
	return status == http.StatusBadGateway || status == http.StatusServiceUnavailable || status == http.StatusGatewayTimeout
}

// leave takes note that no server answers, and looks for one until one does.
func (m *Memory) leave(next http.RoundTripper, r *http.Request, why error) {
	m.look()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.back != nil {
		return
	}
	m.back = make(chan struct{})
	m.log.Warn("no server answers; going by what was known last", "err", why)
	url := *r.URL
	url.Path, url.RawPath, url.RawQuery = "/readyz", "", ""
	go func() {
		for !m.reaches(next, url.String()) {
			select {
			case <-m.ctx.Done():
				return
			case <-time.After(m.pace.again):
			}
			m.look()
		}
		m.log.Info("a server answers again")
		m.mu.Lock()
		defer m.mu.Unlock()
		close(m.back)
		m.back = nil
	}()
}

func (m *Memory) reaches(next http.RoundTripper, url string) bool {
	ctx, cancel := context.WithTimeout(m.ctx, m.pace.silence)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	res, err := next.RoundTrip(r)
	if err != nil {
		return false
	}
	io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10))
	res.Body.Close()
	return res.StatusCode == http.StatusOK
}

// knows reports whether memory could answer.
func (m *Memory) knows(q question) bool {
	switch q.kind {
	case list, watch, follow:
		return m.journal.get(markKey(q.view)) != nil
	case get, token:
		return m.journal.get(q.key) != nil
	}
	return false
}

// answer is what memory has, or nil.
func (m *Memory) answer(r *http.Request, q question) *http.Response {
	var body io.ReadCloser
	status, kind := http.StatusOK, protobuf
	switch q.kind {
	case get, token:
		text := m.journal.get(q.key)
		if text == nil {
			return nil
		}
		if q.kind == token {
			status = http.StatusCreated
		}
		body = io.NopCloser(bytes.NewReader(text))
	case list:
		text, err := m.list(q.view)
		if err != nil {
			m.log.Warn("remembered objects not readable", "path", q.view, "err", err)
			return nil
		}
		body = io.NopCloser(bytes.NewReader(text))
	case watch:
		pods, changed := m.present()
		text, err := m.watch(q.view, pods)
		if err != nil {
			m.log.Warn("remembered objects not readable", "path", q.view, "err", err)
			return nil
		}
		kind = protobufStream
		back, _ := m.away()
		s := newStill(r.Context(), text, back)
		if adapts(q.view) {
			s.memory, s.view, s.changed = m, q.view, changed
		}
		body = s
	}
	return &http.Response{
		Status: strconv.Itoa(status) + " " + http.StatusText(status), StatusCode: status,
		Proto: r.Proto, ProtoMajor: r.ProtoMajor, ProtoMinor: r.ProtoMinor,
		Header: http.Header{"Content-Type": {kind}}, Body: body, ContentLength: -1, Request: r,
	}
}

// objects reads a view.
func (m *Memory) objects(view string) (mark, [][]byte, error) {
	is, ok := readMark(m.journal.get(markKey(view)))
	if !ok {
		return is, nil, errMalformed
	}
	var out [][]byte
	for _, key := range m.journal.keys(objectKey(view, "")) {
		if text := m.journal.get(key); text != nil {
			out = append(out, text)
		}
	}
	return is, out, nil
}

// list is a view as a list.
func (m *Memory) list(view string) ([]byte, error) {
	is, objects, err := m.objects(view)
	if err != nil {
		return nil, err
	}
	var items [][]byte
	for _, text := range objects {
		o, err := open(text)
		if err != nil {
			return nil, err
		}
		items = append(items, o.Raw)
	}
	raw, err := join(metav1.ListMeta{ResourceVersion: is.version}, items)
	if err != nil {
		return nil, err
	}
	return seal(is.apiVersion, is.kind+"List", raw)
}

// watch is a view as a watch begins.
func (m *Memory) watch(view string, pods map[string][]netip.Addr) ([]byte, error) {
	is, objects, err := m.objects(view)
	if err != nil {
		return nil, err
	}
	var buf []byte
	for _, text := range objects {
		if adapts(view) {
			if text, err = m.adapt(text, pods); err != nil {
				return nil, err
			}
		}
		if buf, err = frame(buf, "ADDED", text); err != nil {
			return nil, err
		}
	}
	end := metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
		ResourceVersion: is.version, Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"},
	}}
	raw, err := end.Marshal()
	if err != nil {
		return nil, err
	}
	object, err := seal(is.apiVersion, is.kind, raw)
	if err != nil {
		return nil, err
	}
	return frame(buf, "BOOKMARK", object)
}

// expired is the last event of a watch whose reader is to list anew.
func expired() []byte {
	status := metav1.Status{
		Status: metav1.StatusFailure, Reason: metav1.StatusReasonExpired, Code: http.StatusGone,
		Message: "a server answers again",
	}
	raw, err := status.Marshal()
	if err != nil {
		return nil
	}
	object, err := seal("v1", "Status", raw)
	if err != nil {
		return nil
	}
	text, _ := frame(nil, "ERROR", object)
	return text
}

// still is a watch on which nothing happens until a server is back, but for what this
// node knows by itself.
type still struct {
	memory  *Memory // nil if nothing can happen
	view    string
	changed <-chan struct{}

	ctx    context.Context
	end    context.CancelFunc
	text   []byte
	back   <-chan struct{} // nil once it has been seen closed
	silent bool
}

func newStill(ctx context.Context, text []byte, back <-chan struct{}) *still {
	ctx, end := context.WithCancel(ctx)
	s := &still{ctx: ctx, end: end, text: text, back: back}
	if back == nil { // it came back just now
		s.text, s.silent = append(text, expired()...), true
	}
	return s
}

func (s *still) Read(p []byte) (int, error) {
	for len(s.text) == 0 && !s.silent {
		select {
		case <-s.ctx.Done():
			return 0, s.ctx.Err()
		case <-s.back:
			s.text, s.silent = expired(), true
		case <-s.changed:
			var pods map[string][]netip.Addr
			pods, s.changed = s.memory.present()
			s.text = s.memory.update(s.view, pods)
		}
	}
	if len(s.text) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.text)
	if s.text = s.text[n:]; len(s.text) == 0 {
		s.text = nil
	}
	return n, nil
}

func (s *still) Close() error {
	s.end()
	return nil
}

// ending calls then when it is closed.
type ending struct {
	io.ReadCloser
	then func()
}

func (e *ending) Close() error {
	defer e.then()
	return e.ReadCloser.Close()
}
