// Package cluster tests clusters of several machines: real podos on hosts made of
// namespaces, each with an address on a private network.
//
// One file holds one promise. A test makes the machines that it needs, and all of
// them are gone when it ends. They need PODO_E2E=1, which make test sets.
package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/podo-dev/podo/pkg/storage/external/externaltest"
	"github.com/podo-dev/podo/tests/hosts"
)

func TestMain(m *testing.M) {
	hosts.Main()
	externaltest.Main()
	os.Exit(m.Run())
}

// The images of the tests. Manifests call them $AGNHOST and $BUSYBOX.
func images(manifest string) string {
	return strings.NewReplacer("$AGNHOST", "podo.local/agnhost:2.63", "$BUSYBOX", "podo.local/busybox:1.35").Replace(manifest)
}

// A scene is a network with a cluster on it.
type scene struct {
	*testing.T
	net   *hosts.Network
	stock *bool // whether hosts need the images of the tests: to import them takes a while
}

// begin makes a network whose hosts have addresses of these ranges, IPv4 ones if none
// are named. The test runs beside others. Servers leave out Traefik unless they are told
// what else to leave out: its pod and its ports would be in the way.
func begin(t *testing.T, ranges ...string) *scene {
	t.Helper()
	t.Parallel()
	return open(t, ranges)
}

// alone is begin for a test that measures, and so has the machine to itself: its name ends
// in _alone, by which scripts/test runs it before all others.
func alone(t *testing.T, ranges ...string) *scene {
	t.Helper()
	if !measures(t) {
		t.Fatal("the name of a test that measures has to end in _alone")
	}
	return open(t, ranges)
}

// measures reports whether a test is of figures, which a disk is part of.
func measures(t *testing.T) bool {
	top, _, _ := strings.Cut(t.Name(), "/")
	return strings.HasSuffix(top, "_alone")
}

func open(t *testing.T, ranges []string) *scene {
	t.Helper()
	if os.Getenv("PODO_E2E") != "1" {
		t.Skip("makes machines on this one; set PODO_E2E=1 to allow that")
	}
	if os.Geteuid() != 0 {
		t.Fatal("making machines needs root")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return &scene{T: t, stock: new(bool), net: hosts.NewNetwork(t, hosts.Options{
		Binary: filepath.Join(root, "dist", "podo"),
		Share:  []string{filepath.Join(root, "dist", "images")},
		Ranges: ranges,
		Env:    []string{"PODO_DISABLE=traefik"},
		Memory: !measures(t),
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

func url(server *hosts.Host) string { return "https://" + net.JoinHostPort(server.IP(), "6443") }

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

// start starts podo.
func (s *scene) start(h *hosts.Host, args ...string) *hosts.Process {
	s.Helper()
	if *s.stock {
		s.give(h)
	}
	return h.Start(append([]string{"podo"}, args...)...)
}

// give puts the images of the tests where podo finds them, once for each machine.
func (s *scene) give(h *hosts.Host) {
	s.Helper()
	dir := h.Path("/var/lib/podo/agent/images")
	if _, err := os.Stat(filepath.Join(dir, archives()[0])); err == nil {
		return
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.Fatal(err)
	}
	for _, name := range archives() {
		from, err := os.ReadFile(filepath.Join("../../dist/images", name))
		if err != nil {
			s.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), from, 0o644); err != nil {
			s.Fatal(err)
		}
	}
}

func archives() []string { return []string{"agnhost.tar", "busybox.tar"} }

// stocked waits until every host that has an engine has the images of the tests.
func (s *scene) stocked() {
	s.Helper()
	*s.stock = true
	for _, h := range s.net.Hosts() {
		if !h.Running() {
			continue
		}
		s.give(h)
		if _, err := os.Stat(h.Path("/run/podo/containerd.sock")); err != nil {
			continue
		}
		s.within(60*time.Second, "images on "+h.Name(), func() error {
			note, err := os.ReadFile(h.Path("/var/lib/podo/agent/images.imported"))
			if err != nil {
				return err
			}
			var done map[string]struct{ Images []string }
			if err := json.Unmarshal(note, &done); err != nil {
				return err
			}
			for _, name := range archives() {
				if done["/var/lib/podo/agent/images/"+name].Images == nil {
					return fmt.Errorf("%s is not imported: %s", name, note)
				}
			}
			return nil
		})
	}
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
		past := time.Since(began)
		if past > limit {
			s.Fatalf("%s: not within %s: %v", what, limit, err)
		}
		if measures(s.T) {
			past = 0
		}
		time.Sleep(min(100*time.Millisecond+past/10, time.Second)) // asking costs others their turn
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
	s.stocked()
	if out, err := server.Apply(images(manifest)); err != nil {
		s.Fatalf("apply: %v\n%s", err, out)
	}
}

// figure is something measured, for scripts/bench-cluster to collect.
func (s *scene) figure(name string, value float64, unit string) {
	s.Attr("figure", fmt.Sprintf("%s\t%.2f\t%s", name, value, unit))
}

// in is the scene for a test within this one.
func (s *scene) in(t *testing.T) *scene { return &scene{T: t, net: s.net, stock: s.stock} }

// try runs podo until it ends and returns all that it said, with its exit code: -1
// if it still ran after patience.
func (s *scene) try(h *hosts.Host, patience time.Duration, args ...string) (string, int) {
	s.Helper()
	p := h.Start(append([]string{"podo"}, args...)...)
	code, err := p.Wait(patience)
	if err != nil {
		s.end(p)
	}
	return p.Log(), code
}

// refused has a start of podo end at once, as impossible, with all these words.
func (s *scene) refused(h *hosts.Host, args []string, words ...string) {
	s.Helper()
	said, code := s.try(h, 15*time.Second, args...)
	if code != 2 {
		s.Errorf("podo %s: exit code %d, want 2 (-1 is: it tries on)\n%s", redact(args), code, said)
	}
	s.says(said, words...)
	for i, a := range args[:len(args)-1] {
		if _, secret, ok := strings.Cut(args[i+1], "::"); a == "--token" && ok && strings.Contains(said, secret) {
			s.Errorf("podo %s prints the secret:\n%s", redact(args), said)
		}
	}
}

func (s *scene) says(said string, words ...string) {
	s.Helper()
	for _, w := range words {
		if !strings.Contains(said, w) {
			s.Errorf("nothing of %q in:\n%s", w, said)
		}
	}
}

func redact(args []string) string {
	text := strings.Join(args, " ")
	if before, _, ok := strings.Cut(text, "--token"); ok {
		return before + "--token ..."
	}
	return text
}

// podo runs a verb of podo and ends the test if it fails.
func (s *scene) podo(h *hosts.Host, args ...string) string {
	s.Helper()
	out, err := h.Run(append([]string{"podo"}, args...)...)
	if err != nil {
		s.Fatalf("on %s: %v\n%s", h.Name(), err, out)
	}
	return strings.TrimSpace(out)
}

// end stops a podo as a service manager does.
func (s *scene) end(p *hosts.Process) {
	s.Helper()
	if err := p.Signal(syscall.SIGTERM); err != nil {
		s.Fatal(err)
	}
	if _, err := p.Wait(20 * time.Second); err != nil {
		s.Fatal(err)
	}
}

// kill ends a podo without a chance to tidy up.
func (s *scene) kill(p *hosts.Process) {
	s.Helper()
	if err := p.Signal(syscall.SIGKILL); err != nil {
		s.Fatal(err)
	}
	if _, err := p.Wait(20 * time.Second); err != nil {
		s.Fatal(err)
	}
}

// get fetches a page from a host.
func (s *scene) get(h *hosts.Host, address, path string) (string, error) {
	client := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return h.Dial("tcp", address, 2*time.Second)
		},
	}}
	res, err := client.Get("http://" + address + path)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, text)
	}
	return string(text), err
}

// rolledOut waits until every pod of a DaemonSet is ready.
func (s *scene) rolledOut(server *hosts.Host, name string) {
	s.Helper()
	s.within(60*time.Second, "pods of "+name+" ready", func() error {
		out, err := server.Kubectl("rollout", "status", "daemonset/"+name, "--timeout=5s")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// podOn is the name and the address of the pod of an app on a node.
func (s *scene) podOn(server, node *hosts.Host, app string) (name, ip string) {
	s.Helper()
	out := s.kubectl(server, "get", "pods", "-l", "app="+app, "--field-selector", "spec.nodeName="+node.Name(),
		"-o", `jsonpath={.items[0].metadata.name} {.items[0].status.podIP}`)
	name, ip, _ = strings.Cut(out, " ")
	return name, ip
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
