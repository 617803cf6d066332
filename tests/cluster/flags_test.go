package cluster

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

// TestWaysToTheServers: an agent's balancer listens where it is told, or not at all, and
// pods run on both. Two servers are warned of, and etcd tells outside what it measures,
// and nothing else to who shows no certificate of its cluster's. Servers dial kubelets
// if they are told to, and leave the controllers and the scheduler to others.
func TestWaysToTheServers(t *testing.T) {
	s := begin(t)
	dial := []string{"--egress-selector-mode", "disabled"}
	server := s.station("server", append([]string{"server"}, append(dial, "--cluster-init", "--etcd-expose-metrics", "--etcd-arg", "quota-backend-bytes=268435456")...)...)
	s.ready(server.Host, server.Host)
	elsewhere := s.agent("elsewhere", server.Host, "--lb-server-port", "7444")
	direct := s.agent("direct", server.Host, "--disable-apiserver-lb")
	s.ready(server.Host, elsewhere, direct)
	for _, tt := range []struct {
		on   *hosts.Host
		port string
		open bool
	}{{elsewhere, "7444", true}, {elsewhere, "6444", false}, {direct, "6444", false}, {direct, "7444", false}} {
		c, err := tt.on.Dial("tcp", "127.0.0.1:"+tt.port, time.Second)
		if err == nil {
			c.Close()
		}
		if (err == nil) != tt.open {
			t.Errorf("port %s on %s: %v, want open %v", tt.port, tt.on.Name(), err, tt.open)
		}
	}
	s.apply(server.Host, twoPlaces)
	s.rolledOut(server.Host, "web")
	const nft = "/var/lib/podo/bin/current/nft"
	for _, h := range []*hosts.Host{elsewhere, direct} {
		if out, err := h.Run(nft, "add table inet seen; add chain inet seen in { type filter hook input priority -300; }; "+
			"add rule inet seen in ip saddr "+server.IP()+" tcp dport 10250 tcp flags & (syn | ack) == syn counter"); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		name, _ := s.podOn(server.Host, h, "web")
		s.reached(server.Host, name)
		if out, err := h.Run(nft, "list", "chain", "inet", "seen", "in"); err != nil || !strings.Contains(out, "counter packets ") || strings.Contains(out, "counter packets 0 ") {
			t.Errorf("the server did not dial the kubelet of %s: %v\n%s", h.Name(), err, out)
		}
	}

	text, err := s.get(direct, server.IP()+":2381", "/metrics")
	if err != nil || !strings.Contains(text, "etcd_server_has_leader 1") {
		t.Errorf("etcd's metrics from another machine: %v\n%.300s", err, text)
	}
	if !strings.Contains(text, "etcd_server_quota_backend_bytes 2.68435456e+08") {
		t.Error("--etcd-arg quota-backend-bytes has no effect")
	}

	for _, port := range []string{"2379", "2380"} {
		for who, cert := range map[string]*tls.Certificate{
			"nobody": nil, "one who made it": s.selfMade("etcd-client", ""),
			"a node": s.certificate(direct, "/var/lib/podo/agent/tls/kubelet"), "a server": s.certificate(server.Host, "/var/lib/podo/server/tls/etcd-client"),
		} {
			err := s.handshake(direct, server.IP()+":"+port, cert)
			if refused := err != nil && strings.Contains(err.Error(), "remote error: tls: "); refused == (who == "a server") {
				t.Errorf("port %s, with the certificate of %s: %v", port, who, err)
			}
		}
	}

	second := s.peer("second", server.Host, append(dial, "--disable-scheduler", "--disable-controller-manager")...)
	s.ready(server.Host, second.Host)
	var report struct{ Components []struct{ Name string } }
	decode(t, s.podo(second.Host, "status", "--wait=30s", "-o", "json"), &report)
	if parts := fmt.Sprint(report.Components); !strings.Contains(parts, "kube-apiserver") || strings.Contains(parts, "kube-scheduler") || strings.Contains(parts, "kube-controller-manager") {
		t.Errorf("parts of a server that leaves some to others: %s", parts)
	}
	s.apply(second.Host, sleeper)
	s.running(second.Host, "app=sleeper")
	s.within(20*time.Second, "two servers are warned of", func() error { return contains(second.log(), "two servers are worth less than one") })
	if _, err := s.get(direct, second.IP()+":2381", "/metrics"); err == nil {
		t.Error("a server that was not told to tells its metrics to other machines")
	}
}

// certificate is one that a host keeps.
func (s *scene) certificate(h *hosts.Host, name string) *tls.Certificate {
	s.Helper()
	cert, err := tls.LoadX509KeyPair(h.Path(name+".crt"), h.Path(name+".key"))
	if err != nil {
		s.Fatal(err)
	}
	return &cert
}

// handshake shows a certificate to a port, or none, and returns what the port has against it.
func (s *scene) handshake(from *hosts.Host, address string, cert *tls.Certificate) error {
	s.Helper()
	conn, err := from.Dial("tcp", address, 5*time.Second)
	if err != nil {
		s.Fatal(err)
	}
	own := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if cert == nil {
			return &tls.Certificate{}, nil
		}
		return cert, nil
	}}
	c := tls.Client(conn, own)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	_, err = c.Read(make([]byte, 1)) // of TLS 1.3 a refusal comes after the handshake
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}
