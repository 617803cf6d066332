package nodes_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/podo-dev/podo/pkg/nodes"
)

// event is a watch event about the node box, which was given cidr for its pods.
func event(kind, cidr string) string {
	return fmt.Sprintf(`{"type": %q, "object": {"kind": "Node", "apiVersion": "v1", "metadata": {"name": "box"}, "spec": {"podCIDR": %q}}}`+"\n", kind, cidr)
}

// serve answers the nth watch with the nth of answers, and later ones with nothing
// until the client goes. An answer of "!" is an error, and one of "-" is none.
func serve(t *testing.T, answers ...string) kubernetes.Interface {
	t.Helper()
	queue := make(chan string, len(answers))
	for _, a := range answers {
		queue <- a
	}
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if q := r.URL.Query(); q.Get("watch") != "true" || q.Get("fieldSelector") != "metadata.name=box" || q.Get("resourceVersion") != "" {
			t.Errorf("asked %s, want a watch of one node that begins with what is there", r.URL)
		}
		select {
		case a := <-queue:
			if a == "!" {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			if a == "-" {
				w.(http.Flusher).Flush()
				<-r.Context().Done()
				return
			}
			w.Write([]byte(a))
		default:
			w.Header().Set("Content-Type", "application/json")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}
	}))
	t.Cleanup(api.Close)
	client, err := kubernetes.NewForConfig(&rest.Config{Host: api.URL})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func given(n *corev1.Node) bool { return n.Spec.PodCIDR != "" }

func TestAwait(t *testing.T) {
	const cidr = "10.42.0.0/24"
	for name, answers := range map[string][]string{
		"there already":               {event("ADDED", cidr)},
		"there, but not yet as asked": {event("ADDED", "") + event("MODIFIED", cidr)},
		"made later":                  {"", event("ADDED", cidr)},
		"server away at first":        {"!", event("ADDED", cidr)},
		"silent at first":             {"-", event("ADDED", cidr)},
		"watch cut short":             {event("ADDED", ""), event("ADDED", cidr)},
		"deleted and made again":      {event("DELETED", "10.42.9.0/24") + event("ADDED", cidr)},
		"other events":                {`{"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "code": 410}}` + "\n", event("ADDED", cidr)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			n, err := nodes.Await(ctx, serve(t, answers...), "box", given)
			if err != nil || n.Name != "box" || n.Spec.PodCIDR != cidr {
				t.Errorf("node %v, %v", n, err)
			}
		})
	}
}

func TestAwaitEndsWithItsContext(t *testing.T) {
	gone := `{"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 504, "message": "too old a cache"}}` + "\n"
	for name, answers := range map[string][]string{"silence": nil, "errors": strings.Split(strings.Repeat("!", 50), ""), "refusals": slices.Repeat([]string{gone}, 50)} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		began := time.Now()
		n, err := nodes.Await(ctx, serve(t, answers...), "box", given)
		if n != nil || err == nil || !strings.Contains(err.Error(), "node box") {
			t.Errorf("%s: node %v, err %v; want an error that names the node", name, n, err)
		}
		if name == "silence" && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: err = %v, want context.DeadlineExceeded", name, err)
		}
		if name == "refusals" && err != nil && !strings.Contains(err.Error(), "too old a cache") {
			t.Errorf("%s: err = %v, want the reason", name, err)
		}
		if lasted := time.Since(began); lasted > 5*time.Second {
			t.Errorf("%s: lasted %s", name, lasted)
		}
		cancel()
	}
}
