package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podo-dev/podo/pkg/gate"
	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/pki"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/tunnel"
)

// publishing is an API that publishes API servers at these addresses.
func publishing(t *testing.T, addrs ...string) string {
	t.Helper()
	list := discoveryv1.EndpointSliceList{TypeMeta: metav1.TypeMeta{Kind: "EndpointSliceList", APIVersion: "discovery.k8s.io/v1"}}
	for _, addr := range addrs {
		at := netip.MustParseAddrPort(addr)
		port := int32(at.Port())
		list.Items = append(list.Items, discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes-" + at.Addr().String()},
			Ports:      []discoveryv1.EndpointPort{{Port: &port}}, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{at.Addr().String()}}},
		})
	}
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("sendInitialEvents") != "" {
			w.WriteHeader(http.StatusUnprocessableEntity)
			return
		}
		if r.URL.Query().Get("watch") != "" {
			<-r.Context().Done()
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(list)
	}))
	t.Cleanup(api.Close)
	return api.URL
}

// TestServersNodeOpensTunnels: the node of a server lets every other API server through
// to what the mode says, and asks its own for nothing.
func TestServersNodeOpensTunnels(t *testing.T) {
	here := netip.MustParseAddr("127.0.0.1")
	dir := t.TempDir()
	p := paths.Paths{Etc: dir + "/etc", Data: dir + "/data", Run: dir + "/run"}
	leaves := pki.Table(pki.Names{Node: "box", NodeIPs: []netip.Addr{here}, ServiceIPs: []netip.Addr{netip.MustParseAddr("10.43.0.1")}, ClusterDomain: "cluster.local"})
	if _, _, err := pki.Ensure(p, leaves, time.Now); err != nil {
		t.Fatal(err)
	}
	leaf := p.ServerLeaf("kube-apiserver")
	cert, err := tls.LoadX509KeyPair(leaf.Cert, leaf.Key)
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	if text, err := os.ReadFile(p.CA(pki.ClientCA).Cert); err != nil || !clients.AppendCertsFromPEM(text) {
		t.Fatal("no CA of clients", err)
	}
	log := slog.New(slog.DiscardHandler)
	hub := tunnel.NewHub(tunnel.ModePod, func(string) (tunnel.Place, bool) { return tunnel.Place{Node: "box", Pod: true}, true }, log)
	other := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hub.Accept(w, r, strings.TrimPrefix(r.TLS.PeerCertificates[0].Subject.CommonName, "system:node:"))
	}))
	other.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients}
	other.StartTLS()
	defer other.Close()
	self, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	go func() {
		if c, err := self.Accept(); err == nil {
			c.Close()
			t.Error("it asks its own API server for a tunnel")
		}
	}()
	api := publishing(t, self.Addr().String(), other.Listener.Addr().String())
	if err := kubeconfig.Write(p.AgentKubeconfig("podo-node"), kubeconfig.Config{Name: "podo", Server: api}, kubeconfig.DefaultMode); err != nil {
		t.Fatal(err)
	}
	doors := gate.New()
	doors.Open()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- Tunnels(plan.Tunnels{Paths: p, Mode: "pod", PodCIDR: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
			Addresses: []netip.Addr{here}, Self: self.Addr().String()}, doors, log).Run(ctx, func() {})
	}()
	for began := time.Now(); len(hub.Nodes()) == 0; time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > 10*time.Second {
			t.Fatal("no tunnel")
		}
	}
	pod := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "pod") }))
	defer pod.Close()
	through := &http.Client{Transport: &http.Transport{DialContext: hub.Dial, DisableKeepAlives: true}}
	res, err := through.Get(pod.URL)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(res.Body)
	res.Body.Close()
	if string(text) != "pod" {
		t.Errorf("the pod says %q", text)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
