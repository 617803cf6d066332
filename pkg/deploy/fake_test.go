package deploy

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"k8s.io/client-go/rest"
)

// api is an API server that knows Secrets, ConfigMaps, Namespaces, Deployments and, once
// its definition was applied, the kind Addon. It keeps objects by path and takes apply
// patches as they are.
type api struct {
	mu       sync.Mutex
	objects  map[string]map[string]any
	writes   []string // "VERB path", but for addons and events
	sick     int      // answers so many writes with an error first
	refuse   string   // answers apply patches with this
	version  int
	watchers []chan map[string]any
	slow     map[string]bool // paths of objects that take their time to go
}

const (
	secretsPath = "/api/v1/namespaces/kube-system/secrets"
	addonsPath  = "/apis/podo.dev/v1/addons"
	crdPath     = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/addons.podo.dev"
)

func newAPI(t *testing.T) (*api, *rest.Config) {
	t.Helper()
	a := &api{objects: map[string]map[string]any{}, slow: map[string]bool{}}
	s := httptest.NewServer(a)
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return a, &rest.Config{Host: s.URL, QPS: -1, ContentConfig: rest.ContentConfig{ContentType: "application/json"}}
}

// groups are the kinds by group and version.
func groups() map[string][]any {
	resource := func(kind, name string, namespaced bool) any {
		return map[string]any{"name": name, "kind": kind, "namespaced": namespaced, "verbs": []string{"get", "patch", "delete"}}
	}
	return map[string][]any{
		"v1":                      {resource("ConfigMap", "configmaps", true), resource("Namespace", "namespaces", false), resource("Secret", "secrets", true)},
		"apps/v1":                 {resource("Deployment", "deployments", true)},
		"apiextensions.k8s.io/v1": {resource("CustomResourceDefinition", "customresourcedefinitions", false)},
	}
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	reply := func(status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(v)
	}
	if r.URL.Query().Get("watch") == "true" {
		a.watch(w, r)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.discovery(r.URL.Path, reply) {
		return
	}
	status, v := a.serve(r)
	reply(status, v)
}

func (a *api) discovery(path string, reply func(int, any)) bool {
	switch path {
	case "/api":
		reply(200, map[string]any{"kind": "APIVersions", "versions": []string{"v1"}})
		return true
	case "/apis":
		var list []any
		for gv := range groups() {
			if group, _, ok := strings.Cut(gv, "/"); ok {
				version := map[string]any{"groupVersion": gv, "version": "v1"}
				list = append(list, map[string]any{"name": group, "versions": []any{version}, "preferredVersion": version})
			}
		}
		reply(200, map[string]any{"kind": "APIGroupList", "groups": list})
		return true
	}
	for gv, resources := range groups() {
		if path == "/apis/"+gv || path == "/api/"+gv {
			reply(200, map[string]any{"kind": "APIResourceList", "groupVersion": gv, "resources": resources})
			return true
		}
	}
	return false
}

func status(code int, reason string) (int, any) {
	return code, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}
}

func (a *api) serve(r *http.Request) (int, any) {
	path := r.URL.Path
	if strings.HasPrefix(path, addonsPath) && a.objects[crdPath] == nil {
		return status(404, "NotFound")
	}
	text, _ := io.ReadAll(r.Body)
	if strings.Contains(path, "/events") {
		return 201, json.RawMessage(text)
	}
	if r.Method != http.MethodGet && !strings.HasPrefix(path, addonsPath) {
		a.writes = append(a.writes, r.Method+" "+path)
		if a.sick > 0 {
			a.sick--
			return status(500, "InternalError")
		}
	}
	var o map[string]any
	json.Unmarshal(text, &o)
	old, exists := a.objects[path]
	switch r.Method {
	case http.MethodGet:
		if path == secretsPath || path == addonsPath {
			return 200, a.list(path)
		}
		if !exists {
			return status(404, "NotFound")
		}
		return 200, old
	case http.MethodPatch:
		q := r.URL.Query()
		if kind := r.Header.Get("Content-Type"); kind != "application/apply-patch+yaml" || q.Get("fieldManager") != "podo" || q.Get("force") != "true" {
			return status(400, "BadRequest")
		}
		if a.refuse != "" && !strings.HasPrefix(path, addonsPath) {
			return 400, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": a.refuse, "reason": "BadRequest", "code": 400}
		}
		managed := appliedBy("podo", "Apply")
		if m := o["metadata"].(map[string]any); len(o) == 3 && m["annotations"] == nil && m["labels"] == nil {
			managed = nil // who gives but a name owns nothing
		}
		a.store(path, o, managed)
		if a.slow[path] && exists {
			o["metadata"].(map[string]any)["deletionTimestamp"] = old["metadata"].(map[string]any)["deletionTimestamp"]
		}
		return 200, o
	case http.MethodPost:
		path += "/" + fmt.Sprint(o["metadata"].(map[string]any)["name"])
		if a.objects[path] != nil {
			return status(409, "AlreadyExists")
		}
		a.store(path, o, nil)
		return 201, o
	case http.MethodPut:
		if !exists || old["metadata"].(map[string]any)["resourceVersion"] != o["metadata"].(map[string]any)["resourceVersion"] {
			return status(409, "Conflict")
		}
		a.store(path, o, nil)
		return 200, o
	case http.MethodDelete:
		if !exists {
			return status(404, "NotFound")
		}
		if a.slow[path] {
			old["metadata"].(map[string]any)["deletionTimestamp"] = "2026-01-01T00:00:00Z"
		} else {
			delete(a.objects, path)
		}
		return 200, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Success"}
	}
	return status(405, "MethodNotAllowed")
}

func (a *api) list(path string) any {
	var items []any
	for _, p := range slices.Sorted(maps.Keys(a.objects)) {
		if strings.HasPrefix(p, path+"/") {
			items = append(items, a.objects[p])
		}
	}
	kind, version := "SecretList", "v1"
	if path == addonsPath {
		kind, version = "AddonList", "podo.dev/v1"
	}
	return map[string]any{"kind": kind, "apiVersion": version, "metadata": map[string]any{"resourceVersion": fmt.Sprint(a.version)}, "items": items}
}

func (a *api) store(path string, o map[string]any, managed []any) {
	a.version++
	m := o["metadata"].(map[string]any)
	m["resourceVersion"], m["uid"] = fmt.Sprint(a.version), "uid-"+path
	m["managedFields"] = managed
	a.objects[path] = o
	if strings.HasPrefix(path, secretsPath) {
		for _, w := range a.watchers {
			w <- o
		}
	}
}

func (a *api) watch(w http.ResponseWriter, r *http.Request) {
	events := make(chan map[string]any, 1000)
	a.mu.Lock()
	a.watchers = append(a.watchers, events)
	a.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.(http.Flusher).Flush()
	for {
		select {
		case <-r.Context().Done():
			return
		case o := <-events:
			json.NewEncoder(w).Encode(map[string]any{"type": "MODIFIED", "object": o})
			w.(http.Flusher).Flush()
		}
	}
}

func appliedBy(manager, operation string) []any {
	return []any{map[string]any{"manager": manager, "operation": operation, "apiVersion": "v1"}}
}

// get is a copy of an object, or nil.
func (a *api) get(path string) map[string]any {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.objects[path])
}

// wrote are the writes so far, which it forgets.
func (a *api) wrote() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := a.writes
	a.writes = nil
	return out
}

// addon is what kubectl get addons shows: state, number of objects and error.
func (a *api) addon(name string) string {
	o := a.get(addonsPath + "/" + name)
	if o == nil {
		return "none"
	}
	s := o["status"].(map[string]any)
	text := fmt.Sprint(s["state"], " ", s["count"])
	if e, ok := s["error"]; ok {
		text += " " + e.(string)
	}
	return text
}
