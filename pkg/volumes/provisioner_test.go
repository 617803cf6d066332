package volumes

import (
	"log/slog"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"
)

// clusterOf is a Provisioner's cluster that has these objects.
func clusterOf(t *testing.T, objects ...runtime.Object) *cluster {
	t.Helper()
	client := fake.NewClientset(objects...)
	f := informers.NewSharedInformerFactory(client, 0)
	c := &cluster{
		client: client, events: record.NewFakeRecorder(10), log: slog.New(slog.DiscardHandler),
		claims: f.Core().V1().PersistentVolumeClaims().Lister(), volumes: f.Core().V1().PersistentVolumes().Lister(),
		nodes: f.Core().V1().Nodes().Lister(), classes: f.Storage().V1().StorageClasses().Lister(),
	}
	f.StartWithContext(t.Context())
	t.Cleanup(f.Shutdown)
	f.WaitForCacheSync(t.Context().Done())
	return c
}

// TestGrantAsksTheClass: a claim that says to be podo's, of a class that is another's, gets nothing.
func TestGrantAsksTheClass(t *testing.T) {
	for driver, want := range map[string]int{Driver: 1, "example.com/other": 0} {
		claim, class := claimOf("1Gi"), classOf(nil)
		claim.Annotations[provisioner], claim.Annotations[selectedNode] = Driver, "box"
		class.Provisioner = driver
		c := clusterOf(t, claim, class, nodeOf(twoRoots))
		if err := c.do(t.Context(), claimJob(claim.Namespace, claim.Name)); err != nil {
			t.Errorf("%s: %v", driver, err)
		}
		all, err := c.client.CoreV1().PersistentVolumes().List(t.Context(), metav1.ListOptions{})
		if err != nil || len(all.Items) != want {
			t.Errorf("class of %s: %d volumes, %v; want %d", driver, len(all.Items), err, want)
		}
	}
}

// foreign is a volume that podo did not make, on a node or on any.
func foreign(path, on string) *corev1.PersistentVolume {
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "theirs"}}
	pv.Spec.HostPath = &corev1.HostPathVolumeSource{Path: path}
	if on != "" {
		pv.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{on}}}}}}}
	}
	return pv
}

// TestGrantSparesOthers: no volume is made into or around one that podo did not make.
func TestGrantSparesOthers(t *testing.T) {
	for name, tt := range map[string]struct {
		other *corev1.PersistentVolume
		taken bool
	}{
		"the same":          {foreign("/data/a/shop/data", "box.local"), true},
		"inside, anywhere":  {foreign("/data/a/shop/data/x/", ""), true},
		"around":            {foreign("/data/a/shop", "box.local"), true},
		"on another node":   {foreign("/data/a/shop/data", "other.local"), false},
		"of the whole disk": {foreign("/data/a", "box.local"), false},
		"of all files":      {foreign("/", ""), false},
		"beside":            {foreign("/data/a/shop/data2", ""), false},
	} {
		claim, class := claimOf("1Gi"), classOf(map[string]string{"pathPattern": "{{ .PVC.Namespace }}/{{ .PVC.Name }}"})
		claim.Annotations[provisioner], claim.Annotations[selectedNode] = Driver, "box"
		err := clusterOf(t, claim, class, nodeOf(twoRoots), tt.other).do(t.Context(), claimJob(claim.Namespace, claim.Name))
		if (err != nil) != tt.taken || err != nil && !strings.Contains(err.Error(), "theirs") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
