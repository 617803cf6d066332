package deploy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// A reference names an object, whatever the version of its kind.
type reference struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name"`
}

// refer names an object as its file does.
func refer(o object) reference {
	return reference{o.GetAPIVersion(), o.GetKind(), o.GetNamespace(), o.GetName()}
}

func (r reference) String() string {
	return r.Kind + " " + strings.TrimPrefix(r.Namespace+"/"+r.Name, "/")
}

func (r reference) groupKind() schema.GroupKind {
	return schema.FromAPIVersionAndKind(r.APIVersion, r.Kind).GroupKind()
}

// is reports whether two references mean one object. A file may leave out the
// namespace of an object, or give one to an object that has none.
func (r reference) is(other reference) bool {
	if r.groupKind() != other.groupKind() || r.Name != other.Name {
		return false
	}
	return r.Namespace == other.Namespace || cmp.Or(r.Namespace, defaultNamespace) == cmp.Or(other.Namespace, defaultNamespace)
}

// defaultNamespace is that of objects whose file names none.
const defaultNamespace = "default"

// rank is when an object is applied: what others are in or are made of comes first,
// and what can stand in the way of others last.
func rank(gk schema.GroupKind) int {
	switch gk.Group + "/" + gk.Kind {
	case "/Namespace":
		return 0
	case "apiextensions.k8s.io/CustomResourceDefinition":
		return 1
	case "/ServiceAccount", "/Secret", "/ConfigMap", "/ResourceQuota", "/LimitRange", "/PersistentVolume", "/PersistentVolumeClaim",
		"rbac.authorization.k8s.io/ClusterRole", "rbac.authorization.k8s.io/ClusterRoleBinding",
		"rbac.authorization.k8s.io/Role", "rbac.authorization.k8s.io/RoleBinding",
		"scheduling.k8s.io/PriorityClass", "storage.k8s.io/StorageClass", "node.k8s.io/RuntimeClass", "networking.k8s.io/IngressClass":
		return 2
	case "admissionregistration.k8s.io/ValidatingWebhookConfiguration", "admissionregistration.k8s.io/MutatingWebhookConfiguration",
		"apiregistration.k8s.io/APIService":
		return 4
	}
	return 3
}

// holds reports whether deleting an object deletes others that may not be podo's.
func holds(gk schema.GroupKind) bool { return rank(gk) <= 1 }

// order sorts objects as they are applied; within a rank they stay as in the file.
func order(objects []object) {
	slices.SortStableFunc(objects, func(a, b object) int {
		return cmp.Compare(rank(refer(a).groupKind()), rank(refer(b).groupKind()))
	})
}

// without are those of refs that others do not name.
func without(refs, others []reference) []reference {
	var out []reference
	for _, r := range refs {
		if !slices.ContainsFunc(others, r.is) {
			out = append(out, r)
		}
	}
	return out
}

// several names a few of refs.
func several(refs []reference) string {
	const few = 3
	var names []string
	for _, r := range refs[:min(few, len(refs))] {
		names = append(names, r.String())
	}
	text := strings.Join(names, ", ")
	if more := len(refs) - few; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
