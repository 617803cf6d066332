package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/podo-dev/podo/pkg/helm/helmtest"
	"github.com/podo-dev/podo/pkg/paths"
)

// web is a chart of a ConfigMap that tells its values, and a workload.
func web(t *testing.T, version string) []byte {
	return helmtest.Pack(t, "web", version, "colour: none\nsize: 1\n", map[string]string{
		"map.yaml": `apiVersion: v1
kind: ConfigMap
metadata: {name: {{ .Release.Name }}}
data: {colour: {{ quote .Values.colour }}, size: {{ quote .Values.size }}, version: {{ quote .Chart.Version }}}
`,
		"web.yaml": `apiVersion: apps/v1
kind: Deployment
metadata: {name: {{ .Release.Name }}}
spec:
  selector: {matchLabels: {app: {{ .Release.Name }}}}
  template:
    metadata: {labels: {app: {{ .Release.Name }}}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: web, image: "` + pause + `"}]}
`,
	})
}

// half is a chart with hooks: jobs that take a number of seconds, and end with a code.
func half(t *testing.T) []byte {
	return helmtest.Pack(t, "half", "1.0.0", "colour: none\nseconds: 0\ncode: 0\n", map[string]string{
		"map.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ .Release.Name }}}\ndata: {colour: {{ quote .Values.colour }}}\n",
		"job.yaml": `apiVersion: batch/v1
kind: Job
metadata:
  name: {{ .Release.Name }}
  annotations: {"helm.sh/hook": "post-install,post-upgrade"}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 0
      containers: [{name: job, image: "` + busybox + `", command: [sh, -c, "sleep {{ .Values.seconds }}; exit {{ .Values.code }}"]}]
`,
	})
}

// chart waits until kubectl get helmcharts shows what is wanted of one.
func (s *scene) chart(name string, want ...string) {
	s.Helper()
	s.within(90*time.Second, "HelmChart "+name, func() error {
		r := s.try("get", "helmchart", name, "-o", "wide", "--no-headers")
		return contains(r.out, want...)
	})
}

// says waits until a ConfigMap of a release has what is wanted of it.
func (s *scene) says(namespace, name, want string) {
	s.Helper()
	s.within(90*time.Second, fmt.Sprintf("%s in %s says %q", name, namespace, want), func() error {
		r := s.try("-n", namespace, "get", "configmap", name, "--ignore-not-found", "-o", "jsonpath={.data.colour} {.data.size} {.data.version}")
		if strings.TrimSpace(r.out) != want {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
}

func (s *scene) indent(text string) string {
	return strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n    ")
}

func (s *scene) patch(what, change string) {
	s.Helper()
	s.kubectl("patch", what, "--type=merge", "-p", change)
}

// helmCharts has charts installed from all the places that they come from.
func helmCharts(t *testing.T) {
	s := scenario(t)
	first, second := web(t, "1.0.0"), web(t, "1.1.0")
	repository := httptest.NewTLSServer(helmtest.Locked("ann", "secret", helmtest.Repository(t, first, second)))
	t.Cleanup(repository.Close)
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: repository.Certificate().Raw})
	images := httptest.NewServer(helmtest.Locked("ann", "secret", registry.New(registry.Logger(log.New(io.Discard, "", 0)))))
	t.Cleanup(images.Close)
	host := strings.TrimPrefix(images.URL, "http://")
	helmtest.Push(t, host+"/charts", "ann", "secret", first)
	static := filepath.Join(paths.New(paths.DefaultData).StaticCharts(), "e2e-web.tgz")
	write(t, static, string(first))
	t.Cleanup(func() { os.RemoveAll(filepath.Dir(filepath.Dir(static))) })
	target := s.ns + "-web"
	t.Cleanup(func() { podo("kubectl", "delete", "namespace", target, "--wait=false", "--ignore-not-found") })

	// As k3s users write it, for a chart that podo does not have. Somebody is told later.
	t.Cleanup(func() { podo("kubectl", "-n", "kube-system", "delete", "helmchartconfig", "traefik") })
	s.applyIn("kube-system", "apiVersion: helm.cattle.io/v1\nkind: HelmChartConfig\nmetadata: {name: traefik}\nspec: {values: {colour: blue}}\n")

	s.kubectl("create", "secret", "docker-registry", "images", "--docker-server="+host, "--docker-username=ann", "--docker-password=secret")
	began := time.Now()
	s.apply(fmt.Sprintf(`apiVersion: v1
kind: Secret
metadata: {name: login}
type: kubernetes.io/basic-auth
stringData: {username: ann, password: secret}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: authority}
data:
  ca.crt: |
    %s
---
apiVersion: v1
kind: Secret
metadata: {name: more}
stringData: {values.yaml: "size: 3"}
---
apiVersion: helm.cattle.io/v1
kind: HelmChart
metadata: {name: repository}
spec:
  repo: %s
  chart: web
  version: 1.0.0
  repoCAConfigMap: {name: authority}
  authSecret: {name: login}
  targetNamespace: %s
  createNamespace: true
  valuesContent: |
    colour: red
  valuesSecrets: [{name: more, keys: [values.yaml]}]
---
apiVersion: helm.cattle.io/v1
kind: HelmChart
metadata: {name: registry}
spec:
  chart: oci://%s/charts/web
  plainHTTP: true
  dockerRegistrySecret: {name: images}
  set: {size: 5, colour: "true"}
---
apiVersion: helm.cattle.io/v1
kind: HelmChart
metadata: {name: inline}
spec:
  chartContent: %s
  values: {size: 6}
---
apiVersion: helm.cattle.io/v1
kind: HelmChart
metadata: {name: static}
spec: {chart: "https://%%{KUBERNETES_API}%%/static/charts/e2e-web.tgz", bootstrap: true}
---
apiVersion: helm.cattle.io/v1
kind: HelmChart
metadata: {name: refused}
spec: {chart: "https://a.example/web.tgz", jobImage: helm, helmVersion: v2}
`, s.indent(string(authority)), repository.URL, target, host, base64.StdEncoding.EncodeToString(first)))
	s.says(s.ns, "inline", "none 6 1.0.0")
	t.Logf("from HelmCharts to the first release: %s", time.Since(began).Round(10*time.Millisecond))
	s.says(target, "repository", "red 3 1.0.0")
	s.says(s.ns, "registry", "true 5 1.0.0")
	s.says(s.ns, "static", "none 1 1.0.0")
	for _, name := range []string{"repository", "registry", "inline", "static"} {
		s.chart(name, "Deployed", "web-1.0.0", "revision 1")
	}
	s.chart("refused", "Stopped", "spec.jobImage: is about the pod of a job", `spec.helmVersion: "v2" is not supported`)
	s.rolledOut("deployment/inline")
	s.within(20*time.Second, "events", func() error {
		return contains(s.kubectl("describe", "helmchart", "inline")+s.kubectl("describe", "helmchart", "refused"), "Installed", "spec.jobImage")
	})
	strangersGetCharts(t, first)

	s.patch("secret/more", `{"stringData":{"values.yaml":"size: 4"}}`)
	s.says(target, "repository", "red 4 1.0.0")
	s.patch("helmchart/repository", `{"spec":{"version":"^1.0"}}`)
	s.says(target, "repository", "red 4 1.1.0")
	s.apply("apiVersion: helm.cattle.io/v1\nkind: HelmChartConfig\nmetadata: {name: repository}\nspec: {values: {colour: blue}}\n")
	s.says(target, "repository", "blue 4 1.1.0")
	s.chart("repository", "Deployed", "revision 4")

	// The repository is gone, and the chart is still here.
	repository.Close()
	s.kubectl("delete", "helmchartconfig", "repository")
	s.says(target, "repository", "red 4 1.1.0")
	s.within(20*time.Second, "an event", func() error {
		return contains(s.kubectl("describe", "helmchart", "repository"), "ChartKept")
	})

	s.kubectl("delete", "helmchart", "--all", "--timeout=60s")
	s.has(false, "-n", target, "configmap", "repository")
	s.has(false, "deployment", "inline")
	s.has(false, "secret", "-l", "owner=helm")

	s.within(40*time.Second, "a HelmChartConfig of nothing is told of", func() error {
		event := must(t, "kubectl", "-n", "kube-system", "describe", "helmchartconfig", "traefik")
		return errors.Join(contains(event, "NoHelmChart", "no HelmChart kube-system/traefik", "docs/ingress.md"), contains(theCluster.written(), "traefik-custom (docs/ingress.md)"))
	})

	// The usual way: a file.
	s.put("e2e-chart.yaml", fmt.Sprintf("apiVersion: helm.cattle.io/v1\nkind: HelmChart\nmetadata: {name: filed, namespace: %s}\nspec: {chartContent: %s}\n", s.ns, base64.StdEncoding.EncodeToString(first)))
	s.says(s.ns, "filed", "none 1 1.0.0")
	s.drop("e2e-chart.yaml")
	s.has(false, "configmap", "filed")
	s.has(false, "addons", "e2e-chart")
}

// strangersGetCharts asks for a chart, and for the folder, without saying who asks.
func strangersGetCharts(t *testing.T, want []byte) {
	t.Helper()
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	for path, code := range map[string]int{"e2e-web.tgz": 200, "": 404, "../../token": 404} {
		r, err := http.NewRequest(http.MethodGet, "https://127.0.0.1:6443/static/charts/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.URL.Path += path
		answer, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(answer.Body)
		answer.Body.Close()
		if answer.StatusCode != code || code == 200 && string(text) != string(want) {
			t.Errorf("%q: %s and %d bytes, want %d", path, answer.Status, len(text), code)
		}
	}
}

// halfCharts has charts fail half-way.
func halfCharts(t *testing.T) {
	s := scenario(t)
	content := base64.StdEncoding.EncodeToString(half(t))
	put := func(name, more string) {
		s.apply(fmt.Sprintf("apiVersion: helm.cattle.io/v1\nkind: HelmChart\nmetadata: {name: %s}\nspec: {chartContent: %s, timeout: 60s, %s}\n", name, content, more))
	}
	put("aborts", "failurePolicy: abort, values: {colour: red, code: 1}")
	put("goes-back", "failurePolicy: rollback, values: {colour: red}")
	put("begins-anew", "values: {colour: red, code: 1}")
	put("limited", "backOffLimit: 1, values: {code: 1}")
	put("unclear", "valuesContent: 'a: ['")
	s.chart("aborts", "True", "Stopped", "failurePolicy is abort")
	s.says(s.ns, "aborts", "red")
	s.chart("goes-back", "Deployed", "revision 1")
	s.chart("begins-anew", "True", "Retrying", "post-install")
	s.chart("limited", "True", "Stopped", "spec.backOffLimit: it has failed as often as that")
	s.chart("unclear", "True", "Stopped", "HelmChart, spec.valuesContent: these are no values")

	put("goes-back", "failurePolicy: rollback, values: {colour: blue, code: 1}")
	s.chart("goes-back", "True", "Stopped", "failurePolicy is rollback")
	s.says(s.ns, "goes-back", "red")
	for _, name := range []string{"aborts", "goes-back", "begins-anew"} {
		put(name, "values: {colour: green}")
	}
	for _, name := range []string{"aborts", "goes-back", "begins-anew"} {
		s.says(s.ns, name, "green")
		s.chart(name, "False", "Deployed")
	}
	s.kubectl("delete", "helmchart", "--all", "--timeout=60s")
	s.has(false, "configmap", "aborts", "goes-back", "begins-anew")
	s.has(false, "secret", "-l", "owner=helm")
}

// helmFields has charts installed with fields that few people set.
func helmFields(t *testing.T) {
	s := scenario(t)
	repository := httptest.NewUnstartedServer(helmtest.Repository(t, web(t, "1.0.0")))
	repository.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	repository.StartTLS()
	t.Cleanup(repository.Close)
	key, err := x509.MarshalPKCS8PrivateKey(repository.TLS.Certificates[0].PrivateKey)
	s.ok(err)
	certificate := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: repository.Certificate().Raw}))
	scaled := base64.StdEncoding.EncodeToString(helmtest.Pack(t, "scaled", "1.0.0", "colour: none\n", map[string]string{
		"map.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ .Release.Name }}}\ndata: {colour: {{ quote .Values.colour }}}\n",
		"web.yaml": `apiVersion: apps/v1
kind: Deployment
metadata: {name: {{ .Release.Name }}}
spec:
  replicas: 1
  selector: {matchLabels: {app: {{ .Release.Name }}}}
  template:
    metadata: {labels: {app: {{ .Release.Name }}}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: web, image: "` + pause + `"}]}
`,
	}))
	slow := base64.StdEncoding.EncodeToString(half(t))
	put := func(name, content, more string) {
		s.apply(fmt.Sprintf("apiVersion: helm.cattle.io/v1\nkind: HelmChart\nmetadata: {name: %s}\nspec: {chartContent: %s, %s}\n", name, content, more))
	}
	s.kubectl("create", "configmap", "adopts", "--from-literal=colour=old")
	s.kubectl("create", "configmap", "collides", "--from-literal=colour=old")
	s.apply(fmt.Sprintf(`apiVersion: v1
kind: Secret
metadata: {name: pair}
type: kubernetes.io/tls
stringData:
  tls.crt: |
    %[1]s
  tls.key: |
    %[2]s
---
apiVersion: helm.cattle.io/v1
kind: HelmChart
metadata: {name: left-alone, annotations: {helmcharts.helm.cattle.io/unmanaged: "true"}}
spec: {chartContent: %[4]s}
---
apiVersion: helm.cattle.io/v1
kind: HelmChart
metadata: {name: another-s, annotations: {helmcharts.cattle.io/managed-by: rancher}}
spec: {chartContent: %[4]s}
---
apiVersion: helm.cattle.io/v1
kind: HelmChart
metadata: {name: certified}
spec:
  repo: %[3]s
  chart: web
  repoCA: |
    %[1]s
  authSecret: {name: pair}
  driver: configmap
  values: {colour: red}
`, s.indent(certificate), s.indent(string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))), repository.URL, scaled))
	put("adopts", scaled, "takeOwnership: true, values: {colour: red}")
	put("collides", scaled, "values: {colour: red}")
	put("sets", scaled, "values: {colour: red}")
	put("yields", scaled, "forceConflicts: false, values: {colour: red}")
	put("late", slow, "timeout: 5s, failurePolicy: abort, values: {seconds: 600}")

	// Releases are kept in ConfigMaps if that is asked for, and changed there.
	s.says(s.ns, "certified", "red 1 1.0.0")
	s.chart("certified", "Deployed", "revision 1")
	s.patch("helmchart/certified", `{"spec":{"values":{"colour":"green"}}}`)
	s.says(s.ns, "certified", "green 1 1.0.0")
	s.chart("certified", "Deployed", "revision 2")
	if kept := s.kubectl("get", "configmaps", "-l", "owner=helm,name=certified", "-o", "name"); strings.Count(kept, "sh.helm.release.v1.certified.") != 2 {
		t.Errorf("with driver: configmap, Helm's ConfigMaps are %q", kept)
	}
	s.has(false, "secret", "-l", "owner=helm,name=certified")

	s.says(s.ns, "adopts", "red")
	s.chart("collides", "True", `ConfigMap "collides"`, "exists and cannot be imported")
	s.says(s.ns, "collides", "old")
	s.chart("late", "True", "Stopped", "post-install", "not ready")

	// What others have changed meanwhile is the chart's again, or theirs.
	for _, name := range []string{"sets", "yields"} {
		s.chart(name, "Deployed", "revision 1")
		s.kubectl("scale", "deployment/"+name, "--replicas=2")
		s.patch("helmchart/"+name, `{"spec":{"values":{"colour":"green"}}}`)
	}
	s.says(s.ns, "sets", "green")
	s.chart("sets", "Deployed", "revision 2")
	s.chart("yields", "True", "conflict", ".spec.replicas", "spec.forceConflicts: true takes the fields over")
	for name, want := range map[string]string{"sets": "1", "yields": "2"} {
		if got := s.kubectl("get", "deployment", name, "-o", "jsonpath={.spec.replicas}"); got != want {
			t.Errorf("%s has %s replicas, want %s", name, got, want)
		}
	}
	s.patch("helmchart/yields", `{"spec":{"forceConflicts":true}}`)
	s.chart("yields", "False", "Deployed")
	if got := s.kubectl("get", "deployment", "yields", "-o", "jsonpath={.spec.replicas}"); got != "1" {
		t.Errorf("with forceConflicts: true it has %s replicas", got)
	}

	s.has(false, "configmap", "left-alone", "another-s")
	s.kubectl("delete", "helmchart", "--all", "--timeout=90s")
	s.has(false, "configmap", "-l", "owner=helm")
	s.has(false, "deployment", "certified", "sets", "yields")
}

// finishesCharts kills podo while it installs a chart, and while it upgrades one.
func finishesCharts(t *testing.T) {
	clusterRuns(t)
	s := scenario(t)
	content := base64.StdEncoding.EncodeToString(half(t))
	put := func(name, values string) {
		s.apply(fmt.Sprintf("apiVersion: helm.cattle.io/v1\nkind: HelmChart\nmetadata: {name: %s}\nspec: {chartContent: %s, failurePolicy: abort, values: {%s}}\n", name, content, values))
	}
	pending := func(name, status string) {
		s.within(60*time.Second, name+" is "+status, func() error {
			return contains(s.kubectl("get", "secrets", "-l", "owner=helm,name="+name+",status="+status, "-o", "name"), name)
		})
	}
	put("changes", "colour: red")
	s.chart("changes", "Deployed", "revision 1")
	put("changes", "colour: green, seconds: 8")
	put("comes", "colour: green, seconds: 8")
	put("goes", "seconds: 600")
	pending("changes", "pending-upgrade")
	pending("comes", "pending-install")
	pending("goes", "pending-install")
	theCluster.crash(t)
	startCluster(t)
	s.chart("changes", "False", "Deployed")
	s.chart("comes", "False", "Deployed")
	s.says(s.ns, "changes", "green")
	s.says(s.ns, "comes", "green")

	// What is to go need not come first, nor is a stop a failure.
	pending("goes", "pending-install")
	theCluster.stop(t)
	startCluster(t)
	pending("goes", "pending-install")
	began := time.Now()
	s.kubectl("delete", "helmchart", "--all", "--timeout=60s")
	t.Logf("releases uninstalled, one of them under way: %s", time.Since(began).Round(10*time.Millisecond))
	s.has(false, "configmap", "changes", "comes", "goes")
	s.has(false, "secret", "-l", "owner=helm")
}
