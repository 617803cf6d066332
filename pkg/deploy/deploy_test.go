package deploy

import (
	"context"
	"fmt"
	"log/slog"
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

// TestManifests reads every manifest of the binary with the values that a plan and
// the payload give it.
func TestManifests(t *testing.T) {
	p, err := plan.New(config.Default(), plantest.Machine(), plan.Known{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	values := p.Server.Addons.Values
	values["COREDNS_IMAGE"] = "podo.local/coredns:1.0.0"
	values["TRAEFIK_IMAGE"] = "podo.local/traefik:1.0.0"
	own, err := readOwn(p.Server.Addons, manifests.FS, values)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range own {
		if len(m.objects) == 0 {
			t.Errorf("%s holds no object", m.name)
		}
	}
	if len(own) != 3+len(plan.Batteries()) {
		t.Errorf("%d manifests, want three and the batteries", len(own))
	}
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
	mapsPath   = "/api/v1/namespaces/default/configmaps/"
)

// own are the binary's manifests of these tests.
func own() fstest.MapFS {
	addons, _ := manifests.FS.ReadFile("podo-addons.yaml")
	return fstest.MapFS{"podo-addons.yaml": {Data: addons}, "grapes.yaml": {Data: []byte(grapes)}}
}

func component(rc *rest.Config, p plan.Addons, started <-chan struct{}) (run func(context.Context, func()) error) {
	return New(Options{
		Addons: p, Files: own(), Started: started,
		Values: func() (map[string]string, error) { return map[string]string{"SORT": "muscat", "COLOUR": "gold"}, nil },
		Client: func() (*rest.Config, error) { return rc, nil }, Log: slog.New(slog.DiscardHandler),
	}).Run
}

// enabled has both of the binary's manifests applied.
func enabled() plan.Addons {
	return plan.Addons{Enabled: []string{"podo-addons", "grapes"}, Values: map[string]string{"COLOUR": "red"}}
}

// A vineyard is a deployer at work, and the files that it is given.
type vineyard struct {
	*testing.T
	*api
	shared shared
	stop   func()
	ready  chan struct{}
	// started is for the test to close, when the machine's start is over.
	started chan struct{}
}

// begin starts a deployer, which ends with the test at the latest.
func begin(t *testing.T, a *api, rc *rest.Config, p plan.Addons) *vineyard {
	t.Helper()
	kept, err := newShared(rc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	v := &vineyard{T: t, api: a, shared: kept, ready: make(chan struct{}), started: make(chan struct{})}
	ready := sync.OnceFunc(func() { close(v.ready) })
	go func() { done <- component(rc, p, v.started)(ctx, ready) }()
	v.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the deployer ended with %v", err)
		}
	})
	t.Cleanup(v.stop)
	return v
}

// tend starts a deployer that is ready soon.
func tend(t *testing.T, a *api, rc *rest.Config, p plan.Addons) *vineyard {
	t.Helper()
	v := begin(t, a, rc, p)
	select {
	case <-v.ready:
	case <-time.After(10 * time.Second):
		t.Fatalf("not ready: %v", a.wrote())
	}
	return v
}

// put changes a shared file; no text deletes it.
func (v *vineyard) put(path, text string) {
	v.Helper()
	all, err := v.shared.list(v.Context())
	if err != nil {
		v.Fatal(err)
	}
	f := file{path: path, server: "one", content: []byte(text), gone: text == ""}
	if err := v.shared.put(v.Context(), f, all[key(path)].secret); err != nil {
		v.Fatal(err)
	}
}

// comes waits until an addon says what is wanted.
func (v *vineyard) comes(addon, want string) {
	v.Helper()
	for end := time.Now().Add(10 * time.Second); v.addon(addon) != want; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			v.Fatalf("addon %s: %s\nwant %s", addon, v.addon(addon), want)
		}
	}
}

func configMap(name string) string {
	return "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: " + name + "}\n"
}

func TestOwnManifests(t *testing.T) {
	a, rc := newAPI(t)
	a.sick = 2 // and it is tried again
	v := tend(t, a, rc, enabled())
	v.comes("podo-addons", "Deployed 1")
	v.comes("grapes", "Deployed 3")
	writes := a.wrote()
	if want := []string{"PATCH " + nsPath, "PATCH " + mapPath, "PATCH " + deployPath}; !slices.Equal(writes[len(writes)-3:], want) {
		t.Errorf("writes = %v, want %v at the end", writes, want)
	}
	if data := fmt.Sprint(a.get(mapPath)["data"]); data != "map[colour:gold sort:muscat]" {
		t.Errorf("data = %s; what is known late wins over the plan", data)
	}
	v.stop()

	// The next start leaves it out.
	a.slow[deployPath] = true
	v = begin(t, a, rc, plan.Addons{Enabled: []string{"podo-addons"}, Disabled: []string{"grapes", "people"}})
	v.comes("grapes", "Removing 2 grapes.yaml: waiting until Deployment vineyard/grapes is gone")
	if a.get(mapPath) != nil || a.get(nsPath) == nil {
		t.Error("the namespace goes last, and what was in it first")
	}
	a.mu.Lock()
	delete(a.objects, deployPath)
	a.mu.Unlock()
	v.comes("grapes", "Disabled 0")
	if a.get(nsPath) != nil {
		t.Error("the namespace is still there")
	}
}

// TestLaterOnesWait: nobody waits for them, they come after the start, and what was made of
// them before stays meanwhile.
func TestLaterOnesWait(t *testing.T) {
	a, rc := newAPI(t)
	p := enabled()
	p.Later = []string{"grapes"}
	v := tend(t, a, rc, p)
	v.put("other.yaml", configMap("other"))
	v.comes("other", "Deployed 1")
	if a.get(mapPath) != nil {
		t.Error("applied before the start was over")
	}
	close(v.started)
	v.comes("grapes", "Deployed 3")
	v.stop()

	v = tend(t, a, rc, p)
	v.put("further.yaml", configMap("further"))
	v.comes("further", "Deployed 1")
	if a.get(mapPath) == nil {
		t.Error("deleted while it waits")
	}
}

func TestStopWhileTrying(t *testing.T) {
	a, rc := newAPI(t)
	a.sick = 1 << 30
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	if err := component(rc, enabled(), nil)(ctx, func() {}); err != nil {
		t.Errorf("err = %v, want nil when stopped", err)
	}
	if lasted := time.Since(began); lasted > 5*time.Second {
		t.Errorf("stop took %s", lasted)
	}
}

func TestFilesComeAndGo(t *testing.T) {
	a, rc := newAPI(t)
	v := tend(t, a, rc, enabled())
	v.put("apps/web.yaml", configMap("a")+"---\n"+configMap("b"))
	name := addonName("apps/web.yaml", nil)
	v.comes(name, "Deployed 2")
	a.wrote()

	v.put("apps/web.yaml", configMap("a"))
	v.comes(name, "Deployed 1")
	if a.get(mapsPath+"b") != nil || a.get(mapsPath+"a") == nil {
		t.Errorf("what the file no longer names goes, and nothing else: %v", a.wrote())
	}

	// Under another name the same objects stay where they are.
	a.wrote()
	v.put("moved.yaml", configMap("a"))
	v.put("apps/web.yaml", "")
	v.comes(name, "none")
	v.comes("moved", "Deployed 1")
	for _, w := range a.wrote() {
		if strings.HasPrefix(w, "DELETE") {
			t.Errorf("%s of what another file names", w)
		}
	}

	// A Secret that is lost is not a file that was deleted.
	a.mu.Lock()
	delete(a.objects, secretsPath+"/"+key("moved.yaml"))
	a.mu.Unlock()
	v.put("other.yaml", configMap("c"))
	v.comes("other", "Deployed 1")
	if v.addon("moved") != "Deployed 1" || a.get(mapsPath+"a") == nil {
		t.Errorf("moved: %s", v.addon("moved"))
	}
}

func TestDeletedWhileAway(t *testing.T) {
	a, rc := newAPI(t)
	v := tend(t, a, rc, enabled())
	v.put("web.yaml", configMap("a")+"---\n"+configMap("b"))
	v.comes("web", "Deployed 2")
	v.stop()
	v.put("web.yaml", "")
	v = tend(t, a, rc, enabled())
	v.comes("web", "none")
	if a.get(mapsPath+"a") != nil || a.get(mapsPath+"b") != nil {
		t.Error("its objects are still there")
	}
}

func TestBrokenFileStandsAlone(t *testing.T) {
	a, rc := newAPI(t)
	v := tend(t, a, rc, enabled())
	v.put("a.yaml", configMap("a"))
	v.comes("a", "Deployed 1")
	v.put("a.yaml", configMap("a")+"---\nkind: [\n")
	v.put("b.yaml", configMap("b"))
	v.comes("b", "Deployed 1")
	if got := v.addon("a"); !strings.HasPrefix(got, "Failed 1 a.yaml, document 2, line 6: ") || a.get(mapsPath+"a") == nil {
		t.Errorf("a: %s", got)
	}
	v.put("c.yaml", configMap("c")+"---\napiVersion: example.com/v1\nkind: Wine\nmetadata: {name: w}\n---\n"+configMap("d"))
	v.comes("c", "Failed 3 c.yaml, document 2, line 5: Wine w: the cluster has no such kind in example.com/v1")
	if a.get(mapsPath+"c") == nil || a.get(mapsPath+"d") == nil {
		t.Error("what can be applied is")
	}
	v.put("a.yaml", "# nothing\n")
	v.comes("a", "Failed 1 a.yaml: it names no object any more; delete the file if what it made is to go")
	v.put("a.yaml", configMap("a"))
	v.comes("a", "Deployed 1")
}

func TestObjectsBelongToOneFile(t *testing.T) {
	a, rc := newAPI(t)
	v := tend(t, a, rc, enabled())
	v.put("a.yaml", configMap("x"))
	v.comes("a", "Deployed 1")
	v.put("b.yaml", configMap("w")+"---\n"+configMap("x"))
	v.comes("b", "Failed 0 b.yaml, document 2, line 5: ConfigMap default/x belongs to a.yaml already; take it out of one of the two")
	if a.get(mapsPath+"w") != nil {
		t.Error("half of the file was applied")
	}
	v.put("mine.yaml", strings.Split(grapes, "---")[1])
	v.comes("mine", "Failed 0 mine.yaml, document 1, line 2: ConfigMap vineyard/grapes belongs to grapes.yaml already; take it out of one of the two")
	v.put("a.yaml", "")
	v.comes("b", "Deployed 2")
	if a.get(mapsPath+"x") == nil {
		t.Error("x went with the first of the two files")
	}
	v.put("grapes.yaml", configMap("z"))
	name := addonName("grapes.yaml", []string{"grapes"})
	for end := time.Now().Add(10 * time.Second); !strings.Contains(v.addon(name), "--disable grapes"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: %s", name, v.addon(name))
		}
	}
}

func TestSkipAndDisable(t *testing.T) {
	a, rc := newAPI(t)
	v := tend(t, a, rc, enabled())
	v.put("web.yaml", configMap("a"))
	v.comes("web", "Deployed 1")
	v.put("web.yaml.skip", "-")
	v.comes("web", "Skipped 1")
	v.put("web.yaml", configMap("b"))
	v.put("grapes.yaml.skip", "\n")
	v.comes("grapes", "Skipped 3")
	if a.get(mapsPath+"a") == nil || a.get(mapsPath+"b") != nil {
		t.Error("a file that is skipped was touched")
	}
	v.put("web.yaml.skip", "")
	v.comes("web", "Deployed 1")
	if a.get(mapsPath+"a") != nil || a.get(mapsPath+"b") == nil {
		t.Error("the file is not followed again")
	}
	v.stop()
	v = begin(t, a, rc, plan.Addons{Enabled: []string{"podo-addons", "grapes"}, Disabled: []string{"web"}})
	v.comes("web", "Disabled 0")
	if a.get(mapsPath+"b") != nil || a.get(mapPath) == nil {
		t.Error("what is disabled goes, and nothing else")
	}
}

func TestPruningIsCareful(t *testing.T) {
	for name, change := range map[string]func(metadata map[string]any){
		"somebody else's":     func(m map[string]any) { m["managedFields"] = appliedBy("kubectl", "Apply") },
		"only updated by us":  func(m map[string]any) { m["managedFields"] = appliedBy("podo", "Update") },
		"without any manager": func(m map[string]any) { delete(m, "managedFields") },
		"to be kept":          func(m map[string]any) { m["annotations"] = map[string]any{keepAnnotation: "true"} },
	} {
		t.Run(name, func(t *testing.T) {
			a, rc := newAPI(t)
			v := tend(t, a, rc, enabled())
			v.put("web.yaml", configMap("a")+"---\n"+configMap("b"))
			v.comes("web", "Deployed 2")
			a.mu.Lock()
			change(a.objects[mapsPath+"a"]["metadata"].(map[string]any))
			a.mu.Unlock()
			v.put("web.yaml", "")
			v.comes("web", "none")
			if a.get(mapsPath+"a") == nil || a.get(mapsPath+"b") != nil {
				t.Errorf("writes: %v", a.wrote())
			}
		})
	}
	t.Run("a namespace in use", func(t *testing.T) {
		a, rc := newAPI(t)
		v := tend(t, a, rc, plan.Addons{Enabled: []string{"podo-addons"}})
		v.put("ns.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: vineyard}\n")
		v.comes("ns", "Deployed 1")
		v.put("web.yaml", strings.Split(grapes, "---")[1])
		v.comes("web", "Deployed 1")
		v.put("ns.yaml", "")
		v.comes("ns", "Removing 1 ns.yaml: other files have objects in Namespace vineyard")
		v.put("web.yaml", "")
		v.comes("ns", "none")
		if a.get(nsPath) != nil {
			t.Error("it is still there")
		}
	})
}

// TestRenamedWhileAway: of what has no namespace it does not matter that the file gives one.
func TestRenamedWhileAway(t *testing.T) {
	a, rc := newAPI(t)
	const text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: vineyard, namespace: cellar}\n"
	v := tend(t, a, rc, plan.Addons{Enabled: []string{"podo-addons"}})
	v.put("ns.yaml", text)
	v.comes("ns", "Deployed 1")
	v.stop()
	a.wrote()
	v.put("moved.yaml", text)
	v.put("ns.yaml", "")
	v = tend(t, a, rc, plan.Addons{Enabled: []string{"podo-addons"}})
	v.comes("ns", "none")
	v.comes("moved", "Deployed 1")
	if writes := a.wrote(); slices.Contains(writes, "DELETE "+nsPath) {
		t.Errorf("deleted on the way: %v", writes)
	}
}

// TestAppliedWhileItGoes: what is applied to an object that is being deleted goes with it.
func TestAppliedWhileItGoes(t *testing.T) {
	a, rc := newAPI(t)
	v := tend(t, a, rc, plan.Addons{Enabled: []string{"podo-addons"}})
	v.put("web.yaml", configMap("a"))
	v.comes("web", "Deployed 1")
	a.mu.Lock()
	a.slow[mapsPath+"a"] = true
	a.mu.Unlock()
	v.put("web.yaml", "")
	v.comes("web", "Removing 1 web.yaml: waiting until ConfigMap default/a is gone")
	v.put("web.yaml", configMap("a"))
	v.comes("web", "Failed 1 web.yaml, document 1, line 1: ConfigMap default/a: it is being deleted, and made anew once it is gone")
	a.mu.Lock()
	delete(a.objects, mapsPath+"a")
	a.mu.Unlock()
	v.comes("web", "Deployed 1")
	if a.get(mapsPath+"a") == nil {
		t.Error("it is missing")
	}
}

// TestValuesAreNotTold: the API server quotes what is of the wrong type.
func TestValuesAreNotTold(t *testing.T) {
	a, rc := newAPI(t)
	v := tend(t, a, rc, plan.Addons{Enabled: []string{"podo-addons"}})
	a.mu.Lock()
	a.refuse = ".stringData.pin: expected string, got &value.valueUnstructured{Value:98765432}"
	a.mu.Unlock()
	v.put("s.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {pin: 98765432}\n")
	v.comes("s", "Failed 1 s.yaml, document 1, line 1: Secret default/s: .stringData.pin: expected string, got something else")
}

func TestMistakesInManifestsAreFatal(t *testing.T) {
	for name, tt := range map[string]struct {
		files fstest.MapFS
		want  string
	}{
		"missing file":  {fstest.MapFS{}, "grapes.yaml"},
		"missing value": {fstest.MapFS{"grapes.yaml": {Data: []byte(grapes)}}, "manifest grapes: no value for ${COLOUR}"},
	} {
		d := New(Options{
			Addons: plan.Addons{Enabled: []string{"grapes"}}, Files: tt.files,
			Values: func() (map[string]string, error) { return nil, nil }, Log: slog.New(slog.DiscardHandler),
		})
		if err := d.Run(t.Context(), func() { t.Error("ready") }); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: err = %v, want %q in it", name, err, tt.want)
		}
	}
}
