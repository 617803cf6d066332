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
// node, by the node. Whoever has the keys of another could redirect its traffic. Labels
// that say which pods a node may be trusted with are not the node's to give.
func TestNodeNotesThingsAboutItselfOnly(t *testing.T) {
	s := begin(t)
	server := s.server("server")
	thief := s.agent("thief", server)
	s.ready(server, server, thief)
	s.within(20*time.Second, "addons", func() error {
		_, err := server.Kubectl("get", "validatingadmissionpolicybinding", "podo-node")
		return err
	})
	for _, who := range []string{"kubelet", "podo-node", "kube-proxy"} {
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
		client := s.client(thief, &cert)
		patch := func(path, metadata string, allowed bool) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPatch, url(server)+"/api/v1/nodes/"+path,
				strings.NewReader(`{"metadata":`+metadata+`}`))
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
			refused := res.StatusCode == http.StatusForbidden || res.StatusCode == http.StatusUnprocessableEntity
			if allowed != (res.StatusCode == http.StatusOK) || !allowed && !refused {
				t.Errorf("as %s, PATCH %s with %s: %s %.200s", who, path, metadata, res.Status, text)
			}
		}
		const place = `{"annotations":{"example.com/place":"10.99.0.66"}}`
		patch("server/status", place, false)
		patch("thief/status", place, who != "kube-proxy")
		for _, path := range []string{"thief", "thief/status"} {
			for _, label := range []string{"node-restriction.kubernetes.io/secure", "node-role.kubernetes.io/control-plane"} {
				patch(path, `{"labels":{"`+label+`":"true"}}`, false)
			}
		}
	}
}
