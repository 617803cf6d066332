package dns

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

func node(name string, addresses ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, a := range addresses {
		kind, address, _ := strings.Cut(a, "=")
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeAddressType(kind), Address: address})
	}
	return n
}

func TestHosts(t *testing.T) {
	got := hosts([]*corev1.Node{
		node("two", "InternalIP=10.0.0.2", "InternalIP=fd00::2", "Hostname=two"),
		node("fresh"),
		node("one", "ExternalIP=203.0.113.1", "InternalIP=10.0.0.1"),
		node("odd", "InternalIP=10.0.0.3 kubernetes.default.svc", "InternalIP=fe80::1%x kubernetes.default.svc", "InternalIP=fe80::1%x\n10.0.0.66 web"),
	})
	if want := "10.0.0.1 one\n10.0.0.2 two\nfd00::2 two\n"; got != want {
		t.Errorf("hosts are\n%s\nwant\n%s", got, want)
	}
}

// An api has one node and perhaps a ConfigMap, and fails at first.
type api struct {
	mu      sync.Mutex
	watched chan string // events of the ConfigMap
	patches []string
	failed  bool
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	maps := strings.HasSuffix(r.URL.Path, "/configmaps")
	kind := map[bool]string{true: "ConfigMap", false: "Node"}[maps]
	item := `{"kind": "Node", "apiVersion": "v1", "metadata": {"name": "one", "resourceVersion": "1"}, "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}}`
	switch {
	case r.Method == http.MethodPatch:
		body, _ := io.ReadAll(r.Body)
		a.mu.Lock()
		defer a.mu.Unlock()
		if !a.failed {
			a.failed = true
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		a.patches = append(a.patches, string(body))
		fmt.Fprint(w, `{"kind": "ConfigMap", "apiVersion": "v1"}`)
	case r.URL.Query().Get("watch") == "true":
		if r.URL.Query().Get("sendInitialEvents") == "true" {
			if !maps {
				fmt.Fprintf(w, `{"type": "ADDED", "object": %s}`+"\n", item)
			}
			fmt.Fprintf(w, `{"type": "BOOKMARK", "object": {"kind": %q, "apiVersion": "v1", "metadata": {"resourceVersion": "1", "annotations": {"k8s.io/initial-events-end": "true"}}}}`+"\n", kind)
		}
		w.(http.Flusher).Flush()
		for {
			select {
			case <-r.Context().Done():
				return
			case e := <-map[bool]chan string{true: a.watched}[maps]:
				fmt.Fprintln(w, e)
				w.(http.Flusher).Flush()
			}
		}
	default:
		if maps {
			item = ""
		}
		fmt.Fprintf(w, `{"kind": "%sList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": [%s]}`, kind, item)
	}
}

func (a *api) wrote(n int) (string, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(a.patches, "\n"), len(a.patches) == n
}

func TestNames(t *testing.T) {
	a := &api{watched: make(chan string)}
	server := httptest.NewServer(a)
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	ended := make(chan error, 1)
	go func() {
		ended <- Names(ctx, func() (*rest.Config, error) { return &rest.Config{Host: server.URL}, nil }, slog.New(slog.DiscardHandler))
	}()
	event := func(kind, version, data string) {
		t.Helper()
		e := fmt.Sprintf(`{"type": %q, "object": {"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"namespace": "kube-system", "name": "coredns", "uid": "u1", "resourceVersion": %q}, "data": %s}}`, kind, version, data)
		select {
		case a.watched <- e:
		case <-ctx.Done():
			t.Fatal("nobody watches the ConfigMap")
		}
	}
	written := func(n int) string {
		t.Helper()
		for ctx.Err() == nil {
			if text, ok := a.wrote(n); ok {
				return text
			}
			time.Sleep(10 * time.Millisecond)
		}
		text, _ := a.wrote(n)
		t.Fatalf("want %d writes, not\n%s", n, text)
		return ""
	}
	// It comes with its manifest, without the key, and the first write fails.
	event("ADDED", "2", `{"Corefile": "."}`)
	var got struct {
		Metadata struct{ UID string }
		Data     map[string]string
	}
	if err := json.Unmarshal([]byte(written(1)), &got); err != nil || got.Metadata.UID != "u1" || len(got.Data) != 1 || got.Data[key] != "10.0.0.1 one\n" {
		t.Errorf("wrote %+v, %v", got, err)
	}
	// What is as it ought to be is left alone, and what somebody changes is put right. The
	// write is seen a moment after it was made, and until then may be made again.
	event("MODIFIED", "3", `{"Corefile": ".", "NodeHosts": "10.0.0.1 one\n"}`)
	time.Sleep(300 * time.Millisecond)
	a.mu.Lock()
	n := len(a.patches)
	a.mu.Unlock()
	event("MODIFIED", "4", `{"Corefile": "else", "NodeHosts": "10.0.0.1 one\n"}`)
	time.Sleep(300 * time.Millisecond)
	written(n)
	event("MODIFIED", "5", `{"Corefile": "else", "NodeHosts": "10.0.0.66 one\n"}`)
	written(n + 1)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
