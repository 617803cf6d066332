package kubelet

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestStarting(t *testing.T) {
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		asked = append(asked, r.Method+" "+r.URL.String()+" "+string(text))
	}))
	defer server.Close()
	s := &starting{next: http.DefaultTransport, node: "box"}
	const status = "/api/v1/nodes/box/status"
	early := `{"status":{"conditions":[{"type":"Ready","status":"False","message":"CSINode is not yet initialized"}]}}`
	late := `{"status":{"conditions":[{"type":"Ready","status":"False","message":"container runtime is down"}]}}`
	say := func(method, path, body, want string) {
		t.Helper()
		asked = nil
		req, err := http.NewRequest(method, server.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		res, err := s.RoundTrip(req)
		if want == "" {
			if !errors.Is(err, errPremature) || len(asked) > 0 {
				t.Errorf("%s %s %s: %v, and the server was asked %q", method, path, body, err, asked)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if len(asked) != 1 || asked[0] != want {
			t.Errorf("%s %s %s became %q, want %q", method, path, body, asked, want)
		}
	}
	say("PATCH", status, late, "PATCH "+status+" "+late)
	say("PATCH", status+"?fieldManager=x", early, "")
	say("PATCH", "/api/v1/nodes/other/status", early, "PATCH /api/v1/nodes/other/status "+early)
	say("POST", "/api/v1/nodes", early, "POST /api/v1/nodes "+early)
	s.from.Add(-int64(moments / time.Nanosecond))
	say("PATCH", status, early, "PATCH "+status+" "+early)
}
