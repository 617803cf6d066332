package e2e

import (
	"errors"
	"net"
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

	// What is unknown is said to be so, at once. On a busy machine a first question may be
	// lost, and asked again five seconds later.
	for tries := 3; ; tries-- {
		began := time.Now()
		r := s.try("exec", "client", "--", "nslookup", "nothing."+s.ns+".svc.cluster.local")
		if r.code == 0 {
			t.Fatalf("an unknown name is known: %s", r)
		}
		took := time.Since(began)
		if took < 5*time.Second {
			break
		}
		if tries == 1 {
			t.Fatalf("an unknown name took %s: %s", took, r)
		}
	}
}

func dnsCustom(t *testing.T) {
	s := scenario(t)
	t.Cleanup(func() { podo("kubectl", "-n", "kube-system", "delete", "configmap", "coredns-custom") })
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: client, image: $AGNHOST, args: [netexec, --http-port=8080]}]
`)
	s.podReady("client")
	resolver := func() string {
		return must(t, "kubectl", "-n", "kube-system", "get", "pods", "-l", "k8s-app=kube-dns", "-o", "jsonpath={.items[*].status.containerStatuses[*].containerID}")
	}
	before := resolver()
	// What the custom settings are to be, and what is asked for because of them.
	custom := func(settings string) {
		s.applyIn("kube-system", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: coredns-custom}\n"+settings)
		s.remindKubelet()
	}
	knows := func(name, address string) error {
		r := s.try("exec", "client", "--", "nslookup", name)
		_, answer, _ := strings.Cut(r.out, "\n\n") // the server's own address comes first
		return contains(answer+r.err, address)
	}
	const own = `
  e2e.server: |
    custom.e2e.example:53 {
        hosts {
            203.0.113.9 host.custom.e2e.example
        }
    }
`
	custom("data:" + own + "  e2e.override: rewrite name exact api.e2e.example. kubernetes.default.svc.cluster.local.\n")
	s.within(2*time.Minute, "names of one's own are known", func() error {
		return errors.Join(knows("host.custom.e2e.example.", "203.0.113.9"), knows("api.e2e.example.", "10.43.0.1"))
	})

	// What it cannot take leaves it as it is, and ready.
	custom("data:" + own + "  wrong.override: no-such-plugin\n")
	s.within(2*time.Minute, "CoreDNS says what it cannot take", func() error {
		return contains(must(t, "kubectl", "-n", "kube-system", "logs", "deployment/coredns"), "no-such-plugin")
	})
	always(t, 8*time.Second, "CoreDNS goes on with what it had", func() error {
		unready := must(t, "kubectl", "-n", "kube-system", "get", "pods", "-l", "k8s-app=kube-dns", "-o", `jsonpath={.items[*].status.containerStatuses[?(@.ready==false)].name}`)
		if unready != "" {
			return errors.New("CoreDNS is not ready")
		}
		return errors.Join(knows("host.custom.e2e.example.", "203.0.113.9"), knows("api.e2e.example.", "10.43.0.1"))
	})

	// Mended, it takes it again, and the next test finds it at rest.
	custom("data: {none.server: \"\"}\n")
	s.within(2*time.Minute, "what was taken back is unknown", func() error {
		if knows("host.custom.e2e.example.", "203.0.113.9") == nil {
			return errors.New("it is known")
		}
		return nil
	})
	if after := resolver(); after != before {
		t.Errorf("CoreDNS was started anew: %s, then %s", before, after)
	}
}

// remindKubelet has the kubelet bring CoreDNS's settings at once, which it does within a
// minute by itself. CoreDNS reads them within another half.
func (s *scene) remindKubelet() {
	s.Helper()
	dns, err := s.CoreV1().Pods("kube-system").List(s.ctx, metav1.ListOptions{LabelSelector: "k8s-app=kube-dns"})
	s.ok(err)
	for _, p := range dns.Items {
		must(s.T, "kubectl", "-n", "kube-system", "annotate", "--overwrite", "pod", p.Name, "e2e/look="+time.Now().Format("150405"))
	}
}

// dnsOutside asks for names outside the cluster while the server there answers, denies
// and is silent. It stands alone: a change to CoreDNS' settings empties its cache.
func dnsOutside(t *testing.T) {
	within(t, 60*time.Second, "the name is known", func() error { return resolves(once, "203.0.113.7") })
	time.Sleep(7 * time.Second) // an answer counts for five seconds at least
	for range 3 {
		began := time.Now()
		if err := resolves(once, "203.0.113.7"); err != nil || time.Since(began) > 3*time.Second {
			t.Errorf("what was told before, after %s: %v", time.Since(began), err)
		}
	}
	var denied *net.DNSError
	began := time.Now()
	if err := resolves("nothing.e2e.example.", ""); !errors.As(err, &denied) || !denied.IsNotFound || time.Since(began) > 2*time.Second {
		t.Errorf("a name that does not exist, after %s: %v", time.Since(began), err)
	}
	if err := resolves(never, ""); !errors.As(err, &denied) || denied.IsNotFound {
		t.Errorf("a name that nobody tells: %v", err)
	}
	if err := resolves(outside, "203.0.113.7"); err != nil {
		t.Errorf("while another is not told: %v", err)
	}
}
