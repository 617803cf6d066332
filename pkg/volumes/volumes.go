// Package volumes makes the volumes of the class local-path: folders of a node.
//
// Two parts share the work, and the PersistentVolume between them says how far it is.
// The Provisioner, at work on one server, turns claims into PersistentVolumes, deletes
// those of claims that went, and lets them grow. The Keeper, on every node, makes the
// folder of each PersistentVolume of its node, gives it a quota where the file system
// keeps project quotas, and removes it again: a finalizer holds a PersistentVolume until
// its node has done so, be it days later. No pod is started for any of this.
//
// A node says in an annotation of its own Node object which folders it has for volumes.
// It reads every PersistentVolume, and may take its finalizer from its own and annotate
// them, no more (manifests/podo-node.yaml). It believes none of what a PersistentVolume
// says about paths: only what lies in the node's own folders is made or removed, and
// on the way there is neither a link nor a mount.
//
// The claims are followed here rather than by sig-storage-lib-external-provisioner. It
// leaves goroutines behind when it is stopped, ends the process on some errors, and
// resizes nothing, so that as much would be needed beside it.
package volumes

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	scheduling "k8s.io/component-helpers/scheduling/corev1"
)

// Driver is the provisioner that storage classes name. It is that of
// local-path-provisioner, so that its users' classes go on working.
const Driver = "rancher.io/local-path"

const (
	// nodeLabel is on each volume and names its node.
	nodeLabel = "podo.dev/node"
	// finalizer keeps a PersistentVolume until its node has removed the folder.
	finalizer = "podo.dev/volume"
	// rootsKey is where a node says, as JSON, what folders it has for volumes.
	rootsKey = "podo.dev/local-storage"
	// quotaKey is where a node says of a volume what holds it to its size: a quota, as
	// JSON, or "none: " and the reason. At its end it is JSON also without a limit.
	quotaKey = "podo.dev/quota"
	// none begins a value of quotaKey where nothing does.
	none = "none: "
)

// Annotations of Kubernetes' own.
const (
	provisionedBy = "pv.kubernetes.io/provisioned-by"
	selectedNode  = "volume.kubernetes.io/selected-node"
	provisioner   = "volume.kubernetes.io/storage-provisioner"
	protection    = "kubernetes.io/pv-protection"
)

// A Root is a folder of a node that volumes are made in.
type Root struct {
	Path    string `json:"path"`
	Bytes   int64  `json:"bytes,omitempty"`   // of the whole file system
	Quota   bool   `json:"quota,omitempty"`   // it can hold a folder to a size
	Problem string `json:"problem,omitempty"` // why nothing can be made there
}

// rootsOf is what a node says of itself. It has said nothing yet if ok is false.
func rootsOf(n *corev1.Node) (roots []Root, ok bool, err error) {
	text, ok := n.Annotations[rootsKey]
	if !ok {
		return nil, false, nil
	}
	if err := json.Unmarshal([]byte(text), &roots); err != nil {
		return nil, true, fmt.Errorf("node %s: annotation %s: %w", n.Name, rootsKey, err)
	}
	return roots, true, nil
}

// below is what leads from a root to a path in it.
func below(root, path string) (rel string, ok bool) {
	rel, ok = strings.CutPrefix(path, strings.TrimSuffix(root, "/")+"/")
	return rel, ok && filepath.IsLocal(rel) && filepath.Clean(rel) == rel && rel != "."
}

// overlap reports whether one of two paths is the other, or in it.
func overlap(a, b string) bool {
	_, under := below(a, b)
	_, over := below(b, a)
	return a == b || under || over
}

// A quota is what holds a volume to its size.
type quota struct {
	Limit    int64  `json:"limit"`              // bytes; 0 if nothing does
	Project  uint32 `json:"project"`            // of the file system
	Removing bool   `json:"removing,omitempty"` // its folder, so that one that is missing has gone
}

// quotaOf is what the node says of a volume: a quota, or none.
func quotaOf(pv *corev1.PersistentVolume) (q quota, said bool) {
	text, said := pv.Annotations[quotaKey]
	if said && !strings.HasPrefix(text, none) && json.Unmarshal([]byte(text), &q) != nil {
		return quota{}, false
	}
	return q, said
}

// size is how large a volume is to be, in bytes.
func size(pv *corev1.PersistentVolume) int64 { return pv.Spec.Capacity.Storage().Value() }

// folderOf is the path of a volume that a Provisioner made, or empty.
func folderOf(pv *corev1.PersistentVolume) string {
	if pv.Spec.Local == nil || pv.Annotations[provisionedBy] != Driver || pv.Labels[nodeLabel] == "" {
		return ""
	}
	return pv.Spec.Local.Path
}

// pathOf is the folder that a volume is, whoever made it, or empty.
func pathOf(pv *corev1.PersistentVolume) string {
	switch {
	case pv.Spec.Local != nil:
		return filepath.Clean(pv.Spec.Local.Path)
	case pv.Spec.HostPath != nil:
		return filepath.Clean(pv.Spec.HostPath.Path)
	}
	return ""
}

// strange reports whether a volume that no Provisioner made may be in one of a node's roots.
// One that is a root or around it, such as a backup's, has no folder to itself there.
func strange(pv *corev1.PersistentVolume, node *corev1.Node, roots ...string) bool {
	inside := func(root string) bool {
		_, ok := below(root, pathOf(pv))
		return ok
	}
	if folderOf(pv) != "" || !slices.ContainsFunc(roots, inside) {
		return false
	}
	if pv.Spec.NodeAffinity == nil || pv.Spec.NodeAffinity.Required == nil {
		return true
	}
	here, err := scheduling.MatchNodeSelectorTerms(node, pv.Spec.NodeAffinity.Required)
	return here || err != nil
}
