// Package deploy applies the binary's own manifests to the cluster.
//
// Objects are written by server-side apply under podo's own field manager, so that
// what somebody else set on them stays. A manifest that was switched off has its
// objects deleted. It talks to the API and to nothing else.
package deploy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/utils/ptr"

	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/plan"
)

// fieldManager is whom the API server names as the owner of what is applied here.
const fieldManager = "podo"

// New returns a component that applies p's manifests out of files, tries again
// whatever fails, and then idles. Further values for ${NAME} come from more, which
// is called once the component runs.
func New(p plan.Addons, files fs.FS, client func() (*rest.Config, error), more func() (map[string]string, error), log *slog.Logger) lifecycle.Component {
	return lifecycle.Task("addons", func(ctx context.Context) error {
		values, err := more()
		if err != nil {
			return err
		}
		rc, err := client()
		if err != nil {
			return err
		}
		d, err := newDeployer(rc)
		if err != nil {
			return err
		}
		fill := func(name string) (string, bool) {
			if v, ok := values[name]; ok {
				return v, true
			}
			v, ok := p.Values[name]
			return v, ok
		}
		type job struct {
			name string
			do   func(context.Context, []*unstructured.Unstructured) error
		}
		var jobs []job
		for _, name := range p.Enabled {
			jobs = append(jobs, job{name, d.apply})
		}
		for _, name := range p.Disabled {
			jobs = append(jobs, job{name, d.remove})
		}
		for _, j := range jobs {
			text, err := fs.ReadFile(files, j.name+".yaml")
			if err != nil {
				return err
			}
			objects, err := Read(text, fill)
			if err != nil {
				return fmt.Errorf("manifest %s: %w", j.name, err)
			}
			if err := persist(ctx, log.With("manifest", j.name), func() error { return j.do(ctx, objects) }); err != nil {
				return nil // only a stop ends the tries
			}
		}
		return nil
	})
}

// persist calls do until it succeeds, ever more rarely, or until ctx ends.
func persist(ctx context.Context, log *slog.Logger, do func() error) error {
	for pause := 200 * time.Millisecond; ; pause = min(2*pause, 30*time.Second) {
		err := do()
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		log.Warn("manifest not applied, trying again", "in", pause, "err", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// Read decodes the documents of a manifest after filling in each ${NAME}. A name
// without a value is an error.
func Read(text []byte, fill func(name string) (string, bool)) ([]*unstructured.Unstructured, error) {
	text, err := expand(text, fill)
	if err != nil {
		return nil, err
	}
	var out []*unstructured.Unstructured
	for docs := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096); ; {
		o := &unstructured.Unstructured{}
		err := docs.Decode(&o.Object)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", len(out)+1, err)
		}
		if len(o.Object) > 0 {
			out = append(out, o)
		}
	}
}

func expand(text []byte, fill func(string) (string, bool)) ([]byte, error) {
	var out bytes.Buffer
	for {
		before, rest, found := bytes.Cut(text, []byte("${"))
		out.Write(before)
		if !found {
			return out.Bytes(), nil
		}
		name, after, closed := bytes.Cut(rest, []byte("}"))
		value, known := fill(string(name))
		if !closed || !known {
			return nil, fmt.Errorf("no value for ${%s}", strings.TrimSpace(string(name)))
		}
		out.WriteString(value)
		text = after
	}
}

type deployer struct {
	client dynamic.Interface
	mapper *restmapper.DeferredDiscoveryRESTMapper
}

func newDeployer(rc *rest.Config) (*deployer, error) {
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
	return &deployer{client, restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(disco))}, nil
}

func (d *deployer) resource(o *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	gvk := o.GroupVersionKind()
	m, err := d.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		d.mapper.Reset() // the kind may be new
		return nil, err
	}
	if ns := o.GetNamespace(); ns != "" {
		return d.client.Resource(m.Resource).Namespace(ns), nil
	}
	return d.client.Resource(m.Resource), nil
}

func (d *deployer) apply(ctx context.Context, objects []*unstructured.Unstructured) error {
	for _, o := range objects {
		r, err := d.resource(o)
		if err != nil {
			return named(o, err)
		}
		text, err := json.Marshal(o)
		if err != nil {
			return named(o, err)
		}
		_, err = r.Patch(ctx, o.GetName(), types.ApplyPatchType, text,
			metav1.PatchOptions{FieldManager: fieldManager, Force: ptr.To(true)})
		if apierrors.IsInvalid(err) && o.GetKind() == "Service" {
			err = errors.Join(err, d.release(ctx, o, r))
		}
		if err != nil {
			return named(o, err)
		}
	}
	return nil
}

// release gives back the addresses that were set aside for a Service that never came to
// be: the API server was killed between the two. Its own repair takes minutes.
func (d *deployer) release(ctx context.Context, service *unstructured.Unstructured, r dynamic.ResourceInterface) error {
	if _, err := r.Get(ctx, service.GetName(), metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		return err
	}
	addresses := d.client.Resource(schema.GroupVersionResource{Group: "networking.k8s.io", Version: "v1", Resource: "ipaddresses"})
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

func (d *deployer) remove(ctx context.Context, objects []*unstructured.Unstructured) error {
	for _, o := range slices.Backward(objects) {
		r, err := d.resource(o)
		if err != nil {
			return named(o, err)
		}
		// People may have put their own in its place under the same name.
		found, err := r.Get(ctx, o.GetName(), metav1.GetOptions{})
		if apierrors.IsNotFound(err) || err == nil && !ours(found) {
			continue
		}
		if err != nil {
			return named(o, err)
		}
		err = r.Delete(ctx, o.GetName(), metav1.DeleteOptions{PropagationPolicy: ptr.To(metav1.DeletePropagationBackground)})
		if err != nil && !apierrors.IsNotFound(err) {
			return named(o, err)
		}
	}
	return nil
}

// ours reports whether podo applied this object.
func ours(o *unstructured.Unstructured) bool {
	return slices.ContainsFunc(o.GetManagedFields(), func(f metav1.ManagedFieldsEntry) bool {
		return f.Manager == fieldManager && f.Operation == metav1.ManagedFieldsOperationApply
	})
}

func named(o *unstructured.Unstructured, err error) error {
	return fmt.Errorf("%s %s: %w", o.GetKind(), strings.TrimPrefix(o.GetNamespace()+"/"+o.GetName(), "/"), err)
}
