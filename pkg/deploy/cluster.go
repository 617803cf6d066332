package deploy

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/utils/ptr"
)

const (
	// fieldManager is whom the API server names as the owner of what is applied here.
	fieldManager = "podo"

	// keepAnnotation on an object, with the value "true", has it stay when its file
	// no longer names it.
	keepAnnotation = "podo.dev/keep"
)

// cluster applies and deletes objects.
type cluster struct {
	client dynamic.Interface
	mapper *restmapper.DeferredDiscoveryRESTMapper
}

func newCluster(rc *rest.Config) (*cluster, error) {
	rc = rest.CopyConfig(rc)
	rc.ContentType, rc.AcceptContentTypes = "", "" // apply patches have no protobuf form
	client, err := dynamic.NewForConfig(rc)
	if err != nil {
		return nil, err
	}
	disco, err := discovery.NewDiscoveryClientForConfig(rc)
	if err != nil {
		return nil, err
	}
	return &cluster{client, restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(disco))}, nil
}

// resource is where an object is, with its namespace: the one it names, the default
// one, or none if the kind has none.
func (c *cluster) resource(r reference) (dynamic.ResourceInterface, string, error) {
	gvk := schema.FromAPIVersionAndKind(r.APIVersion, r.Kind)
	m, err := c.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		c.mapper.Reset() // the kind may be new
		return nil, "", err
	}
	if m.Scope.Name() != meta.RESTScopeNameNamespace {
		return c.client.Resource(m.Resource), "", nil
	}
	ns := cmp.Or(r.Namespace, defaultNamespace)
	return c.client.Resource(m.Resource).Namespace(ns), ns, nil
}

// kinds are those that CustomResourceDefinitions among objects define, with whether
// they have namespaces.
func kinds(objects []object) map[schema.GroupKind]bool {
	out := map[schema.GroupKind]bool{}
	for _, o := range objects {
		if refer(o).groupKind() == (schema.GroupKind{Group: "apiextensions.k8s.io", Kind: "CustomResourceDefinition"}) {
			group, _, _ := unstructured.NestedString(o.Object, "spec", "group")
			kind, _, _ := unstructured.NestedString(o.Object, "spec", "names", "kind")
			scope, _, _ := unstructured.NestedString(o.Object, "spec", "scope")
			out[schema.GroupKind{Group: group, Kind: kind}] = scope == "Namespaced"
		}
	}
	return out
}

// locate gives each object its namespace. One of a kind that neither the cluster nor
// the objects themselves define is left as it is, for apply to complain.
func (c *cluster) locate(objects []object) {
	fresh := kinds(objects)
	for _, o := range objects {
		r := refer(o)
		if namespaced, ok := fresh[r.groupKind()]; ok {
			o.SetNamespace(r.Namespace)
			if namespaced {
				o.SetNamespace(cmp.Or(r.Namespace, defaultNamespace))
			} else {
				o.SetNamespace("")
			}
			continue
		}
		if _, ns, err := c.resource(r); err == nil {
			o.SetNamespace(ns)
		}
	}
}

// apply writes objects in their order. One that fails does not keep the others from
// being tried; the error is of the first.
func (c *cluster) apply(ctx context.Context, objects []object) error {
	fresh := kinds(objects)
	var first error
	failures := 0
	for _, o := range objects {
		err := c.applyOne(ctx, o, fresh)
		if err == nil {
			continue
		}
		if failures++; first == nil {
			first = fmt.Errorf("%s: %s: %w", o.place, refer(o), err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	if failures > 1 {
		return fmt.Errorf("%w (and %d more)", first, failures-1)
	}
	return first
}

func (c *cluster) applyOne(ctx context.Context, o object, fresh map[schema.GroupKind]bool) error {
	r, _, err := c.resource(refer(o))
	if _, ok := fresh[refer(o).groupKind()]; ok {
		// A kind is served a moment after its definition was written.
		for until := time.Now().Add(5 * time.Second); err != nil && time.Now().Before(until) && ctx.Err() == nil; {
			pauseFor(ctx, 100*time.Millisecond)
			r, _, err = c.resource(refer(o))
		}
	}
	if meta.IsNoMatchError(err) {
		return fmt.Errorf("the cluster has no such kind in %s", o.GetAPIVersion())
	}
	if err != nil {
		return err
	}
	text, err := json.Marshal(o.Unstructured)
	if err != nil {
		return err
	}
	written, err := r.Patch(ctx, o.GetName(), types.ApplyPatchType, text,
		metav1.PatchOptions{FieldManager: fieldManager, Force: ptr.To(true)})
	if err == nil && written.GetDeletionTimestamp() != nil {
		return errors.New("it is being deleted, and made anew once it is gone")
	}
	if apierrors.IsInvalid(err) && o.GetKind() == "Service" {
		err = errors.Join(err, c.release(ctx, o.Unstructured, r))
	}
	return err
}

// release gives back the addresses that were set aside for a Service that never came to
// be: the API server was killed between the two. Its own repair takes minutes.
func (c *cluster) release(ctx context.Context, service *unstructured.Unstructured, r dynamic.ResourceInterface) error {
	if _, err := r.Get(ctx, service.GetName(), metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		return err
	}
	addresses := c.client.Resource(schema.GroupVersionResource{Group: "networking.k8s.io", Version: "v1", Resource: "ipaddresses"})
	wanted, _, err := unstructured.NestedStringSlice(service.Object, "spec", "clusterIPs")
	if err != nil {
		return err
	}
	for _, ip := range wanted {
		a, err := addresses.Get(ctx, ip, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		owner, _, err := unstructured.NestedStringMap(a.Object, "spec", "parentRef")
		if err != nil || owner["resource"] != "services" || owner["namespace"] != service.GetNamespace() || owner["name"] != service.GetName() {
			continue // somebody else's
		}
		uid := a.GetUID()
		err = addresses.Delete(ctx, ip, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// remove deletes what podo applied, and returns what is still there: an object may take
// its time to go. Namespaces and kinds go once nothing else is left, since whatever is
// in them goes too.
func (c *cluster) remove(ctx context.Context, refs []reference) (left []reference, err error) {
	for _, late := range []bool{false, true} {
		if late && len(left) > 0 {
			return append(left, slices.DeleteFunc(slices.Clone(refs), func(r reference) bool { return !holds(r.groupKind()) })...), err
		}
		for _, r := range slices.Backward(refs) {
			if holds(r.groupKind()) != late {
				continue
			}
			gone, fault := c.removeOne(ctx, r)
			if !gone {
				left = append(left, r)
			}
			if fault != nil && err == nil {
				err = fmt.Errorf("delete %s: %w", r, fault)
			}
		}
	}
	return left, err
}

func (c *cluster) removeOne(ctx context.Context, ref reference) (gone bool, err error) {
	r, _, err := c.resource(ref)
	if meta.IsNoMatchError(err) {
		return true, nil // and with the kind all objects of it
	}
	if err != nil {
		return false, err
	}
	found, err := r.Get(ctx, ref.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return true, nil
	case err != nil:
		return false, err
	case found.GetDeletionTimestamp() != nil:
		return false, nil
	case !ours(found), found.GetAnnotations()[keepAnnotation] == "true", isSystemNamespace(ref):
		return true, nil
	}
	uid := found.GetUID()
	err = r.Delete(ctx, ref.Name, metav1.DeleteOptions{
		PropagationPolicy: ptr.To(metav1.DeletePropagationBackground),
		Preconditions:     &metav1.Preconditions{UID: &uid},
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return false, err
	}
	_, err = r.Get(ctx, ref.Name, metav1.GetOptions{})
	return apierrors.IsNotFound(err), nil
}

// ours reports whether podo applied this object: people may have put their own in its
// place under the same name.
func ours(o *unstructured.Unstructured) bool {
	return slices.ContainsFunc(o.GetManagedFields(), func(f metav1.ManagedFieldsEntry) bool {
		return f.Manager == fieldManager && f.Operation == metav1.ManagedFieldsOperationApply
	})
}

// isSystemNamespace tells the namespaces that every cluster begins with.
func isSystemNamespace(r reference) bool {
	return r.groupKind() == schema.GroupKind{Kind: "Namespace"} &&
		slices.Contains([]string{"default", "kube-system", "kube-public", "kube-node-lease"}, r.Name)
}
