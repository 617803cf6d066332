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

// firstBootKilled kills the very first boot of new clusters, each a little later,
// and has the next start complete it.
func firstBootKilled(t *testing.T) {
	p := paths.New(paths.DefaultData)
	identity := []string{p.CA("server").Cert, p.CA("server").Key, p.CA("client").Cert, p.CA("client").Key, p.CA("request-header").Cert, p.CA("request-header").Key, p.ServiceAccountKey(), p.Token()}
	for _, ms := range []int{30, 100, 250, 600, 1200, 2500} {
		after := time.Duration(ms) * time.Millisecond
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
				r := podo("kubectl", "-n", "kube-system", "get", "pods", "-l", "k8s-app=kube-dns", "--no-headers")
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

// healsItsPrograms spoils a program that podo unpacked, as a bad disk would.
func healsItsPrograms(t *testing.T) {
	s := boot(t).ready(t)
	program := s.dir.Program("containerd")
	s.stop(t)
	real, err := filepath.EvalSymlinks(program)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(real); err != nil { // it may be running
		t.Fatal(err)
	}
	if err := os.WriteFile(real, []byte("#!/bin/sh\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	s = boot(t).ready(t)
	if info, err := os.Stat(program); err != nil || info.Size() < 1<<20 {
		t.Errorf("the spoilt containerd is still in place (%v)", err)
	}
	s.stop(t)
	uninstall(t)
}

// containerdCannotStart puts a folder where containerd wants its socket.
func containerdCannotStart(t *testing.T) {
	socket := paths.New(paths.DefaultData).Socket("containerd")
	if err := os.MkdirAll(filepath.Join(socket, "in-the-way"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := boot(t)
	if code := s.ended(t, time.Minute); code != 1 {
		t.Errorf("exit code %d", code)
	}
	if err := contains(s.tail(1), "podo: containerd:", socket, "is a directory"); err != nil {
		t.Errorf("the last line: %v", err)
	}
	if err := os.RemoveAll(socket); err != nil {
		t.Fatal(err)
	}
	boot(t).ready(t).stop(t)
	uninstall(t)
}
