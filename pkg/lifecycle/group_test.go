package lifecycle_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/lifecycle/lifecycletest"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// journal records events in the order they happen.
type journal struct {
	mu  sync.Mutex
	log []string
}

func (j *journal) note(s string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.log = append(j.log, s)
}

// part starts after boot and notes when it starts and stops.
func (j *journal) part(name string, boot time.Duration) lifecycle.Component {
	return lifecycle.Func(name, func(ctx context.Context, ready func()) error {
		select {
		case <-time.After(boot):
		case <-ctx.Done():
			return nil
		}
		j.note("+" + name)
		ready()
		<-ctx.Done()
		j.note("-" + name)
		return nil
	})
}

func TestGroupStopsInReverse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		g := lifecycle.NewGroup(quiet)
		store := g.Add(j.part("store", 3*time.Second))
		runtime := g.Add(j.part("runtime", time.Second))
		api := g.Add(j.part("api", time.Second), store)
		g.Add(j.part("kubelet", time.Second), api, runtime)

		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		if err := g.Run(ctx); err != nil {
			t.Fatal(err)
		}
		got := strings.Join(j.log, " ")
		// runtime and api both wait only for kubelet, so their order is free.
		const up = "+runtime +store +api +kubelet -kubelet "
		if !slices.Contains([]string{
			up + "-runtime -api -store",
			up + "-api -runtime -store",
			up + "-api -store -runtime",
		}, got) {
			t.Errorf("order = %s", got)
		}
	})
}

func TestGroupFailure(t *testing.T) {
	boom := errors.New("boom")
	tests := map[string]struct {
		run   func(context.Context, func()) error
		want  error
		after time.Duration // how long Run lasts
	}{
		"error":              {func(context.Context, func()) error { return boom }, boom, time.Second},
		"its goroutine ends": {func(context.Context, func()) error { runtime.Goexit(); return nil }, lifecycle.ErrExited, time.Second},
		"early nil":          {func(context.Context, func()) error { return nil }, lifecycle.ErrExited, time.Second},
		"stuck": {func(ctx context.Context, ready func()) error {
			ready()
			time.Sleep(24 * time.Hour)
			return nil
		}, lifecycle.ErrStuck, time.Minute + lifecycle.DefaultGrace},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var j journal
				g := lifecycle.NewGroup(quiet)
				g.Add(lifecycle.Func("bad", tt.run), g.Add(j.part("good", time.Second)))
				ctx, stop := context.WithTimeout(t.Context(), time.Minute)
				defer stop()
				began := time.Now()
				if err := g.Run(ctx); !errors.Is(err, tt.want) {
					t.Errorf("err = %v, want %v", err, tt.want)
				}
				if lasted := time.Since(began); lasted != tt.after {
					t.Errorf("lasted %s, want %s", lasted, tt.after)
				}
				if want := []string{"+good", "-good"}; !reflect.DeepEqual(j.log, want) {
					t.Errorf("journal = %v, want %v", j.log, want)
				}
				time.Sleep(48 * time.Hour) // let the stuck one drain
			})
		})
	}
}

func TestGroupPanicBecomesError(t *testing.T) {
	g := lifecycle.NewGroup(quiet)
	g.Add(lifecycle.Func("p", func(context.Context, func()) error { panic("eek") }))
	if err := g.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "p: panic: eek") {
		t.Errorf("err = %v", err)
	}
}

func TestWithin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := lifecycle.NewGroup(quiet)
		g.Add(lifecycle.Within(time.Minute, lifecycle.Func("slow", func(ctx context.Context, _ func()) error {
			<-ctx.Done()
			return nil
		})))
		began := time.Now()
		if err := g.Run(t.Context()); !errors.Is(err, lifecycle.ErrNotReady) {
			t.Errorf("err = %v", err)
		}
		if lasted := time.Since(began); lasted != time.Minute {
			t.Errorf("gave up after %s, want 1m", lasted)
		}
	})
}

func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		runs := 0
		flaky := lifecycle.Func("flaky", func(ctx context.Context, ready func()) error {
			runs++
			ready()
			if runs < 3 {
				return errors.New("crash")
			}
			<-ctx.Done()
			return nil
		})
		g := lifecycle.NewGroup(quiet)
		g.Add(lifecycle.Restart(quiet, time.Second, flaky))
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		if err := g.Run(ctx); err != nil || runs != 3 {
			t.Errorf("runs = %d, err = %v", runs, err)
		}
	})
}

// Whoever asks is told of a part that is down, and that it was down.
func TestRestartIsToldOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lives, takes, pause = 10 * time.Second, 3 * time.Second, time.Second
		runs := 0
		g := lifecycle.NewGroup(quiet)
		g.Add(lifecycle.Restart(quiet, pause, lifecycle.Func("engine", func(ctx context.Context, ready func()) error {
			runs++
			time.Sleep(takes)
			if runs == 2 {
				return errors.New("no disk")
			}
			ready()
			if runs > 2 {
				<-ctx.Done()
				return nil
			}
			time.Sleep(lives)
			return errors.New("killed")
		})))
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		began := time.Now()
		go func() { ended <- g.Run(ctx) }()
		dies := takes + lives
		for _, tt := range []struct {
			at, since time.Duration
			want      lifecycle.Status
		}{
			{time.Second, 0, lifecycle.Status{State: lifecycle.Starting}},
			{takes + time.Second, takes, lifecycle.Status{State: lifecycle.Ready}},
			{dies + pause/2, dies, lifecycle.Status{State: lifecycle.Restarting, Restarts: 1, Error: "killed"}},
			{dies + pause + time.Second, dies, lifecycle.Status{State: lifecycle.Restarting, Restarts: 1, Error: "killed"}},
			{dies + pause + takes + pause/2, dies, lifecycle.Status{State: lifecycle.Restarting, Restarts: 2, Error: "no disk"}},
			{time.Minute, dies + 2*pause + 2*takes, lifecycle.Status{State: lifecycle.Ready, Restarts: 2, Error: "no disk"}},
		} {
			time.Sleep(time.Until(began.Add(tt.at)))
			tt.want.Name, tt.want.Since = "engine", began.Add(tt.since)
			if got := g.Status()[0]; !reflect.DeepEqual(got, tt.want) {
				t.Errorf("after %s: %+v, want %+v", tt.at, got, tt.want)
			}
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if got := g.Status()[0]; got.State != lifecycle.Stopped || got.Error != "" {
			t.Errorf("at the end: %+v", got)
		}
	})
}

func TestRestartGivesUp(t *testing.T) {
	crash := errors.New("crash")
	tests := map[string]struct {
		serves int // of the runs, how many become ready first
		err    error
		runs   int
		want   error
	}{
		"never ready":                   {err: crash, runs: 5, want: crash},
		"ready once, then never":        {serves: 1, err: crash, runs: 5, want: crash},
		"ready a few times, then never": {serves: 7, err: crash, runs: 11, want: crash},
		"ends without a reason":         {runs: 5, want: lifecycle.ErrExited},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				runs := 0
				c := lifecycle.Restart(quiet, time.Second, lifecycle.Func("c", func(ctx context.Context, ready func()) error {
					if runs++; runs <= tt.serves {
						ready()
					}
					return tt.err
				}))
				began := time.Now()
				if err := c.Run(t.Context(), func() {}); !errors.Is(err, tt.want) || runs != tt.runs {
					t.Errorf("%d runs, err = %v; want %d and %v", runs, err, tt.runs, tt.want)
				}
				if lasted, want := time.Since(began), time.Duration(tt.runs-1)*time.Second; lasted != want {
					t.Errorf("lasted %s, want %s", lasted, want)
				}
			})
		})
	}
}

// TestBegun checks that what needs a unit's start runs together with it, and still
// stops before it.
func TestBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		g := lifecycle.NewGroup(quiet)
		store := g.Add(j.part("store", time.Second))
		api := g.Add(j.part("api", time.Minute), store)
		g.Add(lifecycle.Func("controllers", func(ctx context.Context, ready func()) error {
			err := j.part("controllers", time.Second).Run(ctx, ready)
			time.Sleep(5 * time.Second) // what is left of their work needs the API
			j.note("-controllers' work")
			return err
		}), api.Begun())
		g.Add(j.part("addons", time.Second), api)
		g.Add(lifecycle.Func("proxy", nil), api.Begun(), g.Add(lifecycle.Func("network", func(ctx context.Context, _ func()) error {
			<-ctx.Done() // is never ready
			return nil
		})))

		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- g.Run(ctx) }()

		time.Sleep(500 * time.Millisecond)
		if got := waitOn(g); got != "store: | api: store | controllers: api | addons: api | network: | proxy: api,network" {
			t.Errorf("while the store starts: %s", got)
		}
		time.Sleep(time.Second)
		if got := waitOn(g); got != "store: | api: | controllers: | addons: api | network: | proxy: network" {
			t.Errorf("while the API starts: %s", got)
		}
		time.Sleep(2 * time.Minute)
		stop()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		got := strings.Join(j.log, " ")
		const up = "+store +controllers +api +addons "
		const down = " -controllers' work -api -store"
		if got != up+"-controllers -addons"+down && got != up+"-addons -controllers"+down {
			t.Errorf("order = %s", got)
		}
	})
}

// waitOn tells what each component of g waits for.
func waitOn(g *lifecycle.Group) string {
	var out []string
	for _, s := range g.Status() {
		out = append(out, strings.TrimSpace(s.Name+": "+strings.Join(s.WaitOn, ",")))
	}
	return strings.Join(out, " | ")
}

func TestBegunOfWhatNeverStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		g := lifecycle.NewGroup(quiet)
		boom := errors.New("boom")
		store := g.Add(lifecycle.Func("store", func(context.Context, func()) error { time.Sleep(time.Second); return boom }))
		api := g.Add(j.part("api", 0), store)
		g.Add(j.part("controllers", 0), api.Begun())
		if err := g.Run(t.Context()); !errors.Is(err, boom) {
			t.Errorf("err = %v, want %v", err, boom)
		}
		if len(j.log) != 0 {
			t.Errorf("started without what it needs: %v", j.log)
		}
	})
}

func TestObserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j, seen journal
		g := lifecycle.NewGroup(quiet)
		began := time.Now()
		g.Observe = func(s lifecycle.Status) {
			line := s.Name + " " + string(s.State) + " " + s.Since.Sub(began).String()
			if s.Error != "" {
				line += " " + s.Error
			}
			seen.note(line)
		}
		api := g.Add(j.part("api", time.Second))
		g.Add(lifecycle.Func("bad", func(context.Context, func()) error {
			time.Sleep(time.Minute)
			return errors.New("boom")
		}), api)
		g.Add(lifecycle.Func("after", nil), g.Add(lifecycle.Func("slow", func(ctx context.Context, ready func()) error {
			<-ctx.Done()
			return nil
		})))
		if err := g.Run(t.Context()); err == nil {
			t.Error("no error")
		}
		slices.Sort(seen.log)
		want := []string{
			"after stopped 1m1s",
			"api ready 1s",
			"api starting 0s",
			"api stopped 1m1s",
			"bad failed 1m1s boom",
			"bad starting 1s",
			"slow starting 0s",
			"slow stopped 1m1s",
		}
		if !slices.Equal(seen.log, want) {
			t.Errorf("transitions\n%s\nwant\n%s", strings.Join(seen.log, "\n"), strings.Join(want, "\n"))
		}
	})
}

func TestStatusNamesWhatIsAwaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		g := lifecycle.NewGroup(quiet)
		g.Add(j.part("api", time.Second), g.Add(j.part("store", time.Hour)))
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- g.Run(ctx) }()
		synctest.Wait()
		var api lifecycle.Status
		for _, s := range g.Status() {
			if s.Name == "api" {
				api = s
			}
		}
		if api.State != lifecycle.Waiting || !reflect.DeepEqual(api.WaitOn, []string{"store"}) {
			t.Errorf("status = %+v", api)
		}
		stop()
		<-done
	})
}

func TestContract(t *testing.T) {
	var j journal
	lifecycletest.Check(t, j.part("x", 0))
}

// TestHasty: what is not ready when it is told to stop is left behind, what is ready is
// waited for, and what fails before that has failed.
func TestHasty(t *testing.T) {
	never := make(chan struct{})
	t.Cleanup(func() { close(never) })
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := lifecycle.Hasty(lifecycle.Func("slow", func(context.Context, func()) error { <-never; return nil })).Run(ctx, func() {}); err != nil {
		t.Errorf("left behind: %v", err)
	}

	ctx, stop = context.WithCancel(t.Context())
	ended := false
	err := lifecycle.Hasty(lifecycle.Func("ready", func(ctx context.Context, ready func()) error {
		ready()
		<-ctx.Done()
		time.Sleep(20 * time.Millisecond)
		ended = true
		return nil
	})).Run(ctx, stop)
	if err != nil || !ended {
		t.Errorf("ready: ended %v, %v", ended, err)
	}

	broken := errors.New("broken")
	if err := lifecycle.Hasty(lifecycle.Func("broken", func(context.Context, func()) error { return broken })).Run(t.Context(), func() {}); !errors.Is(err, broken) {
		t.Errorf("error %v, want %v", err, broken)
	}
	if err := lifecycle.Hasty(lifecycle.Func("mad", func(context.Context, func()) error { panic("grapes") })).Run(t.Context(), func() {}); err == nil || !strings.Contains(err.Error(), "panic: grapes") {
		t.Errorf("error %v, want a panic", err)
	}
}
