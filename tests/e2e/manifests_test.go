package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/pkg/paths"
)

// folder is where people put manifests.
func folder() string { return paths.New(paths.DefaultData).Manifests() }

// put writes a manifest, and has it deleted at the end of the test.
func (s *scene) put(name, text string) {
	s.Helper()
	path := filepath.Join(folder(), name)
	write(s.T, path, images(text))
	s.Cleanup(func() { os.Remove(path) })
}

// drop deletes a manifest.
func (s *scene) drop(name string) {
	s.Helper()
	s.ok(os.Remove(filepath.Join(folder(), name)))
}

// addon waits until kubectl get addons shows what is wanted of one.
func (s *scene) addon(name string, want ...string) {
	s.Helper()
	s.within(30*time.Second, "addon "+name, func() error {
		r := s.try("get", "addons", name, "--no-headers")
		return contains(r.out, want...)
	})
}

// has waits until an object is there, or is not.
func (s *scene) has(there bool, what ...string) {
	s.Helper()
	s.within(30*time.Second, fmt.Sprintf("%s there: %v", strings.Join(what, " "), there), func() error {
		r := s.try(append([]string{"get", "--ignore-not-found", "-o", "name"}, what...)...)
		if r.code != 0 || (strings.TrimSpace(r.out) != "") != there {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
}

func (s *scene) configMap(name string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s, namespace: %s}\ndata: {a: b}\n---\n", name, s.ns)
}

func followsManifests(t *testing.T) {
	s := scenario(t)
	began := time.Now()
	s.put("e2e/web.yaml", s.configMap("one")+s.configMap("two")+`apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: `+s.ns+`}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: web, image: $AGNHOST, args: [pause]}]}
`)
	s.has(true, "deployment", "web")
	t.Logf("from the file to the object: %s", time.Since(began).Round(10*time.Millisecond))
	s.rolledOut("deployment/web")
	list := s.kubectl("get", "addons", "-o", "wide")
	s.ok(contains(list, "e2e/web.yaml", "Deployed", "coredns.yaml", "podo-node.yaml"))

	// What somebody else set stays when the file changes.
	s.kubectl("label", "configmap/one", "mine=yes")
	s.kubectl("scale", "deployment/web", "--replicas=2")
	s.put("e2e/web.yaml", strings.ReplaceAll(s.configMap("one"), "a: b", "a: c")+`apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: `+s.ns+`}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: web, image: $AGNHOST, args: [pause]}]}
`)
	s.has(false, "configmap", "two")
	if got := s.kubectl("get", "configmap", "one", "-o", "jsonpath={.data.a} {.metadata.labels.mine}"); got != "c yes" {
		t.Errorf("one says %q, want c yes", got)
	}
	if got := s.kubectl("get", "deployment", "web", "-o", "jsonpath={.spec.replicas}"); got != "2" {
		t.Errorf("%s replicas, want the 2 that somebody asked for", got)
	}

	// Another name for the file changes nothing of its objects.
	uid := s.kubectl("get", "deployment", "web", "-o", "jsonpath={.metadata.uid}")
	s.ok(os.Rename(filepath.Join(folder(), "e2e/web.yaml"), filepath.Join(folder(), "e2e-moved.yaml")))
	s.Cleanup(func() { os.Remove(filepath.Join(folder(), "e2e-moved.yaml")) })
	s.addon("e2e-moved", "Deployed", "2")
	s.within(20*time.Second, "the old addon goes", func() error {
		if list := s.kubectl("get", "addons", "-o", "wide"); strings.Contains(list, "e2e/web.yaml") {
			return fmt.Errorf("%s", list)
		}
		return nil
	})
	if now := s.kubectl("get", "deployment", "web", "-o", "jsonpath={.metadata.uid}"); now != uid {
		t.Errorf("the deployment was made anew")
	}

	s.put("e2e-moved.yaml.skip", "")
	s.addon("e2e-moved", "Skipped")
	s.put("e2e-moved.yaml", s.configMap("one"))
	<-time.After(2 * time.Second)
	s.has(true, "deployment", "web")
	s.drop("e2e-moved.yaml.skip")
	s.has(false, "deployment", "web")

	began = time.Now()
	s.drop("e2e-moved.yaml")
	s.has(false, "configmap", "one")
	t.Logf("from the file to the object, deleted: %s", time.Since(began).Round(10*time.Millisecond))
	s.has(false, "addons", "e2e-moved")
}

func tellsBrokenManifests(t *testing.T) {
	s := scenario(t)
	s.put("e2e-good.yaml", s.configMap("good"))
	s.addon("e2e-good", "Deployed")
	for name, tt := range map[string]struct{ text, want string }{
		"e2e-syntax":  {s.configMap("half") + "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x\ndata: {}\n", "e2e-syntax.yaml, document 2, line 9: "},
		"e2e-kind":    {s.configMap("kind") + "apiVersion: example.com/v1\nkind: Wine\nmetadata: {name: x}\n", "e2e-kind.yaml, document 2, line 6: Wine x: the cluster has no such kind in example.com/v1"},
		"e2e-field":   {"apiVersion: v1\nkind: Service\nmetadata: {name: x, namespace: " + s.ns + "}\nspec: {prots: []}\n", "e2e-field.yaml, document 1, line 1: Service " + s.ns + "/x: "},
		"e2e-good2":   {s.configMap("good"), "ConfigMap " + s.ns + "/good belongs to e2e-good.yaml already"},
		"e2e-coredns": {"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: coredns, namespace: kube-system}\n", "belongs to coredns.yaml already"},
	} {
		s.put(name+".yaml", tt.text)
		s.addon(name, "Failed", tt.want)
	}
	s.put("e2e-good.yaml", s.configMap("good")+s.configMap("better"))
	s.has(true, "configmap", "better")
	s.has(false, "configmap", "half")
	s.within(20*time.Second, "an event", func() error {
		return contains(must(t, "kubectl", "describe", "addon", "e2e-syntax"), "NotDeployed", "document 2, line 9")
	})
	// An edit that breaks a file takes nothing away.
	s.put("e2e-good.yaml", s.configMap("good")+"data: [\n")
	s.addon("e2e-good", "Failed", "document 2")
	s.has(true, "configmap", "better")
	s.put("e2e-good.yaml", s.configMap("good"))
	s.has(false, "configmap", "better")
	s.addon("e2e-good", "Deployed", "1")
}

// wines is a kind, an object of it and the namespace that it is in, the object first.
const wines = `apiVersion: e2e.example.com/v1
kind: Wine
metadata: {name: red, namespace: e2e-cellar}
spec: {year: 1999}
---
apiVersion: v1
kind: Namespace
metadata: {name: e2e-cellar}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: wines.e2e.example.com}
spec:
  group: e2e.example.com
  scope: Namespaced
  names: {kind: Wine, plural: wines}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {year: {type: integer}}}}}}
`

func ordersManifests(t *testing.T) {
	s := scenario(t)
	// An object of a kind that another file brings, later, waits for it.
	s.put("e2e-early.yaml", "apiVersion: e2e.example.com/v1\nkind: Wine\nmetadata: {name: white, namespace: e2e-cellar}\n")
	s.addon("e2e-early", "Failed", "no such kind")
	began := time.Now()
	s.put("e2e-wines.yaml", wines)
	s.addon("e2e-wines", "Deployed", "3")
	s.addon("e2e-early", "Deployed", "1")
	t.Logf("a kind, its namespace and two objects: %s", time.Since(began).Round(10*time.Millisecond))

	// Whatever is in the namespace keeps it.
	s.kubectl("patch", "-n", "e2e-cellar", "wine", "red", "--type=merge", "-p", `{"metadata":{"finalizers":["e2e.example.com/hold"]}}`)
	s.drop("e2e-wines.yaml")
	s.addon("e2e-wines", "Removing", "waiting until Wine e2e-cellar/red is gone")
	s.kubectl("patch", "-n", "e2e-cellar", "wine", "red", "--type=merge", "-p", `{"metadata":{"finalizers":null}}`)
	s.addon("e2e-wines", "Removing", "other files have objects in Namespace e2e-cellar")
	s.drop("e2e-early.yaml")
	s.has(false, "namespace", "e2e-cellar")
	s.has(false, "crd", "wines.e2e.example.com")
	s.has(false, "addons", "e2e-wines")
}

// finishesManifests kills podo while it deploys, again and again.
func finishesManifests(t *testing.T) {
	clusterRuns(t)
	s := scenario(t)
	const many = 150
	all := func(prefix string) (text string) {
		for i := range many {
			text += s.configMap(fmt.Sprintf("%s-%d", prefix, i))
		}
		return text
	}
	count := func(prefix string) int {
		return strings.Count(s.kubectl("get", "configmaps", "-o", "name"), "configmap/"+prefix+"-")
	}
	s.put("e2e-many.yaml", all("old"))
	s.within(20*time.Second, "it has begun", func() error {
		if n := count("old"); n == 0 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	theCluster.crash(t)
	startCluster(t)
	s.addon("e2e-many", "Deployed", fmt.Sprint(many))
	if n := count("old"); n != many {
		t.Errorf("%d of %d objects", n, many)
	}

	// Killed on the way from one content to the other, nothing of the old one is left.
	s.put("e2e-many.yaml", all("new"))
	s.within(20*time.Second, "it has begun", func() error {
		if n := count("new"); n == 0 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	t.Logf("killed with %d old and %d new", count("old"), count("new"))
	theCluster.crash(t)
	startCluster(t)
	s.addon("e2e-many", "Deployed", fmt.Sprint(many)+" ")
	if old, now := count("old"), count("new"); old != 0 || now != many {
		t.Errorf("%d old and %d new objects, want 0 and %d", old, now, many)
	}

	// A file that was deleted while podo was away.
	theCluster.stop(t)
	s.drop("e2e-many.yaml")
	startCluster(t)
	s.has(false, "addons", "e2e-many")
	if n := count("new"); n != 0 {
		t.Errorf("%d objects of a file that is gone", n)
	}
}

// skipsItsOwn has podo leave alone what it made of its own manifest.
func skipsItsOwn(t *testing.T) {
	s := scenario(t)
	s.put("coredns.yaml.skip", "")
	s.addon("coredns", "Skipped")
	s.kubectl("-n", "kube-system", "label", "configmap/coredns", "mine=yes")
	must(t, "kubectl", "-n", "kube-system", "patch", "service", "kube-dns", "--type=json", "-p", `[{"op":"remove","path":"/metadata/annotations"}]`)
	<-time.After(2 * time.Second)
	if got := must(t, "kubectl", "-n", "kube-system", "get", "service", "kube-dns", "-o", "jsonpath={.metadata.annotations}"); got != "" {
		t.Errorf("annotations are %s, want none: nobody was to touch it", got)
	}
	s.drop("coredns.yaml.skip")
	s.addon("coredns", "Deployed")
	s.within(10*time.Second, "the annotations are back", func() error {
		return contains(must(t, "kubectl", "-n", "kube-system", "get", "service", "kube-dns", "-o", "jsonpath={.metadata.annotations}"), "prometheus.io/port")
	})
	s.kubectl("-n", "kube-system", "label", "configmap/coredns", "mine-")
}
