package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func crowd(t *testing.T) {
	s := scenario(t)
	const many = 130
	if n := s.node().Status.Allocatable.Pods().Value(); n != 250 {
		t.Fatalf("the node takes %d pods", n)
	}
	before := len(contained())
	began := time.Now()
	s.apply(fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: crowd}
spec:
  replicas: %d
  selector: {matchLabels: {app: crowd}}
  template:
    metadata: {labels: {app: crowd}}
    spec:
      terminationGracePeriodSeconds: 0
      automountServiceAccountToken: false
      containers: [{name: main, image: $PAUSE, resources: {requests: {cpu: 1m, memory: 1Mi}}}]
`, many))
	s.within(4*time.Minute, fmt.Sprintf("%d pods are Ready", many), func() error {
		r := s.try("get", "deployment", "crowd", "-o", "jsonpath={.status.readyReplicas}")
		if r.out != fmt.Sprint(many) {
			<-time.After(time.Second) // each look costs the machine something
			return fmt.Errorf("%s are", r.out)
		}
		return nil
	})
	t.Logf("%d pods ran after %s", many, time.Since(began).Round(time.Second))
	addrs := map[string]bool{}
	for _, p := range s.pods("app=crowd") {
		addrs[p.Status.PodIP] = true
	}
	if len(addrs) != many {
		t.Errorf("%d pods have %d addresses", many, len(addrs))
	}
	if !strings.HasSuffix(s.node().Spec.PodCIDR, "/23") {
		t.Errorf("the node has the addresses %s", s.node().Spec.PodCIDR)
	}
	s.kubectl("delete", "deployment", "crowd")
	s.within(3*time.Minute, "they go again", func() error {
		if n := len(s.pods("app=crowd")); n > 0 {
			return fmt.Errorf("%d are left", n)
		}
		return nil
	})
	// Gone from the cluster, they keep the machine busy for a while.
	s.within(2*time.Minute, "the machine is quiet again", func() error {
		if n := len(contained()); n > before {
			return fmt.Errorf("%d processes run in pods, %d more than before", n, n-before)
		}
		return nil
	})
}
