package deploy

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"k8s.io/client-go/rest"

	"github.com/podo-dev/podo/manifests"
	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/plan/plantest"
)

func values(v map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) { s, ok := v[name]; return s, ok }
}

func TestRead(t *testing.T) {
	tests := map[string]struct {
		text string
		want string // kind/name of each
		err  string
	}{
		"nothing":             {},
		"one":                 {text: "kind: A\nmetadata: {name: x}\n", want: "A/x"},
		"several":             {text: "kind: A\nmetadata: {name: x}\n---\nkind: B\nmetadata: {name: z}\n", want: "A/x B/z"},
		"empty documents":     {text: "---\n# nothing\n---\nkind: A\nmetadata: {name: x}\n---\n", want: "A/x"},
		"JSON":                {text: `{"kind": "A", "metadata": {"name": "x"}}`, want: "A/x"},
		"values":              {text: "kind: A\nmetadata: {name: \"${ONE}-${TWO}${ONE}\"}\n", want: "A/1-21"},
		"a value with dollar": {text: "kind: A\nmetadata: {name: ${RAW}}\n", want: "A/a${ONE}"},
		"an empty value":      {text: "kind: A\nmetadata: {name: \"x${NONE}\"}\n", want: "A/x"},
		"lone dollars":        {text: "kind: A\nmetadata: {name: $x$}\n", want: "A/$x$"},
		"missing value":       {text: "kind: ${WHO}\n", err: "no value for ${WHO}"},
		"unclosed":            {text: "kind: ${ONE\n", err: "no value for ${ONE}"},
		"broken second":       {text: "kind: A\n---\nkind: [\n", err: "document 2: "},
	}
	fill := values(map[string]string{"ONE": "1", "TWO": "2", "RAW": "'a${ONE}'", "NONE": ""})
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			objects, err := Read([]byte(tt.text), fill)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("err = %v, want %q in it", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, o := range objects {
				got = append(got, o.GetKind()+"/"+o.GetName())
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("objects = %s, want %s", s, tt.want)
			}
		})
	}
}

// TestManifests reads every manifest of the binary with the values that a plan and
// the payload give it.
func TestManifests(t *testing.T) {
	p, err := plan.New(config.Default(), plantest.Machine(), plan.Known{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	fill := func(name string) (string, bool) {
		if name == "COREDNS_IMAGE" {
			return "podo.local/coredns:1.0.0", true
		}
		v, ok := p.Server.Addons.Values[name]
		return v, ok
	}
	for _, name := range plan.Batteries() {
		text, err := manifests.FS.ReadFile(name + ".yaml")
		if err != nil {
			t.Error(err)
			continue
		}
		objects, err := Read(text, fill)
		if err != nil || len(objects) == 0 {
			t.Errorf("%s: %d objects, %v", name, len(objects), err)
		}
		for _, o := range objects {
			if o.GetAPIVersion() == "" || o.GetKind() == "" || o.GetName() == "" {
				t.Errorf("%s: an object without version, kind or name: %v", name, o.Object)
			}
		}
	}
}

// cluster is an API server that knows ConfigMaps, Deployments and Namespaces. It
// keeps objects by path and takes apply patches as they are.
type cluster struct {
	mu      sync.Mutex
	objects map[string]map[string]any
	log     []string // "VERB path", of writes
	sick    int      // answers so many writes with an error first
}

func (c *cluster) serve(t *testing.T) *rest.Config {
	t.Helper()
	s := httptest.NewServer(c)
	t.Cleanup(s.Close)
	return &rest.Config{Host: s.URL}
}

func (c *cluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	reply := func(status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(v)
	}
	refuse := func(status int, reason string) {
		reply(status, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": status})
	}
	resources := func(group string, list ...any) {
		reply(200, map[string]any{"kind": "APIResourceList", "groupVersion": group, "resources": list})
	}
	resource := func(kind, name string, namespaced bool) any {
		return map[string]any{"name": name, "kind": kind, "namespaced": namespaced, "verbs": []string{"get", "patch", "delete"}}
	}
	switch r.URL.Path {
	case "/api":
		reply(200, map[string]any{"kind": "APIVersions", "versions": []string{"v1"}})
		return
	case "/apis":
		version := map[string]any{"groupVersion": "apps/v1", "version": "v1"}
		reply(200, map[string]any{"kind": "APIGroupList", "groups": []any{map[string]any{"name": "apps", "versions": []any{version}, "preferredVersion": version}}})
		return
	case "/api/v1":
		resources("v1", resource("ConfigMap", "configmaps", true), resource("Namespace", "namespaces", false))
		return
	case "/apis/apps/v1":
		resources("apps/v1", resource("Deployment", "deployments", true))
		return
	}
	if r.Method != http.MethodGet {
		c.log = append(c.log, r.Method+" "+r.URL.Path)
		if c.sick > 0 {
			c.sick--
			refuse(500, "InternalError")
			return
		}
	}
	switch r.Method {
	case http.MethodGet:
		if o, ok := c.objects[r.URL.Path]; ok {
			reply(200, o)
			return
		}
		refuse(404, "NotFound")
	case http.MethodPatch:
		q := r.URL.Query()
		if kind := r.Header.Get("Content-Type"); kind != "application/apply-patch+yaml" || q.Get("fieldManager") != "podo" || q.Get("force") != "true" {
			refuse(400, "BadRequest")
			return
		}
		text, _ := io.ReadAll(r.Body)
		var o map[string]any
		if err := json.Unmarshal(text, &o); err != nil {
			refuse(400, "BadRequest")
			return
		}
		o["metadata"].(map[string]any)["managedFields"] = appliedBy("podo", "Apply")
		c.objects[r.URL.Path] = o
		reply(200, o)
	case http.MethodDelete:
		if _, ok := c.objects[r.URL.Path]; !ok {
			refuse(404, "NotFound")
			return
		}
		delete(c.objects, r.URL.Path)
		reply(200, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Success"})
	}
}

func appliedBy(manager, operation string) []any {
	return []any{map[string]any{"manager": manager, "operation": operation, "apiVersion": "v1"}}
}

func object(kind, namespace, name string, managed []any) map[string]any {
	return map[string]any{"apiVersion": "v1", "kind": kind, "metadata": map[string]any{"namespace": namespace, "name": name, "managedFields": managed}}
}

const grapes = `apiVersion: v1
kind: Namespace
metadata: {name: vineyard}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: grapes, namespace: vineyard}
data: {colour: "${COLOUR}", sort: "${SORT}"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: grapes, namespace: vineyard}
`

const (
	nsPath     = "/api/v1/namespaces/vineyard"
	mapPath    = "/api/v1/namespaces/vineyard/configmaps/grapes"
	deployPath = "/apis/apps/v1/namespaces/vineyard/deployments/grapes"
)

// deploy runs the component until it is ready, stops it and returns its error.
func deploy(t *testing.T, c *cluster, p plan.Addons) (ready bool, err error) {
	t.Helper()
	rc := c.serve(t)
	more := func() (map[string]string, error) { return map[string]string{"SORT": "muscat", "COLOUR": "gold"}, nil }
	d := New(p, fstest.MapFS{"grapes.yaml": {Data: []byte(grapes)}}, func() (*rest.Config, error) { return rc, nil }, more, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err = d.Run(ctx, func() { ready = true; cancel() })
	return ready, err
}

func TestApply(t *testing.T) {
	c := &cluster{objects: map[string]map[string]any{mapPath: object("ConfigMap", "vineyard", "grapes", appliedBy("kubectl", "Update"))}}
	p := plan.Addons{Enabled: []string{"grapes"}, Values: map[string]string{"COLOUR": "red"}}
	if ready, err := deploy(t, c, p); !ready || err != nil {
		t.Fatalf("ready %v, err %v", ready, err)
	}
	if want := []string{"PATCH " + nsPath, "PATCH " + mapPath, "PATCH " + deployPath}; !slices.Equal(c.log, want) {
		t.Errorf("writes = %v, want %v", c.log, want)
	}
	if data := fmt.Sprint(c.objects[mapPath]["data"]); data != "map[colour:gold sort:muscat]" {
		t.Errorf("data = %s; what is known late wins over the plan", data)
	}
}

func TestApplyTriesAgain(t *testing.T) {
	c := &cluster{objects: map[string]map[string]any{}, sick: 2}
	if ready, err := deploy(t, c, plan.Addons{Enabled: []string{"grapes"}}); !ready || err != nil {
		t.Fatalf("ready %v, err %v", ready, err)
	}
	if len(c.objects) != 3 {
		t.Errorf("%d objects, want 3: %v", len(c.objects), c.log)
	}
}

func TestStopWhileTrying(t *testing.T) {
	c := &cluster{objects: map[string]map[string]any{}, sick: 1 << 30}
	rc := c.serve(t)
	none := func() (map[string]string, error) { return map[string]string{"COLOUR": "", "SORT": ""}, nil }
	d := New(plan.Addons{Enabled: []string{"grapes"}}, fstest.MapFS{"grapes.yaml": {Data: []byte(grapes)}}, func() (*rest.Config, error) { return rc, nil }, none, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	if err := d.Run(ctx, func() {}); err != nil {
		t.Errorf("err = %v, want nil when stopped", err)
	}
	if lasted := time.Since(began); lasted > 5*time.Second {
		t.Errorf("stop took %s", lasted)
	}
}

func TestRemove(t *testing.T) {
	ours := func() map[string]map[string]any {
		return map[string]map[string]any{
			nsPath:     object("Namespace", "", "vineyard", appliedBy("podo", "Apply")),
			mapPath:    object("ConfigMap", "vineyard", "grapes", appliedBy("podo", "Apply")),
			deployPath: object("Deployment", "vineyard", "grapes", appliedBy("podo", "Apply")),
		}
	}
	tests := map[string]struct {
		change func(map[string]map[string]any)
		want   []string // writes
	}{
		"last one first": {func(map[string]map[string]any) {}, []string{"DELETE " + deployPath, "DELETE " + mapPath, "DELETE " + nsPath}},
		"already gone":   {func(o map[string]map[string]any) { clear(o) }, nil},
		"somebody else's": {func(o map[string]map[string]any) {
			o[mapPath] = object("ConfigMap", "vineyard", "grapes", appliedBy("kubectl", "Apply"))
		}, []string{"DELETE " + deployPath, "DELETE " + nsPath}},
		"only updated by us": {func(o map[string]map[string]any) {
			o[mapPath] = object("ConfigMap", "vineyard", "grapes", appliedBy("podo", "Update"))
		}, []string{"DELETE " + deployPath, "DELETE " + nsPath}},
		"without any manager": {func(o map[string]map[string]any) { o[nsPath] = object("Namespace", "", "vineyard", nil) }, []string{"DELETE " + deployPath, "DELETE " + mapPath}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := &cluster{objects: ours()}
			tt.change(c.objects)
			if ready, err := deploy(t, c, plan.Addons{Disabled: []string{"grapes"}}); !ready || err != nil {
				t.Fatalf("ready %v, err %v", ready, err)
			}
			if !slices.Equal(c.log, tt.want) {
				t.Errorf("writes = %v, want %v", c.log, tt.want)
			}
		})
	}
}

func TestMistakesInManifestsAreFatal(t *testing.T) {
	c := &cluster{objects: map[string]map[string]any{}}
	rc := c.serve(t)
	for name, tt := range map[string]struct {
		files fstest.MapFS
		want  string
	}{
		"missing file":  {fstest.MapFS{}, "grapes.yaml"},
		"missing value": {fstest.MapFS{"grapes.yaml": {Data: []byte(grapes)}}, "manifest grapes: no value for ${COLOUR}"},
	} {
		d := New(plan.Addons{Enabled: []string{"grapes"}}, tt.files, func() (*rest.Config, error) { return rc, nil },
			func() (map[string]string, error) { return nil, nil }, slog.New(slog.DiscardHandler))
		if err := d.Run(t.Context(), func() { t.Error("ready") }); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: err = %v, want %q in it", name, err, tt.want)
		}
	}
}
