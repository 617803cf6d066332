package lease

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/podo-dev/podo/pkg/lifecycle"
)

const object = "podo-kube-scheduler"

// api keeps one Lease as an API server would, and its former self for readers who
// ask for what is in memory.
type api struct {
	mu     sync.Mutex
	lease  *coordinationv1.Lease
	before *coordinationv1.Lease
	since  time.Time
	lag    time.Duration // of reads from memory
	last   int
	writes int
}

func (a *api) serve(method, version string, body []byte) (int, any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var in coordinationv1.Lease
	if err := json.Unmarshal(body, &in); len(body) > 0 && err != nil {
		return http.StatusBadRequest, metav1.StatusReasonBadRequest
	}
	switch now := a.lease; {
	case method == http.MethodGet:
		if version == "0" && time.Since(a.since) < a.lag {
			now = a.before
		}
		if now == nil {
			return http.StatusNotFound, metav1.StatusReasonNotFound
		}
		return http.StatusOK, now
	case method == http.MethodPost && now != nil:
		return http.StatusConflict, metav1.StatusReasonAlreadyExists
	case method == http.MethodPut && now == nil:
		return http.StatusNotFound, metav1.StatusReasonNotFound
	case method == http.MethodPut && in.ResourceVersion != now.ResourceVersion:
		return http.StatusConflict, metav1.StatusReasonConflict
	}
	a.last++
	a.writes++
	in.ResourceVersion = strconv.Itoa(a.last)
	a.lease, a.before, a.since = &in, a.lease, time.Now()
	return http.StatusOK, &in
}

// age is how long ago the object was written.
func (a *api) age() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Since(a.since)
}

func (a *api) holder() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lease == nil || a.lease.Spec.HolderIdentity == nil {
		return ""
	}
	return *a.lease.Spec.HolderIdentity
}

// What a link does with a request.
const (
	passes  = iota
	refuses // at once
	hangs   // and it never arrives
	mute    // it arrives, and its answer does not
	slow    // it arrives late, whether or not somebody still waits
	kinds
)

// A link is one process's way to the api.
type link struct {
	api    *api
	does   atomic.Int32
	delay  atomic.Int64
	called atomic.Int32
}

func (l *link) RoundTrip(r *http.Request) (*http.Response, error) {
	l.called.Add(1)
	does := l.does.Load()
	switch does {
	case refuses:
		return nil, errors.New("connection refused")
	case hangs:
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
	}
	reply := make(chan *http.Response, 1)
	go func() {
		if does == slow {
			time.Sleep(time.Duration(l.delay.Load()))
		}
		code, out := l.api.serve(r.Method, r.URL.Query().Get("resourceVersion"), body)
		if reason, ok := out.(metav1.StatusReason); ok {
			out = map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason}
		}
		text, _ := json.Marshal(out)
		if does != mute {
			reply <- &http.Response{StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(text)), Request: r}
		}
	}()
	select {
	case answer := <-reply:
		return answer, nil
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
}

func (l *link) client() (*rest.Config, error) {
	return &rest.Config{Host: "http://api", Transport: l, QPS: -1, ContentConfig: rest.ContentConfig{ContentType: "application/json"}}, nil
}

// A server is one process that stands in line.
type server struct {
	*Holder
	link  *link
	ready atomic.Bool
	kill  context.CancelFunc
	ended chan error
	works atomic.Bool
	dead  atomic.Bool
	ends  time.Duration // how long its part takes to stop
	crew  *crew
}

// crew watches that at most one part works at a time.
type crew struct {
	t      *testing.T
	api    *api
	active atomic.Int32
	shifts atomic.Int32
	log    *slog.Logger
}

func newCrew(t *testing.T) *crew {
	t.Cleanup(func() { time.Sleep(2 * time.Hour) }) // lets what is stuck end
	return &crew{t: t, api: &api{}, log: slog.New(slog.NewTextHandler(t.Output(), nil))}
}

func (c *crew) start(identity string, ends time.Duration) *server {
	s := &server{link: &link{api: c.api}, crew: c, ends: ends, ended: make(chan error, 1)}
	part := lifecycle.Func("kube-scheduler", func(ctx context.Context, ready func()) error {
		if n := c.active.Add(1); n > 1 {
			c.t.Errorf("%s: %d parts at work", identity, n)
		}
		c.shifts.Add(1)
		s.works.Store(true)
		ready()
		<-ctx.Done()
		if !s.dead.Load() {
			time.Sleep(s.ends)
		}
		s.rest()
		return nil
	})
	s.Holder = Hold(Options{
		Name:     object,
		Identity: identity,
		Client:   s.link.client,
		Log:      c.log.With("node", identity),
	}, part)
	ctx, kill := context.WithCancel(c.t.Context())
	s.kill = kill
	go func() {
		err := s.Run(ctx, func() { s.ready.Store(true) })
		s.rest() // the process is over, whatever its part does
		s.ended <- err
	}()
	return s
}

// rest says that a server's part does nothing any more.
func (s *server) rest() {
	if s.works.CompareAndSwap(true, false) {
		s.crew.active.Add(-1)
	}
}

// crash ends a server as kill -9 does.
func (s *server) crash() {
	s.dead.Store(true)
	s.link.does.Store(refuses)
	s.rest()
	s.kill()
}

// await returns how long it took until ok, which is looked at often.
func await(t *testing.T, what string, ok func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !ok() {
		if time.Since(began) > time.Minute {
			t.Fatalf("waited a minute for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(began)
}

func TestTimesFit(t *testing.T) {
	if deadline+stop >= lasts {
		t.Error("a part may still be stopping when its lease passes on")
	}
	if lasts+look > 15*time.Second {
		t.Error("a leader's end is noticed too late")
	}
	if renew+patience >= deadline {
		t.Error("no time to try a renewal twice")
	}
}

func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrew(t)
		a := c.start("a", 2*time.Second)
		await(t, "a to lead", a.Leading)
		b := c.start("b", 0)
		await(t, "b to be ready", b.ready.Load)
		if b.Leading() || b.works.Load() || !a.ready.Load() {
			t.Error("b leads together with a, or a is not ready")
		}
		time.Sleep(time.Minute)
		if !a.Leading() || b.Leading() {
			t.Error("the lease has passed on for no reason")
		}
		a.kill()
		if took := await(t, "b to lead", b.Leading); took < a.ends || took > a.ends+look {
			t.Errorf("b led %s after a was told to stop, which took a %s", took, a.ends)
		}
		if err := <-a.ended; err != nil || a.Leading() {
			t.Errorf("a ended with %v", err)
		}
		b.kill()
		if err := <-b.ended; err != nil || c.api.holder() != "" {
			t.Errorf("b ended with %v and left the lease to %q", err, c.api.holder())
		}
		if l := c.api.lease.Spec; *l.LeaseTransitions != 1 || *l.LeaseDurationSeconds != 13 {
			t.Errorf("lease ended as %+v", l)
		}
	})
}

// TestStopInLine checks that a server that never led leaves the lease alone.
func TestStopInLine(t *testing.T) {
	for name, does := range map[string]int32{"in line": passes, "no answer": hangs, "refused": refuses} {
		synctest.Test(t, func(t *testing.T) {
			c := newCrew(t)
			a := c.start("a", 0)
			await(t, "a to lead", a.Leading)
			b := c.start("b", 0)
			b.link.does.Store(does)
			time.Sleep(time.Minute)
			b.kill()
			synctest.Wait()
			if err := <-b.ended; err != nil || c.api.holder() != "a" {
				t.Errorf("%s: ended with %v and %q as holder", name, err, c.api.holder())
			}
			a.kill()
			<-a.ended
		})
	}
}

func TestTakeover(t *testing.T) {
	for wait := range 8 {
		synctest.Test(t, func(t *testing.T) {
			c := newCrew(t)
			a := c.start("a", 0)
			await(t, "a to lead", a.Leading)
			others := []*server{c.start("b", 0), c.start("c", 0)}
			time.Sleep(time.Minute + time.Duration(wait)*700*time.Millisecond)
			a.crash()
			led := func() bool { return others[0].Leading() || others[1].Leading() }
			if took := await(t, "b or c to lead", led); took < lasts-renew || took > lasts+look {
				t.Errorf("took over after %s", took)
			}
			time.Sleep(time.Minute)
			if others[0].Leading() == others[1].Leading() {
				t.Error("both lead")
			}
			for _, s := range others {
				s.kill()
				if err := <-s.ended; err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestOutage checks how long an API may be away for one leader.
func TestOutage(t *testing.T) {
	for _, does := range []int32{refuses, hangs, mute, slow} {
		tests := map[string]struct {
			lasts time.Duration
			ends  time.Duration
			want  string
		}{
			"short":          {lasts: deadline - renew - patience, ends: time.Second},
			"long":           {lasts: time.Minute, ends: time.Second, want: "lost the lease podo-kube-scheduler: not renewed for 9s: "},
			"long and stuck": {lasts: time.Minute, ends: time.Hour, want: ", and kube-scheduler did not stop in time; this process starts anew"},
		}
		for name, tt := range tests {
			t.Run(fmt.Sprint(name, " ", does), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c := newCrew(t)
					a := c.start("a", tt.ends)
					await(t, "a to lead", a.Leading)
					b := c.start("b", 0)
					time.Sleep(time.Minute)
					a.link.delay.Store(int64(time.Minute))
					await(t, "a renewal", func() bool { return c.api.age() < 2*time.Millisecond })
					a.link.does.Store(does)
					time.Sleep(tt.lasts)
					a.link.does.Store(passes)
					time.Sleep(time.Minute)
					switch {
					case tt.want == "" && (!a.Leading() || b.Leading()):
						t.Error("the lease is lost")
					case tt.want == "":
						a.kill()
					case !b.Leading():
						t.Error("b does not lead")
					}
					err := <-a.ended
					if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
						t.Errorf("a ended with %v, want %q", err, tt.want)
					}
					if stuck := tt.ends > stop; tt.want != "" && errors.Is(err, lifecycle.ErrStuck) != stuck {
						t.Errorf("a ended with %v; stuck: %v", err, stuck)
					}
					b.kill()
					<-b.ended
				})
			})
		}
	}
}

// TestTaken checks that a leader notices at its next renewal that another has its
// lease, and that it puts back one that was deleted.
func TestTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrew(t)
		a, b := c.start("a", 0), c.start("b", 0)
		await(t, "a leader", func() bool { return a.Leading() || b.Leading() })
		if b.Leading() {
			a, b = b, a
		}
		time.Sleep(time.Minute)
		c.api.mu.Lock()
		c.api.lease = nil
		c.api.mu.Unlock()
		time.Sleep(time.Minute)
		if !a.Leading() || b.Leading() || c.api.holder() != a.options.Identity {
			t.Error("deleting the object changed the leader")
		}
		b.kill()
		<-b.ended

		c.api.mu.Lock()
		thief, taken := "thief", c.api.lease.DeepCopy()
		taken.Spec.HolderIdentity, taken.ResourceVersion = &thief, "x"
		c.api.lease = taken // what was stored may still be on its way to a reader
		c.api.mu.Unlock()
		began := time.Now()
		err := <-a.ended
		if took := time.Since(began); err == nil || !strings.Contains(err.Error(), "taken over by thief") || took > renew {
			t.Errorf("a ended after %s with %v", took, err)
		}
	})
}

// TestEnd checks that the lease of a part that ends by itself is not given away.
func TestEnd(t *testing.T) {
	boom := errors.New("boom")
	tests := map[string]struct {
		run  func() error
		want string
	}{
		"error": {func() error { return boom }, "boom"},
		"panic": {func() error { panic("eek") }, "panic: eek"},
	}
	for name, tt := range tests {
		synctest.Test(t, func(t *testing.T) {
			c := newCrew(t)
			way := &link{api: c.api}
			h := Hold(Options{Name: object, Identity: "a", Log: c.log, Client: way.client}, lifecycle.Func("p", func(context.Context, func()) error { time.Sleep(time.Minute); return tt.run() }))
			err := h.Run(t.Context(), func() {})
			if err == nil || !strings.Contains(err.Error(), tt.want) || c.api.holder() != "a" || h.Leading() {
				t.Errorf("%s: ended with %v, holder %q", name, err, c.api.holder())
			}
		})
	}
}

// TestWrites counts what an hour of calm costs the datastore.
func TestWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrew(t)
		a, b := c.start("a", 0), c.start("b", 0)
		time.Sleep(time.Hour)
		c.api.mu.Lock()
		writes := c.api.writes
		c.api.mu.Unlock()
		if want := int(time.Hour / renew); writes < want-1 || writes > want+1 {
			t.Errorf("%d writes in an hour, want %d", writes, want)
		}
		a.kill()
		b.kill()
		<-a.ended
		<-b.ended
	})
}

// TestNeverTwo lets three servers live through random trouble with the API, stops
// and crashes. That at most one works at a time is checked by crew.
func TestNeverTwo(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { storm(t, rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

func storm(t *testing.T, r *rand.Rand) {
	c := newCrew(t)
	c.log = slog.New(slog.DiscardHandler)
	c.api.lag = time.Duration(r.IntN(3)) * time.Second
	names := 0
	join := func() *server {
		names++
		ends := time.Duration(r.IntN(2900)) * time.Millisecond
		if r.IntN(5) == 0 {
			ends = time.Hour
		}
		return c.start(strconv.Itoa(names), ends)
	}
	servers := []*server{join(), join(), join()}
	losses := 0
	for range 400 {
		time.Sleep(time.Duration(r.IntN(6000)) * time.Millisecond)
		i := r.IntN(len(servers))
		s := servers[i]
		switch r.IntN(12) {
		case 0:
			s.kill()
		case 1:
			s.crash()
		case 2, 3:
			for _, s := range servers {
				s.link.does.Store(passes)
			}
		case 4:
			does := int32(r.IntN(kinds))
			for _, s := range servers {
				s.link.does.Store(does)
			}
		default:
			s.link.delay.Store(int64(r.IntN(20_000)) * int64(time.Millisecond))
			s.link.does.Store(int32(r.IntN(kinds)))
		}
		for i, s := range servers {
			select {
			case err := <-s.ended:
				if err != nil {
					losses++
				}
				servers[i] = join()
			default:
			}
		}
	}
	// Whatever has been, a calm API has a leader soon.
	for i, s := range servers {
		s.link.does.Store(passes)
		select {
		case <-s.ended:
			servers[i] = join()
		default:
		}
	}
	time.Sleep(2 * (lasts + look))
	if c.active.Load() != 1 {
		t.Errorf("%d parts at work in the end", c.active.Load())
	}
	for _, s := range servers {
		s.kill()
		<-s.ended
	}
	if c.shifts.Load() < 10 || losses == 0 {
		t.Errorf("%d shifts and %d losses show little", c.shifts.Load(), losses)
	}
}
