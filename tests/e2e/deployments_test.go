package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func deployments(t *testing.T) {
	s := scenario(t)
	s.apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: $AGNHOST
        args: [netexec, --http-port=8080]
        env: [{name: COLOUR, value: blue}]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
`)
	s.rolledOut("deployment/web")
	wears := func(colour string, many int) {
		s.Helper()
		s.within(30*time.Second, fmt.Sprintf("%d pods are %s", many, colour), func() error {
			pods := s.pods("app=web")
			for _, p := range pods {
				if p.Spec.Containers[0].Env[0].Value != colour || readyError(&p) != nil {
					return fmt.Errorf("%s is %s: %s", p.Name, p.Spec.Containers[0].Env[0].Value, describe(&p))
				}
			}
			if len(pods) != many {
				return fmt.Errorf("there are %d", len(pods))
			}
			return nil
		})
	}
	wears("blue", 2)

	s.kubectl("scale", "deployment/web", "--replicas=3")
	s.rolledOut("deployment/web")
	wears("blue", 3)

	s.kubectl("set", "env", "deployment/web", "COLOUR=green")
	s.rolledOut("deployment/web")
	wears("green", 3)
	if out := s.sh(s.pods("app=web")[0].Name, "echo $COLOUR"); strings.TrimSpace(out) != "green" {
		t.Errorf("in the container COLOUR is %q", out)
	}

	s.kubectl("rollout", "undo", "deployment/web")
	s.rolledOut("deployment/web")
	wears("blue", 3)

	s.kubectl("scale", "deployment/web", "--replicas=1")
	wears("blue", 1)

	victim := s.pods("app=web")[0].Name
	s.kubectl("delete", "pod", victim, "--wait=false")
	s.podGone(victim, 30*time.Second)
	wears("blue", 1) // by another
}
