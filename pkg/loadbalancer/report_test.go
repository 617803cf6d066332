package loadbalancer

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// TestReport: a node that is not registered yet is asked for again, and then told of.
func TestReport(t *testing.T) {
	said := make(chan string, 10)
	tries := 0
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if tries++; tries == 1 {
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`)
			return
		}
		body, _ := io.ReadAll(r.Body)
		said <- r.Method + " " + r.URL.Path + " " + string(body)
		io.WriteString(w, `{"kind":"Node","apiVersion":"v1","metadata":{"name":"box"}}`)
	}))
	defer api.Close()
	client := func() (kubernetes.Interface, error) { return kubernetes.NewForConfig(&rest.Config{Host: api.URL}) }
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- Report("box", nil, client, slog.New(slog.DiscardHandler)).Run(ctx, func() {}) }()
	select {
	case got := <-said:
		if !strings.HasPrefix(got, `PATCH /api/v1/nodes/box/status {"metadata":{"annotations":{"podo.dev/host-ports":"`) {
			t.Errorf("said %s", got)
		}
	case <-ctx.Done():
		t.Fatal("nothing was said")
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
