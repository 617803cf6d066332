package e2e

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// published is a Service at the node's address before the pods called web.
const published = `
apiVersion: v1
kind: Service
metadata: {name: outside}
spec:
  type: LoadBalancer
  allocateLoadBalancerNodePorts: false
  selector: {app: web}
  ports:
  - {name: http, port: $PORT, targetPort: 8080}
  - {name: udp, port: $PORT, targetPort: 8081, protocol: UDP}
`

// outsideAt has web published at a port of the node, and returns the address.
func (s *scene) outsideAt(port string) string {
	s.Helper()
	s.apply(strings.ReplaceAll(published, "$PORT", port))
	s.publishedAt("outside", s.nodeAddress())
	return net.JoinHostPort(s.nodeAddress(), port)
}

// publishedAt waits until a Service's status has exactly these addresses.
func (s *scene) publishedAt(service string, addresses ...string) *corev1.Service {
	s.Helper()
	var svc *corev1.Service
	s.within(20*time.Second, fmt.Sprintf("Service %s is published at %v", service, addresses), func() (err error) {
		if svc, err = s.CoreV1().Services(s.ns).Get(s.ctx, service, metav1.GetOptions{}); err != nil {
			return err
		}
		var got []string
		for _, i := range svc.Status.LoadBalancer.Ingress {
			got = append(got, i.IP)
		}
		if !slices.Equal(got, addresses) {
			return fmt.Errorf("at %v: %+v", got, svc.Status.Conditions)
		}
		return nil
	})
	return svc
}

func balanced(t *testing.T) {
	s := scenario(t)
	s.apply(servers)
	s.rolledOut("deployment/web")
	s.podReady("client")
	var names []string
	for _, p := range s.pods("app=web") {
		names = append(names, p.Name)
	}
	address := s.outsideAt("18090")
	url := "http://" + address + "/hostname"
	s.answers(url, names...)
	s.answersIn("client", url, names...)
	s.reachesAll(url, names)
	s.within(20*time.Second, "it answers over UDP", func() error {
		c, err := net.Dial("udp", address)
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
		if err == nil && !slices.Contains(names, string(buf[:n])) {
			err = fmt.Errorf("it says %q", buf[:n])
		}
		return err
	})

	// Who came once comes back to the same pod.
	s.kubectl("patch", "service", "outside", "-p", `{"spec":{"sessionAffinity":"ClientIP"}}`)
	s.within(20*time.Second, "one pod answers all the time", func() error {
		seen := map[string]bool{}
		for range 20 {
			body, err := get(url)
			if err != nil {
				return err
			}
			seen[body] = true
		}
		if len(seen) != 1 {
			return fmt.Errorf("%d pods answer", len(seen))
		}
		return nil
	})

	// Where the pods are, there is a health check for balancers of one's own.
	s.kubectl("patch", "service", "outside", "-p", `{"spec":{"sessionAffinity":"None","externalTrafficPolicy":"Local"}}`)
	svc := s.publishedAt("outside", s.nodeAddress())
	s.answers(url, names...)
	health := "http://" + net.JoinHostPort(s.nodeAddress(), fmt.Sprint(svc.Spec.HealthCheckNodePort)) + "/healthz"
	s.within(20*time.Second, "the health check counts both pods", func() error {
		body, err := get(health)
		if err == nil {
			err = contains(body, `"localEndpoints": 2`)
		}
		return err
	})
	s.kubectl("scale", "deployment/web", "--replicas=0")
	s.publishedAt("outside")
	s.kubectl("scale", "deployment/web", "--replicas=1")
	s.rolledOut("deployment/web")
	s.publishedAt("outside", s.nodeAddress())

	// One whose port belongs to a pod, to another or to podo waits for it.
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: holder}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: $PAUSE, ports: [{containerPort: 80, hostPort: 18091}]}]
`)
	s.podReady("holder")
	l, err := net.Listen("tcp", ":18095")
	s.ok(err)
	defer l.Close()
	s.within(60*time.Second, "the node tells that a program listens", func() error {
		return contains(s.node().Annotations["podo.dev/host-ports"], "18095/TCP")
	})
	for name, port := range map[string]string{"second": "18090", "third": "18091", "fourth": "18095", "api": "6443", "kubelet": "10250"} {
		s.kubectl("expose", "deployment", "web", "--name="+name, "--type=LoadBalancer", "--port="+port, "--target-port=8080")
	}
	for name, by := range map[string]string{"second": "Service " + s.ns + "/outside", "third": "pod " + s.ns + "/holder", "fourth": "a program of the machine", "api": "podo itself", "kubelet": "podo itself"} {
		s.within(20*time.Second, name+" tells who has its port", func() error {
			r := s.try("describe", "service", name)
			return errors.Join(contains(r.out, "PortTaken", "belongs to "+by), s.unpublished(name))
		})
	}
	must(t, "kubectl", "get", "nodes") // the API's port still leads to the API
	s.kubectl("delete", "pod", "holder", "--wait=false")
	s.publishedAt("third", s.nodeAddress())

	// One of another class is somebody else's.
	s.apply(`
apiVersion: v1
kind: Service
metadata: {name: theirs}
spec: {type: LoadBalancer, loadBalancerClass: example.com/theirs, selector: {app: web}, ports: [{port: 18092, targetPort: 8080}]}
`)
	// Gone is gone: its address, and the object.
	s.kubectl("patch", "service", "third", "-p", `{"spec":{"type":"ClusterIP"}}`)
	s.within(20*time.Second, "what was made of the third is taken back", func() error {
		svc, err := s.CoreV1().Services(s.ns).Get(s.ctx, "third", metav1.GetOptions{})
		if err == nil && (len(svc.Finalizers) > 0 || len(svc.Status.Conditions) > 0 || len(svc.Status.LoadBalancer.Ingress) > 0) {
			err = fmt.Errorf("%v, %+v", svc.Finalizers, svc.Status)
		}
		return err
	})
	s.kubectl("delete", "service", "outside", "--timeout=20s")
	if _, err := s.CoreV1().Services(s.ns).Get(s.ctx, "outside", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the Service is still there: %v", err)
	}
	s.publishedAt("second", s.nodeAddress())
	if svc := s.publishedAt("theirs"); len(svc.Finalizers) > 0 || len(svc.Status.Conditions) > 0 {
		t.Errorf("a Service of another class has %v, %v", svc.Finalizers, svc.Status.Conditions)
	}
}

// unpublished is an error if a Service has an address.
func (s *scene) unpublished(name string) error {
	svc, err := s.CoreV1().Services(s.ns).Get(s.ctx, name, metav1.GetOptions{})
	if err == nil && len(svc.Status.LoadBalancer.Ingress) > 0 {
		err = fmt.Errorf("it is published: %+v", svc.Status.LoadBalancer.Ingress)
	}
	return err
}
