package metrics

import (
	"context"
	"fmt"
	"math"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

// AddToScheme makes the kinds of the metrics API known.
func (s *Server) AddToScheme(scheme *runtime.Scheme) error { return metricsv1beta1.AddToScheme(scheme) }

// Install makes the metrics API part of an API server that does not serve yet.
func (s *Server) Install(api *genericapiserver.GenericAPIServer) error {
	scheme := runtime.NewScheme()
	if err := metricsv1beta1.AddToScheme(scheme); err != nil {
		return err
	}
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	group := genericapiserver.NewDefaultAPIGroupInfo(metricsv1beta1.GroupName, scheme, runtime.NewParameterCodec(scheme), serializer.NewCodecFactory(scheme))
	group.VersionedResourcesStorageMap[metricsv1beta1.SchemeGroupVersion.Version] = map[string]rest.Storage{
		"nodes": &storage{Server: s, kind: kind{
			object:   func() runtime.Object { return &metricsv1beta1.NodeMetrics{} },
			list:     func() runtime.Object { return &metricsv1beta1.NodeMetricsList{} },
			resource: "nodes",
			measure:  s.measureNode,
		}},
		"pods": &storage{Server: s, kind: kind{
			object:     func() runtime.Object { return &metricsv1beta1.PodMetrics{} },
			list:       func() runtime.Object { return &metricsv1beta1.PodMetricsList{} },
			resource:   "pods",
			namespaced: true,
			measure:    s.measurePod,
		}},
	}
	return api.InstallAPIGroup(&group)
}

// kind is one of the two resources of the API.
type kind struct {
	object, list func() runtime.Object
	resource     string // of the objects that are measured
	namespaced   bool
	measure      func(*metav1.PartialObjectMetadata) runtime.Object // nil if too little is known
}

// storage answers questions about one kind.
type storage struct {
	*Server
	kind
}

var (
	_ rest.Storage              = (*storage)(nil)
	_ rest.Getter               = (*storage)(nil)
	_ rest.Lister               = (*storage)(nil)
	_ rest.Scoper               = (*storage)(nil)
	_ rest.SingularNameProvider = (*storage)(nil)
)

func (s *storage) New() runtime.Object     { return s.object() }
func (s *storage) NewList() runtime.Object { return s.list() }
func (s *storage) Destroy()                {}
func (s *storage) NamespaceScoped() bool   { return s.namespaced }

// GetSingularName is empty, lest "node" be taken for this.
func (s *storage) GetSingularName() string { return "" }

// Get measures one node or pod.
func (s *storage) Get(ctx context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	client, err := s.client()
	if err != nil {
		return nil, apierrors.NewServiceUnavailable(err.Error())
	}
	o, err := client.Resource(corev1.SchemeGroupVersion.WithResource(s.resource)).Namespace(request.NamespaceValue(ctx)).
		Get(ctx, name, metav1.GetOptions{ResourceVersion: "0"})
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, err
	}
	if err == nil {
		if m := s.measure(o); m != nil {
			return m, nil
		}
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Group: metricsv1beta1.GroupName, Resource: s.resource}, name)
}

// List measures all nodes or pods that are asked for.
func (s *storage) List(ctx context.Context, options *internalversion.ListOptions) (runtime.Object, error) {
	client, err := s.client()
	if err != nil {
		return nil, apierrors.NewServiceUnavailable(err.Error())
	}
	query := metav1.ListOptions{ResourceVersion: "0"} // from memory
	if options != nil && options.LabelSelector != nil {
		query.LabelSelector = options.LabelSelector.String()
	}
	if options != nil && options.FieldSelector != nil {
		query.FieldSelector = options.FieldSelector.String()
	}
	objects, err := client.Resource(corev1.SchemeGroupVersion.WithResource(s.resource)).Namespace(request.NamespaceValue(ctx)).List(ctx, query)
	if err != nil {
		return nil, err
	}
	var measured []runtime.Object
	for i := range objects.Items {
		if m := s.measure(&objects.Items[i]); m != nil {
			measured = append(measured, m)
		}
	}
	list := s.list()
	if err := meta.SetList(list, measured); err != nil {
		return nil, err
	}
	return list, nil
}

// ConvertToTable is what kubectl get shows.
func (s *storage) ConvertToTable(_ context.Context, object, _ runtime.Object) (*metav1.Table, error) {
	table := &metav1.Table{ColumnDefinitions: []metav1.TableColumnDefinition{
		{Name: "Name", Type: "string", Format: "name"},
		{Name: "CPU", Type: "string"},
		{Name: "Memory", Type: "string"},
		{Name: "Window", Type: "string"},
	}}
	row := func(o runtime.Object) error {
		name, usage, window := "", corev1.ResourceList{}, time.Duration(0)
		switch m := o.(type) {
		case *metricsv1beta1.NodeMetrics:
			name, usage, window = m.Name, m.Usage, m.Window.Duration
		case *metricsv1beta1.PodMetrics:
			name, window = m.Name, m.Window.Duration
			cpu, memory := resource.Quantity{}, resource.Quantity{Format: resource.BinarySI}
			for _, c := range m.Containers {
				cpu.Add(*c.Usage.Cpu())
				memory.Add(*c.Usage.Memory())
			}
			usage = corev1.ResourceList{corev1.ResourceCPU: cpu, corev1.ResourceMemory: memory}
		default:
			return fmt.Errorf("no columns for %T", o)
		}
		table.Rows = append(table.Rows, metav1.TableRow{
			Cells:  []any{name, usage.Cpu().String(), usage.Memory().String(), duration.HumanDuration(window)},
			Object: runtime.RawExtension{Object: o},
		})
		return nil
	}
	if meta.IsListType(object) {
		return table, meta.EachListItem(object, row)
	}
	return table, row(object)
}

func (s *Server) measureNode(o *metav1.PartialObjectMetadata) runtime.Object {
	u, known := s.store.node(o.Name)
	if !known {
		return nil
	}
	return &metricsv1beta1.NodeMetrics{
		ObjectMeta: about(o),
		Timestamp:  metav1.NewTime(u.at),
		Window:     metav1.Duration{Duration: u.window},
		Usage:      quantities(u),
	}
}

func (s *Server) measurePod(o *metav1.PartialObjectMetadata) runtime.Object {
	containers := s.store.pod(types.NamespacedName{Namespace: o.Namespace, Name: o.Name})
	if len(containers) == 0 {
		return nil
	}
	// The pod's time is that of the container that was measured first.
	m := &metricsv1beta1.PodMetrics{ObjectMeta: about(o), Timestamp: metav1.NewTime(containers[0].at), Window: metav1.Duration{Duration: containers[0].window}}
	for _, c := range containers {
		if c.at.Before(m.Timestamp.Time) {
			m.Timestamp, m.Window = metav1.NewTime(c.at), metav1.Duration{Duration: c.window}
		}
		m.Containers = append(m.Containers, metricsv1beta1.ContainerMetrics{Name: c.container, Usage: quantities(c.usage)})
	}
	return m
}

func about(o *metav1.PartialObjectMetadata) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: o.Name, Namespace: o.Namespace, Labels: o.Labels, CreationTimestamp: metav1.Now()}
}

func quantities(u usage) corev1.ResourceList {
	return corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewScaledQuantity(int64(math.Round(u.cores*1e9)), resource.Nano),
		corev1.ResourceMemory: *resource.NewQuantity(int64(u.memory), resource.BinarySI),
	}
}
