package kubeconfig_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/podo-dev/podo/pkg/kubeconfig"
)

func TestClient(t *testing.T) {
	var accept atomic.Value
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		accept.Store(r.Header.Get("Accept"))
		w.Header().Set("Content-Type", "application/json")
		w.Write([]byte(`{"kind": "Node", "apiVersion": "v1", "metadata": {"name": "box"}}`))
	}))
	defer api.Close()
	path := filepath.Join(t.TempDir(), "kubelet.yaml")
	if err := kubeconfig.Write(path, kubeconfig.Config{Name: "podo", Server: api.URL}, kubeconfig.DefaultMode); err != nil {
		t.Fatal(err)
	}
	var dials atomic.Int32
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials.Add(1)
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}
	for name, dial := range map[string]kubeconfig.Dial{"own dial": dial, "no dial": nil} {
		dials.Store(0)
		rc, err := kubeconfig.Client(path, dial)
		if err != nil {
			t.Fatal(err)
		}
		if rc.ContentType != "application/vnd.kubernetes.protobuf" {
			t.Errorf("%s: sends %q, want protobuf", name, rc.ContentType)
		}
		if rc.QPS >= 0 {
			t.Errorf("%s: %v requests a second, want no limit", name, rc.QPS)
		}
		client, err := kubernetes.NewForConfig(rc)
		if err != nil {
			t.Fatal(err)
		}
		node, err := client.CoreV1().Nodes().Get(t.Context(), "box", metav1.GetOptions{})
		if err != nil || node.Name != "box" {
			t.Errorf("%s: node %q, %v", name, node.GetName(), err)
		}
		if used := dials.Load() > 0; used != (dial != nil) {
			t.Errorf("%s: dialled through it %d times", name, dials.Load())
		}
		if got := accept.Load().(string); !strings.HasPrefix(got, "application/vnd.kubernetes.protobuf,") || !strings.Contains(got, "application/json") {
			t.Errorf("%s: accepts %q, want protobuf, and JSON if need be", name, got)
		}
	}
	if _, err := kubeconfig.Client(filepath.Join(t.TempDir(), "none"), nil); err == nil {
		t.Error("a file that is missing gave a client")
	}
}
