package server

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/podo-dev/podo/pkg/gate"
	"github.com/podo-dev/podo/pkg/kubeconfig"
)

func TestRole(t *testing.T) {
	const patch = `PATCH /api/v1/nodes/box {"metadata":{"labels":{"node-role.kubernetes.io/control-plane":"true"}}}`
	for name, tt := range map[string]struct {
		labels string
		want   []string
	}{
		"first start":       {`{}`, []string{patch}},
		"labelled already":  {`{"node-role.kubernetes.io/control-plane": "true"}`, nil},
		"with other labels": {`{"kubernetes.io/os": "linux"}`, []string{patch}},
		"was a member":      {`{"node-role.kubernetes.io/control-plane": "true", "node-role.kubernetes.io/etcd": "true"}`, []string{`PATCH /api/v1/nodes/box {"metadata":{"labels":{"node-role.kubernetes.io/etcd":null}}}`}},
	} {
		t.Run(name, func(t *testing.T) {
			var writes []string
			node := fmt.Sprintf(`{"kind": "Node", "apiVersion": "v1", "metadata": {"name": "box", "labels": %s}}`, tt.labels)
			api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				if r.Method == http.MethodGet {
					fmt.Fprintf(w, `{"type": "ADDED", "object": %s}`+"\n", node)
					return
				}
				body, _ := io.ReadAll(r.Body)
				writes = append(writes, r.Method+" "+r.URL.Path+" "+string(body))
				io.WriteString(w, node)
			}))
			defer api.Close()
			p := server(t, t.TempDir())
			if err := kubeconfig.Write(p.Paths.ServerKubeconfig("podo"), kubeconfig.Config{Name: "podo", Server: api.URL}, kubeconfig.DefaultMode); err != nil {
				t.Fatal(err)
			}
			doors := gate.New()
			doors.Open()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			ready := false
			if err := Role(p, doors).Run(ctx, func() { ready = true; cancel() }); err != nil || !ready {
				t.Fatalf("ready %v, err %v", ready, err)
			}
			if !slices.Equal(writes, tt.want) {
				t.Errorf("writes = %v, want %v", writes, tt.want)
			}
		})
	}
}
