package server

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/pki"
	"github.com/podo-dev/podo/pkg/storage/external/externaltest"
	"github.com/podo-dev/podo/pkg/storage/vault"
	"github.com/podo-dev/podo/pkg/token"
)

func TestMerge(t *testing.T) {
	base := tokens{Generation: 3, Server: "s", Agent: "a"}
	tests := map[string]struct{ base, here, there, want tokens }{
		"nothing new":                     {base, base, base, base},
		"replaced here":                   {base, tokens{Server: "S", Agent: "a"}, base, tokens{Server: "S", Agent: "a"}},
		"replaced there":                  {base, base, tokens{Generation: 4, Server: "S", Agent: "a"}, tokens{Server: "S", Agent: "a"}},
		"one here, the other there":       {base, tokens{Server: "S", Agent: "a"}, tokens{Generation: 4, Server: "s", Agent: "A"}, tokens{Server: "S", Agent: "A"}},
		"both replaced the same":          {base, tokens{Server: "1", Agent: "a"}, tokens{Generation: 4, Server: "2", Agent: "a"}, tokens{Server: "2", Agent: "a"}},
		"cut off before it was noted":     {base, tokens{Server: "S", Agent: "a"}, tokens{Generation: 4, Server: "S", Agent: "A"}, tokens{Server: "S", Agent: "A"}},
		"new server":                      {tokens{}, base, tokens{Generation: 4, Server: "S", Agent: "A"}, tokens{Server: "S", Agent: "A"}},
		"datastore came back from before": {base, base, tokens{Generation: 2, Server: "leaked", Agent: "a"}, base},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := merge(tt.base, tt.here, tt.there); !got.equal(tt.want) {
				t.Errorf("merge(%+v, %+v, %+v) = %+v, want %+v", tt.base, tt.here, tt.there, got, tt.want)
			}
		})
	}
}

// run is a server at work, as far as secrets go, until end.
func (t *keyring) run(test *testing.T) (end func()) {
	test.Helper()
	ctx, cancel := context.WithCancel(test.Context())
	if err := t.start(ctx); err != nil {
		test.Fatal(err)
	}
	return cancel
}

// holds waits until a server has both tokens.
func (t *keyring) holds(test *testing.T, want tokens) {
	test.Helper()
	var got tokens
	for began := time.Now(); time.Since(began) < time.Minute; time.Sleep(50 * time.Millisecond) {
		if got, _ = kept(t.plan.Paths); got.equal(want) {
			return
		}
	}
	test.Fatalf("%s has %+v, want %+v", t.plan.Certificates.Names.Node, got, want)
}

func (t *keyring) rotate(test *testing.T, path, user string, to config.Secret) {
	test.Helper()
	if _, err := token.Replace(path, user, to); err != nil {
		test.Fatal(err)
	}
}

// TestRotationReachesAllServers: a token that is replaced on one server is the token of
// all, of those that are away when they come back, and of those that join later.
func TestRotationReachesAllServers(t *testing.T) {
	db := externaltest.Start(t, "etcd")
	one := newcomer(t, db, "one", "first")
	one.run(t)
	first, err := kept(one.plan.Paths)
	if err != nil {
		t.Fatal(err)
	}
	two, three := newcomer(t, db, "two", "first"), newcomer(t, db, "three", "first")
	two.run(t)
	end := three.run(t)
	three.holds(t, first)
	end()

	one.rotate(t, one.plan.Paths.Token(), token.Server, "second")
	two.holds(t, tokens{Server: "second", Agent: first.Agent})
	two.rotate(t, two.plan.Paths.AgentToken(), token.Agent, "agents")
	both := tokens{Server: "second", Agent: "agents"}
	one.holds(t, both)
	three.run(t) // still started with the first
	three.holds(t, both)
	awaitBundle(t, one, "second")

	four := newcomer(t, db, "four", "first")
	if err := four.start(t.Context()); err == nil {
		t.Error("the old token lets a server in")
	}
	four = newcomer(t, db, "four", "second")
	four.run(t)
	four.holds(t, both)
}

// TestRotationWhilePodoIsAway: a token that was replaced while podo did not run is told
// to the others by the next start.
func TestRotationWhilePodoIsAway(t *testing.T) {
	db := externaltest.Start(t, "etcd")
	one := newcomer(t, db, "one", "first")
	end := one.run(t)
	awaitBundle(t, one, "first")
	two := newcomer(t, db, "two", "first")
	two.run(t)
	end()
	time.Sleep(time.Second)
	one.rotate(t, one.plan.Paths.Token(), token.Server, "second")
	time.Sleep(time.Second)
	if now, err := kept(two.plan.Paths); err != nil || now.Server != "first" {
		t.Errorf("two has %+v, %v, before podo runs on one", now, err)
	}
	one.plan.Certificates.Token = ""
	one.run(t)
	now, err := kept(one.plan.Paths)
	if err != nil || now.Server != "second" {
		t.Fatalf("one has %+v, %v", now, err)
	}
	two.holds(t, now)
}

// TestRotationBehindTheOthers: what is replaced on a server that was away, while the others
// went on, is no older than what they have.
func TestRotationBehindTheOthers(t *testing.T) {
	db := externaltest.Start(t, "etcd")
	one, two := newcomer(t, db, "one", "leaked"), newcomer(t, db, "two", "leaked")
	end := one.run(t)
	two.run(t)
	first, err := kept(two.plan.Paths)
	if err != nil {
		t.Fatal(err)
	}
	one.holds(t, first)
	end()
	for _, agents := range []string{"a", "b", "c"} {
		two.rotate(t, two.plan.Paths.AgentToken(), token.Agent, config.Secret(agents))
		awaitAgreed(t, two, agents)
	}
	one.rotate(t, one.plan.Paths.Token(), token.Server, "second")
	one.plan.Certificates.Token = ""
	one.run(t)
	both := tokens{Server: "second", Agent: "c"}
	one.holds(t, both)
	two.holds(t, both)
	time.Sleep(2 * time.Second) // for one to think otherwise
	one.holds(t, both)
	awaitBundle(t, one, "second")
}

// awaitAgreed waits until a server has agreed with the datastore upon an agents' token.
func awaitAgreed(t *testing.T, s *keyring, agents string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if base, err := agreed(s.plan.Paths); err == nil && base.Agent == agents {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the agents' token %s is not agreed upon", agents)
		}
	}
}

// TestRotationOutlivesABackup: a datastore that was put back from before a rotation
// does not bring the old token back.
func TestRotationOutlivesABackup(t *testing.T) {
	db := externaltest.Start(t, "etcd")
	one := newcomer(t, db, "one", "leaked")
	end := one.run(t)
	awaitBundle(t, one, "leaked")
	v, err := vault.Open(t.Context(), one.plan.Storage.Client())
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	before, err := v.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	one.rotate(t, one.plan.Paths.Token(), token.Server, "second")
	awaitBundle(t, one, "second")
	end()
	time.Sleep(time.Second)
	now, err := v.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := v.Write(t.Context(), now, before); !ok || err != nil {
		t.Fatal(ok, err)
	}
	one.run(t)
	awaitBundle(t, one, "second")
	if now, err := kept(one.plan.Paths); err != nil || now.Server != "second" {
		t.Errorf("the server has %+v, %v", now, err)
	}
}

// TestDatastoreIsEmptiedAtWork: a server does not go on with an empty datastore.
func TestDatastoreIsEmptiedAtWork(t *testing.T) {
	db := externaltest.Start(t, "etcd")
	one := newcomer(t, db, "one", "first")
	if err := one.component().Run(shortly(t), func() {}); err != nil {
		t.Fatal(err)
	}
	ready, ended := make(chan struct{}, 9), make(chan error, 1)
	go func() { ended <- one.secrets().Run(t.Context(), func() { ready <- struct{}{} }) }()
	<-ready
	c, err := vault.Dial(t.Context(), one.plan.Storage.Client())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Delete(t.Context(), vault.SealedKey); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("it ended without a reason")
		}
	case <-time.After(time.Minute):
		t.Error("it goes on")
	}
}

// awaitBundle waits until the datastore's bundle opens with a password.
func awaitBundle(t *testing.T, s *keyring, password config.Secret) {
	t.Helper()
	v, err := vault.Open(t.Context(), s.plan.Storage.Client())
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		found, err := v.Read(t.Context())
		if err == nil {
			_, err = pki.Open(found.Bundle, password)
		}
		if _, missing := os.Stat(s.plan.Paths.AgreedTokens()); err == nil && missing != nil {
			err = fmt.Errorf("nothing agreed upon: %w", missing)
		}
		if err == nil {
			return
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("the bundle in the datastore: %v", err)
		}
	}
}

// shortly ends a task after it has done its work.
func shortly(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	t.Cleanup(cancel)
	return ctx
}
