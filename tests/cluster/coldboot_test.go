package cluster

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

const atHome = `
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: green}
---
apiVersion: v1
kind: Secret
metadata: {name: password}
stringData: {word: sesame}
---
apiVersion: v1
kind: Service
metadata: {name: home}
spec:
  selector: {app: home}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: home}
spec:
  selector: {matchLabels: {app: home}}
  template:
    metadata: {labels: {app: home}}
    spec:
      nodeSelector: {kubernetes.io/hostname: one}
      terminationGracePeriodSeconds: 1
      containers:
      - name: home
        image: $AGNHOST
        imagePullPolicy: Never
        args: [netexec, --http-port=8080]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
      - name: look
        image: $BUSYBOX
        imagePullPolicy: Never
        command: [sleep, "36000"]
        env: [{name: WORD, valueFrom: {secretKeyRef: {name: password, key: word}}}]
        volumeMounts: [{name: settings, mountPath: /settings}]
      volumes:
      - name: settings
        projected: {sources: [{configMap: {name: settings}}, {secret: {name: password}}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: guest}
spec:
  selector: {matchLabels: {app: guest}}
  template:
    metadata: {labels: {app: guest}}
    spec:
      nodeSelector: {kubernetes.io/hostname: one}
      terminationGracePeriodSeconds: 1
      containers:
      - name: guest
        image: $AGNHOST
        imagePullPolicy: Never
        args: [netexec, --http-port=8080]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: far}
spec:
  selector: {matchLabels: {app: far}}
  template:
    metadata: {labels: {app: far}}
    spec:
      nodeSelector: {kubernetes.io/hostname: two}
      terminationGracePeriodSeconds: 1
      containers:
      - name: far
        image: $AGNHOST
        imagePullPolicy: Never
        args: [netexec, --http-port=8080]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
`

// TestAgentColdBootsWithoutServer_alone: an agent that boots while no server answers starts
// the pods that it last knew, with their settings, secrets, tokens, volumes and Services, and
// has its routes to other nodes. When the server returns no pod is restarted, and
// what was deleted meanwhile goes.
func TestAgentColdBootsWithoutServer_alone(t *testing.T) {
	for _, backend := range []string{"vxlan", "host-gw"} {
		t.Run(backend, func(t *testing.T) {
			coldBoot(alone(t), backend)
		})
	}
}

func coldBoot(s *scene, backend string) {
	server := s.server("server", "--flannel-backend", backend)
	one, two := s.agent("one", server), s.agent("two", server)
	s.ready(server, server, one, two)
	s.apply(server, atHome+"---"+fmt.Sprintf(database, "one"))
	s.running(server, "app in (home,guest,far,db)")
	service := s.kubectl(server, "get", "service", "home", "-o", "jsonpath={.spec.clusterIP}") + ":80"
	_, far := s.podOn(server, two, "far")
	_, data := s.volumeOf(server, "data-db-0")
	starts := func() int { return strings.Count(s.file(one, data+"/starts"), "start") }
	if n := starts(); n != 1 {
		s.Fatalf("the database has noted %d starts", n)
	}
	s.serves(one, "the Service", service, 20*time.Second)
	s.serves(one, "the other node's pod", far+":8080", 20*time.Second)
	time.Sleep(3 * time.Second) // it is the last moments that a power cut takes

	server.Off()
	one.Reboot()
	began := time.Now()
	agent := s.start(one, "agent", "--server", url(server))
	id, ip := s.container(one, "home", time.Minute)
	s.serves(one, "the pod", ip+":8080", 30*time.Second-time.Since(began))
	s.serves(one, "the Service", service, 30*time.Second-time.Since(began))
	s.Logf("the pod serves %s after the start of an agent without a server", time.Since(began).Round(100*time.Millisecond))
	s.serves(one, "the other node's pod", far+":8080", 10*time.Second)
	s.container(one, "guest", time.Minute)
	db, _ := s.container(one, "main", time.Minute)
	s.within(10*time.Second, "the database has what it had", func() error {
		if n := starts(); n != 2 {
			return fmt.Errorf("it has noted %d starts, want 2", n)
		}
		return nil
	})
	look, _ := s.container(one, "look", 10*time.Second)
	for command, want := range map[string]string{
		"cat /settings/colour":    "green",
		"cat /settings/word":      "sesame",
		"echo $WORD":              "sesame",
		"echo $HOME_SERVICE_HOST": strings.TrimSuffix(service, ":80"),
		"cat /var/run/secrets/kubernetes.io/serviceaccount/token": "eyJ",
	} {
		got := s.podo(one, "crictl", "exec", "-s", look, "sh", "-c", command)
		if !strings.HasPrefix(got, want) {
			s.Errorf("%s: %q, want %q", command, got, want)
		}
	}
	time.Sleep(10 * time.Second)
	if again, _ := s.container(one, "home", time.Second); again != id {
		s.Errorf("the container does not keep running: %s, then %s", id, again)
	}

	server.On()
	s.start(server, "server", "--flannel-backend", backend)
	s.ready(server, server, one, two)
	s.within(30*time.Second, "the cluster knows the pod's new address", func() error {
		if _, got := s.podOn(server, one, "home"); got != ip {
			return fmt.Errorf("%s, want %s", got, ip)
		}
		return nil
	})
	s.running(server, "app in (home,guest,far,db)")
	if again, _ := s.container(one, "main", time.Second); again != db || starts() != 2 {
		s.Errorf("the server's return restarts the database: %s, then %s", db, again)
	}
	s.serves(server, "the pod, from the server", ip+":8080", 20*time.Second)
	if again, _ := s.container(one, "home", time.Second); again != id {
		s.Errorf("the server's return restarts the container: %s, then %s", id, again)
	}

	// What is deleted while the agent is cut off goes when it is not.
	s.net.Cut(server, one)
	s.kubectl(server, "delete", "deployment", "guest", "--wait=false")
	s.kubectl(server, "delete", "pod", "-l", "app=guest", "--force", "--grace-period=0", "--ignore-not-found")
	s.kill(agent)
	one.Reboot()
	s.start(one, "agent", "--server", url(server))
	s.container(one, "guest", time.Minute)
	id, _ = s.container(one, "home", time.Minute)
	s.net.Heal()
	s.within(60*time.Second, "what was deleted goes", func() error {
		out, err := one.Run("podo", "crictl", "ps", "-q", "--name", "^guest$")
		if err != nil || strings.TrimSpace(out) != "" {
			return fmt.Errorf("containers %q, %v", out, err)
		}
		return nil
	})
	s.ready(server, one)
	if again, _ := s.container(one, "home", time.Second); again != id {
		s.Errorf("the return restarts the container: %s, then %s", id, again)
	}
}

// container waits until a container runs, and returns its ID and its pod's address.
func (s *scene) container(h *hosts.Host, name string, limit time.Duration) (id, ip string) {
	s.Helper()
	s.within(limit, "container "+name+" runs on "+h.Name(), func() error {
		out, err := h.Run("podo", "crictl", "ps", "--state", "running", "--name", "^"+name+"$", "-o", "json")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		var list struct {
			Containers []struct{ ID, PodSandboxID string }
		}
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			return fmt.Errorf("%w in %s", err, out)
		}
		if len(list.Containers) != 1 {
			return fmt.Errorf("%d containers", len(list.Containers))
		}
		id = list.Containers[0].ID
		if out, err = h.Run("podo", "crictl", "inspectp", list.Containers[0].PodSandboxID); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		var sandbox struct {
			Status struct{ Network struct{ IP string } }
		}
		if err := json.Unmarshal([]byte(out), &sandbox); err != nil {
			return fmt.Errorf("%w in %s", err, out)
		}
		ip = sandbox.Status.Network.IP
		return nil
	})
	return id, ip
}

// serves waits until something answers on a host.
func (s *scene) serves(h *hosts.Host, what, address string, limit time.Duration) {
	s.Helper()
	s.within(limit, what+" answers on "+h.Name(), func() error {
		_, err := s.get(h, address, "/hostname")
		return err
	})
}
