package helm

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
)

// TestStrayConfig: of a HelmChartConfig that has no HelmChart somebody is told, unless that
// may still come.
func TestStrayConfig(t *testing.T) {
	configs := map[string]time.Duration{"traefik": time.Hour, "early": time.Second, "nearly": patience - time.Second}
	api := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		age, there := configs[path.Base(r.URL.Path)]
		if !there || !strings.Contains(r.URL.Path, "/"+configsPath+"/") {
			out.Header().Set("Content-Type", "application/json")
			out.WriteHeader(http.StatusNotFound)
			_ = json.NewEncoder(out).Encode(metav1.Status{Status: metav1.StatusFailure, Reason: metav1.StatusReasonNotFound, Code: http.StatusNotFound})
			return
		}
		_ = json.NewEncoder(out).Encode(config{Metadata: metav1.ObjectMeta{
			Namespace: "kube-system", Name: path.Base(r.URL.Path), CreationTimestamp: metav1.NewTime(time.Now().Add(-age)),
		}})
	}))
	t.Cleanup(api.Close)
	var log bytes.Buffer
	w, err := newWorker(t.Context(), New(t.TempDir(), nil, slog.New(slog.NewTextHandler(&log, nil))), &rest.Config{Host: api.URL})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.queue.ShutDown)
	told := record.NewFakeRecorder(10)
	w.events = told

	for _, name := range []string{"traefik", "early", "nearly", "never"} {
		if err := w.reconcile(t.Context(), "kube-system/"+name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := len(told.Events); n != 1 {
		t.Fatalf("%d events, want one", n)
	}
	event := <-told.Events
	for _, want := range []string{"Warning NoHelmChart there is no HelmChart kube-system/traefik", "traefik-custom", "docs/ingress.md"} {
		if !strings.Contains(event, want) {
			t.Errorf("nothing of %q in the event %q", want, event)
		}
	}
	if n := strings.Count(log.String(), "docs/ingress.md"); n != 1 {
		t.Errorf("the log names the way %d times:\n%s", n, log.String())
	}
	if key, _ := w.queue.Get(); key != "kube-system/nearly" {
		t.Errorf("%s has the next turn, want the one whose time comes", key)
	}
}
