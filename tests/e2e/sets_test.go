package e2e

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

func daemonSets(t *testing.T) {
	s := scenario(t)
	s.apply(`
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere}
spec:
  selector: {matchLabels: {app: everywhere}}
  template:
    metadata: {labels: {app: everywhere}}
    spec:
      hostNetwork: true
      terminationGracePeriodSeconds: 1
      containers: [{name: main, image: $BUSYBOX, command: [sleep, "100000"]}]
`)
	s.rolledOut("daemonset/everywhere")
	pods := s.pods("app=everywhere")
	if len(pods) != 1 || pods[0].Spec.NodeName != s.node().Name || pods[0].Status.PodIP != s.nodeAddress() {
		t.Errorf("on one node there are %d pods: %+v", len(pods), pods)
	}
	s.kubectl("set", "env", "daemonset/everywhere", "GENERATION=2")
	s.rolledOut("daemonset/everywhere")
	s.within(20*time.Second, "the pod is of the new generation", func() error {
		if pods := s.pods("app=everywhere"); len(pods) != 1 || len(pods[0].Spec.Containers[0].Env) != 1 {
			return fmt.Errorf("%d pods", len(pods))
		}
		return nil
	})
}

func statefulSets(t *testing.T) {
	s := scenario(t)
	s.apply(`
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: $AGNHOST
        args: [netexec, --http-port=8080]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: client, image: $AGNHOST, args: [netexec, --http-port=8080]}]
`)
	s.rolledOut("statefulset/db")
	s.podReady("db-0", "db-1", "client")
	if a, b := s.pod("db-0").Status.StartTime, s.pod("db-1").Status.StartTime; b.Before(a) {
		t.Errorf("db-1 started before db-0")
	}
	name := "http://db-%d.db." + s.ns + ".svc.cluster.local:8080/hostname"
	for i := range 2 {
		s.answersIn("client", fmt.Sprintf(name, i), fmt.Sprintf("db-%d", i))
	}
	old := s.pod("db-1")
	s.kubectl("delete", "pod", "db-1", "--wait=false")
	s.within(30*time.Second, "another db-1 takes its place", func() error {
		if r := s.try("get", "pod", "db-1", "-o", "jsonpath={.metadata.uid}"); r.code != 0 || r.out == string(old.UID) {
			return errors.New(r.String())
		}
		return nil
	})
	s.podReady("db-1")
	s.answersIn("client", fmt.Sprintf(name, 1), "db-1")
	s.kubectl("scale", "statefulset/db", "--replicas=1")
	s.podGone("db-1", 30*time.Second) // the last one first
	s.podReady("db-0")
}
