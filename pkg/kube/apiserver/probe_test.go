package apiserver

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestLacks: what an API server waits for is told by the names of its checks.
func TestLacks(t *testing.T) {
	var code int
	var body string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		_, _ = w.Write([]byte(body))
	}))
	defer server.Close()
	for _, tt := range []struct {
		code       int
		body, want string
	}{
		{200, "ok", ""},
		{500, "[+]ping ok\n[-]poststarthook/a failed: reason withheld\n[-]etcd failed: reason withheld\nreadyz check failed\n", "poststarthook/a, etcd"},
		{503, "the server is starting", "a better answer than 503 Service Unavailable"},
	} {
		code, body = tt.code, tt.body
		if got, err := lacks(t.Context(), server.Client(), server.URL); err != nil || got != tt.want {
			t.Errorf("%d: got %q, %v, want %q", tt.code, got, err, tt.want)
		}
	}
	server.Close()
	if got, err := lacks(t.Context(), server.Client(), server.URL); err != nil || !strings.Contains(got, "refused") {
		t.Errorf("without a server: %q, %v", got, err)
	}
}
