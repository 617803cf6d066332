package volumes

import (
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/podo-dev/podo/pkg/paths"
)

const gib = 1 << 30

func claimOf(size string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data", UID: "0123", Annotations: map[string]string{"folder": "mine"}},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			StorageClassName: ptr.To("local-path"),
			Resources:        corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}},
		},
	}
}

func classOf(parameters map[string]string) *storagev1.StorageClass {
	return &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: "local-path"}, Provisioner: Driver, Parameters: parameters,
		VolumeBindingMode: ptr.To(storagev1.VolumeBindingWaitForFirstConsumer), ReclaimPolicy: ptr.To(corev1.PersistentVolumeReclaimRetain),
	}
}

func nodeOf(roots string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "box", Labels: map[string]string{corev1.LabelHostname: "box.local"}, Annotations: map[string]string{}}}
	if roots != "" {
		n.Annotations[rootsKey] = roots
	}
	return n
}

const twoRoots = `[{"path":"/data/a","bytes":10737418240},{"path":"/data/b","bytes":107374182400,"quota":true}]`

func TestDecide(t *testing.T) {
	tests := map[string]struct {
		size       string
		parameters map[string]string
		want       string
	}{
		"the first folder that is large enough": {size: "1Gi", want: "/data/a/pvc-0123_shop_data"},
		"the second, if the first is too small": {size: "11Gi", want: "/data/b/pvc-0123_shop_data"},
		"the class's":                           {size: "1Gi", parameters: map[string]string{"nodePath": "/data/b/"}, want: "/data/b/pvc-0123_shop_data"},
		"a pattern":                             {size: "1Gi", parameters: map[string]string{"pathPattern": "{{ .PVC.Namespace }}/{{ .PVC.Name }}"}, want: "/data/a/shop/data"},
		"a pattern with annotations":            {size: "1Gi", parameters: map[string]string{"pathPattern": `{{ index .PVC.Annotations "folder" }}-{{ .PVName }}`}, want: "/data/a/mine-pvc-0123"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			pv, _, err := decide(claimOf(tt.size), classOf(tt.parameters), nodeOf(twoRoots))
			if err != nil {
				t.Fatal(err)
			}
			if got := folderOf(pv); got != tt.want {
				t.Errorf("folder %s, want %s", got, tt.want)
			}
			affinity := pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0]
			if pv.Labels[nodeLabel] != "box" || affinity.Values[0] != "box.local" || pv.Finalizers[0] != finalizer ||
				pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain || pv.Spec.ClaimRef.UID != "0123" {
				t.Errorf("volume %+v", pv)
			}
		})
	}
}

func TestDecideRefuses(t *testing.T) {
	type refusal struct {
		claim     func(*corev1.PersistentVolumeClaim)
		class     func(*storagev1.StorageClass)
		roots     string
		want      string
		elsewhere bool
	}
	tests := map[string]refusal{
		"several writers":   {claim: func(c *corev1.PersistentVolumeClaim) { c.Spec.AccessModes[0] = corev1.ReadWriteMany }, want: "access mode ReadWriteMany"},
		"a device":          {claim: func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock) }, want: "volumeMode Block"},
		"a selector":        {claim: func(c *corev1.PersistentVolumeClaim) { c.Spec.Selector = &metav1.LabelSelector{} }, want: "selector"},
		"a snapshot":        {claim: func(c *corev1.PersistentVolumeClaim) { c.Spec.DataSource = &corev1.TypedLocalObjectReference{} }, want: "begins empty"},
		"binding at once":   {class: func(c *storagev1.StorageClass) { c.VolumeBindingMode = nil }, want: "WaitForFirstConsumer"},
		"a wrong parameter": {class: func(c *storagev1.StorageClass) { c.Parameters = map[string]string{"path": "x"} }, want: "parameter path"},
		"too large":         {claim: func(c *corev1.PersistentVolumeClaim) { *c = *claimOf("1Ti") }, want: "1Ti is more than the whole disk of /data/a on node box, which has 10Gi", elsewhere: true},
		"a folder that the node has not": {
			class: func(c *storagev1.StorageClass) { c.Parameters = map[string]string{"nodePath": "/data"} },
			want:  "nodePath /data is no folder for volumes of node box, which has /data/a, /data/b",
		},
		"a node without folders":    {roots: "[]", want: "no folder for volumes", elsewhere: true},
		"a folder that cannot be":   {roots: `[{"path":"/x","problem":"mkdir /x: read-only file system"}]`, want: "read-only", elsewhere: true},
		"a node that said nothing":  {roots: "-", want: "has not said yet"},
		"a node that says nonsense": {roots: "{", want: "annotation podo.dev/local-storage"},
	}
	for _, pattern := range []string{"../{{ .PVC.Name }}", "/etc", "", ".", "a/../..", "{{ .PVC.Namespace }}/../../x"} {
		tests["pattern "+pattern] = refusal{class: func(c *storagev1.StorageClass) { c.Parameters = map[string]string{"pathPattern": pattern} }, want: "not inside the folder"}
	}
	for pattern, want := range map[string]string{"{{ .PVC.Nme }}": "Nme", "{{ x": "pathPattern", "a\nb": "cannot be printed", strings.Repeat("x", 300): "too long"} {
		tests["pattern "+pattern] = refusal{class: func(c *storagev1.StorageClass) { c.Parameters = map[string]string{"pathPattern": pattern} }, want: want}
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, class := claimOf("1Gi"), classOf(nil)
			if tt.claim != nil {
				tt.claim(c)
			}
			if tt.class != nil {
				tt.class(class)
			}
			roots := twoRoots
			if tt.roots != "" {
				roots = strings.TrimPrefix(tt.roots, "-")
			}
			_, _, err := decide(c, class, nodeOf(roots))
			if err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, errElsewhere) != tt.elsewhere {
				t.Errorf("err = %v, want %q in it, elsewhere %t", err, tt.want, tt.elsewhere)
			}
		})
	}
}

func TestConflict(t *testing.T) {
	other := func(path string, phase corev1.PersistentVolumePhase, policy corev1.PersistentVolumeReclaimPolicy) corev1.PersistentVolume {
		return corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: "other", Labels: map[string]string{nodeLabel: "box"}, Annotations: map[string]string{provisionedBy: Driver}},
			Spec: corev1.PersistentVolumeSpec{
				PersistentVolumeReclaimPolicy: policy,
				PersistentVolumeSource:        corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: path}},
			},
			Status: corev1.PersistentVolumeStatus{Phase: phase},
		}
	}
	const bound, released = corev1.VolumeBound, corev1.VolumeReleased
	const del, retain = corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRetain
	tests := map[string]struct {
		other corev1.PersistentVolume
		want  string
	}{
		"beside":                        {other: other("/data/a/shop/data2", bound, del)},
		"a name that begins the same":   {other: other("/data/a/shop/dat", bound, del)},
		"the same":                      {other: other("/data/a/shop/data", bound, del), want: "other"},
		"inside another":                {other: other("/data/a/shop", bound, del), want: "other"},
		"around another":                {other: other("/data/a/shop/data/x", bound, del), want: "other"},
		"being deleted":                 {other: other("/data/a/shop/data", released, del), want: "other"},
		"retained, to be taken over":    {other: other("/data/a/shop/data", released, retain)},
		"retained, but in use":          {other: other("/data/a/shop/data", bound, retain), want: "other"},
		"retained, with another inside": {other: other("/data/a/shop/data/x", released, retain), want: "other"},
		"around a root":                 {other: other("/data/c", bound, del), want: "inside"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			roots := []Root{{Path: "/data/a"}}
			if tt.want == "inside" {
				roots = append(roots, Root{Path: "/data/a/shop/data/sub"})
			}
			err := conflict("/data/a/shop/data", roots, []corev1.PersistentVolume{tt.other})
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("err = %v, want %q in it", err, tt.want)
			}
		})
	}
}

func TestSettings(t *testing.T) {
	tests := map[string]struct {
		text string
		want string
		err  string
	}{
		"for every node":    {text: `{"nodePathMap":[{"node":"DEFAULT_PATH_FOR_NON_LISTED_NODES","paths":["/mnt/a/","/mnt/a","/mnt/b"]}]}`, want: "/mnt/a /mnt/b"},
		"for this one":      {text: `{"nodePathMap":[{"node":"box","paths":["/mnt/c"]},{"node":"DEFAULT_PATH_FOR_NON_LISTED_NODES","paths":["/mnt/a"]}]}`, want: "/mnt/c"},
		"none for this one": {text: `{"nodePathMap":[{"node":"box","paths":[]},{"node":"DEFAULT_PATH_FOR_NON_LISTED_NODES","paths":["/mnt/a"]}]}`, want: "no folder"},
		"for others":        {text: `{"nodePathMap":[{"node":"other","paths":["/mnt/a"]}]}`, want: "podo's"},
		"all files":         {text: `{"nodePathMap":[{"node":"box","paths":["/"]}]}`, err: "that of all files"},
		"a relative path":   {text: `{"nodePathMap":[{"node":"box","paths":["mnt"]}]}`, err: "whole path"},
		"no JSON":           {text: `nodePathMap:`, err: "config.json"},
		"what podo has not": {text: `{"sharedFileSystemPath":"/shared"}`, err: "sharedFileSystemPath"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			paths, err := readSettings(tt.text, "box")
			got := strings.Join(paths, " ")
			switch {
			case err != nil:
				got = ""
			case paths == nil:
				got = "podo's"
			case len(paths) == 0:
				got = "no folder"
			}
			if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("paths %q, err %v; want %q, %q", got, err, tt.want, tt.err)
			}
		})
	}
}

func TestBelow(t *testing.T) {
	for path, want := range map[string]string{
		"/data/a/x": "x", "/data/a/x/y": "x/y", "/data/a": "", "/data/a/": "", "/data/ab": "", "/data/a/../b": "", "/data/a/x/../../b": "", "/data/a//x": "", "/etc": "", "x": "",
	} {
		rel, ok := below("/data/a", path)
		if ok != (want != "") || ok && rel != want {
			t.Errorf("%s: %q, %t; want %q", path, rel, ok, want)
		}
	}
}

// TestApart: no volume is made where podo or the kubelet keep their files.
func TestApart(t *testing.T) {
	n := &node{own: paths.New("/var/lib/podo")}
	for root, ok := range map[string]bool{
		"/var/lib/podo/storage": true, "/var/lib/podo/storage/ssd": true, "/mnt/disk": true, "/var/lib/podo2": true, "/opt/storage": true,
		"/var/lib/podo": false, "/var/lib": false, "/": false, "/var/lib/podo/server": false, "/var/lib/podo/agent/x": false, "/var/lib/kubelet/x": false, "/etc/podo": false, "/run": false,
	} {
		if err := n.apart(root); (err == nil) != ok {
			t.Errorf("%s: %v", root, err)
		}
	}
}
