package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podo-dev/podo/pkg/paths"
)

// A claim and a pod that has it. The words are: name, class line, size, pod's user.
const claimed = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %[1]s}
spec:
  accessModes: [ReadWriteOnce]
  %[2]s
  resources: {requests: {storage: %[3]s}}
---
apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: $BUSYBOX
    command: [sleep, "100000"]
    securityContext: {runAsUser: %[4]d}
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: %[1]s}}]
`

// volumeOf is the volume of a claim, and its folder on this machine.
func (s *scene) volumeOf(claim string) (*corev1.PersistentVolume, string) {
	s.Helper()
	c, err := s.CoreV1().PersistentVolumeClaims(s.ns).Get(s.ctx, claim, metav1.GetOptions{})
	s.ok(err)
	pv, err := s.CoreV1().PersistentVolumes().Get(s.ctx, c.Spec.VolumeName, metav1.GetOptions{})
	s.ok(err)
	return pv, pv.Spec.Local.Path
}

// gone waits until a volume and its folder are.
func (s *scene) gone(volume, folder string) {
	s.Helper()
	s.within(40*time.Second, "volume "+volume+" goes", func() error {
		if _, err := s.CoreV1().PersistentVolumes().Get(s.ctx, volume, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("it is there: %w", err)
		}
		if _, err := os.Lstat(folder); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s is there: %w", folder, err)
		}
		return nil
	})
}

// event waits for a warning or a note on an object, with these words in it.
func (s *scene) event(object string, words ...string) {
	s.Helper()
	s.within(40*time.Second, "an event of "+object, func() error {
		list, err := s.CoreV1().Events(s.ns).List(s.ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + object})
		if err != nil {
			return err
		}
		var all []string
		for _, e := range list.Items {
			text := e.Reason + ": " + e.Message
			if contains(text, words...) == nil {
				return nil
			}
			all = append(all, text)
		}
		return fmt.Errorf("none with %q in\n%s", words, strings.Join(all, "\n"))
	})
}

// claims: a claim that names no class gets a folder of the node, which keeps what pods
// write as long as the claim is there, can grow, and goes with it: exactly that folder,
// whatever pods have put there.
func claims(t *testing.T) {
	s := scenario(t)
	outside := s.hostFolder()
	write(t, filepath.Join(outside, "kept"), "kept")
	s.apply(fmt.Sprintf(claimed, "first", "", "1Gi", 1000) + "---" + fmt.Sprintf(claimed, "second", "", "1Gi", 0))
	s.podReady("first", "second")
	pv, folder := s.volumeOf("first")
	other, otherFolder := s.volumeOf("second")
	if want := filepath.Join(paths.New(paths.DefaultData).Storage(), pv.Name+"_"+s.ns+"_first"); folder != want {
		t.Errorf("folder %s, want %s", folder, want)
	}
	if n := pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values; n[0] != s.node().Name {
		t.Errorf("the volume is of node %v", n)
	}
	s.sh("first", "echo precious > /data/file && dd if=/dev/zero of=/data/zeros bs=1M count=20 2>/dev/null")
	if text, err := os.ReadFile(folder + "/file"); string(text) != "precious\n" {
		t.Errorf("the file holds %q, %v", text, err)
	}

	s.kubectl("delete", "pod", "first")
	s.apply(fmt.Sprintf(claimed, "first", "", "1Gi", 1000))
	s.podReady("first")
	if out := s.sh("first", "cat /data/file"); out != "precious\n" {
		t.Errorf("after the pod was replaced: %q", out)
	}

	quota := ""
	s.within(20*time.Second, "the node says what holds the volume to its size", func() error {
		now, _ := s.volumeOf("first")
		if quota = now.Annotations["podo.dev/quota"]; quota == "" {
			return errors.New("no annotation")
		}
		return nil
	})
	if strings.HasPrefix(quota, "none: ") {
		s.event("first", "SizeNotEnforced", "project quotas")
	}
	s.kubectl("patch", "pvc", "first", "-p", `{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}`)
	s.within(40*time.Second, "the claim has grown", func() error {
		c, err := s.CoreV1().PersistentVolumeClaims(s.ns).Get(s.ctx, "first", metav1.GetOptions{})
		s.ok(err)
		if has := c.Status.Capacity.Storage().String(); has != "2Gi" {
			return errors.New("it has " + has)
		}
		return nil
	})
	s.kubectl("patch", "pvc", "second", "-p", `{"spec":{"resources":{"requests":{"storage":"900Ti"}}}}`)
	s.event("second", "VolumeResizeFailed", "900Ti is more than the whole disk")

	s.within(100*time.Second, "the kubelet tells how full the volume is", func() error {
		var told struct {
			Pods []struct {
				Volumes []struct {
					UsedBytes     int64
					CapacityBytes int64
					PVCRef        struct{ Name, Namespace string }
				} `json:"volume"`
			}
		}
		if err := json.Unmarshal([]byte(s.kubectl("get", "--raw", "/api/v1/nodes/"+s.node().Name+"/proxy/stats/summary")), &told); err != nil {
			return err
		}
		for _, p := range told.Pods {
			for _, v := range p.Volumes {
				if v.PVCRef.Namespace == s.ns && v.PVCRef.Name == "first" && v.UsedBytes >= 20<<20 && v.CapacityBytes > 0 {
					return nil
				}
			}
		}
		return errors.New("it does not")
	})

	s.sh("second", "ln -s "+outside+" /data/out && ln -s / /data/all && mkdir -p '/data/a\nb/c' && touch '/data/a\nb/-rf' && mkfifo /data/pipe && chmod 0 /data/a*")
	s.kubectl("delete", "pod/second", "pvc/second")
	s.gone(other.Name, otherFolder)
	if text, err := os.ReadFile(filepath.Join(outside, "kept")); string(text) != "kept" {
		t.Errorf("a file that the volume linked to holds %q, %v", text, err)
	}
	if out := s.sh("first", "cat /data/file"); out != "precious\n" {
		t.Errorf("after another volume was removed: %q", out)
	}
	s.kubectl("delete", "pod/first", "pvc/first")
	s.gone(pv.Name, folder)
}

// retained: classes of one's own, with a pattern for paths, and volumes that stay.
func retained(t *testing.T) {
	s := scenario(t)
	s.apply(`
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: e2e-retain}
provisioner: rancher.io/local-path
reclaimPolicy: Retain
volumeBindingMode: WaitForFirstConsumer
parameters: {pathPattern: "{{ .PVC.Namespace }}/{{ .PVC.Name }}"}
`)
	t.Cleanup(func() { podo("kubectl", "delete", "storageclass", "e2e-retain") })
	const class = "storageClassName: e2e-retain"
	s.apply(fmt.Sprintf(claimed, "kept", class, "1Mi", 0))
	s.podReady("kept")
	pv, folder := s.volumeOf("kept")
	if want := filepath.Join(paths.New(paths.DefaultData).Storage(), s.ns, "kept"); folder != want {
		t.Errorf("folder %s, want %s", folder, want)
	}
	s.sh("kept", "echo precious > /data/file")
	s.kubectl("delete", "pod/kept", "pvc/kept")
	s.within(20*time.Second, "the volume is released", func() error {
		now, err := s.CoreV1().PersistentVolumes().Get(s.ctx, pv.Name, metav1.GetOptions{})
		if err != nil || now.Status.Phase != corev1.VolumeReleased {
			return fmt.Errorf("%v, %w", now.Status.Phase, err)
		}
		return nil
	})

	// The next claim of the name takes the data over.
	s.apply(fmt.Sprintf(claimed, "kept", class, "1Mi", 0))
	s.podReady("kept")
	if out := s.sh("kept", "cat /data/file"); out != "precious\n" {
		t.Errorf("the next claim finds %q", out)
	}
	s.kubectl("delete", "pv", pv.Name)
	if out := s.sh("kept", "cat /data/file"); out != "precious\n" {
		t.Errorf("after the first volume was deleted: %q", out)
	}

	// Deleted by hand, and with another policy, it goes.
	next, _ := s.volumeOf("kept")
	s.kubectl("patch", "pv", next.Name, "-p", `{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}`)
	s.kubectl("delete", "pod/kept", "pvc/kept")
	s.gone(next.Name, folder)
	if _, err := os.Lstat(filepath.Dir(folder)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the empty folder of the pattern is left: %v", err)
	}
}

// impossibleClaims: what cannot be is told on the claim.
func impossibleClaims(t *testing.T) {
	s := scenario(t)
	s.apply(`
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: e2e-outside}
provisioner: rancher.io/local-path
volumeBindingMode: WaitForFirstConsumer
parameters: {pathPattern: "../../../etc/{{ .PVC.Name }}"}
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: e2e-elsewhere}
provisioner: rancher.io/local-path
volumeBindingMode: WaitForFirstConsumer
parameters: {nodePath: /etc}
`)
	t.Cleanup(func() { podo("kubectl", "delete", "storageclass", "e2e-outside", "e2e-elsewhere") })
	shared := strings.Replace(fmt.Sprintf(claimed, "shared", "", "1Mi", 0), "ReadWriteOnce", "ReadWriteMany", 1)
	s.apply(shared + "---" +
		fmt.Sprintf(claimed, "device", "volumeMode: Block", "1Mi", 0) + "---" +
		fmt.Sprintf(claimed, "huge", "", "900Ti", 0) + "---" +
		fmt.Sprintf(claimed, "outside", "storageClassName: e2e-outside", "1Mi", 0) + "---" +
		fmt.Sprintf(claimed, "elsewhere", "storageClassName: e2e-elsewhere", "1Mi", 0))
	s.event("shared", "ProvisioningFailed", "ReadWriteMany", "ReadWriteOncePod")
	s.event("huge", "ProvisioningFailed", "900Ti is more than the whole disk")
	s.event("outside", "ProvisioningFailed", "not inside the folder")
	s.event("elsewhere", "ProvisioningFailed", "nodePath /etc", "local-path-config")
	s.event("device", "ProvisioningFailed", "volumeMode Block")
	for _, name := range []string{"shared", "device", "huge", "outside", "elsewhere"} {
		c, err := s.CoreV1().PersistentVolumeClaims(s.ns).Get(s.ctx, name, metav1.GetOptions{})
		if s.ok(err); c.Status.Phase != corev1.ClaimPending {
			t.Errorf("%s is %s", name, c.Status.Phase)
		}
	}
}

// namedFolders: the ConfigMap of local-path-provisioner says which folders nodes have,
// and a class which of them it takes. What is named no longer is still tidied up.
func namedFolders(t *testing.T) {
	s := scenario(t)
	disk := filepath.Join(s.hostFolder(), "disk")
	standard := paths.New(paths.DefaultData).Storage()
	say := func(config string) {
		s.Helper()
		s.applyIn("kube-system", "{apiVersion: v1, kind: ConfigMap, metadata: {name: local-path-config}, data: {config.json: '"+config+"'}}")
	}
	tells := func(words ...string) {
		s.Helper()
		s.within(20*time.Second, "the node tells its folders", func() error {
			return contains(s.node().Annotations["podo.dev/local-storage"], words...)
		})
	}
	t.Cleanup(func() {
		podo("kubectl", "delete", "storageclass", "e2e-disk")
		podo("kubectl", "-n", "kube-system", "delete", "configmap", "local-path-config", "--ignore-not-found")
	})
	tells(standard)
	say(`{"nodePathMap": [{"node": "DEFAULT_PATH_FOR_NON_LISTED_NODES", "paths": ["` + standard + `", "` + disk + `"]}]}`)
	tells(standard, disk)
	s.apply(`
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: e2e-disk}
provisioner: rancher.io/local-path
volumeBindingMode: WaitForFirstConsumer
parameters: {nodePath: ` + disk + `}
`)
	s.apply(fmt.Sprintf(claimed, "there", "storageClassName: e2e-disk", "1Mi", 0))
	s.podReady("there")
	pv, folder := s.volumeOf("there")
	if filepath.Dir(folder) != disk {
		t.Errorf("folder %s, want one in %s", folder, disk)
	}

	say(`{"nodePathMap": [{"node": "` + s.node().Name + `", "paths": ["/etc/podo/x"]}]}`)
	tells("problem", "no volumes")
	s.apply(fmt.Sprintf(claimed, "never", "", "1Mi", 0))
	s.event("never", "ProvisioningFailed", "/etc/podo")
	s.kubectl("delete", "pod/there", "pvc/there")
	s.gone(pv.Name, folder)

	s.kubectl("-n", "kube-system", "delete", "configmap", "local-path-config")
	s.podReady("never") // after all
}

const database = `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: $BUSYBOX
        command: [sh, -c, "date +%s%N >> /data/starts; sleep 100000"]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 100Mi}}}
`

// survivesKillWithVolumes: a database keeps its data over the death of podo and of its
// pods, and what was cut short is gone on with: a volume is made, another removed.
func survivesKillWithVolumes(t *testing.T) {
	clusterRuns(t)
	s := scenario(t)
	s.apply(database)
	s.rolledOut("statefulset/db")
	first := s.sh("db-0", "cat /data/starts")

	s.apply(fmt.Sprintf(claimed, "doomed", "", "1Gi", 0))
	s.podReady("doomed")
	doomed, folder := s.volumeOf("doomed")
	s.sh("doomed", "cd /data; for d in $(seq 60); do mkdir $d; (cd $d; seq 500 | xargs touch); done")
	s.kubectl("delete", "pod", "doomed")
	s.apply(fmt.Sprintf(claimed, "late", "", "1Gi", 0))
	s.kubectl("delete", "pvc", "doomed", "--wait=false")
	s.within(20*time.Second, "its volume is being removed", func() error {
		pv, err := s.CoreV1().PersistentVolumes().Get(s.ctx, doomed.Name, metav1.GetOptions{})
		if err == nil && pv.DeletionTimestamp == nil {
			return errors.New("it is not")
		}
		return nil
	})
	theCluster.crash(t)
	if entries, err := os.ReadDir(folder); err == nil {
		t.Logf("%d of 60 folders are left when podo is killed", len(entries))
	}
	startCluster(t)
	s.podReady("late")
	s.gone(doomed.Name, folder)

	s.kubectl("delete", "pod", "db-0", "db-1")
	s.rolledOut("statefulset/db")
	s.podReady("db-0", "db-1")
	if now := s.sh("db-0", "cat /data/starts"); !strings.HasPrefix(now, first) || strings.Count(now, "\n") != 2 {
		t.Errorf("the database had %q, and has %q", first, now)
	}
	theCluster.stop(t)
	startCluster(t)
	s.within(20*time.Second, "the database has its data after a restart of podo", func() error {
		if r := s.try("exec", "db-1", "--", "cat", "/data/starts"); r.code != 0 || strings.Count(r.out, "\n") != 2 {
			return errors.New(r.String())
		}
		return nil
	})
	s.kubectl("delete", "statefulset/db", "pod/late")
	s.kubectl("delete", "pvc", "--all")
	s.within(40*time.Second, "every folder is removed", func() error {
		found, err := filepath.Glob(paths.New(paths.DefaultData).Storage() + "/*_" + s.ns + "_*")
		if err != nil || len(found) > 0 {
			return fmt.Errorf("%v, %w", found, err)
		}
		return nil
	})
}
