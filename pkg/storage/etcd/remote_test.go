package etcd

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/pkg/lifecycle/lifecycletest"
	"github.com/podo-dev/podo/pkg/plan"
)

// runRemote runs a server's way to members until the test ends or stop is called, and
// waits until it is ready.
func runRemote(t *testing.T, cfg plan.Remote) (r *Remote, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r = NewRemote(cfg, slog.New(slog.NewTextHandler(t.Output(), nil)))
	done, ready := make(chan error, 1), make(chan struct{})
	go func() { done <- r.Run(ctx, func() { close(ready) }) }()
	stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the end: %v", err)
		}
	}
	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("ended before it was ready: %v", err)
	case <-time.After(40 * time.Second):
		t.Fatalf("not ready, and waits for %q", r.Waiting())
	}
	return r, stop
}

// TestRemoteFindsMembers: a server without a member learns of all of them from one, and
// reaches the others when that one is gone, in a later start too.
func TestRemoteFindsMembers(t *testing.T) {
	tr := newTrust(t)
	one := newServer(t, tr, "one").start(t)
	two := newServer(t, tr, "two", one).start(t)
	three := newServer(t, tr, "three", one).start(t)
	dir := t.TempDir()
	cfg := plan.Remote{Listen: port(t), File: filepath.Join(dir, "members.json"), Marker: filepath.Join(dir, "db.kind"),
		Join: []string{"https://" + one.cfg.Client.String()}, CA: tr.ca, Caller: tr.all}
	r, stop := runRemote(t, cfg)
	var known []string
	for began := time.Now(); len(known) != 3 && time.Since(began) < 10*time.Second; time.Sleep(50 * time.Millisecond) {
		known, _ = r.balancer.Watch()
	}
	for _, s := range []*server{one, two, three} {
		if !slices.Contains(known, s.cfg.Client.String()) {
			t.Fatalf("members %v, want all three", known)
		}
	}
	if text, err := os.ReadFile(cfg.Marker); err != nil || string(text) != "remote\n" {
		t.Errorf("marker %q, %v", text, err)
	}
	if _, _, err := r.Health(t.Context()); err != nil {
		t.Error(err)
	}
	one.stop(t)
	began := time.Now()
	for {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, _, err := r.Health(ctx)
		cancel()
		if err == nil {
			break
		}
		if time.Since(began) > 10*time.Second {
			t.Fatalf("one of three members is gone: %v", err)
		}
	}
	stop()

	cfg.Join = nil
	r, stop = runRemote(t, cfg)
	defer stop()
	admin, err := r.Admin()
	if err != nil {
		t.Fatal(err)
	}
	list, err := admin.Members(t.Context())
	if err != nil || len(list) != 3 {
		t.Errorf("members %v, %v", list, err)
	}
}

// TestRemoteSaysWhatItWaitsFor: a member that does not answer is named, with the reason.
func TestRemoteSaysWhatItWaitsFor(t *testing.T) {
	tr, dir, gone := newTrust(t), t.TempDir(), port(t).String()
	r := NewRemote(plan.Remote{Listen: port(t), File: filepath.Join(dir, "members.json"), Marker: filepath.Join(dir, "db.kind"),
		Join: []string{"https://" + gone}, CA: tr.ca, Caller: tr.all}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- r.Run(ctx, func() { t.Error("ready without a member") }) }()
	for began := time.Now(); !strings.Contains(r.Waiting(), gone+": ") || !strings.Contains(r.Waiting(), "refused"); time.Sleep(50 * time.Millisecond) {
		if time.Since(began) > 15*time.Second {
			t.Fatalf("it says %q", r.Waiting())
		}
	}
	if _, _, err := r.Health(t.Context()); err == nil || !strings.Contains(err.Error(), gone) {
		t.Errorf("health: %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestRemoteContract(t *testing.T) {
	tr, dir := newTrust(t), t.TempDir()
	one := newServer(t, tr, "one").start(t)
	lifecycletest.Check(t, NewRemote(plan.Remote{Listen: port(t), File: filepath.Join(dir, "members.json"), Marker: filepath.Join(dir, "db.kind"),
		Join: []string{"https://" + one.cfg.Client.String()}, CA: tr.ca, Caller: tr.all}, slog.New(slog.DiscardHandler)))
}

// TestFollow: what is called hears of every change below its prefix, and of no other.
func TestFollow(t *testing.T) {
	one := newServer(t, newTrust(t), "one").start(t)
	ctx, cancel := context.WithCancel(t.Context())
	heard, ended := make(chan string, 10), make(chan error)
	go func() {
		ended <- one.Follow(ctx, "/a/", func(values [][]byte) {
			var all []string
			for _, v := range values {
				all = append(all, string(v))
			}
			heard <- strings.Join(all, " ")
		})
	}()
	next := func(want string) {
		t.Helper()
		select {
		case got := <-heard:
			if got != want {
				t.Errorf("heard %q, want %q", got, want)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("heard nothing, want %q", want)
		}
	}
	next("")
	for _, kv := range [][3]string{{"/a/1", "x", "x"}, {"/b/1", "y", ""}, {"/a/2", "z", "x z"}} {
		if _, err := one.client.Put(t.Context(), kv[0], kv[1]); err != nil {
			t.Fatal(err)
		}
		if kv[2] != "" {
			next(kv[2])
		}
	}
	if _, err := one.client.Delete(t.Context(), "/a/1"); err != nil {
		t.Fatal(err)
	}
	next("z")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
