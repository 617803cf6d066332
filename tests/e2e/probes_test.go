package e2e

import (
	"errors"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func probes(t *testing.T) {
	s := scenario(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: lively}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: exec
    image: $BUSYBOX
    command: [sh, -c, "touch /tmp/healthy; sleep 3; rm /tmp/healthy; sleep 100000"]
    livenessProbe: {exec: {command: [test, -f, /tmp/healthy]}, periodSeconds: 1, failureThreshold: 2}
  - name: http
    image: $AGNHOST
    args: [netexec, --http-port=8080]
    livenessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
    readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: ready, labels: {app: ready}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: tcp
    image: $AGNHOST
    args: [netexec, --http-port=8081, --udp-port=-1]
    livenessProbe: {tcpSocket: {port: 8081}, periodSeconds: 1}
  - name: grpc
    image: $AGNHOST
    args: [grpc-health-checking, --port=5000, --http-port=8082]
    livenessProbe: {grpc: {port: 5000}, periodSeconds: 2}
    readinessProbe: {grpc: {port: 5000}, periodSeconds: 1}
  - name: file
    image: $BUSYBOX
    command: [sleep, "100000"]
    readinessProbe: {exec: {command: [test, -f, /tmp/ready]}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: slow}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: $BUSYBOX
    command: [sh, -c, "sleep 4; touch /tmp/started; sleep 100000"]
    startupProbe: {exec: {command: [test, -f, /tmp/started]}, periodSeconds: 1, failureThreshold: 60}
    livenessProbe: {exec: {command: [test, -f, /tmp/started]}, periodSeconds: 1, timeoutSeconds: 5, failureThreshold: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: dead-port}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: $BUSYBOX
    command: [sleep, "100000"]
    livenessProbe: {tcpSocket: {port: 9}, periodSeconds: 1, failureThreshold: 2}
---
apiVersion: v1
kind: Service
metadata: {name: ready}
spec:
  selector: {app: ready}
  ports: [{port: 80, targetPort: 8081}]
`)
	// Not ready until the file is there, and out of the service again when it goes.
	s.within(60*time.Second, "two of the three containers are ready", func() error {
		n := 0
		for _, c := range s.pod("ready").Status.ContainerStatuses {
			if c.Ready {
				n++
			}
		}
		if n != 2 {
			return fmt.Errorf("%d are: %s", n, describe(s.pod("ready")))
		}
		return nil
	})
	if readyError(s.pod("ready")) == nil {
		t.Error("the pod is Ready before its readiness probe succeeds")
	}
	s.kubectl("exec", "ready", "-c", "file", "--", "touch", "/tmp/ready")
	s.podReady("ready")
	s.kubectl("exec", "ready", "-c", "file", "--", "rm", "/tmp/ready")
	s.within(30*time.Second, "the pod is unready again", func() error {
		if readyError(s.pod("ready")) == nil {
			return errors.New("it is Ready")
		}
		return nil
	})
	for _, c := range s.pod("ready").Status.ContainerStatuses {
		if c.RestartCount != 0 {
			t.Errorf("%s was restarted: an unready container is left alone", c.Name)
		}
	}

	// Startup holds the other probes back.
	s.podReady("slow")
	if n := restarts(s.pod("slow"), "main"); n != 0 {
		t.Errorf("the slow starter was restarted %d times", n)
	}

	// Liveness restarts what is dead, and nothing else.
	for pod, container := range map[string]string{"lively": "exec", "dead-port": "main"} {
		s.within(60*time.Second, "the dead container of "+pod+" is restarted", func() error {
			if restarts(s.pod(pod), container) == 0 {
				return errors.New(describe(s.pod(pod)))
			}
			return nil
		})
	}
	if n := restarts(s.pod("lively"), "http"); n != 0 {
		t.Errorf("its neighbour was restarted %d times", n)
	}
}

func restarts(p *corev1.Pod, container string) int32 {
	for _, c := range p.Status.ContainerStatuses {
		if c.Name == container {
			return c.RestartCount
		}
	}
	return 0
}
