package e2e

import (
	"errors"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// looksUp waits until a name, asked from a pod, has the answers that are wanted.
func (s *scene) looksUp(pod, name string, want ...string) {
	s.Helper()
	s.within(40*time.Second, name+" is known in "+pod, func() error {
		r := s.try("exec", pod, "--", "nslookup", name)
		_, answer, _ := strings.Cut(r.out, "\n\n") // the server's own address comes first
		if err := contains(answer, want...); err != nil {
			return errors.New(r.String())
		}
		return nil
	})
}

func dnsNames(t *testing.T) {
	s := scenario(t)
	s.apply(servers)
	s.rolledOut("deployment/web")
	s.podReady("client")
	web, err := s.CoreV1().Services(s.ns).Get(s.ctx, "web", metav1.GetOptions{})
	s.ok(err)
	p := s.pods("app=web")[0]

	s.looksUp("client", "web."+s.ns+".svc.cluster.local", web.Spec.ClusterIP)
	s.looksUp("client", "kubernetes.default.svc.cluster.local", "10.43.0.1")
	s.looksUp("client", strings.ReplaceAll(p.Status.PodIP, ".", "-")+"."+s.ns+".pod.cluster.local", p.Status.PodIP)
	s.looksUp("client", strings.TrimSuffix(outside, "."), "203.0.113.7")
	s.looksUp("client", s.node().Name+".", s.nodeAddress()) // with the dot busybox adds no domain
	s.looksUp("client", "10.43.0.1", "kubernetes.default.svc.cluster.local")

	// Short names, by the search list.
	s.answersIn("client", "http://web/hostname", "web-")
	s.answersIn("client", "http://web."+s.ns+"/hostname", "web-")

	// What is unknown is said to be so, at once.
	began := time.Now()
	r := s.try("exec", "client", "--", "nslookup", "nothing."+s.ns+".svc.cluster.local")
	if r.code == 0 || time.Since(began) > 5*time.Second {
		t.Errorf("an unknown name took %s: %s", time.Since(began), r)
	}
}

func dnsCustom(t *testing.T) {
	s := scenario(t)
	t.Cleanup(func() { podo("kubectl", "-n", "kube-system", "delete", "configmap", "coredns-custom") })
	s.applyIn("kube-system", `
apiVersion: v1
kind: ConfigMap
metadata: {name: coredns-custom}
data:
  e2e.server: |
    custom.e2e.example:53 {
        hosts {
            203.0.113.9 host.custom.e2e.example
        }
    }
`)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: client, image: $AGNHOST, args: [netexec, --http-port=8080]}]
`)
	s.podReady("client")
	// The kubelet brings a changed volume within a minute, CoreDNS reads it within another
	// half. A mark on the pod has it look at once.
	dns, err := s.CoreV1().Pods("kube-system").List(s.ctx, metav1.ListOptions{LabelSelector: "k8s-app=kube-dns"})
	s.ok(err)
	for _, p := range dns.Items {
		must(t, "kubectl", "-n", "kube-system", "annotate", "--overwrite", "pod", p.Name, "e2e/look="+time.Now().Format("150405"))
	}
	s.within(2*time.Minute, "the name of one's own is known", func() error {
		r := s.try("exec", "client", "--", "nslookup", "host.custom.e2e.example")
		return contains(r.out+r.err, "203.0.113.9")
	})
}
