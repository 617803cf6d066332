package tunnel

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apiserver/pkg/server/egressselector"
)

func TestEgressConfig(t *testing.T) {
	const want = `apiVersion: apiserver.k8s.io/v1beta1
kind: EgressSelectorConfiguration
egressSelections:
  - name: cluster
    connection:
      proxyProtocol: HTTPConnect
      transport:
        uds:
          udsName: "/run/podo/egress.sock"
`
	for _, m := range []Mode{ModeAgent, ModePod, ModeCluster} {
		if got := string(EgressConfig(m, "/run/podo/egress.sock")); got != want {
			t.Errorf("%s:\n%s\nwant\n%s", m, got, want)
		}
	}
	if got := EgressConfig(ModeDisabled, "/run/podo/egress.sock"); got != nil {
		t.Errorf("disabled:\n%s", got)
	}
}

// TestUpstreamTakesTheConfig dials with the API server's own client.
func TestUpstreamTakesTheConfig(t *testing.T) {
	h := NewHub(ModeAgent, farNode("n1"), quiet())
	srv := serveTLS(t, h, "n1")
	start(t, AgentOptions{Servers: fixed(srv.Listener.Addr().String()), Kubelet: listenTCP(t, "127.0.0.1:0", echo)})
	awaitNodes(t, h, "n1")

	file := filepath.Join(t.TempDir(), "egress.yaml")
	if err := os.WriteFile(file, EgressConfig(ModeAgent, proxy(t, h)), 0o600); err != nil {
		t.Fatal(err)
	}
	config, err := egressselector.ReadEgressSelectorConfiguration(file)
	if err != nil {
		t.Fatal(err)
	}
	if errs := egressselector.ValidateEgressSelectorConfiguration(config); len(errs) > 0 {
		t.Fatal(errs.ToAggregate())
	}
	selector, err := egressselector.NewEgressSelector(config)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []egressselector.EgressType{egressselector.Etcd, egressselector.ControlPlane} {
		if dial, err := selector.Lookup(kind.AsNetworkContext()); dial != nil || err != nil {
			t.Errorf("%s has a dialer (%v)", kind, err)
		}
	}
	dial, err := selector.Lookup(egressselector.Cluster.AsNetworkContext())
	if err != nil || dial == nil {
		t.Fatalf("no dialer for the cluster (%v)", err)
	}
	c, err := dial(t.Context(), "tcp", far+":10250")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "hello")
	got := make([]byte, 5)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := dial(t.Context(), "tcp", "127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("the reason is lost: %v", err)
	}
}
