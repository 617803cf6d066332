package cluster

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/podo-dev/podo/tests/hosts"
)

// TestResolverOnLoopback: pods know names outside on machines whose own resolver is a
// program that listens on loopback, where in a pod nobody does, and CoreDNS would ask itself.
func TestResolverOnLoopback(t *testing.T) {
	s := begin(t)
	outside := s.net.Host("outside")
	names := s.namesAt(outside)
	real := "nameserver " + outside.IP() + "\n"
	for name, files := range map[string]map[string]string{
		"resolved": {
			"/etc/resolv.conf":                 "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n",
			"/run/systemd/resolve/resolv.conf": real,
		},
		"networkmanager": {
			"/etc/resolv.conf":                        "nameserver 127.0.1.1\n",
			"/run/NetworkManager/no-stub-resolv.conf": real,
		},
		"dnsmasq": {
			"/etc/resolv.conf":         "nameserver 127.0.0.1\n",
			"/run/dnsmasq/resolv.conf": real,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := s.in(t)
			h := s.net.Host(name)
			for path, text := range files {
				if err := os.MkdirAll(filepath.Dir(h.Path(path)), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(h.Path(path), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			p := s.start(h, "server")
			s.within(60*time.Second, "a name outside is known", func() error { return s.resolved(h, "10.43.0.10", names, "203.0.113.7") })
			if log := s.kubectl(h, "-n", "kube-system", "logs", "deployment/coredns"); strings.Contains(log, "Loop") {
				t.Errorf("CoreDNS asked itself:\n%s", log)
			}
			s.end(p)
			h.Off()
		})
	}
}

// namesAt has a host tell one name, which it returns, and no other.
func (s *scene) namesAt(h *hosts.Host) string {
	s.Helper()
	const known = "outside.example."
	var c net.PacketConn
	err := h.In(func() (err error) {
		c, err = net.ListenPacket("udp", net.JoinHostPort(h.IP(), "53"))
		return err
	})
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { c.Close() })
	go func() {
		for question := make([]byte, 1500); ; {
			n, from, err := c.ReadFrom(question)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(question[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
			switch {
			case q.Name.String() != known:
				m.RCode = dnsmessage.RCodeNameError
			case q.Type == dnsmessage.TypeA:
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 60},
					Body:   &dnsmessage.AResource{A: [4]byte{203, 0, 113, 7}},
				}}
			}
			if answer, err := m.Pack(); err == nil {
				_, _ = c.WriteTo(answer, from)
			}
		}
	}()
	return known
}
