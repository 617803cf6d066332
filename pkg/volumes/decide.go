package volumes

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
	"unicode"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// errElsewhere means that the claim may be granted on another node.
var errElsewhere = errors.New("not on this node")

// Parameters of a class.
const (
	patternParameter = "pathPattern"
	pathParameter    = "nodePath"
	// unsafeParameter lets local-path-provisioner leave its folder. Here nothing does.
	unsafeParameter = "allowUnsafePathPattern"
)

// volumeName is that of the volume of a claim.
func volumeName(c *corev1.PersistentVolumeClaim) string { return "pvc-" + string(c.UID) }

// decide is the volume for a claim on a node, or why it cannot be.
func decide(c *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, node *corev1.Node) (*corev1.PersistentVolume, Root, error) {
	if err := possible(c, class); err != nil {
		return nil, Root{}, err
	}
	root, err := choose(c, class, node)
	if err != nil {
		return nil, Root{}, err
	}
	rel, err := place(c, class)
	if err != nil {
		return nil, Root{}, err
	}
	policy := corev1.PersistentVolumeReclaimDelete
	if class.ReclaimPolicy != nil {
		policy = *class.ReclaimPolicy
	}
	filesystem := corev1.PersistentVolumeFilesystem
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name:        volumeName(c),
			Labels:      map[string]string{nodeLabel: node.Name},
			Annotations: map[string]string{provisionedBy: Driver},
			Finalizers:  []string{finalizer},
		},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: c.Spec.Resources.Requests[corev1.ResourceStorage]},
			AccessModes:                   c.Spec.AccessModes,
			PersistentVolumeReclaimPolicy: policy,
			StorageClassName:              class.Name,
			MountOptions:                  class.MountOptions,
			VolumeMode:                    &filesystem,
			PersistentVolumeSource:        corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: filepath.Join(root.Path, rel)}},
			ClaimRef: &corev1.ObjectReference{
				Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: c.Namespace, Name: c.Name, UID: c.UID, ResourceVersion: c.ResourceVersion,
			},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{
					Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{cmp.Or(node.Labels[corev1.LabelHostname], node.Name)},
				}},
			}}}},
		},
	}, root, nil
}

// possible says what of a claim or its class no node could do.
func possible(c *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) error {
	for _, mode := range c.Spec.AccessModes {
		if mode != corev1.ReadWriteOnce && mode != corev1.ReadWriteOncePod {
			return fmt.Errorf("access mode %s: a volume of class %s is a folder of one node; ask for ReadWriteOnce or ReadWriteOncePod", mode, class.Name)
		}
	}
	known := []string{patternParameter, pathParameter, unsafeParameter}
	for _, p := range slices.Sorted(maps.Keys(class.Parameters)) {
		if !slices.Contains(known, p) {
			return fmt.Errorf("class %s: parameter %s is none that podo knows; it may have %s and %s", class.Name, p, patternParameter, pathParameter)
		}
	}
	switch {
	case c.Spec.VolumeMode != nil && *c.Spec.VolumeMode == corev1.PersistentVolumeBlock:
		return fmt.Errorf("volumeMode Block: a volume of class %s is a folder and no device; ask for Filesystem", class.Name)
	case c.Spec.Selector != nil:
		return fmt.Errorf("selector: volumes of class %s are made new, so that none could be selected; take the selector out", class.Name)
	case c.Spec.DataSource != nil || c.Spec.DataSourceRef != nil:
		return fmt.Errorf("dataSource: a volume of class %s begins empty; take the data source out", class.Name)
	case class.VolumeBindingMode == nil || *class.VolumeBindingMode != storagev1.VolumeBindingWaitForFirstConsumer:
		return fmt.Errorf("class %s: claims are bound at once, before a node is known; give the class volumeBindingMode: WaitForFirstConsumer", class.Name)
	case class.ReclaimPolicy != nil && *class.ReclaimPolicy == corev1.PersistentVolumeReclaimRecycle:
		return fmt.Errorf("class %s: reclaimPolicy Recycle: use Delete or Retain", class.Name)
	}
	return nil
}

// choose is the folder of a node that a claim gets its volume in: the first that is
// large enough, of those that the class allows.
func choose(c *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, node *corev1.Node) (Root, error) {
	roots, said, err := rootsOf(node)
	if err != nil {
		return Root{}, err
	}
	if !said {
		return Root{}, fmt.Errorf("node %s has not said yet where it keeps volumes", node.Name)
	}
	if want, ok := class.Parameters[pathParameter]; ok {
		all := roots
		roots = slices.DeleteFunc(slices.Clone(roots), func(r Root) bool { return r.Path != filepath.Clean(want) })
		if len(roots) == 0 {
			return Root{}, fmt.Errorf("class %s: %s %s is no folder for volumes of node %s, which has %s; add it in the ConfigMap %s", class.Name, pathParameter, want, node.Name, list(all), settingsName)
		}
	}
	if len(roots) == 0 {
		return Root{}, fmt.Errorf("%w: node %s has no folder for volumes; the ConfigMap %s gives it none", errElsewhere, node.Name, settingsName)
	}
	want := c.Spec.Resources.Requests.Storage()
	var why []error
	for _, r := range roots {
		switch {
		case r.Problem != "":
			why = append(why, fmt.Errorf("%w: node %s: %s", errElsewhere, node.Name, r.Problem))
		case want.Value() > r.Bytes:
			why = append(why, fmt.Errorf("%w: %s is more than the whole disk of %s on node %s, which has %s; ask for less", errElsewhere, want, r.Path, node.Name, resource.NewQuantity(r.Bytes>>20<<20, resource.BinarySI)))
		default:
			return r, nil
		}
	}
	return Root{}, errors.Join(why...)
}

func list(roots []Root) string {
	var out []string
	for _, r := range roots {
		out = append(out, r.Path)
	}
	return strings.Join(out, ", ")
}

// place is where in its root the volume of a claim lies.
func place(c *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) (string, error) {
	pattern, ok := class.Parameters[patternParameter]
	if !ok {
		return volumeName(c) + "_" + c.Namespace + "_" + c.Name, nil
	}
	t, err := template.New(patternParameter).Option("missingkey=error").Parse(pattern)
	if err != nil {
		return "", fmt.Errorf("class %s: %w", class.Name, err)
	}
	// What local-path-provisioner's patterns may use.
	type claim struct {
		Name, Namespace     string
		UID                 string
		Labels, Annotations map[string]string
	}
	var out strings.Builder
	err = t.Execute(&out, struct {
		PVName string
		PVC    claim
	}{volumeName(c), claim{c.Name, c.Namespace, string(c.UID), c.Labels, c.Annotations}})
	if err != nil {
		return "", fmt.Errorf("class %s: %w", class.Name, err)
	}
	rel := out.String()
	wrong := func(why string) error {
		return fmt.Errorf("class %s: %s %q gives %q, which %s", class.Name, patternParameter, pattern, rel, why)
	}
	switch clean := filepath.Clean(rel); {
	case !filepath.IsLocal(rel) || clean == ".":
		return "", wrong("is not inside the folder for volumes; let it begin with a name, and have no .. in it")
	case strings.ContainsFunc(rel, func(r rune) bool { return !unicode.IsPrint(r) }):
		return "", wrong("has characters that cannot be printed")
	case len(clean) > 2048 || slices.ContainsFunc(strings.Split(clean, "/"), func(part string) bool { return len(part) > 255 }):
		return "", wrong("is too long for the name of a folder")
	default:
		return clean, nil
	}
}

// conflict says which volume of the node, or which of its roots, keeps a folder from
// being used. A volume that was released and is retained keeps nobody from taking its
// data over.
func conflict(path string, roots []Root, others []corev1.PersistentVolume) error {
	for _, r := range roots {
		if _, inside := below(path, r.Path); inside || path == r.Path {
			return fmt.Errorf("folder %s: the node's volumes in %s would be inside; choose another pattern", path, r.Path)
		}
	}
	for _, pv := range others {
		other := pathOf(&pv)
		if other == "" || !overlap(path, other) {
			continue
		}
		if path == other && pv.Status.Phase == corev1.VolumeReleased && pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRetain {
			continue
		}
		return fmt.Errorf("folder %s: volume %s has %s; delete its claim first, or choose another pattern", path, pv.Name, other)
	}
	return nil
}
