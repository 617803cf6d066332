// Package helmtest makes Helm charts for tests, and repositories of them.
//
// Charts are packed, and indexes of repositories written, by Helm's own packages, so that
// what a test installs is what people install.
package helmtest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"helm.sh/helm/v4/pkg/chart/common"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"
	"helm.sh/helm/v4/pkg/registry"
	"helm.sh/helm/v4/pkg/repo/v1"
)

// Pack returns a packed chart with default values and templates, these by the names of
// their files.
func Pack(t testing.TB, name, version, values string, templates map[string]string) []byte {
	t.Helper()
	c := &chart.Chart{
		Metadata: &chart.Metadata{APIVersion: chart.APIVersionV2, Name: name, Version: version, AppVersion: "9"},
		Raw:      []*common.File{{Name: chartutil.ValuesfileName, Data: []byte(values)}},
	}
	for file, text := range templates {
		c.Templates = append(c.Templates, &common.File{Name: "templates/" + file, Data: []byte(text)})
	}
	file, err := chartutil.Save(c, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Repository serves charts as a chart repository does, at its root.
func Repository(t testing.TB, charts ...[]byte) http.Handler {
	t.Helper()
	dir := t.TempDir()
	index := repo.NewIndexFile()
	for _, text := range charts {
		c, err := loader.LoadArchive(bytes.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		file, sum := fmt.Sprintf("%s-%s.tgz", c.Name(), c.Metadata.Version), sha256.Sum256(text)
		if err := index.MustAdd(c.Metadata, file, "", hex.EncodeToString(sum[:])); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	index.SortEntries()
	if err := index.WriteFile(filepath.Join(dir, "index.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	return http.FileServer(http.Dir(dir))
}

// Push puts a chart into an OCI registry that speaks HTTP, as host/path/name:version.
func Push(t testing.TB, registryAndPath, user, password string, text []byte) {
	t.Helper()
	push(t, registryAndPath, "", user, password, text)
}

// PushV puts a chart there as host/path/name:vversion, as some projects' are.
func PushV(t testing.TB, registryAndPath, user, password string, text []byte) {
	t.Helper()
	push(t, registryAndPath, "v", user, password, text, registry.PushOptStrictMode(false))
}

func push(t testing.TB, registryAndPath, prefix, user, password string, text []byte, options ...registry.PushOption) {
	t.Helper()
	c, err := loader.LoadArchive(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	client, err := registry.NewClient(registry.ClientOptPlainHTTP(), registry.ClientOptBasicAuth(user, password))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Push(text, fmt.Sprintf("%s/%s:%s%s", registryAndPath, c.Name(), prefix, c.Metadata.Version), options...); err != nil {
		t.Fatal(err)
	}
}

// Locked keeps out whoever does not know a user's password.
func Locked(user, password string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != user || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="charts"`)
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}
