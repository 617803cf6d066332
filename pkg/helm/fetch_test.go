package helm

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"helm.sh/helm/v4/pkg/chart/v2/loader"

	"github.com/podo-dev/podo/pkg/helm/helmtest"
)

func pack(t *testing.T, version string) []byte {
	return helmtest.Pack(t, "web", version, "", map[string]string{"map.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: web}\n"})
}

// TestFetch gets charts from a repository with TLS and a password, and from an OCI
// registry with one.
func TestFetch(t *testing.T) {
	first, second, odd := pack(t, "1.0.0"), pack(t, "1.2.0"), pack(t, "2.0.0-rc.1+build")
	repository := helmtest.Repository(t, first, second, odd)
	locked := httptest.NewTLSServer(helmtest.Locked("ann", "secret", repository))
	t.Cleanup(locked.Close)
	open := httptest.NewServer(repository)
	t.Cleanup(open.Close)
	images := httptest.NewServer(helmtest.Locked("ann", "secret", registry.New(registry.Logger(log.New(io.Discard, "", 0)))))
	t.Cleanup(images.Close)
	host := strings.TrimPrefix(images.URL, "http://")
	for _, c := range [][]byte{first, second} {
		helmtest.Push(t, host+"/charts", "ann", "secret", c)
		helmtest.PushV(t, host+"/v", "ann", "secret", c)
	}
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: locked.Certificate().Raw})
	logins := fmt.Appendf(nil, `{"auths":{%q:{"username":"ann","password":"secret"}}}`, host)
	f := &fetcher{host: open.URL, api: http.DefaultTransport}

	tests := map[string]struct {
		source source
		want   string // a version, or what an error says
	}{
		"the newest of a repository":  {source{spec: spec{Repo: locked.URL, Chart: "web"}, authorities: authority, user: "ann", password: "secret"}, "1.2.0"},
		"a version":                   {source{spec: spec{Repo: locked.URL + "/", Chart: "web", Version: "1.0.0"}, authorities: authority, user: "ann", password: "secret"}, "1.0.0"},
		"a range":                     {source{spec: spec{Repo: open.URL, Chart: "web", Version: "~1.0"}}, "1.0.0"},
		"nobody asked who it is":      {source{spec: spec{Repo: locked.URL, Chart: "web", InsecureSkipTLSVerify: true}, user: "ann", password: "secret"}, "1.2.0"},
		"an authority nobody knows":   {source{spec: spec{Repo: locked.URL, Chart: "web"}, user: "ann", password: "secret"}, "certificate signed by unknown authority"},
		"no authority at all":         {source{spec: spec{Repo: locked.URL, Chart: "web"}, authorities: []byte("hello")}, "they hold no certificate in PEM"},
		"a wrong password":            {source{spec: spec{Repo: locked.URL, Chart: "web"}, authorities: authority, user: "ann", password: "guess"}, "/index.yaml: 401 Unauthorized"},
		"no such chart":               {source{spec: spec{Repo: open.URL, Chart: "none"}}, `chart none, version "": no chart name found`},
		"no such version":             {source{spec: spec{Repo: open.URL, Chart: "web", Version: "7.0.0"}}, `chart web, version "7.0.0": `},
		"a URL":                       {source{spec: spec{Chart: open.URL + "/web-1.0.0.tgz"}}, "1.0.0"},
		"a URL of nothing":            {source{spec: spec{Chart: open.URL + "/none.tgz"}}, "/none.tgz: 404 Not Found"},
		"the folder of this server":   {source{spec: spec{Chart: "http://%{KUBERNETES_API}%/web-1.2.0.tgz"}}, "1.2.0"},
		"the chart itself":            {source{spec: spec{ChartContent: base64.StdEncoding.EncodeToString(first)[:60] + "\n" + base64.StdEncoding.EncodeToString(first)[60:]}}, "1.0.0"},
		"what is no chart":            {source{spec: spec{ChartContent: "?"}}, "illegal base64 data"},
		"the newest of a registry":    {source{spec: spec{Chart: "oci://" + host + "/charts/web", PlainHTTP: true}, logins: logins}, "1.2.0"},
		"a version of a registry":     {source{spec: spec{Chart: "oci://" + host + "/charts/web", Version: "1.0.0", PlainHTTP: true}, logins: logins}, "1.0.0"},
		"a range of a registry":       {source{spec: spec{Chart: "oci://" + host + "/charts/web", Version: "<1.1", PlainHTTP: true}, logins: logins}, "1.0.0"},
		"a tag with a v":              {source{spec: spec{Chart: "oci://" + host + "/v/web", Version: "v1.0.0", PlainHTTP: true}, logins: logins}, "1.0.0"},
		"a v that the tag has not":    {source{spec: spec{Chart: "oci://" + host + "/charts/web", Version: "v1.0.0", PlainHTTP: true}, logins: logins}, "1.0.0"},
		"a range of tags with a v":    {source{spec: spec{Chart: "oci://" + host + "/v/web", Version: "^1", PlainHTTP: true}, logins: logins}, "1.2.0"},
		"a tag":                       {source{spec: spec{Chart: "oci://" + host + "/charts/web:1.0.0", PlainHTTP: true}, logins: logins}, "1.0.0"},
		"a registry as repository":    {source{spec: spec{Repo: "oci://" + host + "/charts", Chart: "web", PlainHTTP: true}, user: "ann", password: "secret"}, "1.2.0"},
		"a registry, unknown to it":   {source{spec: spec{Chart: "oci://" + host + "/charts/web", PlainHTTP: true}}, "basic credential not found"},
		"no such chart in a registry": {source{spec: spec{Chart: "oci://" + host + "/charts/none", Version: "1.0.0", PlainHTTP: true}, logins: logins}, "not found"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			text, err := f.fetch(t.Context(), tt.source)
			if err != nil {
				if !strings.Contains(err.Error(), tt.want) {
					t.Errorf("error %q, want %q", err, tt.want)
				}
				return
			}
			c, err := loader.LoadArchive(bytes.NewReader(text))
			if err != nil || c.Metadata.Version != tt.want {
				t.Errorf("chart %+v, %v; want %q", c, err, tt.want)
			}
		})
	}
}

// TestPasswordsStayHome has an index that leads to another server, which sees the password
// only if that was asked for.
func TestPasswordsStayHome(t *testing.T) {
	text := pack(t, "1.0.0")
	var seen string
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen, _, _ = r.BasicAuth()
		w.Write(text)
	}))
	t.Cleanup(other.Close)
	home := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "apiVersion: v1\nentries: {web: [{apiVersion: v2, name: web, version: 1.0.0, urls: [%q]}]}\n", other.URL+"/web.tgz")
	}))
	t.Cleanup(home.Close)
	f := &fetcher{}
	for pass, want := range map[bool]string{false: "", true: "ann"} {
		got, err := f.fetch(t.Context(), source{spec: spec{Repo: home.URL, Chart: "web", AuthPassCredentials: pass}, user: "ann", password: "secret"})
		if err != nil || !bytes.Equal(got, text) || seen != want {
			t.Errorf("authPassCredentials %v: the other server saw %q, want %q (%v)", pass, seen, want, err)
		}
	}
}

func TestDigestsCount(t *testing.T) {
	home := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/index.yaml" {
			fmt.Fprint(w, "apiVersion: v1\nentries: {web: [{apiVersion: v2, name: web, version: 1.0.0, urls: [web.tgz], digest: 00}]}\n")
			return
		}
		w.Write(pack(t, "1.0.0"))
	}))
	t.Cleanup(home.Close)
	_, err := (&fetcher{}).fetch(t.Context(), source{spec: spec{Repo: home.URL, Chart: "web"}})
	if err == nil || !strings.Contains(err.Error(), "is another file than the one") {
		t.Errorf("error %v, want that it is another file", err)
	}
}

// TestTether ends a request, and the reading of an answer, with an operation.
func TestTether(t *testing.T) {
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "begins")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}))
	t.Cleanup(slow.Close)
	ctx, stop := context.WithCancel(t.Context())
	client := &http.Client{Transport: tether{ctx, http.DefaultTransport}}
	answer, err := client.Get(slow.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	stop()
	if text, err := io.ReadAll(answer.Body); !errors.Is(err, context.Canceled) {
		t.Errorf("read %q, %v after the end of the operation", text, err)
	}
	if _, err := client.Get(slow.URL); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v after the end of the operation, want %v", err, context.Canceled)
	}
}

func TestCache(t *testing.T) {
	c := cache{t.TempDir()}
	old, fresh := spec{Repo: "r", Chart: "web", Version: "1"}, spec{Repo: "r", Chart: "web", Version: "2"}
	for _, s := range []spec{old, fresh} {
		if err := c.keep("a/web", s, []byte(s.Version)); err != nil {
			t.Fatal(err)
		}
	}
	if text, err := c.load("a/web", fresh); err != nil || string(text) != "2" {
		t.Errorf("kept %q, %v; want 2", text, err)
	}
	if _, err := c.load("a/web", old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the version before: %v, want that it is gone", err)
	}
	if err := c.drop("a/web"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.load("a/web", fresh); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after drop: %v, want that it is gone", err)
	}
}
