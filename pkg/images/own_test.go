package images

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
)

func TestOwn(t *testing.T) {
	const kind = "application/vnd.oci.image.manifest.v1+json"
	dir := t.TempDir()
	// archive has an image of a manifest, and returns the digest of that.
	archive := func(file, name, manifest string) string {
		digest := "sha256:" + sum([]byte(manifest))
		index := fmt.Sprintf(`{"manifests":[{"mediaType":%q,"digest":%q,"annotations":{"io.containerd.image.name":%q}}]}`, kind, digest, name)
		write(t, filepath.Join(dir, file), string(tarOf(t, [2]string{"oci-layout", "{}"}, [2]string{"index.json", index},
			[2]string{"blobs/sha256/" + sum([]byte(name)), strings.Repeat(name, 100)}, [2]string{"blobs/sha256/" + sum([]byte(manifest)), manifest})))
		return digest
	}
	archive("one.tar", "podo.local/other:1", `{"schemaVersion":2}`)
	digest := archive("two.tar", "podo.local/sub/app:1", `{"schemaVersion":2,"config":{}}`)
	blob := "sha256:" + sum([]byte("podo.local/sub/app:1"))
	server := httptest.NewServer(Own(dir))
	defer server.Close()

	tests := map[string]struct {
		path, part         string
		code               int
		kind, digest, body string
	}{
		"by tag":           {path: "/v2/sub/app/manifests/1", code: 200, kind: kind, digest: digest, body: `{"schemaVersion":2,"config":{}}`},
		"by digest":        {path: "/v2/sub/app/manifests/" + digest, code: 200, kind: kind, digest: digest, body: `{"schemaVersion":2,"config":{}}`},
		"a blob":           {path: "/v2/sub/app/blobs/" + blob, code: 200, kind: "application/octet-stream", digest: blob, body: strings.Repeat("podo.local/sub/app:1", 100)},
		"part of a blob":   {path: "/v2/sub/app/blobs/" + blob, part: "bytes=20-29", code: 206, kind: "application/octet-stream", digest: blob, body: "podo.local"},
		"no such tag":      {path: "/v2/sub/app/manifests/2", code: 404},
		"no such image":    {path: "/v2/app/manifests/1", code: 404},
		"a blob's digest":  {path: "/v2/sub/app/manifests/" + blob, code: 404},
		"no such blob":     {path: "/v2/sub/app/blobs/sha256:" + fmt.Sprintf("%064d", 0), code: 404},
		"no digest":        {path: "/v2/sub/app/blobs/..%2f..%2findex.json", code: 404},
		"another registry": {path: "/v2/", code: 404},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+tt.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if tt.part != "" {
				r.Header.Set("Range", tt.part)
			}
			res, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if err != nil {
				t.Fatal(err)
			}
			if res.StatusCode != tt.code || tt.body != "" &&
				(string(body) != tt.body || res.Header.Get("Content-Type") != tt.kind || res.Header.Get("Docker-Content-Digest") != tt.digest) {
				t.Errorf("%s: %s %v %q", tt.path, res.Status, res.Header, body)
			}
		})
	}

	// What is damaged says so, and which it is.
	write(t, filepath.Join(dir, "one.tar"), strings.Repeat("x", 1024))
	res, err := http.Get(server.URL + "/v2/sub/app/manifests/1")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if body, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusInternalServerError || !strings.Contains(string(body), "one.tar") {
		t.Errorf("%s %q", res.Status, body)
	}
}
