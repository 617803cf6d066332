package loadbalancer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/plan"
)

// finalizer keeps a Service until its addresses have been withdrawn.
const finalizer = "service.kubernetes.io/load-balancer-cleanup"

// gather is how long news are waited for before they are acted upon together, and
// retry how long it takes to try again what failed.
const (
	gather = 50 * time.Millisecond
	retry  = 2 * time.Second
)

// Controller keeps the status of Services of type LoadBalancer.
type Controller struct {
	ports  plan.LoadBalancer
	client func() (*rest.Config, error)
	log    *slog.Logger
}

// New returns a controller, of which one may run in a cluster.
func New(p plan.LoadBalancer, client func() (*rest.Config, error), log *slog.Logger) *Controller {
	return &Controller{ports: p, client: client, log: log.With("component", "load-balancer")}
}

// Name is the component's name.
func (c *Controller) Name() string { return "load-balancer" }

// Run publishes and withdraws addresses until ctx ends. What is published then stays.
func (c *Controller) Run(ctx context.Context, ready func()) error {
	rc, err := c.client()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return err
	}
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})

	news := make(chan struct{}, 1)
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(essence))
	w := &worker{
		Controller: c,
		services:   client.CoreV1(),
		events:     broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "podo-" + c.Name()}),
		factory:    factory,
	}
	core := factory.Core().V1()
	for _, i := range []cache.SharedIndexInformer{
		core.Services().Informer(), core.Nodes().Informer(), core.Pods().Informer(), factory.Discovery().V1().EndpointSlices().Informer(),
	} {
		if _, err := i.AddEventHandler(tell(news)); err != nil {
			return err
		}
	}
	factory.StartWithContext(ctx)
	defer factory.Shutdown()
	factory.WaitForCacheSyncWithContext(ctx)
	if ctx.Err() != nil {
		return nil
	}
	ready()
	return w.work(ctx, news)
}

// tell passes on that something has changed that matters.
func tell(news chan<- struct{}) cache.ResourceEventHandler {
	send := func() {
		select {
		case news <- struct{}{}:
		default: // as many as are not yet acted upon are one
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) {
			if matters(o) {
				send()
			}
		},
		UpdateFunc: func(was, is any) {
			if (matters(was) || matters(is)) && !same(was, is) {
				send()
			}
		},
		DeleteFunc: func(any) { send() },
	}
}

// matters is false for a pod that has no port of its node.
func matters(o any) bool {
	p, pod := o.(*corev1.Pod)
	return !pod || len(p.Spec.Containers) > 0
}

// same reports whether two versions of an object have the same essence.
func same(was, is any) bool {
	a, b := was.(runtime.Object).DeepCopyObject(), is.(runtime.Object).DeepCopyObject()
	for _, o := range []runtime.Object{a, b} {
		if m, err := meta.Accessor(o); err == nil {
			m.SetResourceVersion("")
		}
	}
	return equality.Semantic.DeepEqual(a, b)
}

// essence keeps of an object what Decide asks for; the rest would be memory, and
// would wake the controller when it changes.
func essence(object any) (any, error) {
	switch o := object.(type) {
	case *corev1.Service:
		o.ManagedFields, o.Annotations = nil, nil
	case *corev1.Node:
		return &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion, Labels: o.Labels, DeletionTimestamp: o.DeletionTimestamp,
				Annotations: map[string]string{portsAnnotation: o.Annotations[portsAnnotation]}},
			Status: corev1.NodeStatus{
				Addresses:       o.Status.Addresses,
				DaemonEndpoints: o.Status.DaemonEndpoints,
				Conditions:      []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready(o)}},
			},
		}, nil
	case *corev1.Pod:
		kept := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion}}
		for _, list := range [][]corev1.Container{o.Spec.Containers, o.Spec.InitContainers} {
			for _, c := range list {
				if slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.HostPort != 0 }) {
					kept.Spec.NodeName, kept.Status.Phase = o.Spec.NodeName, o.Status.Phase
					kept.Spec.Containers = append(kept.Spec.Containers, corev1.Container{Ports: c.Ports})
				}
			}
		}
		return kept, nil
	case *discoveryv1.EndpointSlice:
		kept := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{
			Namespace: o.Namespace, Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion,
			Labels: map[string]string{discoveryv1.LabelServiceName: o.Labels[discoveryv1.LabelServiceName]},
		}}
		for _, e := range o.Endpoints {
			kept.Endpoints = append(kept.Endpoints, discoveryv1.Endpoint{NodeName: e.NodeName, Conditions: discoveryv1.EndpointConditions{Ready: e.Conditions.Ready}})
		}
		return kept, nil
	}
	return object, nil
}

// worker is a Controller that runs.
type worker struct {
	*Controller
	services typedcorev1.ServicesGetter
	events   record.EventRecorder
	factory  informers.SharedInformerFactory
}

func (w *worker) work(ctx context.Context, news <-chan struct{}) error {
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-news:
		case <-again:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(gather):
		}
		again = nil
		if err := w.settle(ctx); err != nil && ctx.Err() == nil {
			w.log.Warn("services not settled, trying again", "in", retry, "err", err)
			again = time.After(retry)
		}
	}
}

// settle makes every Service's status what it ought to be.
func (w *worker) settle(ctx context.Context) error {
	c, err := w.cluster()
	if err != nil {
		return err
	}
	var errs []error
	for _, v := range Decide(c) {
		errs = append(errs, w.publish(ctx, v))
	}
	for _, s := range c.Services {
		if !Ours(s) && marked(s) {
			errs = append(errs, withdraw(ctx, w.services, s))
		}
	}
	return errors.Join(errs...)
}

func (w *worker) cluster() (Cluster, error) {
	core, all := w.factory.Core().V1(), labels.Everything()
	c := Cluster{Ports: w.ports}
	var errs [4]error
	c.Services, errs[0] = core.Services().Lister().List(all)
	c.Nodes, errs[1] = core.Nodes().Lister().List(all)
	c.Pods, errs[2] = core.Pods().Lister().List(all)
	c.Slices, errs[3] = w.factory.Discovery().V1().EndpointSlices().Lister().List(all)
	return c, errors.Join(errs[:]...)
}

// publish writes a verdict, if it is not there yet, and says in an event what is new.
func (w *worker) publish(ctx context.Context, v Verdict) error {
	old := v.Service.Status
	status := *old.DeepCopy()
	status.LoadBalancer.Ingress = v.Ingress
	meta.SetStatusCondition(&status.Conditions, metav1.Condition{Type: Condition, Status: v.Status, Reason: v.Reason, Message: v.Message})
	held := slices.Contains(v.Service.Finalizers, finalizer)
	if held && equality.Semantic.DeepEqual(old, status) {
		return nil
	}
	finalizers := v.Service.Finalizers
	if !held {
		finalizers = append(slices.Clone(finalizers), finalizer)
	}
	if err := write(ctx, w.services, v.Service, finalizers, status); err != nil {
		return err
	}
	if was := meta.FindStatusCondition(old.Conditions, Condition); was == nil || was.Reason != v.Reason || was.Message != v.Message {
		kind := corev1.EventTypeNormal
		if v.Reason != reasonPublished {
			kind = corev1.EventTypeWarning
		}
		w.events.Event(v.Service, kind, v.Reason, v.Message)
	}
	return nil
}

// marked reports whether this package has written something into a Service.
func marked(s *corev1.Service) bool {
	return meta.FindStatusCondition(s.Status.Conditions, Condition) != nil
}

// withdraw takes out of a Service what this package has written into it, and lets it
// go if it is to be deleted.
func withdraw(ctx context.Context, client typedcorev1.ServicesGetter, s *corev1.Service) error {
	status := *s.Status.DeepCopy()
	status.LoadBalancer = corev1.LoadBalancerStatus{}
	meta.RemoveStatusCondition(&status.Conditions, Condition)
	return write(ctx, client, s, slices.DeleteFunc(slices.Clone(s.Finalizers), func(f string) bool { return f == finalizer }), status)
}

// write changes a Service that is still as it was seen. If it is not, news of it are
// on their way.
func write(ctx context.Context, client typedcorev1.ServicesGetter, s *corev1.Service, finalizers []string, status corev1.ServiceStatus) error {
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": s.ResourceVersion, "uid": s.UID, "finalizers": finalizers},
		"status":   map[string]any{"loadBalancer": map[string]any{"ingress": status.LoadBalancer.Ingress}, "conditions": status.Conditions},
	})
	if err != nil {
		return err
	}
	_, err = client.Services(s.Namespace).Patch(ctx, s.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "podo-load-balancer"}, "status")
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("service %s/%s: %w", s.Namespace, s.Name, err)
	}
	return nil
}

// Remove returns a component that withdraws every address that a Controller published
// in this cluster, and then idles.
func Remove(client func() (*rest.Config, error), log *slog.Logger) lifecycle.Component {
	return lifecycle.Task("load-balancer", func(ctx context.Context) error {
		rc, err := client()
		if err != nil {
			return err
		}
		api, err := kubernetes.NewForConfig(rc)
		if err != nil {
			return err
		}
		for {
			err := removeAll(ctx, api)
			if err == nil || ctx.Err() != nil {
				return nil
			}
			log.Warn("addresses not withdrawn, trying again", "component", "load-balancer", "in", retry, "err", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(retry):
			}
		}
	})
}

func removeAll(ctx context.Context, api kubernetes.Interface) error {
	list, err := api.CoreV1().Services(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	var errs []error
	for i := range list.Items {
		if s := &list.Items[i]; marked(s) {
			errs = append(errs, withdraw(ctx, api.CoreV1(), s))
		}
	}
	return errors.Join(errs...)
}
