package netpol

import (
	"context"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	coreinformers "k8s.io/client-go/informers/core/v1"
	networkinginformers "k8s.io/client-go/informers/networking/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// cluster is what policies are made of. Its pods have addresses of their own.
type cluster struct {
	Policies   []*networkingv1.NetworkPolicy `json:"policies,omitempty"`
	Namespaces map[string]labels.Set         `json:"namespaces,omitempty"` // labels, by name
	Pods       []pod                         `json:"pods,omitempty"`
}

// A pod is what policies have to know of one.
type pod struct {
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	UID       string       `json:"uid"`
	Labels    labels.Set   `json:"labels,omitempty"`
	Addrs     []netip.Addr `json:"addrs,omitempty"`
	Ports     []namedPort  `json:"ports,omitempty"`
}

type namedPort struct {
	Name     string `json:"name"`
	Protocol string `json:"protocol"`
	Number   uint16 `json:"number"`
}

// with has what the container engine says of this node's pods laid over what the
// cluster says: it knows their addresses earlier. Which of the result are this node's
// is said by the addresses of own.
func (c cluster) with(own []pod) []pod {
	here := map[string]int{}
	for i, p := range own {
		here[p.UID] = i
	}
	out := slices.Clone(own)
	for _, p := range c.Pods {
		if i, ok := here[p.UID]; ok {
			out[i].Labels, out[i].Ports = p.Labels, p.Ports
		} else {
			out = append(out, p)
		}
	}
	return out
}

// source watches the cluster.
type source struct {
	poke       func()
	policies   cache.SharedIndexInformer
	namespaces cache.SharedIndexInformer
	pods       cache.SharedIndexInformer
	all        sync.Once
}

// newSource calls poke whenever something has changed that matters.
func newSource(client kubernetes.Interface, poke func()) *source {
	s := &source{
		poke:       poke,
		policies:   networkinginformers.NewNetworkPolicyInformer(client, metav1.NamespaceAll, 0, nil),
		namespaces: coreinformers.NewNamespaceInformer(client, 0, nil),
		pods: coreinformers.NewFilteredPodInformer(client, metav1.NamespaceAll, 0, nil, func(o *metav1.ListOptions) {
			o.FieldSelector = "spec.hostNetwork=false,status.phase!=Succeeded,status.phase!=Failed"
		}),
	}
	return s
}

func (s *source) watchPolicies(ctx context.Context) { s.watch(ctx, s.policies) }

// watchAll also watches namespaces and pods, from the first call on.
func (s *source) watchAll(ctx context.Context) {
	s.all.Do(func() {
		s.watch(ctx, s.namespaces)
		s.watch(ctx, s.pods)
	})
}

// settling is how long a node of a new cluster may have to wait for its permissions,
// which are an addon.
const settling = 30 * time.Second

func (s *source) watch(ctx context.Context, i cache.SharedIndexInformer) {
	// None of these calls fails before the informer runs.
	_ = i.SetTransform(essence)
	began := time.Now()
	_ = i.SetWatchErrorHandlerWithContext(func(ctx context.Context, r *cache.Reflector, err error) {
		if !apierrors.IsForbidden(err) || time.Since(began) > settling {
			cache.DefaultWatchErrorHandler(ctx, r, err)
		}
	})
	_, _ = i.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { s.poke() },
		UpdateFunc: func(old, now any) {
			if !same(old, now) {
				s.poke()
			}
		},
		DeleteFunc: func(any) { s.poke() },
	})
	go i.RunWithContext(ctx)
	go func() {
		if cache.WaitForCacheSync(ctx.Done(), i.HasSynced) {
			s.poke() // also if it holds nothing
		}
	}()
}

func (s *source) hasPolicies() bool {
	return s.policies.HasSynced() && len(s.policies.GetStore().ListKeys()) > 0
}

// cluster is what is known, once that is everything that matters.
func (s *source) cluster() (c cluster, known bool) {
	if !s.policies.HasSynced() {
		return c, false
	}
	for _, o := range s.policies.GetStore().List() {
		c.Policies = append(c.Policies, o.(*networkingv1.NetworkPolicy))
	}
	if len(c.Policies) == 0 {
		return c, true
	}
	if !s.namespaces.HasSynced() || !s.pods.HasSynced() {
		return c, false
	}
	slices.SortFunc(c.Policies, func(a, b *networkingv1.NetworkPolicy) int { return strings.Compare(key(a), key(b)) })
	c.Namespaces = map[string]labels.Set{}
	for _, o := range s.namespaces.GetStore().List() {
		n := o.(*corev1.Namespace)
		c.Namespaces[n.Name] = n.Labels
	}
	for _, o := range s.pods.GetStore().List() {
		c.Pods = append(c.Pods, podOf(o.(*corev1.Pod)))
	}
	slices.SortFunc(c.Pods, func(a, b pod) int { return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name) })
	return c, true
}

func key(o metav1.Object) string { return o.GetNamespace() + "/" + o.GetName() }

// essence is what is kept of an object.
func essence(o any) (any, error) {
	about := func(m metav1.ObjectMeta) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion, Labels: m.Labels}
	}
	switch o := o.(type) {
	case *networkingv1.NetworkPolicy:
		m := about(o.ObjectMeta)
		if text, said := o.Annotations[LogDropped]; said {
			m.Annotations = map[string]string{LogDropped: text}
		}
		return &networkingv1.NetworkPolicy{ObjectMeta: m, Spec: o.Spec}, nil
	case *corev1.Namespace:
		return &corev1.Namespace{ObjectMeta: about(o.ObjectMeta)}, nil
	case *corev1.Pod:
		out := &corev1.Pod{ObjectMeta: about(o.ObjectMeta), Status: corev1.PodStatus{PodIPs: o.Status.PodIPs}}
		for _, c := range slices.Concat(o.Spec.InitContainers, o.Spec.Containers) {
			named := slices.DeleteFunc(slices.Clone(c.Ports), func(p corev1.ContainerPort) bool { return p.Name == "" })
			if len(named) > 0 {
				out.Spec.Containers = append(out.Spec.Containers, corev1.Container{Ports: named})
			}
		}
		return out, nil
	}
	return o, nil
}

// same reports whether two versions of an object differ in nothing that is kept.
func same(old, now any) bool {
	a, ok1 := old.(metav1.Object)
	b, ok2 := now.(metav1.Object)
	if !ok1 || !ok2 || a.GetUID() != b.GetUID() || !reflect.DeepEqual(a.GetLabels(), b.GetLabels()) {
		return false
	}
	switch old := old.(type) {
	case *corev1.Namespace:
		return true
	case *corev1.Pod:
		now := now.(*corev1.Pod)
		return reflect.DeepEqual(old.Spec, now.Spec) && reflect.DeepEqual(old.Status, now.Status)
	}
	return false
}

func podOf(o *corev1.Pod) pod {
	p := pod{Namespace: o.Namespace, Name: o.Name, UID: string(o.UID), Labels: o.Labels}
	for _, ip := range o.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			p.Addrs = append(p.Addrs, a)
		}
	}
	for _, c := range o.Spec.Containers {
		for _, named := range c.Ports {
			p.Ports = append(p.Ports, namedPort{named.Name, protocol(&named.Protocol), uint16(named.ContainerPort)})
		}
	}
	return p
}
