package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

// behind is what an API server calls in a cluster: a page, a webhook and an aggregated
// API in pods, and a page on their node's own network.
const behind = `
apiVersion: v1
kind: Secret
metadata: {name: web}
type: kubernetes.io/tls
data: {tls.crt: $CERT, tls.key: $KEY}
---
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
      volumes: [{name: tls, secret: {secretName: web}}]
      containers:
      - name: page
        image: $AGNHOST
        imagePullPolicy: Never
        args: [netexec, --http-port=8080]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
      - name: aggregated
        image: $AGNHOST
        imagePullPolicy: Never
        args: [netexec, --http-port=8443, --udp-port=-1, --tls-cert-file=/tls/tls.crt, --tls-private-key-file=/tls/tls.key]
        volumeMounts: [{name: tls, mountPath: /tls}]
      - name: webhook
        image: $AGNHOST
        imagePullPolicy: Never
        args: [webhook, --port=8444, --tls-cert-file=/tls/tls.crt, --tls-private-key-file=/tls/tls.key]
        volumeMounts: [{name: tls, mountPath: /tls}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports:
  - {name: page, port: 80, targetPort: 8080}
  - {name: aggregated, port: 443, targetPort: 8443}
  - {name: webhook, port: 444, targetPort: 8444}
---
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: host
spec:
  selector: {matchLabels: {app: host}}
  template:
    metadata: {labels: {app: host}}
    spec:
      terminationGracePeriodSeconds: 1
      hostNetwork: true
      containers:
      - name: page
        image: $AGNHOST
        imagePullPolicy: Never
        args: [netexec, --http-port=18080, --udp-port=18081]
        readinessProbe: {httpGet: {path: /healthz, port: 18080}, periodSeconds: 1}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: web}
webhooks:
- name: web.podo.test
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
  timeoutSeconds: 5
  objectSelector: {matchLabels: {denied: "yes"}}
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [configmaps]}]
  clientConfig: {caBundle: $CERT, service: {namespace: default, name: web, port: 444, path: /always-deny}}
`

const aggregated = `
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1.podo.test}
spec:
  group: podo.test
  version: v1
  groupPriorityMinimum: 100
  versionPriority: 100
  caBundle: $CERT
  service: {namespace: default, name: web, port: 443}
`

// keyPair is a certificate for a name, signed by itself, and its key, in base64.
func keyPair(t *testing.T, name string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	text := func(kind string, der []byte) string {
		return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return text("CERTIFICATE", der), text("PRIVATE KEY", private)
}

// network gives a host a pod network that podo knows nothing of: its addresses are not
// of the range that the cluster gives the node.
func (s *scene) network(h *hosts.Host, subnet string) {
	s.Helper()
	dir := h.Path("/etc/cni/net.d")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.Fatal(err)
	}
	text := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "own", "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true,
		"ipam": {"type": "host-local", "dataDir": "/run/own", "ranges": [[{"subnet": %q}]]}}]}`, subnet)
	if err := os.WriteFile(filepath.Join(dir, "10-own.conflist"), []byte(text), 0o644); err != nil {
		s.Fatal(err)
	}
}

// TestServerOutsideThePodNetwork: an API server that can dial neither pods nor kubelets
// reaches by tunnel whatever it is asked to call, on an agent and on another server: in
// mode pod what has an address of its node's range, in mode cluster any pod, and what
// listens on a node's own addresses.
func TestServerOutsideThePodNetwork(t *testing.T) {
	t.Parallel()
	for mode, backend := range map[string]string{"pod": "vxlan", "cluster": "none"} {
		t.Run(mode, func(t *testing.T) {
			s := begin(t)
			args := []string{"--egress-selector-mode", mode, "--flannel-backend", backend}
			server := s.server("server", append(args, "--cluster-init", "--disable-agent")...)
			nodes := []*hosts.Host{s.net.Host("agent"), s.net.Host("peer")}
			for i, h := range nodes {
				if backend == "none" {
					s.network(h, fmt.Sprintf("10.42.%d.0/24", 200+i))
				}
			}
			s.join(nodes[0], server)
			s.start(nodes[1], append([]string{"server", "--server", url(server), "--token", s.serverToken(server)}, args...)...)
			s.ready(server, nodes...)
			cert, key := keyPair(t, "web.default.svc")
			text := strings.NewReplacer("$CERT", cert, "$KEY", key)
			s.apply(server, text.Replace(behind))
			s.rolledOut(server, "web")
			s.rolledOut(server, "host")
			for _, h := range nodes {
				if out, err := h.Run("/var/lib/podo/bin/current/nft", "add table inet nat; add chain inet nat in { type filter hook input priority -300; }; "+
					"add rule inet nat in iifname eth0 tcp dport { 10250, 18080 } drop"); err != nil {
					t.Fatalf("%v %s", err, out)
				}
			}

			for _, h := range nodes {
				pod, ip := s.podOn(server, h, "web")
				for _, at := range []string{ip + ":8080", h.IP() + ":18080", h.IP() + ":10250"} {
					if c, err := server.Dial("tcp", at, time.Second); err == nil {
						c.Close()
						t.Fatalf("the server still connects to %s: nothing is shown", at)
					}
				}
				s.reached(server, pod)
				if got := s.kubectl(server, "get", "--raw", "/api/v1/namespaces/default/pods/"+pod+":8080/proxy/hostname"); got != pod {
					t.Errorf("proxy to pod %s: %q answers", pod, got)
				}
				if mode == "cluster" {
					pod, _ := s.podOn(server, h, "host")
					if got := s.kubectl(server, "get", "--raw", "/api/v1/namespaces/default/pods/"+pod+":18080/proxy/hostname"); got != h.Name() {
						t.Errorf("proxy to pod %s on its node's network: %q answers", pod, got)
					}
				}
			}
			s.says(s.kubectl(server, "get", "--raw", "/api/v1/namespaces/default/services/web:page/proxy/hostname"), "web-")
			out, err := server.Apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: denied, labels: {denied: \"yes\"}}}")
			if err == nil || !strings.Contains(err.Error(), `"web.podo.test" denied the request`) {
				t.Errorf("the webhook was not asked: %v\n%s", err, out)
			}
			if out, err := server.Apply(text.Replace(aggregated)); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			s.within(30*time.Second, "the aggregated API", func() error {
				out, err := server.Kubectl("get", "--raw", "/apis/podo.test/v1")
				if err != nil || !strings.Contains(out, "NOW:") {
					return fmt.Errorf("%v: %s", err, out)
				}
				return nil
			})
		})
	}
}
