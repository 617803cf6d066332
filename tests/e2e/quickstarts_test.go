package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// guestbook is the example that Kubernetes' own tutorials and tests have had for years: a
// front, a leader that is written to, and followers that copy it.
const guestbook = `
apiVersion: v1
kind: Service
metadata: {name: agnhost-primary, labels: {app: agnhost, role: primary, tier: backend}}
spec:
  ports: [{port: 6379, targetPort: 6379}]
  selector: {app: agnhost, role: primary, tier: backend}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: agnhost-primary}
spec:
  replicas: 1
  selector: {matchLabels: {app: agnhost, role: primary, tier: backend}}
  template:
    metadata: {labels: {app: agnhost, role: primary, tier: backend}}
    spec:
      containers:
      - name: primary
        image: $AGNHOST
        args: [guestbook, --http-port, "6379"]
        resources: {requests: {cpu: 50m, memory: 50Mi}}
        ports: [{containerPort: 6379}]
---
apiVersion: v1
kind: Service
metadata: {name: agnhost-replica, labels: {app: agnhost, role: replica, tier: backend}}
spec:
  ports: [{port: 6379}]
  selector: {app: agnhost, role: replica, tier: backend}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: agnhost-replica}
spec:
  replicas: 2
  selector: {matchLabels: {app: agnhost, role: replica, tier: backend}}
  template:
    metadata: {labels: {app: agnhost, role: replica, tier: backend}}
    spec:
      containers:
      - name: replica
        image: $AGNHOST
        args: [guestbook, --replicaof, agnhost-primary, --http-port, "6379"]
        resources: {requests: {cpu: 50m, memory: 50Mi}}
        ports: [{containerPort: 6379}]
---
apiVersion: v1
kind: Service
metadata: {name: frontend, labels: {app: guestbook, tier: frontend}}
spec:
  type: LoadBalancer
  ports: [{port: 18096, targetPort: 80}]
  selector: {app: guestbook, tier: frontend}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: frontend}
spec:
  replicas: 3
  selector: {matchLabels: {app: guestbook, tier: frontend}}
  template:
    metadata: {labels: {app: guestbook, tier: frontend}}
    spec:
      containers:
      - name: guestbook-frontend
        image: $AGNHOST
        args: [guestbook, --backend-port, "6379"]
        resources: {requests: {cpu: 50m, memory: 50Mi}}
        ports: [{containerPort: 80}]
`

// blog is shaped as the tutorials' WordPress: a password in a secret, a claim that names no
// class, and a pod that must come back to what it has written.
const blog = `
apiVersion: v1
kind: Secret
metadata: {name: mysql-pass}
stringData: {password: grapes}
---
apiVersion: v1
kind: Service
metadata: {name: blog, labels: {app: blog}}
spec:
  clusterIP: None
  ports: [{port: 8080}]
  selector: {app: blog}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: blog}
spec:
  serviceName: blog
  selector: {matchLabels: {app: blog}}
  template:
    metadata: {labels: {app: blog}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: blog
        image: $BUSYBOX
        command: [sh, -c, 'echo "$PASSWORD $HOSTNAME" >>/var/www/index.html; exec httpd -f -p 8080 -h /var/www']
        env: [{name: PASSWORD, valueFrom: {secretKeyRef: {name: mysql-pass, key: password}}}]
        ports: [{containerPort: 8080}]
        volumeMounts: [{name: www, mountPath: /var/www}]
  volumeClaimTemplates:
  - metadata: {name: www}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 20Mi}}}
`

// walls are the policies that guides begin with: nothing comes in, but for whoever has the
// label.
const walls = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: default-deny-ingress}
spec: {podSelector: {}, policyTypes: [Ingress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: access-nginx}
spec:
  podSelector: {matchLabels: {app: nginx}}
  ingress: [{from: [{podSelector: {matchLabels: {access: "true"}}}]}]
`

// quickStarts is what the first pages of guides have people type, with other images.
func quickStarts(t *testing.T) {
	s := scenario(t)

	s.kubectl("create", "deployment", "nginx", "--image="+agnhost, "--replicas=2", "--", "/agnhost", "netexec", "--http-port=80")
	s.kubectl("expose", "deployment", "nginx", "--port=18095", "--target-port=80", "--type=LoadBalancer")
	s.apply(guestbook)
	s.apply(blog)
	s.rolledOut("deployment/nginx")
	s.publishedAt("nginx", s.nodeAddress())
	var names []string
	for _, p := range s.pods("app=nginx") {
		names = append(names, p.Name)
	}
	s.answers("http://"+s.nodeAddress()+":18095/hostname", names...)

	for _, d := range []string{"agnhost-primary", "agnhost-replica", "frontend"} {
		s.rolledOut("deployment/" + d)
	}
	front := "http://" + s.nodeAddress() + ":18096/guestbook"
	s.within(30*time.Second, "the guestbook takes an entry", func() error {
		out, err := get(front + "?cmd=set&key=messages&value=grapes")
		if err == nil && !strings.Contains(out, "Updated") {
			err = errors.New(out)
		}
		return err
	})
	s.within(30*time.Second, "every follower has it", func() error {
		for range 10 {
			out, err := get(front + "?cmd=get&key=messages")
			if err != nil {
				return err
			}
			if !strings.Contains(out, `"grapes"`) {
				return errors.New(out)
			}
		}
		return nil
	})

	s.podReady("blog-0")
	s.kubectl("delete", "pod", "blog-0")
	s.within(60*time.Second, "the blog has its old pages", func() error {
		r := s.try("get", "--raw", "/api/v1/namespaces/"+s.ns+"/pods/blog-0:8080/proxy/")
		if strings.Count(r.out, "grapes blog-0") != 2 {
			return errors.New(r.String())
		}
		return nil
	})

	s.apply(walls)
	s.kubectl("run", "friend", "--image="+agnhost, "--labels=access=true", "--", "pause")
	s.kubectl("run", "stranger", "--image="+agnhost, "--", "pause")
	s.podReady("friend", "stranger")
	connect := func(from string) error {
		if r := s.try("exec", from, "--", "/agnhost", "connect", "nginx:18095", "--timeout=2s"); r.code != 0 {
			return errors.New(r.String())
		}
		return nil
	}
	s.within(20*time.Second, "who has the label is let in", func() error { return connect("friend") })
	if err := connect("stranger"); err == nil || !strings.Contains(fmt.Sprint(err), "TIMEOUT") {
		t.Errorf("who has not is answered: %v", err)
	}
}
