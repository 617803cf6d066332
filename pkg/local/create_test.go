package local

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestFinish: whoever interrupts before a cluster is given to its user gets none, and
// whoever does so afterwards has it. What failed then is told.
func TestFinish(t *testing.T) {
	broken := errors.New("broken")
	for name, tt := range map[string]struct {
		made, then    error
		before, after bool // interrupted
		want          error
		called        bool
	}{
		"all is well":            {called: true},
		"interrupted before":     {before: true, want: ErrInterrupted},
		"interrupted in making":  {made: context.Canceled, before: true, want: ErrInterrupted},
		"interrupted afterwards": {after: true, called: true},
		"not made":               {made: broken, want: broken},
		"not given":              {then: broken, want: broken, called: true},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, interrupt := context.WithCancel(t.Context())
			defer interrupt()
			if tt.before {
				interrupt()
			}
			called := false
			o := Options{Then: func(Cluster) error {
				called = true
				if tt.after {
					interrupt()
				}
				return tt.then
			}}
			if err := o.finish(ctx, Cluster{}, tt.made); !errors.Is(err, tt.want) || called != tt.called {
				t.Errorf("got %v, called %t; want %v, %t", err, called, tt.want, tt.called)
			}
		})
	}
}

// TestFound: a cluster is locked from when it has its name. One that cannot be written down
// leaves nothing.
func TestFound(t *testing.T) {
	s := Site{Dir: filepath.Join(t.TempDir(), "clusters")}
	if _, err := s.found(t.Context(), Cluster{Name: "c", Shared: Settings{"odd": func() {}}}); err == nil {
		t.Error("what is no JSON is written down")
	}
	if left, err := os.ReadDir(s.Dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	release, err := s.found(t.Context(), Cluster{Name: "c"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load("c"); err != nil {
		t.Error(err)
	}
	late, end := context.WithCancel(t.Context())
	end()
	if again, err := hold(late, s.dir("c")); err == nil {
		again()
		t.Error("others can have a cluster that is being made")
	}
	release()
	again, err := hold(late, s.dir("c"))
	if err != nil {
		t.Fatal(err)
	}
	again()
}
