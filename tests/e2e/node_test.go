package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func describesItsNode(t *testing.T) {
	s := scenario(t)
	s.within(10*time.Second, "no taint is left behind", func() error {
		if n := s.node(); len(n.Spec.Taints) > 0 {
			return fmt.Errorf("the node has %v", n.Spec.Taints)
		}
		return nil
	})
	n := s.node()
	host, _ := os.Hostname()
	if n.Name != strings.ToLower(host) {
		t.Errorf("the node is called %s on the host %s", n.Name, host)
	}
	addrs := map[corev1.NodeAddressType]string{}
	for _, a := range n.Status.Addresses {
		if addrs[a.Type] == "" {
			addrs[a.Type] = a.Address
		}
	}
	if addrs[corev1.NodeInternalIP] != outwardAddress(t) || addrs[corev1.NodeHostName] != n.Name {
		t.Errorf("its addresses are %v", n.Status.Addresses)
	}
	if n.Spec.ProviderID != "podo://"+n.Name {
		t.Errorf("its provider ID is %q", n.Spec.ProviderID)
	}
	if !strings.HasPrefix(n.Spec.PodCIDR, "10.42.") {
		t.Errorf("its pods' addresses are %q", n.Spec.PodCIDR)
	}
	if v := n.Status.NodeInfo.KubeletVersion; v != "v1.36.4+podo1" {
		t.Errorf("its kubelet is %q", v)
	}
	if !strings.HasPrefix(n.Status.NodeInfo.ContainerRuntimeVersion, "containerd://") {
		t.Errorf("its engine is %q", n.Status.NodeInfo.ContainerRuntimeVersion)
	}
	for _, c := range n.Status.Conditions {
		if good := c.Type == corev1.NodeReady; good != (c.Status == corev1.ConditionTrue) {
			t.Errorf("%s is %s: %s", c.Type, c.Status, c.Message)
		}
	}
	for _, file := range []string{theCluster.dir.AdminKubeconfig(), theCluster.dir.Token(), theCluster.dir.CA("server").Key} {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v, want mode 0600", file, info.Mode(), err)
		}
	}
	within(t, 60*time.Second, "CoreDNS and Traefik run, and no other system pod", func() error {
		r := podo("kubectl", "-n", "kube-system", "get", "pods", "--no-headers")
		if strings.Count(r.out, "\n") != 2 || strings.Count(r.out, "1/1") != 2 || contains(r.out, "coredns-", "traefik-") != nil {
			return errors.New(r.String())
		}
		return nil
	})
}

func takesSettingsFromEverySource(t *testing.T) {
	s := scenario(t)
	if got := s.node().Labels["e2e/from"]; got != "file" {
		t.Errorf("the label of the configuration file is %q", got)
	}
	if got := s.node().Status.Allocatable.Pods().Value(); got != 250 {
		t.Errorf("--kubelet-arg max-pods=250 gives room for %d pods", got)
	}
	c := serverCertificate(t, "127.0.0.1:6443", "e2e.example.org")
	if err := c.VerifyHostname("e2e.example.org"); err != nil {
		t.Errorf("PODO_TLS_SAN=e2e.example.org: %v", err)
	}
}

// serverCertificate is what a TLS server on this machine shows, once it is proven to
// be the cluster's.
func serverCertificate(t *testing.T, addr, name string) *x509.Certificate {
	t.Helper()
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", addr, &tls.Config{RootCAs: clusterCA(t), ServerName: name})
	if err != nil {
		t.Fatalf("%s as %s: %v", addr, name, err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0]
}

func clusterCA(t *testing.T) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	for _, ca := range []string{"server", "kubelet"} {
		text, err := os.ReadFile(theCluster.dir.CA(ca).Cert)
		if err != nil || !pool.AppendCertsFromPEM(text) {
			t.Fatalf("%s: %v", theCluster.dir.CA(ca).Cert, err)
		}
	}
	return pool
}

func provesKubelet(t *testing.T) {
	s := scenario(t)
	address := s.nodeAddress()
	kubelet := serverCertificate(t, net.JoinHostPort(address, "10250"), address)
	for _, name := range []string{address, s.node().Name} {
		if err := kubelet.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	if want := "system:node:" + s.node().Name; kubelet.Subject.CommonName != want {
		t.Errorf("the kubelet is %q, want %q", kubelet.Subject.CommonName, want)
	}
	serverCertificate(t, "10.43.0.1:443", "kubernetes.default.svc.cluster.local")
}

func keepsStrangersOut(t *testing.T) {
	s := scenario(t)
	stranger := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: clusterCA(t)}}}
	code := func(url string) int {
		t.Helper()
		res, err := stranger.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		_, _ = io.Copy(io.Discard, res.Body)
		return res.StatusCode
	}
	api, kubelet := "https://127.0.0.1:6443", "https://"+net.JoinHostPort(s.nodeAddress(), "10250")
	for path, want := range map[string]int{"/healthz": 200, "/livez": 200, "/readyz": 200, "/api": 401, "/version": 401, "/api/v1/namespaces": 401, "/metrics": 401} {
		if got := code(api + path); got != want {
			t.Errorf("a stranger gets %d for %s, want %d", got, path, want)
		}
	}
	for _, path := range []string{"/pods", "/metrics", "/run/x/y/z"} {
		if got := code(kubelet + path); got != 401 {
			t.Errorf("a stranger gets %d for the kubelet's %s", got, path)
		}
	}
	for _, port := range []string{"10255", "10252", "10251", "8080"} {
		if c, err := dial(net.JoinHostPort(s.nodeAddress(), port)); err == nil {
			c.Close()
			t.Errorf("port %s is open to strangers", port)
		}
	}
}

func tellsHowItStands(t *testing.T) {
	text := must(t, "status")
	if err := contains(text, "PART", "kube-apiserver", "kubelet", "containerd", "ready", "node", "Ready", "datastore", "SQLite", "healthy"); err != nil {
		t.Error(err)
	}
	var st struct {
		Ready      bool
		Kubernetes string
		PID        int
		DataDir    string
		Components []struct{ Name, State string }
		Node       struct {
			Name  string
			Ready bool
		}
		Datastore struct {
			Healthy bool
			Bytes   int64
		}
	}
	if err := json.Unmarshal([]byte(must(t, "status", "-o", "json")), &st); err != nil {
		t.Fatal(err)
	}
	if !st.Ready || st.PID != theCluster.pid() || !st.Node.Ready || !st.Datastore.Healthy || st.Datastore.Bytes == 0 || st.DataDir != theCluster.dir.Data {
		t.Errorf("status -o json: %+v", st)
	}
	parts := map[string]bool{}
	for _, c := range st.Components {
		parts[c.Name] = true
		if c.State != "ready" {
			t.Errorf("%s is %s", c.Name, c.State)
		}
	}
	for _, p := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "flannel", "containerd"} {
		if !parts[p] {
			t.Errorf("%s is missing in %v", p, fmt.Sprint(st.Components))
		}
	}
	must(t, "status", "--wait")
	must(t, "status", "--wait", "10s")
	if r := as(65534, "status"); r.code != 1 {
		t.Errorf("somebody else's status: %s", r)
	}
}
