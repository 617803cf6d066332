package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
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
	s := Site{Dir: t.TempDir()}
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

// TestHoldOfARemovedFolder: who waited for a folder that was removed has no lock, also if
// there is another of its name; and the folder of all clusters is made again.
func TestHoldOfARemovedFolder(t *testing.T) {
	s := Site{Dir: filepath.Join(t.TempDir(), "clusters")}
	waiting := func(take func() (func(), error)) func() (func(), error) {
		type lock struct {
			release func()
			err     error
		}
		got := make(chan lock, 1)
		go func() {
			release, err := take()
			got <- lock{release, err}
		}()
		return func() (func(), error) { l := <-got; return l.release, l.err }
	}
	for _, again := range []bool{false, true} {
		release, err := s.holdAll(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		one := waiting(func() (func(), error) { return hold(t.Context(), s.Dir) })
		all := waiting(func() (func(), error) { return s.holdAll(t.Context()) })
		for deadline := time.Now().Add(time.Minute); opened(t, s.Dir) < 3; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the folder is not waited for")
			}
		}
		if err := os.Remove(s.Dir); err != nil {
			t.Fatal(err)
		}
		if again {
			if err := os.Mkdir(s.Dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		release()
		if _, err := one(); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("made again %t: got %v, want %v", again, err, fs.ErrNotExist)
		}
		release, err = all()
		if err != nil {
			t.Fatal(err)
		}
		late, end := context.WithCancel(t.Context())
		end()
		if _, err := hold(late, s.Dir); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("made again %t: the folder of all clusters is not locked: %v", again, err)
		}
		release()
	}
}

// opened is how many files this process has for a folder.
func opened(t *testing.T, dir string) (n int) {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range all {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && to == dir {
			n++
		}
	}
	return n
}

// TestSettleTells: whoever waits sees what for, also without podo's pod network, where nodes
// do not become Ready.
func TestSettleTells(t *testing.T) {
	var told []string
	s := Site{Dir: t.TempDir(), Step: func(words string) func(error) {
		return func(err error) { told = append(told, fmt.Sprintf("%s, failed: %t", words, err != nil)) }
	}}
	nodes := []Node{{Name: "a", Role: ControlPlane}, {Name: "b", Role: Worker}}
	for _, tt := range []struct {
		shared Settings
		list   []Node
		wait   time.Duration
		want   string
	}{
		{Settings{}, nodes, time.Minute, "all nodes are Ready"},
		{Settings{}, nodes[1:], time.Minute, "it is Ready"},
		{Settings{}, nodes, 0, "all nodes are known to the API"},
		{Settings{"flannel-backend": "none"}, nodes[1:], time.Minute, "it is known to the API"},
	} {
		told = nil
		err := s.settle(t.Context(), Cluster{Name: "c", Nodes: nodes, Shared: tt.shared}, tt.list, nil, tt.wait)
		if want := "Waiting until " + tt.want + ", failed: true"; err == nil || !slices.Equal(told, []string{want}) {
			t.Errorf("told %q, %v; want %q", told, err, want)
		}
	}
}

// TestHasFamily: a family that links cannot have here is refused before any is made.
func TestHasFamily(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"on": "0\n", "off": "1\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		family, kernel, want string
	}{
		{"", "off", ""}, {"ipv4", "absent", ""}, {"dual", "on", ""}, {"ipv6", "on", ""},
		{"ipv6", "off", "sysctl -w net.ipv6.conf.all.disable_ipv6=0"}, {"dual", "off", "IPv6 is off"}, {"dual", "absent", "runs without IPv6"},
	} {
		err := hasFamily(tt.family, filepath.Join(dir, tt.kernel))
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s where IPv6 is %s: %v, want %q", tt.family, tt.kernel, err, tt.want)
		}
	}
}

// TestRegistryPortIsTaken: the error names the flag, and nothing is left.
func TestRegistryPortIsTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := Site{Dir: filepath.Join(t.TempDir(), "clusters")}
	_, _, err = s.begin(t.Context(), "c", File{}, Options{Registry: true, RegistryPort: l.Addr().(*net.TCPAddr).Port})
	if err == nil || !strings.HasPrefix(err.Error(), "--registry-port: TCP port 127.0.0.1:") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(s.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
}
