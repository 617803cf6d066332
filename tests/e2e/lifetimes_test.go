package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func initAndSidecars(t *testing.T) {
	s := scenario(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: main}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 5
  volumes: [{name: shared, emptyDir: {}}]
  initContainers:
  - name: first
    image: $BUSYBOX
    command: [sh, -c, "echo first >> /shared/order"]
    volumeMounts: [{name: shared, mountPath: /shared}]
  - name: sidecar
    restartPolicy: Always
    image: $BUSYBOX
    command: [sh, -c, "trap 'exit 0' TERM; echo sidecar >> /shared/order; touch /tmp/up; while :; do sleep 0.2; done"]
    startupProbe: {exec: {command: [test, -f, /tmp/up]}, periodSeconds: 1}
    volumeMounts: [{name: shared, mountPath: /shared}]
  - name: second
    image: $BUSYBOX
    command: [sh, -c, "echo second >> /shared/order"]
    volumeMounts: [{name: shared, mountPath: /shared}]
  containers:
  - name: main
    image: $BUSYBOX
    command: [sh, -c, "echo main >> /shared/order; cat /shared/order"]
    volumeMounts: [{name: shared, mountPath: /shared}]
---
apiVersion: v1
kind: Pod
metadata: {name: hopeless}
spec:
  restartPolicy: Never
  initContainers: [{name: fails, image: $BUSYBOX, command: ["false"]}]
  containers: [{name: main, image: $BUSYBOX, command: [sleep, "100000"]}]
`)
	s.podPhase("main", corev1.PodSucceeded) // the sidecar does not keep it
	order := strings.Fields(s.kubectl("logs", "main", "-c", "main"))
	if got := strings.Join(order, " "); got != "first sidecar second main" {
		t.Errorf("the containers ran as %q", got)
	}
	p := s.podPhase("hopeless", corev1.PodFailed)
	if st := p.Status.ContainerStatuses[0].State; st.Running != nil || st.Terminated != nil && !st.Terminated.StartedAt.IsZero() {
		t.Errorf("the container ran after its init container failed: %+v", st)
	}
}

func gracefulEnds(t *testing.T) {
	s := scenario(t)
	dir := s.hostFolder()
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: polite}
spec:
  terminationGracePeriodSeconds: 20
  volumes: [{name: host, hostPath: {path: ` + dir + `}}]
  containers:
  - name: main
    image: $BUSYBOX
    command: [sh, -c, "trap 'echo term >> /host/story; exit 0' TERM; echo up >> /host/story; while :; do sleep 0.1; done"]
    lifecycle: {preStop: {exec: {command: [sh, -c, "echo prestop >> /host/story; sleep 1; echo prestopped >> /host/story"]}}}
    volumeMounts: [{name: host, mountPath: /host}]
---
apiVersion: v1
kind: Pod
metadata: {name: deaf}
spec:
  terminationGracePeriodSeconds: 3
  containers: [{name: main, image: $BUSYBOX, command: [sh, -c, "trap '' TERM; while :; do sleep 1; done"]}]
`)
	s.podReady("polite", "deaf")
	story := filepath.Join(dir, "story")
	s.within(10*time.Second, "the pod is up", func() error {
		text, err := os.ReadFile(story)
		return errors.Join(err, contains(string(text), "up"))
	})

	s.kubectl("delete", "pod", "polite", "--wait=false")
	s.podGone("polite", 15*time.Second)
	text, err := os.ReadFile(story)
	s.ok(err)
	if got := strings.Join(strings.Fields(string(text)), " "); got != "up prestop prestopped term" {
		t.Errorf("the pod's end went %q", got)
	}

	began := time.Now()
	s.kubectl("delete", "pod", "deaf", "--wait=false")
	s.podGone("deaf", 30*time.Second)
	if took := time.Since(began); took < 2500*time.Millisecond || took > 12*time.Second {
		t.Errorf("a pod that does not listen went after %s; its grace is 3s", took)
	}
}
