// Package cluster tests clusters of several machines: real podos on hosts made of
// namespaces, each with an address on a private network.
//
// One file holds one promise. A test makes the machines that it needs, and all of
// them are gone when it ends. They are skipped unless PODO_E2E=1.
package cluster

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

func TestMain(m *testing.M) {
	hosts.Main()
	os.Exit(m.Run())
}

// The images of the tests. Manifests call them $AGNHOST and $BUSYBOX.
func images(manifest string) string {
	return strings.NewReplacer("$AGNHOST", "podo.local/agnhost:2.63", "$BUSYBOX", "podo.local/busybox:1.35").Replace(manifest)
}

// A scene is a network with a cluster on it.
type scene struct {
	*testing.T
	net *hosts.Network
}

func begin(t *testing.T) *scene {
	t.Helper()
	if os.Getenv("PODO_E2E") != "1" || os.Geteuid() != 0 {
		t.Skip("makes machines: needs root and PODO_E2E=1")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return &scene{T: t, net: hosts.NewNetwork(t, hosts.Options{
		Binary: filepath.Join(root, "dist", "podo"),
		Share:  []string{filepath.Join(root, "dist", "images")},
		Logs:   os.Getenv("PODO_E2E_LOGS"),
	})}
}

// server turns a host on and starts a server there.
func (s *scene) server(name string, args ...string) *hosts.Host {
	s.Helper()
	h := s.net.Host(name)
	s.start(h, append([]string{"server"}, args...)...)
	return h
}

// agent turns a host on and joins it to the cluster of a server.
func (s *scene) agent(name string, server *hosts.Host, args ...string) *hosts.Host {
	s.Helper()
	h := s.net.Host(name)
	s.join(h, server, args...)
	return h
}

// join starts an agent with the server's token for agents.
func (s *scene) join(h, server *hosts.Host, args ...string) *hosts.Process {
	s.Helper()
	return s.start(h, append([]string{"agent", "--server", url(server), "--token", s.token(server)}, args...)...)
}

func url(server *hosts.Host) string { return "https://" + server.IP() + ":6443" }

// token is the agents' token of a server.
func (s *scene) token(server *hosts.Host) string {
	s.Helper()
	return s.file(server, "/var/lib/podo/server/agent-token")
}

// file reads a file of a host once it is there.
func (s *scene) file(h *hosts.Host, path string) string {
	s.Helper()
	var text string
	s.within(30*time.Second, path+" on "+h.Name(), func() error {
		b, err := os.ReadFile(h.Path(path))
		text = strings.TrimSpace(string(b))
		return err
	})
	return text
}

// start starts podo and gives its containers the images of the tests.
func (s *scene) start(h *hosts.Host, args ...string) *hosts.Process {
	s.Helper()
	dir := h.Path("/var/lib/podo/agent/images")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.Fatal(err)
	}
	for _, name := range []string{"agnhost.tar", "busybox.tar"} {
		from, err := os.ReadFile(filepath.Join("../../dist/images", name))
		if err != nil {
			s.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), from, 0o644); err != nil {
			s.Fatal(err)
		}
	}
	return h.Start(append([]string{"podo"}, args...)...)
}

// within tries until it works, and ends the test with the last error if it does not.
func (s *scene) within(limit time.Duration, what string, try func() error) {
	s.Helper()
	began := time.Now()
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Since(began) > limit {
			s.Fatalf("%s: not within %s: %v", what, limit, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// kubectl runs kubectl on a server and ends the test if it fails.
func (s *scene) kubectl(server *hosts.Host, args ...string) string {
	s.Helper()
	out, err := server.Kubectl(args...)
	if err != nil {
		s.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(out)
}

// ready waits until nodes are Ready.
func (s *scene) ready(server *hosts.Host, nodes ...*hosts.Host) {
	s.Helper()
	for _, n := range nodes {
		s.within(60*time.Second, "node "+n.Name()+" Ready", func() error {
			out, err := server.Kubectl("get", "node", n.Name(), "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			if out != "True" {
				return fmt.Errorf("Ready is %q", out)
			}
			return nil
		})
	}
}

// apply applies a manifest and waits until its pods are ready.
func (s *scene) apply(server *hosts.Host, manifest string) {
	s.Helper()
	if out, err := server.Apply(images(manifest)); err != nil {
		s.Fatalf("apply: %v\n%s", err, out)
	}
}

// running waits until pods with a label are ready.
func (s *scene) running(server *hosts.Host, selector string) {
	s.Helper()
	s.within(90*time.Second, "pods "+selector, func() error {
		out, err := server.Kubectl("wait", "--for=condition=Ready", "pod", "-l", selector, "--timeout=5s")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}
