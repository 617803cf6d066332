package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// used is what kubectl top says: podo's own metrics, and what kubectl makes of them.
func used(t *testing.T) {
	s := scenario(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: busy, labels: {app: busy}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: spin, image: $BUSYBOX, command: [sh, -c, "while :; do :; done"], resources: {limits: {cpu: 100m, memory: 32Mi}}}
  - {name: rest, image: $BUSYBOX, command: [sleep, "3600"]}
`)
	s.podReady("busy")
	began := s.pod("busy").Status.StartTime.Time
	var took time.Duration
	s.within(60*time.Second, "kubectl top tells what the pod's containers use", func() error {
		r := s.try("top", "pod", "busy", "--containers", "--no-headers")
		if r.code != 0 {
			return errors.New(r.String())
		}
		took = time.Since(began)
		cpu := map[string]int{}
		for line := range strings.Lines(r.out) {
			var pod, container string
			var milli, mega int
			if _, err := fmt.Sscanf(line, "%s %s %dm %dMi", &pod, &container, &milli, &mega); err != nil {
				return fmt.Errorf("%q: %w", line, err)
			}
			cpu[container] = milli
		}
		if spin := cpu["spin"]; len(cpu) != 2 || spin < 60 || spin > 140 || cpu["rest"] > 5 {
			return fmt.Errorf("of a container that has 100m to spin and one that sleeps: %v", cpu)
		}
		return nil
	})
	if took > 60*time.Second {
		t.Errorf("known %s after the pod began", took)
	}
	s.Attr("figure", fmt.Sprintf("kubectl top after a pod's start\t%.1f\ts", took.Seconds()))
	if out := s.kubectl("top", "pod", "-l", "app=busy", "--no-headers"); !strings.HasPrefix(out, "busy ") || strings.Count(out, "\n") != 1 {
		t.Errorf("by label: %q", out)
	}
	if r := s.try("top", "pod", "-l", "app=nobody"); strings.Contains(r.out, "busy") {
		t.Errorf("by another label: %s", r)
	}
	if r := s.try("top", "pod", "nobody"); r.code == 0 || contains(r.err, "not found") != nil {
		t.Errorf("of no pod: %s", r)
	}
	s.within(40*time.Second, "kubectl top tells what the node uses", func() error {
		r := podo("kubectl", "top", "nodes", "--no-headers")
		if strings.Count(r.out, "%") != 2 {
			return errors.New(r.String())
		}
		return nil
	})
	if out := s.kubectl("get", "pods.metrics.k8s.io"); contains(out, "CPU", "busy") != nil {
		t.Errorf("kubectl get: %s", out)
	}
	if out := must(t, "kubectl", "explain", "podmetrics.containers.usage"); contains(out, "metrics.k8s.io") != nil {
		t.Errorf("kubectl explain: %s", out)
	}
	if out := must(t, "kubectl", "get", "apiservice", "v1beta1.metrics.k8s.io"); contains(out, "Local", "True") != nil {
		t.Errorf("the APIService: %s", out)
	}

	// Who may view a namespace may see what its pods use, and nobody else may.
	s.kubectl("create", "rolebinding", "viewer", "--clusterrole=view", "--serviceaccount="+s.ns+":default")
	as := "--as=system:serviceaccount:" + s.ns + ":default"
	s.within(20*time.Second, "who may view may see", func() error {
		if r := s.try("top", "pod", "busy", as); r.code != 0 {
			return errors.New(r.String())
		}
		return nil
	})
	if r := podo("kubectl", "-n", "kube-system", "top", "pod", as); r.code == 0 || contains(r.err, "forbidden") != nil {
		t.Errorf("of a namespace that it may not view: %s", r)
	}
}

// autoscaled: under load there are more pods, and without it there is one again.
func autoscaled(t *testing.T) {
	s := scenario(t)
	s.apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: $AGNHOST
        args: [netexec, --http-port=8080]
        resources: {requests: {cpu: 20m}, limits: {cpu: 60m}}
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}
  minReplicas: 1
  maxReplicas: 3
  metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}]
  behavior: {scaleDown: {stabilizationWindowSeconds: 0}}
---
apiVersion: v1
kind: Pod
metadata: {name: load}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: load
    image: $BUSYBOX
    command: [sh, -c, "while :; do wget -q -O /dev/null http://web/hostname; done"]
    resources: {limits: {cpu: 200m}}
`)
	s.rolledOut("deployment/web")
	replicas := func(limit time.Duration, what string, enough func(int32) bool) {
		t.Helper()
		began := time.Now()
		s.within(limit, what, func() error {
			d, err := s.AppsV1().Deployments(s.ns).Get(s.ctx, "web", metav1.GetOptions{})
			if err == nil && !enough(d.Status.ReadyReplicas) {
				err = fmt.Errorf("%d pods; %s", d.Status.ReadyReplicas, s.try("describe", "hpa", "web").out)
			}
			return err
		})
		s.Attr("figure", fmt.Sprintf("%s after\t%.0f\ts", what, time.Since(began).Seconds()))
	}
	replicas(150*time.Second, "more pods under load", func(n int32) bool { return n > 1 })
	s.kubectl("delete", "pod", "load")
	replicas(240*time.Second, "one pod without", func(n int32) bool { return n == 1 })
}

// othersMetrics: who applies an APIService of his own has it served by his Service, also
// after podo started anew, and podo's is back with a start once that is deleted.
func othersMetrics(t *testing.T) {
	s := scenario(t)
	s.apply(`
apiVersion: v1
kind: Service
metadata: {name: metrics-server}
spec: {ports: [{port: 443}]}
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.metrics.k8s.io}
spec:
  group: metrics.k8s.io
  version: v1beta1
  groupPriorityMinimum: 100
  versionPriority: 100
  insecureSkipTLSVerify: true
  service: {namespace: ` + s.ns + `, name: metrics-server}
`)
	s.Cleanup(func() { podo("kubectl", "delete", "apiservice", "v1beta1.metrics.k8s.io", "--ignore-not-found") })
	theirs := func() error {
		r := podo("kubectl", "top", "nodes")
		return errors.Join(
			contains(must(t, "kubectl", "get", "apiservice", "v1beta1.metrics.k8s.io", "-o", "wide"), s.ns+"/metrics-server", "False (EndpointsNotFound)"),
			contains(r.err, "Metrics API not available"))
	}
	s.within(20*time.Second, "it is their Service that is asked", theirs)
	theCluster.stop(t)
	startCluster(t)
	s.within(20*time.Second, "it is their Service that is asked after a start", theirs)
	always(t, 5*time.Second, "and stays so", theirs)

	s.kubectl("delete", "apiservice", "v1beta1.metrics.k8s.io")
	theCluster.stop(t)
	startCluster(t)
	s.within(60*time.Second, "podo's own is back", func() error {
		r, top := podo("kubectl", "get", "apiservice", "v1beta1.metrics.k8s.io"), podo("kubectl", "top", "nodes")
		if top.code != 0 {
			return errors.New(top.String())
		}
		return contains(r.out, "Local", "True")
	})
}
