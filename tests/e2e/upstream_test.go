package e2e

import (
	"net"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// Names that only the tests' own server knows: one it tells whenever it is asked, one
// it tells once and then says nothing to, and one that it never answers for.
const (
	outside = "outside.e2e.example."
	once    = "once.e2e.example."
	never   = "never.e2e.example."
)

// upstream answers for names outside the cluster, on the address that the node's
// resolver file names.
func upstream(t *testing.T, address string) {
	t.Helper()
	c, err := net.ListenPacket("udp", net.JoinHostPort(address, "53"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		told := false
		buf := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
			ttl := uint32(60)
			switch name := q.Name.String(); {
			case name == never, name == once && told && q.Type == dnsmessage.TypeA:
				continue
			case name == once:
				told, ttl = told || q.Type == dnsmessage.TypeA, 1
			case name != outside:
				m.RCode = dnsmessage.RCodeNameError
			}
			if q.Type == dnsmessage.TypeA && m.RCode == dnsmessage.RCodeSuccess {
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: ttl},
					Body:   &dnsmessage.AResource{A: [4]byte{203, 0, 113, 7}},
				}}
			}
			if answer, err := m.Pack(); err == nil {
				_, _ = c.WriteTo(answer, from)
			}
		}
	}()
}
