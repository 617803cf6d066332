package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/pkg/storage/external/externaltest"
	"github.com/podo-dev/podo/tests/hosts"
)

// database runs a database on a host of its own.
func (s *scene) database(kind string) (*externaltest.Database, *hosts.Host) {
	s.Helper()
	h := s.net.Host("database")
	db := externaltest.New(s.T, kind, h.IP(), 7000)
	if err := h.In(db.Up); err != nil {
		s.Fatal(err)
	}
	return db, h
}

const sleeper = `
apiVersion: v1
kind: Pod
metadata: {name: sleeper, labels: {app: sleeper}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: $BUSYBOX, command: [sleep, "100000"]}]
`

// started is when the container of the pod that must go on began, and how often.
func (s *scene) started(server *hosts.Host) string {
	s.Helper()
	return s.kubectl(server, "get", "pod", "sleeper", "-o", "jsonpath={.metadata.uid} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}")
}

// let gives a host what it must show a database that lets in who shows a certificate, and
// returns the flags for it.
func (s *scene) let(h *hosts.Host, db *externaltest.Database) (flags []string) {
	s.Helper()
	x := db.External()
	for flag, file := range map[string]string{"--datastore-cafile": x.CA, "--datastore-certfile": x.Files.Cert, "--datastore-keyfile": x.Files.Key} {
		if file == "" {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			s.Fatal(err)
		}
		to := "/root/" + filepath.Base(file)
		if err := os.WriteFile(h.Path(to), text, 0o600); err != nil {
			s.Fatal(err)
		}
		flags = append(flags, flag, to)
	}
	return flags
}

// TestServersShareADatabase: several servers on one database are one cluster. One may
// be lost; without the database pods go on, and all of it comes back by itself.
func TestServersShareADatabase(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"postgres", "mysql", "nats", "etcd"} {
		t.Run(kind, func(t *testing.T) {
			s := begin(t)
			db, h := s.database(kind)
			at := func(more ...string) []string {
				return append([]string{"server", "--datastore-endpoint", db.URL()}, more...)
			}
			first, second := s.net.Host("one"), s.net.Host("two")
			one := s.keep(first, at(s.let(first, db)...)...)
			s.ready(one.Host, one.Host)
			two := s.keep(second, at(append(s.let(second, db), "--token", s.serverToken(one.Host))...)...)
			agent := s.agent("agent", one.Host)
			s.ready(one.Host, two.Host, agent)
			s.kubectl(two.Host, "cordon", "one") // it will be lost
			s.apply(two.Host, sleeper)
			s.running(two.Host, "app=sleeper")
			before := s.started(two.Host)
			fresh := s.podo(two.Host, "token", "rotate")
			s.within(20*time.Second, "the other server has the new token", func() error {
				if s.serverToken(one.Host) != fresh {
					return errors.New("it has the old one")
				}
				return nil
			})

			if kind == "postgres" { // what does not depend on the kind
				stranger := s.net.Host("stranger")
				s.refused(stranger, at(), "--token")
				s.refused(stranger, at("--token", "open-sesame"), "token: it is not the one")
				s.refused(stranger, at("--token", s.serverToken(one.Host), "--cluster-domain", "other.local"), "cluster-domain", "cluster.local")
				said, code := s.try(stranger, 60*time.Second, at("--token", s.serverToken(one.Host), "--node-name", "two")...)
				if code != 2 {
					t.Errorf("a server of a name that is taken: exit code %d", code)
				}
				s.says(said, "the name two belongs to another machine that is at work")
				s.ready(one.Host, two.Host)

				one.down()
				s.within(40*time.Second, "deployments work with one server left", func() error {
					s.kubectl(two.Host, "delete", "deployment", "web", "--ignore-not-found")
					s.kubectl(two.Host, "create", "deployment", "web", "--image=podo.local/busybox:1.35", "--", "sleep", "100000")
					out, err := two.Kubectl("rollout", "status", "deployment/web", "--timeout=20s")
					if err != nil {
						return fmt.Errorf("%w: %s", err, out)
					}
					return nil
				})
				one.up()
			}

			db.Off()
			s.within(20*time.Second, "the API says that its datastore is gone", func() error {
				if out, err := two.Kubectl("create", "configmap", "meanwhile", "--request-timeout=3s"); err == nil {
					return fmt.Errorf("acknowledged: %s", out)
				}
				return nil
			})
			two.crash() // it starts again, and waits
			s.within(20*time.Second, "the status tells what is waited for", func() error {
				out, _ := two.Run("podo", "status")
				if !strings.Contains(out, "waits for") || !strings.Contains(out, h.IP()) {
					return fmt.Errorf("%s", out)
				}
				return nil
			})
			if err := h.In(db.Up); err != nil {
				t.Fatal(err)
			}
			s.ready(two.Host, two.Host, agent)
			if after := s.started(two.Host); after != before {
				t.Errorf("the pod was %q, and is %q", before, after)
			}
			for _, m := range []*station{one, two} {
				s.within(60*time.Second, m.Name()+" is as it was", func() error {
					out, err := m.Run("podo", "status", "-o", "json")
					if strings.Contains(out+m.log(), externaltest.Password) {
						t.Fatalf("the database's password is shown on %s", m.Name())
					}
					return err
				})
			}
		})
	}
}

// TestSQLiteToEtcdAndBack: a server with SQLite becomes the first of several by one
// flag, killed at any moment in between, and goes back, with its pods running.
func TestSQLiteToEtcdAndBack(t *testing.T) {
	s := begin(t)
	h := s.net.Host("one")
	p := s.start(h, "server")
	s.ready(h, h)
	s.kubectl(h, "create", "configmap", "kept", "--from-literal=a=b")
	s.apply(h, sleeper)
	s.running(h, "app=sleeper")
	before, at := s.started(h), s.revision(h)
	s.end(p)

	for _, after := range []time.Duration{300, 700, 1100, 1500, 2000} {
		p = h.Start("podo", "server", "--cluster-init")
		time.Sleep(after * time.Millisecond)
		s.kill(p)
	}
	p = h.Start("podo", "server", "--cluster-init")
	s.same(h, before, at)
	if kind := s.file(h, "/var/lib/podo/server/db.kind"); kind != "etcd" {
		t.Errorf("the datastore is %s, want etcd", kind)
	}
	two := s.station("two", "server", "--server", url(h), "--token", s.serverToken(h))
	s.ready(h, two.Host)
	s.members(h, 2)
	s.podo(h, "etcd", "member-remove", "two")
	two.down()
	s.kubectl(h, "delete", "node", "two")
	at = s.revision(h)
	s.end(p)

	said, code := s.try(h, time.Minute, "datastore", "migrate", "--from", "etcd", "--to", "sqlite")
	if code != 0 {
		t.Fatalf("migrate: exit code %d\n%s", code, said)
	}
	p = h.Start("podo", "server")
	s.same(h, before, at)
	s.end(p)
}

// TestMigrateToADatabaseAndBack: to PostgreSQL and back by the verb.
func TestMigrateToADatabaseAndBack(t *testing.T) {
	s := begin(t)
	db, _ := s.database("postgres")
	h := s.net.Host("one")
	p := s.start(h, "server")
	s.ready(h, h)
	s.kubectl(h, "create", "configmap", "kept", "--from-literal=a=b")
	s.apply(h, sleeper)
	s.running(h, "app=sleeper")
	before, at := s.started(h), s.revision(h)
	if said, code := s.try(h, 10*time.Second, "datastore", "migrate", "--from", "sqlite", "--to", db.URL()); code == 0 || !strings.Contains(said, "in use") {
		t.Errorf("while podo runs: exit code %d\n%s", code, said)
	}
	s.end(p)

	s.refused(h, []string{"datastore", "migrate", "--from", "etcd", "--to", "sqlite"}, "in sqlite")
	said, code := s.try(h, time.Minute, "datastore", "migrate", "--from", "sqlite", "--to", db.URL())
	if code != 0 || strings.Contains(said, externaltest.Password) {
		t.Fatalf("migrate: exit code %d\n%s", code, said)
	}
	s.refused(h, []string{"server"}, "datastore-endpoint")
	p = h.Start("podo", "server", "--datastore-endpoint", db.URL())
	s.same(h, before, at)
	two := s.station("two", "server", "--datastore-endpoint", db.URL(), "--token", s.serverToken(h))
	s.ready(h, two.Host)
	two.down()
	s.kubectl(h, "delete", "node", "two")
	at = s.revision(h)
	s.end(p)

	if err := os.Remove(h.Path("/var/lib/podo/server/db/state.db")); err != nil {
		t.Fatal(err)
	}
	if said, code := s.try(h, time.Minute, "datastore", "migrate", "--from", db.URL(), "--to", "sqlite"); code != 0 {
		t.Fatalf("migrate back: exit code %d\n%s", code, said)
	}
	p = h.Start("podo", "server")
	s.same(h, before, at)
	s.end(p)
}

// revision is how far the cluster's history has come.
func (s *scene) revision(server *hosts.Host) int {
	s.Helper()
	var list struct {
		Metadata struct {
			ResourceVersion int `json:"resourceVersion,string"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal([]byte(s.kubectl(server, "get", "--raw", "/api/v1/namespaces/default/configmaps?limit=1")), &list); err != nil {
		s.Fatal(err)
	}
	return list.Metadata.ResourceVersion
}

// same checks that the cluster is the one it was, that its pod never stopped, and that
// its history goes on.
func (s *scene) same(server *hosts.Host, pod string, beyond int) {
	s.Helper()
	s.ready(server, server)
	if got := s.kubectl(server, "get", "configmap", "kept", "-o", "jsonpath={.data.a}"); got != "b" {
		s.Errorf("kept holds %q, want b", got)
	}
	if got := s.started(server); got != pod {
		s.Errorf("the pod was %q, and is %q", pod, got)
	}
	var at int
	fmt.Sscan(s.kubectl(server, "get", "configmap", "kept", "-o", "jsonpath={.metadata.resourceVersion}"), &at)
	if at <= beyond {
		s.Errorf("an object has revision %d after the move, want one beyond %d", at, beyond)
	}
}
