package server

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
)

func TestStatic(t *testing.T) {
	dir := t.TempDir()
	folder := filepath.Join(dir, "charts")
	for name, text := range map[string]string{"charts/web.tgz": "a chart", "token": "a secret"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../token", filepath.Join(folder, "link.tgz")); err != nil {
		t.Fatal(err)
	}
	h := static("/static/charts/", folder, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusTeapot)
	}))
	for name, tt := range map[string]struct {
		method, path string
		code         int
		body         string
	}{
		"a chart":                {"GET", "/static/charts/web.tgz", 200, "a chart"},
		"no chart":               {"GET", "/static/charts/none.tgz", 404, "404 page not found\n"},
		"the folder":             {"GET", "/static/charts/", 404, "404 page not found\n"},
		"a way out":              {"GET", "/static/charts/../token", 404, "404 page not found\n"},
		"a link out":             {"GET", "/static/charts/link.tgz", 404, "404 page not found\n"},
		"a change":               {"PUT", "/static/charts/web.tgz", 405, "files can only be read here\n"},
		"everything else":        {"GET", "/api", 418, ""},
		"a path that only looks": {"GET", "/static/charts", 418, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			r := httptest.NewRequest(tt.method, "/", nil)
			r.URL.Path = tt.path
			h.ServeHTTP(w, r)
			if w.Code != tt.code || w.Body.String() != tt.body {
				t.Errorf("%s %s: %d %q, want %d %q", tt.method, tt.path, w.Code, w.Body, tt.code, tt.body)
			}
		})
	}
}
