package e2e

import (
	"errors"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func quotas(t *testing.T) {
	s := scenario(t)
	s.apply(`
apiVersion: v1
kind: ResourceQuota
metadata: {name: few}
spec: {hard: {pods: "2", requests.cpu: 500m}}
---
apiVersion: v1
kind: LimitRange
metadata: {name: modest}
spec:
  limits:
  - type: Container
    default: {cpu: 100m, memory: 64Mi}
    defaultRequest: {cpu: 10m, memory: 16Mi}
    max: {cpu: "1", memory: 256Mi}
`)
	s.within(20*time.Second, "the quota is counted", func() error {
		q, err := s.CoreV1().ResourceQuotas(s.ns).Get(s.ctx, "few", metav1.GetOptions{})
		if err == nil && q.Status.Used.Pods() == nil || err == nil && len(q.Status.Used) == 0 {
			err = errors.New("not yet")
		}
		return err
	})
	s.kubectl("run", "one", "--image="+pause, "--image-pull-policy=Never")
	s.kubectl("run", "two", "--image="+pause, "--image-pull-policy=Never")
	if r := s.pod("one").Spec.Containers[0].Resources; r.Limits.Cpu().MilliValue() != 100 || r.Requests.Memory().Value() != 16<<20 {
		t.Errorf("the limit range gives %+v", r)
	}
	r := s.try("run", "three", "--image="+pause)
	if err := contains(r.err, "exceeded quota", "few", "pods"); r.code == 0 || err != nil {
		t.Errorf("a third pod: %s", r)
	}
	r = s.try("run", "big", "--image="+pause, `--overrides={"spec":{"containers":[{"name":"big","image":"`+pause+`","resources":{"limits":{"memory":"1Gi"}}}]}}`)
	if err := contains(r.err, "maximum memory usage"); r.code == 0 || err != nil {
		t.Errorf("a pod over the range: %s", r)
	}
	s.podReady("one", "two")
	s.kubectl("delete", "pod", "one", "--now")
	s.within(20*time.Second, "there is room again", func() error {
		if r := s.try("run", "four", "--image="+pause, "--image-pull-policy=Never"); r.code != 0 {
			return errors.New(r.err)
		}
		return nil
	})
}
