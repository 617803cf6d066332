package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func digestOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// ask sends a request with one header, and returns what comes back.
func ask(t *testing.T, method, address, header, value, body string) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequest(method, address, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if value != "" {
		req.Header.Set(header, value)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, res.Header, string(text)
}

// TestUploads: a layer that comes in parts is one in the end, if it is what it is said to
// be, and the parts are gone then. A part that does not fit is refused.
func TestUploads(t *testing.T) {
	dir := t.TempDir()
	s, err := openStore(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(s)
	defer server.Close()
	request := func(method, path, part, body string) (int, http.Header, string) {
		t.Helper()
		return ask(t, method, server.URL+path, "Content-Range", part, body)
	}
	begin := func() string {
		t.Helper()
		code, header, text := request("POST", "/v2/some/app/blobs/uploads/", "", "")
		if code != http.StatusAccepted {
			t.Fatalf("begin: %d %s", code, text)
		}
		return header.Get("Location")
	}
	at := begin()
	for _, tt := range []struct {
		part, body string
		code       int
		have       string
	}{
		{"0-4", "hello", http.StatusAccepted, "0-4"},
		{"9-11", "xxx", http.StatusRequestedRangeNotSatisfiable, "0-4"},
		{"5-6", ", ", http.StatusAccepted, "0-6"},
		{"", "wor", http.StatusAccepted, "0-9"},
	} {
		if code, header, text := request("PATCH", at, tt.part, tt.body); code != tt.code || header.Get("Range") != tt.have {
			t.Errorf("part %s: %d %q, %s; want %d %q", tt.part, code, header.Get("Range"), text, tt.code, tt.have)
		}
	}
	other := begin()
	if code, _, _ := request("PUT", other+"?digest="+digestOf("another"), "", "ld"); code != http.StatusBadRequest {
		t.Errorf("what is not what it is said to be: %d", code)
	}
	if code, _, _ := request("PUT", at+"?digest=none", "", "ld"); code != http.StatusBadRequest {
		t.Errorf("no digest: %d", code)
	}
	if code, _, text := request("PUT", at+"?digest="+digestOf("hello, world"), "", "ld"); code != http.StatusCreated {
		t.Errorf("the end: %d %s", code, text)
	}
	if code, _, text := request("GET", "/v2/some/app/blobs/"+digestOf("hello, world"), "", ""); code != http.StatusOK || text != "hello, world" {
		t.Errorf("afterwards: %d %q", code, text)
	}
	if code, _, text := request("PUT", begin()+"?digest="+digestOf("at once"), "", "at once"); code != http.StatusCreated {
		t.Errorf("all at once: %d %s", code, text)
	}
	left, err := os.ReadDir(filepath.Join(dir, "uploads"))
	if err != nil || len(left) != 0 {
		t.Errorf("left of uploads: %v, %v", left, err)
	}
}

// A request is answered with a status and a text.
type request func(method, path, kind, body string) (int, string)

// serving runs a store for as long as do takes.
func serving(t *testing.T, dir string, do func(request)) {
	t.Helper()
	s, err := openStore(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(s)
	defer server.Close()
	do(func(method, path, kind, body string) (int, string) {
		t.Helper()
		code, _, text := ask(t, method, server.URL+path, "Content-Type", kind, body)
		return code, text
	})
}

// TestRegistryKeepsWhatIndexesNeed: after a restart an index is there, though the tag that
// its image was pushed by is another's now, or the image was pushed again.
func TestRegistryKeepsWhatIndexesNeed(t *testing.T) {
	dir := t.TempDir()
	const (
		kind  = "application/vnd.oci.image.manifest.v1+json"
		index = "application/vnd.oci.image.index.v1+json"
	)
	manifest := func(note string) string {
		return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"annotations":{"note":%q},"layers":[]}`, kind, note)
	}
	of := func(kind, manifest string) string {
		return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`, index, kind, digestOf(manifest), len(manifest))
	}
	one, two, three := manifest("one"), manifest("two"), manifest("three")
	serving(t, dir, func(request request) {
		for _, m := range []struct{ tag, kind, text string }{
			{"dev", kind, one}, {"one", index, of(kind, one)}, {"dev", kind, two}, // one is by its digest alone
			{"same", kind, three}, {"inner", index, of(kind, three)}, {"outer", index, of(index, of(kind, three))},
			{"inner", index, of(kind, three)}, {"same", kind, three}, // each after what refers to it
		} {
			if code, text := request("PUT", "/v2/team/app/manifests/"+m.tag, m.kind, m.text); code != http.StatusCreated {
				t.Fatalf("%s: %d %s", m.tag, code, text)
			}
		}
	})
	for range 2 {
		serving(t, dir, func(request request) {
			for tag, want := range map[string]string{
				"dev": two, "one": of(kind, one), digestOf(one): one, "same": three, "inner": of(kind, three), "outer": of(index, of(kind, three)),
			} {
				if code, text := request("GET", "/v2/team/app/manifests/"+tag, "", ""); code != http.StatusOK || text != want {
					t.Errorf("%s after a restart: %d %q, want %q", tag, code, text, want)
				}
			}
		})
	}
}

// TestRegistryOutlivesTornFiles: what was left of a write that was killed, and what is no
// manifest, do not keep the others from being there.
func TestRegistryOutlivesTornFiles(t *testing.T) {
	dir := t.TempDir()
	const (
		kind = "application/vnd.oci.image.manifest.v1+json"
		text = `{"schemaVersion":2,"mediaType":"` + kind + `","layers":[]}`
	)
	serving(t, dir, func(request request) {
		if code, answer := request("PUT", "/v2/app/manifests/v1", kind, text); code != http.StatusCreated {
			t.Fatalf("push: %d %s", code, answer)
		}
	})
	left := filepath.Join(dir, "manifests", ".abc.123.tmp")
	for _, file := range []string{left, filepath.Join(dir, "manifests", "def")} {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	serving(t, dir, func(request request) {
		if code, answer := request("GET", "/v2/app/manifests/v1", "", ""); code != http.StatusOK || answer != text {
			t.Errorf("after a restart: %d %q", code, answer)
		}
	})
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there: %v", left, err)
	}
}

// TestRegistryTellsWhatIsNotKept: a manifest that the disk did not take was not pushed.
func TestRegistryTellsWhatIsNotKept(t *testing.T) {
	dir := t.TempDir()
	serving(t, dir, func(request request) {
		if err := os.RemoveAll(filepath.Join(dir, "manifests")); err != nil {
			t.Fatal(err)
		}
		const kind = "application/vnd.oci.image.manifest.v1+json"
		if code, answer := request("PUT", "/v2/app/manifests/v1", kind, `{"schemaVersion":2,"layers":[]}`); code != http.StatusInternalServerError {
			t.Errorf("push: %d %s", code, answer)
		}
	})
}

// TestRegistryEndsWithItsPushes: a push that has begun when the registry is to end is
// answered and kept.
func TestRegistryEndsWithItsPushes(t *testing.T) {
	const (
		kind = "application/vnd.oci.image.manifest.v1+json"
		text = `{"schemaVersion":2,"layers":[]}`
	)
	at, err := listen(netip.MustParseAddr("127.0.0.1"), 0, "tcp")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ctx, end := context.WithCancel(t.Context())
	defer end()
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- registryServer{dir: dir, listen: []netip.AddrPort{at}, log: slog.New(slog.DiscardHandler)}.Run(ctx, func() { close(ready) })
	}()
	<-ready
	body, more := io.Pipe()
	go func() {
		_, _ = io.WriteString(more, text[:5])
		end()
		time.Sleep(100 * time.Millisecond)
		_, _ = io.WriteString(more, text[5:])
		more.Close()
	}()
	req, err := http.NewRequest("PUT", "http://"+at.String()+"/v2/app/manifests/v1", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", kind)
	req.Header.Set("Expect", "100-continue") // so that no part of the body goes out before it is being read
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusCreated {
		t.Errorf("push: %s", res.Status)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	serving(t, dir, func(request request) {
		if code, answer := request("GET", "/v2/app/manifests/v1", "", ""); code != http.StatusOK || answer != text {
			t.Errorf("afterwards: %d %q", code, answer)
		}
	})
}

// TestRegistryKeepsWhatItIsGiven: after a restart an index, and the images that it refers
// to, are there, and what was deleted is not.
func TestRegistryKeepsWhatItIsGiven(t *testing.T) {
	dir := t.TempDir()
	const (
		kind  = "application/vnd.oci.image.manifest.v1+json"
		index = "application/vnd.oci.image.index.v1+json"
	)
	blob := "layer"
	config := `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"config":{}}`
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}]}`,
		kind, digestOf(config), len(config), digestOf(blob), len(blob))
	whole := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`, index, kind, digestOf(manifest), len(manifest))

	run := func(do func(request)) { t.Helper(); serving(t, dir, do) }
	run(func(request request) {
		for _, b := range []string{blob, config} {
			if code, text := request("POST", "/v2/app/blobs/uploads/?digest="+digestOf(b), "application/octet-stream", b); code != http.StatusCreated {
				t.Fatalf("blob: %d %s", code, text)
			}
		}
		for path, m := range map[string]string{"gone": manifest, digestOf(manifest): manifest} {
			if code, text := request("PUT", "/v2/app/manifests/"+path, kind, m); code != http.StatusCreated {
				t.Fatalf("manifest: %d %s", code, text)
			}
		}
		if code, text := request("PUT", "/v2/app/manifests/v1", index, whole); code != http.StatusCreated {
			t.Fatalf("index: %d %s", code, text)
		}
		if code, text := request("PUT", "/v2/app/manifests/broken", index, strings.Replace(whole, "sha256:", "sha256:0", 1)); code < 400 {
			t.Fatalf("an index of what is not there: %d %s", code, text)
		}
		if code, text := request("DELETE", "/v2/app/manifests/gone", "", ""); code != http.StatusAccepted {
			t.Fatalf("delete: %d %s", code, text)
		}
	})
	run(func(request request) {
		for path, want := range map[string]string{
			"/v2/app/manifests/v1": whole, "/v2/app/manifests/" + digestOf(manifest): manifest, "/v2/app/blobs/" + digestOf(blob): blob,
		} {
			if code, text := request("GET", path, "", ""); code != http.StatusOK || text != want {
				t.Errorf("GET %s after a restart: %d %q, want %q", path, code, text, want)
			}
		}
		for _, tag := range []string{"gone", "broken"} {
			if code, _ := request("GET", "/v2/app/manifests/"+tag, "", ""); code != http.StatusNotFound {
				t.Errorf("tag %s after a restart: %d, want 404", tag, code)
			}
		}
	})
}
