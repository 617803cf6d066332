package deploy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/dynamic"
	"k8s.io/utils/ptr"
)

// An addon is the object that tells of a manifest.
type addon struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name string    `json:"name"`
		UID  types.UID `json:"uid,omitempty"`
	} `json:"metadata"`
	Spec   addonSpec   `json:"spec"`
	Status addonStatus `json:"status"`
}

type addonSpec struct {
	File   string `json:"file"`
	Server string `json:"server,omitempty"`
}

type addonStatus struct {
	State    string      `json:"state"`
	Error    string      `json:"error,omitempty"`
	Checksum string      `json:"checksum,omitempty"`
	Count    int         `json:"count"`
	Objects  []reference `json:"objects,omitempty"`
}

// The states of an addon. One whose file was removed is deleted.
const (
	deploying = "Deploying"
	deployed  = "Deployed"
	failed    = "Failed"
	removing  = "Removing"
	skipped   = "Skipped"
	disabled  = "Disabled"
	removed   = "Removed"
)

func newAddon(name string) addon {
	a := addon{APIVersion: "podo.dev/v1", Kind: "Addon"}
	a.Metadata.Name = name
	return a
}

// addonName is what a file's addon is called: its path without ".yaml", if that can be
// the name of an object and is no other file's.
func addonName(path string, own []string) string {
	name := strings.TrimSuffix(path, ".yaml")
	if len(validation.IsDNS1123Subdomain(name)) == 0 && !slices.Contains(own, name) {
		return name
	}
	near := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '.':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		case r == '/':
			return '.'
		}
		return '-'
	}, name)
	sum := sha256.Sum256([]byte(path))
	near = strings.Trim(near[:min(len(near), 200)], "-.")
	for _, twice := range []string{"..", ".-", "-."} {
		near = strings.ReplaceAll(near, twice, "-")
	}
	return strings.TrimLeft(near+"-"+hex.EncodeToString(sum[:4]), "-")
}

// baseName is what --disable calls a file.
func baseName(path string) string {
	return strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
}

// addons are the cluster's.
type addons struct {
	client dynamic.NamespaceableResourceInterface
	stored map[string]addon // as they were last read or written
}

func newAddons(client dynamic.Interface) *addons {
	kind := schema.GroupVersionResource{Group: "podo.dev", Version: "v1", Resource: "addons"}
	return &addons{client: client.Resource(kind), stored: map[string]addon{}}
}

// load reads all. Before the first start of a cluster there are none.
func (a *addons) load(ctx context.Context) error {
	list, err := a.client.List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list addons: %w", err)
	}
	for _, o := range list.Items {
		var found addon
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &found); err != nil {
			return fmt.Errorf("addon %s: %w", o.GetName(), err)
		}
		a.stored[o.GetName()] = found
	}
	return nil
}

// save writes an addon, unless it is stored as it is. At the first start it waits for
// the API server to know the kind.
func (a *addons) save(ctx context.Context, want addon) (addon, error) {
	want.Status.Count = len(want.Status.Objects)
	name := want.Metadata.Name
	if old, ok := a.stored[name]; ok && reflect.DeepEqual(old.Spec, want.Spec) && reflect.DeepEqual(old.Status, want.Status) {
		return old, nil
	}
	want.Metadata.UID = ""
	text, err := json.Marshal(want)
	if err != nil {
		return want, err
	}
	var written *unstructured.Unstructured
	for until := time.Now().Add(2 * time.Second); ; pauseFor(ctx, 20*time.Millisecond) {
		written, err = a.client.Patch(ctx, name, types.ApplyPatchType, text, metav1.PatchOptions{FieldManager: fieldManager, Force: ptr.To(true)})
		if !apierrors.IsNotFound(err) || ctx.Err() != nil || time.Now().After(until) {
			break
		}
	}
	if err != nil {
		return want, fmt.Errorf("note what was deployed: %w", err)
	}
	want.Metadata.UID = written.GetUID()
	a.stored[name] = want
	return want, nil
}

// forget deletes an addon.
func (a *addons) forget(ctx context.Context, name string) error {
	if err := a.client.Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("addon %s: %w", name, err)
	}
	delete(a.stored, name)
	return nil
}
