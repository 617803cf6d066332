package guests

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

// TestMakeUp: where systemd is, scripts/up has it keep podo, says so again once podo was
// brought back, and scripts/down leaves nothing. What would build podo is left out: the
// machine has it already.
func TestMakeUp(t *testing.T) {
	s := begin(t)
	checkout, err := s.net.Dir("checkout")
	if err != nil {
		t.Fatal(err)
	}
	built := []byte("#!/bin/sh\n")
	if err := errors.Join(os.Mkdir(filepath.Join(checkout, "scripts"), 0o755),
		os.WriteFile(filepath.Join(checkout, "scripts/install-deps"), built, 0o755),
		os.WriteFile(filepath.Join(checkout, "scripts/build"), built, 0o755),
		os.Mkdir(filepath.Join(checkout, "dist"), 0o755),
		copied("../../scripts/up", filepath.Join(checkout, "scripts/up")),
		copied("../../scripts/down", filepath.Join(checkout, "scripts/down")),
		copied(filepath.Join(s.dist, "podo"), filepath.Join(checkout, "dist/podo"))); err != nil {
		t.Fatal(err)
	}
	box := s.guest(Spec{Name: "box", Memory: 2048, Share: []string{checkout}})
	s.run(box, "cp", "-r", "/host/checkout", "/root/podo")
	say := func(words []string, args ...string) {
		t.Helper()
		out, err := box.RunCommand(hosts.Command{Args: args, Env: []string{"HOME=/root"}, Timeout: 8 * time.Minute})
		for _, w := range words {
			if err == nil && !strings.Contains(out, w) {
				err = errors.New("nothing of " + w)
			}
		}
		if err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	const up, down, podo = "/root/podo/scripts/up", "/root/podo/scripts/down", "/root/podo/dist/podo"
	say([]string{"The cluster is Ready, DNS answers"}, up, "--disable=traefik")
	say([]string{" Ready "}, podo, "kubectl", "--kubeconfig", "/root/.kube/config", "--context", "podo", "get", "nodes")

	main := func() string { return s.run(box, "systemctl", "show", "podo", "-p", "MainPID", "--value") }
	for range 3 {
		before := main()
		s.run(box, "kill", "-9", before)
		s.within(time.Minute, "podo is brought back", func() error {
			if now := main(); now == before || now == "0" {
				return errors.New("its process is " + now)
			}
			return nil
		})
		say(nil, podo, "status", "--wait=3m")
	}
	before := main()
	say([]string{"podo is running already", "The cluster is Ready"}, up)
	if now := main(); now != before {
		t.Errorf("a second scripts/up replaced process %s by %s", before, now)
	}

	say(nil, podo, "kill")
	time.Sleep(5 * time.Second) // systemd would start it again after two
	if now := main(); now != "0" {
		t.Errorf("after podo kill, process %s came", now)
	}
	say([]string{"The cluster is Ready"}, up, "--disable=traefik")
	say([]string{"nothing is left of podo"}, down)
	if left := s.run(box, "sh", "-c", "cat /root/.kube/config 2>/dev/null; systemctl list-units --all --plain --no-legend 'podo*' 'kubepods*'"); strings.Contains(left, "podo") {
		t.Errorf("left: %s", left)
	}
}
