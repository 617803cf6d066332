package cluster

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

// A database that runs on host one first. The word is a node that it may run on too.
const database = `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      affinity:
        nodeAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
          - weight: 100
            preference: {matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [%s]}]}
      containers:
      - name: main
        image: $BUSYBOX
        imagePullPolicy: Never
        command: [sh, -c, "echo start >> /data/starts; sleep 100000"]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 100Mi}}}
`

// volumeOf is the volume of a claim, and its folder on the node it is of.
func (s *scene) volumeOf(server *hosts.Host, claim string) (name, folder string) {
	s.Helper()
	name = s.kubectl(server, "get", "pvc", claim, "-o", "jsonpath={.spec.volumeName}")
	return name, s.kubectl(server, "get", "pv", name, "-o", "jsonpath={.spec.local.path}")
}

// TestVolumesStayWithTheirNode: a database's pod comes back to the node that has its
// data, though it would rather run elsewhere. A claim that is deleted while its node is
// away is removed when that is back, and no other folder with it. A node can neither
// touch the volumes of another nor change what its own are.
func TestVolumesStayWithTheirNode(t *testing.T) {
	s := begin(t)
	server := s.server("server")
	one, two := s.net.Host("one"), s.agent("two", server)
	agent := s.join(one, server)
	s.ready(server, server, one, two)
	s.apply(server, fmt.Sprintf(database, "one"))
	s.running(server, "app=db")
	name, folder := s.volumeOf(server, "data-db-0")
	if at := s.kubectl(server, "get", "pod", "db-0", "-o", "jsonpath={.spec.nodeName}"); at != "one" {
		t.Fatalf("the database runs on %s", at)
	}
	if got := s.file(one, folder+"/starts"); got != "start" {
		t.Errorf("its file holds %q", got)
	}
	s.says(agent.Log(), "sizes of volumes are not enforced", "is not mounted with project quotas")

	s.apply(server, fmt.Sprintf(database, "two"))
	s.within(60*time.Second, "the database is started again", func() error {
		b, err := os.ReadFile(one.Path(folder + "/starts"))
		if n := strings.Count(string(b), "start"); n < 2 {
			return fmt.Errorf("%d starts, %w", n, err)
		}
		return nil
	})
	s.running(server, "app=db")
	if at := s.kubectl(server, "get", "pod", "db-0", "-o", "jsonpath={.spec.nodeName}"); at != "one" {
		t.Errorf("the database went to %s without its data", at)
	}

	t.Run("a hostile node", func(t *testing.T) {
		s := s.in(t)
		for what, patch := range map[string]string{
			"another's finalizer": `{"metadata":{"$deleteFromPrimitiveList/finalizers":["podo.dev/volume"]}}`,
			"another's quota":     `{"metadata":{"annotations":{"podo.dev/quota":"none: x"}}}`,
		} {
			out, err := two.Kubectl("--kubeconfig", "/var/lib/podo/agent/kubeconfig/podo-node.yaml", "patch", "pv", name, "-p", patch)
			if err == nil || !strings.Contains(out+err.Error(), "no volume but its own") {
				s.Errorf("%s: %v\n%s", what, err, out)
			}
		}
		for what, patch := range map[string]string{
			"its path":         `{"spec":{"local":{"path":"/etc"}}}`,
			"its policy":       `{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}`,
			"its label":        `{"metadata":{"labels":{"podo.dev/node":"two"}}}`,
			"other finalizers": `{"metadata":{"$deleteFromPrimitiveList/finalizers":["kubernetes.io/pv-protection"]}}`,
			"a new finalizer":  `{"metadata":{"finalizers":["x.example.org/y"]}}`,
			"its provisioner":  `{"metadata":{"annotations":{"pv.kubernetes.io/provisioned-by":"x"}}}`,
			"a new annotation": `{"metadata":{"annotations":{"x":"y"}}}`,
		} {
			out, err := one.Kubectl("--kubeconfig", "/var/lib/podo/agent/kubeconfig/podo-node.yaml", "patch", "pv", name, "-p", patch)
			if err == nil || !strings.Contains(out+err.Error(), "orbidden") && !strings.Contains(out+err.Error(), "denied") {
				s.Errorf("%s: %v\n%s", what, err, out)
			}
		}
		for _, args := range [][]string{{"delete", "pv", name}, {"get", "configmaps", "-n", "kube-system"}, {"get", "pvc", "-A"}} {
			out, err := one.Kubectl(append([]string{"--kubeconfig", "/var/lib/podo/agent/kubeconfig/podo-node.yaml"}, args...)...)
			if err == nil || !strings.Contains(err.Error(), "orbidden") {
				s.Errorf("%v: %v\n%s", args, err, out)
			}
		}
	})

	// Another folder of the same node is nobody's business.
	beside := strings.TrimSuffix(folder, name+"_default_data-db-0") + "pvc-of-somebody-else"
	if err := os.Mkdir(one.Path(beside), 0o700); err != nil {
		t.Fatal(err)
	}
	s.kill(agent)
	s.kubectl(server, "delete", "statefulset/db")
	s.kubectl(server, "delete", "pod", "db-0", "--force", "--grace-period=0", "--ignore-not-found")
	s.kubectl(server, "delete", "pvc", "data-db-0", "--wait=false")
	s.within(30*time.Second, "the volume waits for its node", func() error {
		out, err := server.Kubectl("get", "pv", name, "-o", "jsonpath={.metadata.deletionTimestamp} {.metadata.finalizers}")
		if err != nil || strings.HasPrefix(out, " ") || !strings.Contains(out, "podo.dev/volume") {
			return fmt.Errorf("%q, %w", out, err)
		}
		return nil
	})
	if _, err := os.Stat(one.Path(folder + "/starts")); err != nil {
		t.Errorf("somebody else removed it: %v", err)
	}
	s.start(one, "agent", "--server", url(server))
	s.within(60*time.Second, "the volume goes with its folder", func() error {
		out, err := server.Kubectl("get", "pv", name, "--ignore-not-found", "-o", "name")
		if err != nil || out != "" {
			return fmt.Errorf("%q, %w", out, err)
		}
		if _, err := os.Stat(one.Path(folder)); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s is left: %w", folder, err)
		}
		return nil
	})
	if _, err := os.Stat(one.Path(beside)); err != nil {
		t.Errorf("the folder beside it: %v", err)
	}
}

// TestVolumesOfNodesThatWent: a volume whose node was deleted from the cluster does not
// stay for ever.
func TestVolumesOfNodesThatWent(t *testing.T) {
	s := begin(t)
	server := s.server("server")
	one := s.net.Host("one")
	agent := s.join(one, server)
	s.ready(server, server, one)
	s.apply(server, fmt.Sprintf(database, "one"))
	s.running(server, "app=db")
	name, folder := s.volumeOf(server, "data-db-0")
	s.kill(agent)
	s.kubectl(server, "delete", "statefulset/db")
	s.kubectl(server, "delete", "pod", "db-0", "--force", "--grace-period=0", "--ignore-not-found")
	s.kubectl(server, "delete", "pvc", "data-db-0", "--wait=false")
	s.kubectl(server, "delete", "node", "one")
	s.within(30*time.Second, "the volume goes", func() error {
		out, err := server.Kubectl("get", "pv", name, "--ignore-not-found", "-o", "name")
		if err != nil || out != "" {
			return fmt.Errorf("%q, %w", out, err)
		}
		return nil
	})
	if _, err := os.Stat(one.Path(folder + "/starts")); err != nil {
		t.Errorf("the data on its disk: %v", err)
	}
}

// TestVolumesOfSeveralServers: claims are granted by one server at a time, and by
// another when that is lost.
func TestVolumesOfSeveralServers(t *testing.T) {
	s := begin(t)
	servers, agent := s.three()
	s.apply(servers[0].Host, fmt.Sprintf(database, agent.Name()))
	s.running(servers[0].Host, "app=db")
	holder := s.kubectl(servers[0].Host, "-n", "kube-system", "get", "lease", "podo-volume-provisioner", "-o", "jsonpath={.spec.holderIdentity}")
	var rest []*station
	for _, m := range servers {
		if strings.HasPrefix(holder, m.Name()+"-") {
			m.down()
		} else {
			rest = append(rest, m)
		}
	}
	if len(rest) != 2 {
		t.Fatalf("the lease is held by %q", holder)
	}
	s.kubectl(rest[0].Host, "scale", "statefulset/db", "--replicas=2")
	began := time.Now()
	s.running(rest[0].Host, "app=db")
	s.within(60*time.Second, "both claims are granted", func() error {
		out, err := rest[0].Kubectl("get", "pvc", "-o", "jsonpath={.items[*].status.phase}")
		if err != nil || out != "Bound Bound" {
			return fmt.Errorf("%q, %w", out, err)
		}
		return nil
	})
	t.Logf("granted %s after its server was lost", time.Since(began).Round(100*time.Millisecond))
}
