package cluster

import (
	"crypto/tls"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// TestNodeNotesThingsAboutItselfOnly: where a node's pods are reached is noted on the
// node, by the node. Whoever has the keys of another could redirect its traffic.
func TestNodeNotesThingsAboutItselfOnly(t *testing.T) {
	s := begin(t)
	server := s.server("server")
	thief := s.agent("thief", server)
	s.ready(server, server, thief)
	s.within(20*time.Second, "addons", func() error {
		_, err := server.Kubectl("get", "validatingadmissionpolicybinding", "podo-node")
		return err
	})
	for _, who := range []string{"kubelet", "podo-node"} {
		var pair [2][]byte
		for i, end := range []string{".crt", ".key"} {
			var err error
			if pair[i], err = os.ReadFile(thief.Path("/var/lib/podo/agent/tls/" + who + end)); err != nil {
				t.Fatal(err)
			}
		}
		cert, err := tls.X509KeyPair(pair[0], pair[1])
		if err != nil {
			t.Fatal(err)
		}
		client := s.client(thief, server, &cert)
		note := func(node string) (int, string) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPatch, url(server)+"/api/v1/nodes/"+node+"/status",
				strings.NewReader(`{"metadata":{"annotations":{"example.com/place":"10.99.0.66"}}}`))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/merge-patch+json")
			res, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			text, _ := io.ReadAll(res.Body)
			return res.StatusCode, string(text)
		}
		if code, said := note("server"); code/100 == 2 {
			t.Errorf("as %s, about another node: %d %s", who, code, said)
		}
		if code, said := note("thief"); code/100 != 2 {
			t.Errorf("as %s, about itself: %d %s", who, code, said)
		}
	}
}
