package cluster

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

const twoPlaces = `
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: web
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: $AGNHOST
        imagePullPolicy: Never
        args: [netexec, --http-port=8080]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
`

// TestPodsOfDifferentNodesTalk: one server and two agents; every pod reaches every
// other, Services and DNS work from every node, and exec and logs reach every node.
func TestPodsOfDifferentNodesTalk(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"vxlan", "host-gw"} {
		t.Run(backend, func(t *testing.T) {
			s := begin(t)
			server := s.server("server", "--flannel-backend", backend)
			one, two := s.agent("one", server), s.agent("two", server)
			s.ready(server, server, one, two)
			s.apply(server, twoPlaces)
			s.rolledOut(server, "web")
			pods := strings.Fields(s.kubectl(server, "get", "pods", "-l", "app=web", "-o", `jsonpath={range .items[*]}{.metadata.name}/{.status.podIP} {end}`))
			if len(pods) != 3 {
				t.Fatalf("pods: %v, want 3", pods)
			}
			for _, from := range pods {
				name, _, _ := strings.Cut(from, "/")
				for _, to := range pods {
					_, ip, _ := strings.Cut(to, "/")
					s.within(20*time.Second, from+" to "+to, func() error {
						out, err := server.Kubectl("exec", name, "--", "/agnhost", "connect", "--timeout=2s", ip+":8080")
						if err != nil {
							return fmt.Errorf("%w: %s", err, out)
						}
						return nil
					})
				}
				s.within(30*time.Second, from+" to the Service by name", func() error {
					out, err := server.Kubectl("exec", name, "--", "/agnhost", "connect", "--timeout=2s", "web.default.svc.cluster.local:80")
					if err != nil {
						return fmt.Errorf("%w: %s", err, out)
					}
					return nil
				})
				if out := s.kubectl(server, "logs", name); !strings.Contains(out, "Started HTTP server") {
					t.Errorf("logs of %s: %q", name, out)
				}
			}
		})
	}
}
