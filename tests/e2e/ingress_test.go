package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// vines are two pods that say their names, red and white, each behind a Service.
const vines = `
apiVersion: v1
kind: Pod
metadata: {name: red, labels: {vine: red}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: $AGNHOST, args: [netexec, --http-port=8080]}]
---
apiVersion: v1
kind: Pod
metadata: {name: white, labels: {vine: white}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: $AGNHOST, args: [netexec, --http-port=8080]}]
---
apiVersion: v1
kind: Service
metadata: {name: red}
spec: {selector: {vine: red}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: white}
spec: {selector: {vine: white}, ports: [{name: http, port: 80, targetPort: 8080}]}
`

// client asks the node for any host, at port 80 or 443 as the URL's scheme says.
func (s *scene) client(roots *x509.CertPool) *http.Client {
	s.Helper()
	node := s.nodeAddress()
	return &http.Client{
		Timeout:       5 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DisableKeepAlives: true,
			TLSClientConfig:   &tls.Config{RootCAs: roots},
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				_, port, err := net.SplitHostPort(address)
				if err != nil {
					return nil, err
				}
				return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(node, port))
			},
		},
	}
}

// visit gets a URL from the node.
func (s *scene) visit(url string, roots *x509.CertPool, header ...string) (*http.Response, string, error) {
	s.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	s.ok(err)
	for _, h := range header {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Add(name, value)
	}
	res, err := s.client(roots).Do(req)
	if err != nil {
		return nil, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res, string(body), err
}

// leads waits until a URL has an answer with the status, which contains the words.
func (s *scene) leads(url string, roots *x509.CertPool, status int, words ...string) {
	s.Helper()
	s.within(60*time.Second, fmt.Sprintf("%s leads to %d %v", url, status, words), func() error {
		res, body, err := s.visit(url, roots)
		if err == nil && res.StatusCode != status {
			err = fmt.Errorf("the status is %s: %s", res.Status, body)
		}
		if err == nil {
			err = contains(body, words...)
		}
		return err
	})
}

// certified makes a Secret called cert with a certificate for a host, and returns the
// pool that trusts it.
func (s *scene) certified(host string) *x509.CertPool {
	s.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	s.ok(err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{host}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}, &x509.Certificate{SerialNumber: big.NewInt(1)}, key.Public(), key)
	s.ok(err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	s.ok(err)
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	files := filepath.Join(room(), s.ns)
	write(s.T, files+".crt", string(cert))
	write(s.T, files+".key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
	s.kubectl("create", "secret", "tls", "cert", "--cert="+files+".crt", "--key="+files+".key")
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(cert)
	return roots
}

// ingressAt waits until an Ingress has the node's address.
func (s *scene) ingressAt(name string) {
	s.Helper()
	s.within(60*time.Second, "Ingress "+name+" tells its address", func() error {
		i, err := s.NetworkingV1().Ingresses(s.ns).Get(s.ctx, name, metav1.GetOptions{})
		if err == nil && (len(i.Status.LoadBalancer.Ingress) == 0 || i.Status.LoadBalancer.Ingress[0].IP != s.nodeAddress()) {
			err = fmt.Errorf("it is %+v", i.Status.LoadBalancer.Ingress)
		}
		return err
	})
}

func ingresses(t *testing.T) {
	s := scenario(t)
	roots := s.certified("white.e2e.example")
	s.apply(vines + `---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: hosts}
spec:
  tls: [{hosts: [white.e2e.example], secretName: cert}]
  rules:
  - host: red.e2e.example
    http:
      paths:
      - {path: /, pathType: Prefix, backend: {service: {name: red, port: {name: http}}}}
  - host: white.e2e.example
    http:
      paths:
      - {path: /, pathType: Prefix, backend: {service: {name: white, port: {number: 80}}}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: paths}
spec:
  ingressClassName: traefik
  rules:
  - host: paths.e2e.example
    http:
      paths:
      - {path: /hostname, pathType: Exact, backend: {service: {name: red, port: {number: 80}}}}
      - {path: /header, pathType: Prefix, backend: {service: {name: white, port: {number: 80}}}}
      - {path: /clientip, pathType: ImplementationSpecific, backend: {service: {name: white, port: {number: 80}}}}
---
apiVersion: traefik.io/v1alpha1
kind: Middleware
metadata: {name: below}
spec: {stripPrefix: {prefixes: [/below]}}
---
apiVersion: traefik.io/v1alpha1
kind: IngressRoute
metadata: {name: below}
spec:
  entryPoints: [web]
  routes:
  - kind: Rule
    match: 'Host("below.e2e.example") && PathPrefix("/below")'
    middlewares: [{name: below}]
    services: [{name: white, port: 80}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: theirs}
spec:
  ingressClassName: somebody-elses
  rules:
  - host: theirs.e2e.example
    http:
      paths:
      - {path: /, pathType: Prefix, backend: {service: {name: red, port: {number: 80}}}}
`)
	s.podReady("red", "white")

	// Two hosts, of which one shows its own certificate.
	s.leads("http://red.e2e.example/hostname", nil, http.StatusOK, "red")
	s.leads("http://white.e2e.example/hostname", nil, http.StatusOK, "white")
	s.leads("https://white.e2e.example/hostname", roots, http.StatusOK, "white")
	if _, _, err := s.visit("https://red.e2e.example/hostname", roots); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("red.e2e.example shows a certificate that white.e2e.example's roots trust: %v", err)
	}
	s.ingressAt("hosts")
	if class := s.kubectl("get", "ingress", "hosts", "-o", "jsonpath={.spec.ingressClassName}"); class != "traefik" {
		t.Errorf("an Ingress that names no class gets %q", class)
	}

	// Paths, one exact and one by whole elements.
	s.leads("http://paths.e2e.example/hostname", nil, http.StatusOK, "red")
	s.leads("http://paths.e2e.example/header?key=X-Forwarded-Host", nil, http.StatusOK, "paths.e2e.example")
	for _, path := range []string{"/", "/hostname/", "/hostnames", "/headers"} {
		s.leads("http://paths.e2e.example"+path, nil, http.StatusNotFound)
	}

	s.leads("http://paths.e2e.example/clientip", nil, http.StatusOK, "10.42.")

	// Traefik's own kinds.
	s.leads("http://below.e2e.example/below/hostname", nil, http.StatusOK, "white")
	s.leads("http://below.e2e.example/hostname", nil, http.StatusNotFound)

	// Another class is somebody else's.
	s.leads("http://theirs.e2e.example/hostname", nil, http.StatusNotFound)
	if status := s.kubectl("get", "ingress", "theirs", "-o", "jsonpath={.status.loadBalancer.ingress}"); status != "" {
		t.Errorf("an Ingress of another class has the address %s", status)
	}

	// A Service without pods is not a host without a Service.
	s.kubectl("delete", "pod", "red", "--timeout=20s")
	s.leads("http://red.e2e.example/hostname", nil, http.StatusServiceUnavailable)

	// What no rule has goes to the default backend.
	s.apply(`
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: rest}
spec:
  ingressClassName: traefik
  defaultBackend: {service: {name: white, port: {number: 80}}}
`)
	s.leads("http://unheard-of.e2e.example/hostname", nil, http.StatusOK, "white")
	s.leads("http://white.e2e.example/hostname", nil, http.StatusOK, "white")
}

// forNginx is an Ingress of ingress-nginx's class that leads a host to a Service, with
// these of its annotations.
func forNginx(name, host, service string, annotations ...string) string {
	return fmt.Sprintf(`---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: %s
  annotations:
    nginx.ingress.kubernetes.io/%s
spec:
  ingressClassName: nginx
  rules:
  - host: %s.e2e.example
    http:
      paths:
      - {path: /, pathType: Prefix, backend: {service: {name: %s, port: {number: 80}}}}
`, name, strings.Join(annotations, "\n    nginx.ingress.kubernetes.io/"), host, service)
}

// ingressNginx serves what was written for ingress-nginx, with its annotations.
func ingressNginx(t *testing.T) {
	s := scenario(t)
	sum := sha1.Sum([]byte("grapes"))
	s.kubectl("create", "secret", "generic", "vintners", "--from-literal=auth=vintner:{SHA}"+base64.StdEncoding.EncodeToString(sum[:]))
	s.apply(vines +
		forNginx("guarded", "guarded", "red", "auth-type: basic", "auth-secret: vintners", "auth-realm: cellar") +
		forNginx("shared", "shared", "white", `enable-cors: "true"`, "cors-allow-origin: https://vineyard.e2e.example") +
		strings.Replace(forNginx("rewritten", "rewritten", "red", `use-regex: "true"`, "rewrite-target: /$2", "proxy-body-size: 1k", `proxy-request-buffering: "on"`),
			"path: /, pathType: Prefix", "path: /cellar(/|$)(.*), pathType: ImplementationSpecific", 1) +
		forNginx("rooted", "rooted", "white", "app-root: /hostname") +
		forNginx("closed", "closed", "red", "whitelist-source-range: 192.0.2.0/24") +
		forNginx("moved", "moved", "red", "permanent-redirect: https://new.e2e.example") +
		forNginx("canary", "shared", "red", `canary: "true"`, "canary-by-header: X-Vintage") +
		forNginx("unguarded", "unguarded", "red", "auth-type: basic", "auth-secret: nobody"))
	s.podReady("red", "white")
	s.leads("http://guarded.e2e.example/hostname", nil, http.StatusUnauthorized)
	password := "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("vintner:grapes"))
	s.within(20*time.Second, "who knows the password is let in", func() error {
		res, body, err := s.visit("http://guarded.e2e.example/hostname", nil, password)
		if err == nil && (res.StatusCode != http.StatusOK || body != "red") {
			err = fmt.Errorf("%s: %s", res.Status, body)
		}
		return err
	})
	s.within(20*time.Second, "one origin is allowed", func() error {
		res, body, err := s.visit("http://shared.e2e.example/hostname", nil, "Origin: https://vineyard.e2e.example")
		if err == nil && (body != "white" || res.Header.Get("Access-Control-Allow-Origin") != "https://vineyard.e2e.example") {
			err = fmt.Errorf("%s %v: %s", res.Status, res.Header, body)
		}
		return err
	})
	s.leads("http://rewritten.e2e.example/cellar/hostname", nil, http.StatusOK, "red")
	s.redirects("http://rooted.e2e.example/", http.StatusFound, "/hostname")
	s.leads("http://rooted.e2e.example/hostname", nil, http.StatusOK, "white")
	s.redirects("http://moved.e2e.example/", http.StatusMovedPermanently, "https://new.e2e.example")
	s.leads("http://closed.e2e.example/hostname", nil, http.StatusForbidden)
	s.within(20*time.Second, "large bodies are refused", func() error {
		res, err := s.client(nil).Post("http://rewritten.e2e.example/cellar/echo", "text/plain", strings.NewReader(strings.Repeat("x", 4096)))
		if err != nil {
			return err
		}
		res.Body.Close()
		if res.StatusCode != http.StatusRequestEntityTooLarge {
			return errors.New(res.Status)
		}
		return nil
	})
	s.within(20*time.Second, "who asks for the other vintage gets it", func() error {
		_, body, err := s.visit("http://shared.e2e.example/hostname", nil, "X-Vintage: always")
		if err == nil && body != "red" {
			err = errors.New(body)
		}
		return err
	})
	// By now Traefik has read them all: without its Secret one is not served at all.
	s.leads("http://unguarded.e2e.example/hostname", nil, http.StatusNotFound)
	s.ingressAt("guarded")
}

// redirects waits until a URL redirects to a place.
func (s *scene) redirects(url string, status int, location string) {
	s.Helper()
	s.within(20*time.Second, url+" redirects", func() error {
		res, _, err := s.visit(url, nil)
		if err == nil && (res.StatusCode != status || !strings.HasSuffix(res.Header.Get("Location"), location)) {
			err = fmt.Errorf("%s, to %q", res.Status, res.Header.Get("Location"))
		}
		return err
	})
}

func gateways(t *testing.T) {
	s := scenario(t)
	roots := s.certified("gate.e2e.example")
	s.apply(vines + `---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gate}
spec:
  gatewayClassName: traefik
  listeners:
  - {name: http, port: 80, protocol: HTTP, hostname: gate.e2e.example}
  - {name: https, port: 443, protocol: HTTPS, hostname: gate.e2e.example, tls: {certificateRefs: [{name: cert}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: vines}
spec:
  parentRefs: [{name: gate}]
  hostnames: [gate.e2e.example]
  rules:
  - matches: [{path: {type: PathPrefix, value: /white}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
    backendRefs: [{name: white, port: 80}]
  - matches: [{headers: [{name: Vine, value: white}]}]
    backendRefs: [{name: white, port: 80}]
  - backendRefs: [{name: red, port: 80}]
`)
	s.podReady("red", "white")
	s.leads("http://gate.e2e.example/hostname", nil, http.StatusOK, "red")
	s.leads("http://gate.e2e.example/white/hostname", nil, http.StatusOK, "white")
	s.leads("https://gate.e2e.example/hostname", roots, http.StatusOK, "red")
	s.within(20*time.Second, "a header chooses", func() error {
		_, body, err := s.visit("http://gate.e2e.example/hostname", nil, "Vine: white")
		return errors.Join(err, contains(body, "white"))
	})
	s.grants()
	s.routesGRPC()
	s.within(30*time.Second, "the Gateway and its route tell how they are", func() error {
		gate := s.try("get", "gateway", "gate", "-o", `jsonpath={.status.addresses[*].value} {.status.conditions[?(@.type=="Programmed")].status}`)
		route := s.try("get", "httproute", "vines", "-o", `jsonpath={.status.parents[0].conditions[?(@.type=="Accepted")].status}`)
		return errors.Join(contains(gate.out, s.nodeAddress(), "True"), contains(route.out, "True"))
	})
}

// grants has a route lead to a Service of another namespace, which that has to allow.
func (s *scene) grants() {
	s.Helper()
	other := s.ns + "-cellar"
	s.kubectl("create", "namespace", other)
	s.Cleanup(func() { podo("kubectl", "delete", "namespace", other, "--wait=false") })
	s.applyIn(other, vines)
	s.apply(`
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: cellar}
spec:
  parentRefs: [{name: gate}]
  hostnames: [gate.e2e.example]
  rules:
  - matches: [{path: {type: PathPrefix, value: /hostname}, headers: [{name: Place, value: cellar}]}]
    backendRefs: [{name: white, namespace: ` + other + `, port: 80}]
`)
	must(s.T, "kubectl", "-n", other, "wait", "--for=condition=Ready", "pod/white", "--timeout=60s")
	s.within(30*time.Second, "the route is not allowed there", func() error {
		r := s.try("get", "httproute", "cellar", "-o", `jsonpath={.status.parents[0].conditions[?(@.type=="ResolvedRefs")].reason}`)
		return contains(r.out, "RefNotPermitted")
	})
	s.applyIn(other, `
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: cellar}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: `+s.ns+`}]
  to: [{group: "", kind: Service}]
`)
	s.within(30*time.Second, "the route is allowed there", func() error {
		res, body, err := s.visit("http://gate.e2e.example/hostname", nil, "Place: cellar")
		if err == nil && (res.StatusCode != http.StatusOK || body != "white") {
			err = fmt.Errorf("%s: %s", res.Status, body)
		}
		return err
	})
}

// routesGRPC has a route lead gRPC to a pod that tells its health by it.
func (s *scene) routesGRPC() {
	s.Helper()
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: health, labels: {vine: health}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: $AGNHOST, args: [grpc-health-checking]}]
---
apiVersion: v1
kind: Service
metadata: {name: health}
spec: {selector: {vine: health}, ports: [{port: 5000, appProtocol: kubernetes.io/h2c}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: health}
spec:
  parentRefs: [{name: gate}]
  hostnames: [gate.e2e.example]
  rules:
  - matches: [{method: {service: grpc.health.v1.Health, method: Check}}]
    backendRefs: [{name: health, port: 5000}]
`)
	s.podReady("health")
	c, err := grpc.NewClient(net.JoinHostPort(s.nodeAddress(), "80"), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("gate.e2e.example"))
	s.ok(err)
	defer c.Close()
	s.within(30*time.Second, "gRPC has an answer", func() error {
		ctx, stop := context.WithTimeout(s.ctx, 3*time.Second)
		defer stop()
		answer, err := healthpb.NewHealthClient(c).Check(ctx, &healthpb.HealthCheckRequest{})
		if err == nil && answer.Status != healthpb.HealthCheckResponse_SERVING {
			err = fmt.Errorf("it is %s", answer.Status)
		}
		return err
	})
}

// ingressSettings adds to Traefik's settings, and takes that back.
func ingressSettings(t *testing.T) {
	s := scenario(t)
	s.apply(vines + `---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: red}
spec:
  rules:
  - host: moved.e2e.example
    http:
      paths:
      - {path: /, pathType: Prefix, backend: {service: {name: red, port: {number: 80}}}}
`)
	s.podReady("red")
	anew := func() {
		must(t, "kubectl", "-n", "kube-system", "rollout", "restart", "deployment/traefik")
		must(t, "kubectl", "-n", "kube-system", "rollout", "status", "deployment/traefik", "--timeout=60s")
	}
	t.Cleanup(func() {
		podo("kubectl", "-n", "kube-system", "delete", "configmap", "traefik-custom")
		anew()
	})
	s.leads("http://moved.e2e.example/hostname", nil, http.StatusOK, "red")
	s.applyIn("kube-system", `
apiVersion: v1
kind: ConfigMap
metadata: {name: traefik-custom}
data:
  TRAEFIK_ENTRYPOINTS_WEB_HTTP_REDIRECTIONS_ENTRYPOINT_TO: websecure
`)
	anew()
	s.within(30*time.Second, "HTTP goes to HTTPS", func() error {
		res, body, err := s.visit("http://moved.e2e.example/hostname", nil)
		if err == nil && res.Header.Get("Location") != "https://moved.e2e.example/hostname" {
			err = fmt.Errorf("%s %v: %s", res.Status, res.Header, body)
		}
		return err
	})
}
