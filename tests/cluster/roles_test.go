package cluster

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

// etcdOnly are the flags of a server that runs etcd and nothing else of the cluster.
var etcdOnly = []string{"--disable-apiserver", "--disable-controller-manager", "--disable-scheduler"}

// roles waits until a node has these roles, as kubectl shows them.
func (s *scene) roles(server, node *hosts.Host, want string) {
	s.Helper()
	s.within(30*time.Second, "roles of "+node.Name(), func() error {
		out, err := server.Kubectl("get", "node", node.Name(), "--no-headers", "-o", "wide")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		if f := strings.Fields(out); len(f) < 3 || f[2] != want {
			return fmt.Errorf("want %q: %s", want, out)
		}
		return nil
	})
}

// writes has the API take a new object.
func (s *scene) writes(server *hosts.Host, name string) {
	s.Helper()
	s.within(45*time.Second, "a write by "+server.Name(), func() error {
		if out, err := server.Kubectl("create", "configmap", name); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// fails has a verb fail with these words.
func (s *scene) fails(h *hosts.Host, words string, args ...string) {
	s.Helper()
	out, err := h.Run(args...)
	if said := fmt.Sprint(out, err); err == nil || !strings.Contains(said, words) {
		s.Errorf("%s: nothing of %q in:\n%s", strings.Join(args, " "), words, said)
	}
}

// TestSplitRoles: a server for etcd alone, one for the control plane alone and an agent
// are a cluster. Each of them may be killed and comes back; a server that has both roles
// joins through the one and a second for etcd through the other; and the control plane
// starts while one server of etcd is away.
func TestSplitRoles(t *testing.T) {
	s := begin(t)
	began := time.Now()
	lap := func(what string) { t.Logf("%s: after %s", what, time.Since(began).Round(100*time.Millisecond)) }
	store := s.station("store", append([]string{"server", "--cluster-init"}, etcdOnly...)...)
	s.within(30*time.Second, "the first server's port", func() error {
		out, err := store.Run("podo", "etcd", "member-list")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	s.fails(store.Host, "no server that runs an API server has joined yet", "podo", "status")
	lap("etcd runs")
	control := s.peer("control", store.Host, "--disable-etcd")
	s.ready(control.Host, control.Host, store.Host)
	lap("control plane and both nodes")
	agent := s.agent("agent", store.Host) // by a server without an API server
	s.ready(control.Host, agent)
	lap("agent")

	s.roles(control.Host, store.Host, "etcd")
	s.roles(control.Host, control.Host, "control-plane")
	s.roles(control.Host, agent, "<none>")
	s.apply(control.Host, twoPlaces)
	s.rolledOut(control.Host, "web")
	lap("pods on every node")
	for _, node := range []*hosts.Host{store.Host, control.Host, agent} {
		pod, _ := s.podOn(control.Host, node, "web")
		s.reached(control.Host, pod)
		s.podo(node, "status", "--wait=20s")
	}
	s.says(s.podo(store.Host, "kubectl", "get", "nodes"), "control")
	s.says(s.podo(control.Host, "status"), "etcd of other servers")
	s.fails(control.Host, "runs no member of etcd (disable-etcd); ask on one that does: "+store.IP(), "podo", "etcd", "member-list")
	if list := s.file(agent, "/var/lib/podo/agent/servers.json"); strings.Contains(list, store.IP()) || !strings.Contains(list, control.IP()) {
		t.Errorf("the agent's list of API servers: %s", list)
	}

	containers := s.podo(store.Host, "crictl", "ps", "-q")
	for i, m := range []*station{store, control} {
		m.crash()
		s.writes(control.Host, fmt.Sprint("after-", i))
		s.podo(m.Host, "status", "--wait=40s")
		lap("kill -9 of " + m.Name())
	}
	if now := s.podo(store.Host, "crictl", "ps", "-q"); now != containers {
		t.Errorf("containers on the server for etcd:\n%s\nbefore:\n%s", now, containers)
	}

	both := s.peer("both", control.Host)
	s.ready(control.Host, both.Host)
	s.roles(control.Host, both.Host, "control-plane,etcd")
	lap("a server with both roles, joined through the control plane")
	second := s.peer("second", store.Host, etcdOnly...)
	s.ready(control.Host, second.Host)
	s.roles(control.Host, second.Host, "etcd")
	s.members(store.Host, 3)
	s.within(20*time.Second, "the control plane knows every member", func() error {
		list := s.file(control.Host, "/var/lib/podo/server/etcd-members.json")
		if !strings.Contains(list, second.IP()) || !strings.Contains(list, both.IP()) {
			return fmt.Errorf("%s", list)
		}
		return nil
	})
	lap("three members")
	store.down()
	control.crash()
	s.writes(control.Host, "while-away")
	s.podo(control.Host, "status", "--wait=40s")
	lap("control plane started while a member is away")
}
