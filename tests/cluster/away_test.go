package cluster

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

const roaming = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: roams}
spec:
  selector: {matchLabels: {app: roams}}
  template:
    metadata: {labels: {app: roams}}
    spec:
      affinity:
        nodeAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
          - weight: 100
            preference: {matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [one]}]}
      terminationGracePeriodSeconds: 1
      containers:
      - name: roams
        image: $AGNHOST
        imagePullPolicy: Never
        args: [netexec, --http-port=8080]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
`

// TestAgentThatIsAway: an agent that is cut off for a moment is not missed, and for a
// minute is NotReady and comes back; its pods run on there and are evicted neither time.
// After ten minutes, which is tried if PODO_E2E_LONG is set, those that may run elsewhere
// do so, and what runs twice ends on the agent when it is back.
func TestAgentThatIsAway(t *testing.T) {
	s := begin(t)
	server := s.server("server")
	one := s.agent("one", server)
	s.ready(server, server, one)
	s.apply(server, roaming)
	s.running(server, "app=roams")
	pod, ip := s.podOn(server, one, "roams")
	long := os.Getenv("PODO_E2E_LONG") != ""

	// cut takes the agent away, and has work done meanwhile on the other side.
	cut := func(s *scene, lasts time.Duration, meanwhile func()) {
		s.Helper()
		silent := s.watch(one, ip+":8080")
		s.net.Isolate(one)
		began := time.Now()
		meanwhile()
		time.Sleep(time.Until(began.Add(lasts)))
		if failed := silent(); len(failed) > 0 {
			s.Errorf("%d requests to the pod from its own node had no answer, the first: %v", len(failed), failed[0])
		}
		s.net.Heal()
		began = time.Now()
		s.ready(server, one)
		s.Logf("Ready %s after the agent is back", time.Since(began).Round(100*time.Millisecond))
	}
	stays := func(s *scene) {
		s.Helper()
		if now, _ := s.podOn(server, one, "roams"); now != pod {
			s.Errorf("the pod was %s and is %q", pod, now)
		}
		s.reached(server, pod)
	}
	t.Run("5s", func(t *testing.T) {
		s := s.in(t)
		cut(s, 5*time.Second, func() {})
		if out := s.kubectl(server, "get", "events", "-A", "-o", "jsonpath={.items[*].reason}"); strings.Contains(out, "NodeNotReady") {
			t.Errorf("the node was NotReady: %s", out)
		}
		stays(s)
	})
	t.Run("60s", func(t *testing.T) {
		s := s.in(t)
		cut(s, time.Minute, func() {
			began := time.Now()
			s.within(58*time.Second, "node one not Ready", func() error { return s.unknown(server, one) })
			t.Logf("not Ready after %s", time.Since(began).Round(time.Second))
		})
		stays(s)
	})
	if !long {
		return
	}
	t.Run("10m", func(t *testing.T) {
		s := s.in(t)
		cut(s, 10*time.Minute, func() {
			began := time.Now()
			s.within(7*time.Minute, "the pod runs elsewhere", func() error {
				name, _, err := s.lookFor(server, server, "roams")
				if err == nil && name == "" {
					err = fmt.Errorf("no pod on the server yet")
				}
				return err
			})
			t.Logf("evicted and running elsewhere after %s", time.Since(began).Round(time.Second))
		})
		began := time.Now()
		s.within(time.Minute, "the pod that was evicted ends on the agent", func() error {
			if name, _, err := s.lookFor(server, one, "roams"); err != nil || name != "" {
				return fmt.Errorf("pod %q, %v", name, err)
			}
			return contains("none"+s.podo(one, "crictl", "ps", "-q", "--name", "roams")+"left", "noneleft")
		})
		t.Logf("it ended there after %s", time.Since(began).Round(100*time.Millisecond))
		s.running(server, "app=roams")
	})
}

// unknown returns nil once the cluster does not know how a node is.
func (s *scene) unknown(server, node *hosts.Host) error {
	out, err := server.Kubectl("get", "node", node.Name(), "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
	if err == nil && out != "Unknown" {
		err = fmt.Errorf("Ready is %s", out)
	}
	return err
}

// lookFor is podOn for a pod that may not be there, or not be ready.
func (s *scene) lookFor(server, node *hosts.Host, app string) (name, ip string, err error) {
	out, err := server.Kubectl("get", "pods", "-l", "app="+app, "--field-selector", "spec.nodeName="+node.Name(),
		"-o", `jsonpath={range .items[?(@.status.containerStatuses[0].ready==true)]}{.metadata.name} {.status.podIP}{end}`)
	name, ip, _ = strings.Cut(strings.TrimSpace(out), " ")
	return name, ip, err
}
