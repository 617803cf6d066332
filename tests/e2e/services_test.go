package e2e

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// servers are two pods behind Services, and a third that asks them.
const servers = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: $AGNHOST
        args: [netexec, --http-port=8080, --udp-port=8081]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: udp, port: 81, targetPort: 8081, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec:
  clusterIP: None
  selector: {app: web}
  ports: [{name: http, port: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: nodeport}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: client, image: $AGNHOST, args: [netexec, --http-port=8080]}]
`

func services(t *testing.T) {
	s := scenario(t)
	s.apply(servers)
	s.rolledOut("deployment/web")
	s.podReady("client")
	var names, addrs []string
	for _, p := range s.pods("app=web") {
		names, addrs = append(names, p.Name), append(addrs, p.Status.PodIP)
	}
	web, err := s.CoreV1().Services(s.ns).Get(s.ctx, "web", metav1.GetOptions{})
	s.ok(err)
	vip := web.Spec.ClusterIP

	// By the address of the service: from the machine, from a pod, from its own pods.
	s.answers("http://"+vip+"/hostname", names...)
	s.answersIn("client", "http://"+vip+"/hostname", names...)
	for _, n := range names {
		for range 4 { // with two behind it, one of these comes back to the asker
			s.answersIn(n, "http://"+vip+"/hostname", names...)
		}
	}
	s.reachesAll("http://"+vip+"/hostname", names)

	// UDP.
	s.within(20*time.Second, "the service answers over UDP", func() error {
		c, err := net.Dial("udp", net.JoinHostPort(vip, "81"))
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Second))
		if _, err := c.Write([]byte("hostname")); err != nil {
			return err
		}
		buf := make([]byte, 200)
		n, err := c.Read(buf)
		if err == nil && !slices.Contains(names, strings.TrimSpace(string(buf[:n]))) {
			err = fmt.Errorf("it says %q", buf[:n])
		}
		return err
	})

	// A headless service is its pods.
	s.within(20*time.Second, "the headless service lists its pods", func() error {
		r := s.try("exec", "client", "--", "nslookup", "headless."+s.ns+".svc.cluster.local")
		return errors.Join(contains(r.out, addrs...))
	})

	// A node port, at every address of the node, from inside and outside.
	np, err := s.CoreV1().Services(s.ns).Get(s.ctx, "nodeport", metav1.GetOptions{})
	s.ok(err)
	port := fmt.Sprint(np.Spec.Ports[0].NodePort)
	s.answers("http://"+net.JoinHostPort(s.nodeAddress(), port)+"/hostname", names...)
	s.answersIn("client", "http://"+net.JoinHostPort(s.nodeAddress(), port)+"/hostname", names...)

	// Who has no pods left refuses at once.
	s.kubectl("scale", "deployment/web", "--replicas=0")
	s.within(30*time.Second, "an empty service refuses", func() error {
		c, err := dial(net.JoinHostPort(vip, "80"))
		if err == nil {
			c.Close()
			return errors.New("it still accepts")
		}
		return contains(err.Error(), "refused")
	})
}

// reachesAll asks until every one of names has answered.
func (s *scene) reachesAll(url string, names []string) {
	s.Helper()
	seen := map[string]bool{}
	s.within(20*time.Second, "all of "+strings.Join(names, ", ")+" answer", func() error {
		body, err := get(url)
		seen[strings.TrimSpace(body)] = true
		for _, n := range names {
			if !seen[n] {
				return fmt.Errorf("%s has not answered (%v)", n, err)
			}
		}
		return nil
	})
}

func hostPorts(t *testing.T) {
	s := scenario(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: $AGNHOST
    args: [netexec, --http-port=8080]
    ports: [{containerPort: 8080, hostPort: 18080}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: client, image: $AGNHOST, args: [netexec, --http-port=8080]}]
`)
	s.podReady("web", "client")
	url := "http://" + net.JoinHostPort(s.nodeAddress(), "18080") + "/hostname"
	s.answers(url, "web")
	s.answersIn("client", url, "web")
	s.kubectl("delete", "pod", "web")
	s.within(20*time.Second, "the port is free again", func() error {
		c, err := dial(net.JoinHostPort(s.nodeAddress(), "18080"))
		if err == nil {
			c.Close()
			return errors.New("it still accepts")
		}
		return nil
	})
}
