package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/pkg/paths"
)

// firstBootKilled kills the very first boot of ten new clusters, each a little later,
// and has the next start complete it.
func firstBootKilled(t *testing.T) {
	p := paths.New(paths.DefaultData)
	identity := []string{p.CA("server").Cert, p.CA("server").Key, p.CA("client").Cert, p.CA("client").Key, p.CA("request-header").Cert, p.CA("request-header").Key, p.ServiceAccountKey(), p.Token()}
	for i := 1; i <= 10; i++ {
		after := time.Duration(i) * 250 * time.Millisecond
		t.Run(fmt.Sprint("after ", after), func(t *testing.T) {
			s := boot(t)
			select {
			case <-time.After(time.Until(s.began.Add(after))):
			case <-s.done:
				t.Fatalf("the server ended by itself:\n%s", s.tail(20))
			}
			s.crash(t)
			before := map[string][]byte{}
			for _, f := range identity {
				if text, err := os.ReadFile(f); err == nil {
					before[f] = text
				}
			}
			s = boot(t).ready(t)
			for f, was := range before {
				if is, err := os.ReadFile(f); err != nil || !bytes.Equal(is, was) {
					t.Errorf("%s is another one after the second start (%v)", f, err)
				}
			}
			within(t, 60*time.Second, "CoreDNS runs", func() error {
				r := podo("kubectl", "-n", "kube-system", "get", "pods", "--no-headers")
				if !strings.Contains(r.out, "1/1") {
					return fmt.Errorf("%s", r)
				}
				return nil
			})
			t.Logf("killed with %d of %d files of its identity written, complete %s after the second start", len(before), len(identity), time.Since(s.began).Round(100*time.Millisecond))
			uninstall(t)
			s.ended(t, 5*time.Second)
		})
	}
}

// containerdCannotStart puts a program that fails in containerd's place.
func containerdCannotStart(t *testing.T) {
	s := boot(t).ready(t)
	s.stop(t)
	must(t, "kill")
	program := s.dir.Program("containerd")
	real, err := filepath.EvalSymlinks(program)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(real, real+".good"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(real, []byte("#!/bin/sh\necho cannot start: the engine is out of order >&2\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	s = boot(t)
	within(t, 30*time.Second, "podo tells that containerd does not start, and why", func() error {
		text := s.written() + podo("status").out
		return contains(text, "containerd", "out of order")
	})
	if r := podo("status"); r.code != 1 || contains(r.out+r.err, "containerd") != nil {
		t.Errorf("status: %s", r)
	}
	// It comes back by itself once the cause is gone.
	if s.running() {
		if err := os.Rename(real+".good", real); err != nil {
			t.Fatal(err)
		}
		s.ready(t)
		s.stop(t)
	}
	uninstall(t)
}
