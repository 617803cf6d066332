package cluster

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/pkg/helm/helmtest"
)

// TestHelmOfAnyServer: the server that installs a chart is lost while the chart's hook
// runs, which never ends. Another begins the install anew, as the HelmChart says by then.
func TestHelmOfAnyServer(t *testing.T) {
	s := begin(t)
	servers, _ := s.three()
	chart := helmtest.Pack(t, "web", "1.0.0", "wait: true\n", map[string]string{
		"map.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: web}\ndata: {wait: {{ quote .Values.wait }}}\n",
		"job.yaml": `{{ if .Values.wait }}
apiVersion: batch/v1
kind: Job
metadata: {name: web, annotations: {"helm.sh/hook": post-install}}
spec:
  suspend: true
  template: {spec: {restartPolicy: Never, containers: [{name: main, image: none}]}}
{{ end }}`,
	})
	put := func(on *station, wait bool) {
		s.within(60*time.Second, "the HelmChart is taken", func() error {
			_, err := on.Apply(fmt.Sprintf("apiVersion: helm.cattle.io/v1\nkind: HelmChart\nmetadata: {name: web}\nspec: {timeout: 20s, values: {wait: %v}, chartContent: %s}\n",
				wait, base64.StdEncoding.EncodeToString(chart)))
			return err
		})
	}
	put(servers[0], true)
	s.shows(servers[0].Host, 60*time.Second, []string{"sh.helm.release.v1.web.v1"}, "get", "secrets", "-l", "owner=helm,status=pending-install", "-o", "name")

	holder := s.kubectl(servers[0].Host, "get", "lease", "podo-helm-controller", "-n", "kube-system", "-o", "jsonpath={.spec.holderIdentity}")
	at := slices.IndexFunc(servers, func(m *station) bool { return strings.HasPrefix(holder, m.Name()+"-") })
	if at < 0 {
		t.Fatalf("%q installs charts, which is none of the servers", holder)
	}
	left := servers[(at+1)%len(servers)]
	servers[at].down()
	began := time.Now()
	put(left, false)
	s.shows(left.Host, 2*time.Minute, []string{"Deployed", "revision 1"}, "get", "helmchart", "web", "-o", "wide")
	t.Logf("the server that installs was lost: installed by another after %s", time.Since(began).Round(10*time.Millisecond))
	s.shows(left.Host, 10*time.Second, []string{"false"}, "get", "configmap", "web", "-o", "jsonpath={.data.wait}")
}
