package guests

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

// The images of the tests. Manifests call them $AGNHOST and $BUSYBOX.
func images(manifest string) string {
	return strings.NewReplacer("$AGNHOST", "podo.local/agnhost:2.63", "$BUSYBOX", "podo.local/busybox:1.35").Replace(manifest)
}

// A scene is a network of guests.
type scene struct {
	*testing.T
	net    *hosts.Network
	dist   string
	mirror string // what install.sh installs from
	guests int
}

// The versions of the mirror: the same podo, but for the commit that it names.
const (
	older = "0.1.0"
	newer = "0.2.0"
)

// begin makes a network without a way out, and a mirror.
func begin(t *testing.T) *scene {
	t.Helper()
	if os.Getenv("PODO_GUESTS") != "1" {
		t.Skip("needs what scripts/build-guest makes; make test-guests runs it")
	}
	dist, err := filepath.Abs("../../dist")
	if err != nil {
		t.Fatal(err)
	}
	s := &scene{T: t, dist: dist, net: hosts.NewNetwork(t, hosts.Options{Logs: os.Getenv("PODO_E2E_LOGS")})}
	if s.mirror, err = s.net.Dir("mirror"); err != nil {
		t.Fatal(err)
	}
	s.stock(older, func(program []byte) []byte { return program })
	return s
}

// stock puts a version of podo on the mirror.
func (s *scene) stock(version string, change func([]byte) []byte) {
	s.Helper()
	program, err := os.ReadFile(filepath.Join(s.dist, "podo"))
	if err != nil {
		s.Fatal(err)
	}
	program = change(program)
	dir := filepath.Join(s.mirror, version)
	sums := fmt.Sprintf("%x  podo\n", sha256.Sum256(program))
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "podo"), program, 0o755),
		os.WriteFile(filepath.Join(dir, "sha256sum-amd64.txt"), []byte(sums), 0o644)); err != nil {
		s.Fatal(err)
	}
}

// guest boots a machine that has the mirror, install.sh and the images of the tests in /host.
func (s *scene) guest(spec Spec) *Guest {
	s.Helper()
	s.guests++
	spec.Share = append(spec.Share, s.mirror, "../../install.sh", filepath.Join(s.dist, "images"),
		filepath.Join(s.dist, "payload/nft"), filepath.Join(s.dist, "payload/lib"))
	return New(s.T, s.net, s.guests, spec)
}

// in is the scene for a test within this one.
func (s *scene) in(t *testing.T) *scene {
	in := *s
	in.T = t
	return &in
}

// install runs install.sh and returns what it said.
func (s *scene) install(g *Guest, version string, env []string, args ...string) string {
	s.Helper()
	out, err := g.RunCommand(hosts.Command{
		Args:    append([]string{"sh", "/host/install.sh"}, args...),
		Env:     append([]string{"INSTALL_PODO_ARTIFACT_URL=file:///host/mirror", "INSTALL_PODO_VERSION=" + version}, env...),
		Timeout: 5 * time.Minute,
	})
	if err != nil {
		s.Fatalf("install.sh: %v\n%s", err, out)
	}
	return out
}

// give puts images of the tests where podo finds them: to import them takes a guest a while.
func (s *scene) give(g *Guest, names ...string) {
	s.Helper()
	for _, name := range names {
		s.run(g, "install", "-D", "/host/images/"+name+".tar", "/var/lib/podo/agent/images/"+name+".tar")
	}
}

// run runs a program in a guest and ends the test if it fails.
func (s *scene) run(g *Guest, args ...string) string {
	s.Helper()
	out, err := g.Run(args...)
	if err != nil {
		s.Fatalf("%s: %v\n%s", g.Name(), err, out)
	}
	return strings.TrimSpace(out)
}

// within tries until it works, and ends the test with the last error if it does not. It
// returns how long that took.
func (s *scene) within(limit time.Duration, what string, try func() error) time.Duration {
	s.Helper()
	began := time.Now()
	for {
		err := try()
		if err == nil {
			return time.Since(began)
		}
		if time.Since(began) > limit {
			s.Fatalf("%s: not within %s: %v", what, limit, err)
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// try runs kubectl on this machine, with the administrator's kubeconfig of a server: a
// guest would take seconds to start one.
func (s *scene) try(server *Guest, stdin string, args ...string) (string, error) {
	s.Helper()
	config := filepath.Join(server.dir, "kubeconfig")
	if _, err := os.Stat(config); err != nil {
		text, err := server.Run("cat", "/etc/podo/podo.yaml")
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	var out bytes.Buffer
	cmd := exec.Command(filepath.Join(s.dist, "payload/kubectl"), append([]string{"--kubeconfig", config,
		"--server", "https://" + net.JoinHostPort(server.IP(), "6443"), "--cache-dir", filepath.Join(server.dir, "cache"),
		"--request-timeout=30s"}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &out
	if err := s.net.In(cmd.Start); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return "", fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(out.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

// kubectl is try that ends the test if it fails.
func (s *scene) kubectl(server *Guest, args ...string) string {
	s.Helper()
	out, err := s.try(server, "", args...)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

// apply applies a manifest.
func (s *scene) apply(server *Guest, manifest string) {
	s.Helper()
	s.within(time.Minute, "apply", func() error {
		_, err := s.try(server, images(manifest), "apply", "-f", "-")
		return err
	})
}

// ready waits until a node is Ready since it last began to be.
func (s *scene) ready(server *Guest, node string) time.Duration {
	s.Helper()
	return s.within(3*time.Minute, "node "+node+" Ready", func() error {
		out, err := s.try(server, "", "get", "node", node, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
		if err == nil && out != "True" {
			err = fmt.Errorf("Ready is %q", out)
		}
		return err
	})
}

// A pod is what tests want to know of one.
type pod struct {
	Metadata struct{ Name, UID string }
	Spec     struct{ NodeName string }
	Status   struct {
		Phase, PodIP, StartTime string
		Conditions              []struct{ Type, Status string }
		ContainerStatuses       []struct {
			ContainerID  string
			RestartCount int
			State        struct {
				Terminated *struct {
					Reason   string
					ExitCode int
				}
			}
		}
	}
}

// pods are those with a label.
func (s *scene) pods(server *Guest, selector string) ([]pod, error) {
	s.Helper()
	out, err := s.try(server, "", "get", "pods", "-l", selector, "-o", "json")
	if err != nil {
		return nil, err
	}
	var list struct{ Items []pod }
	err = json.Unmarshal([]byte(out), &list)
	return list.Items, err
}

// running waits until there are so many pods with a label, all ready.
func (s *scene) running(server *Guest, selector string, count int) ([]pod, time.Duration) {
	s.Helper()
	var found []pod
	took := s.within(4*time.Minute, "pods "+selector, func() (err error) {
		if found, err = s.pods(server, selector); err != nil {
			return err
		}
		ready := 0
		for _, p := range found {
			for _, c := range p.Status.Conditions {
				if c.Type == "Ready" && c.Status == "True" {
					ready++
				}
			}
		}
		if ready != count || len(found) != count {
			return fmt.Errorf("%d of %d are ready, want %d: %+v", ready, len(found), count, found)
		}
		return nil
	})
	return found, took
}

// get fetches a page of a guest's, on a connection of its own.
func (s *scene) get(g *Guest, port, path string) (string, error) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return g.Dial(port, 5*time.Second) },
	}}
	res, err := client.Get("http://" + net.JoinHostPort(g.IP(), port) + path)
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
