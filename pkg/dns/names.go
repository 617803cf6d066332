// Package dns tells CoreDNS what the cluster's nodes are called.
//
// CoreDNS answers for what stands in the key NodeHosts of its ConfigMap, one line for
// each address of each node, as in a hosts file. That key belongs to this package, and the
// rest of the ConfigMap to its manifest. Where there is no such ConfigMap none is made:
// people may run a DNS of their own.
package dns

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

const (
	settings = "coredns" // the ConfigMap
	key      = "NodeHosts"
	retry    = 2 * time.Second
)

// Names keeps the nodes' names in the ConfigMap until ctx ends. One server of a cluster is
// to do that at a time. An error means that there is no way to ask the API.
func Names(ctx context.Context, config func() (*rest.Config, error), log *slog.Logger) error {
	rc, err := config()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return err
	}
	all := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(essence))
	one := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(metav1.NamespaceSystem), informers.WithTransform(essence),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, settings).String()
		}))
	w := &writer{client: client, nodes: all.Core().V1().Nodes().Lister(), settings: one.Core().V1().ConfigMaps().Lister()}
	news := make(chan struct{}, 1)
	for _, i := range []cache.SharedIndexInformer{all.Core().V1().Nodes().Informer(), one.Core().V1().ConfigMaps().Informer()} {
		if _, err := i.AddEventHandler(tell(news)); err != nil {
			return err
		}
	}
	for _, f := range []informers.SharedInformerFactory{all, one} {
		f.StartWithContext(ctx)
		defer f.Shutdown()
	}
	all.WaitForCacheSyncWithContext(ctx)
	one.WaitForCacheSyncWithContext(ctx)
	for again := (<-chan time.Time)(nil); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-news:
		case <-again:
		}
		again = nil
		if err := w.write(ctx); err != nil && ctx.Err() == nil {
			log.Warn("names of nodes not told to CoreDNS, trying again", "component", "dns", "in", retry, "err", err)
			again = time.After(retry)
		}
	}
}

// tell passes on that something has changed. As many as are not yet acted upon are one.
func tell(news chan<- struct{}) cache.ResourceEventHandler {
	send := func() {
		select {
		case news <- struct{}{}:
		default:
		}
	}
	return cache.ResourceEventHandlerFuncs{AddFunc: func(any) { send() }, UpdateFunc: func(_, _ any) { send() }, DeleteFunc: func(any) { send() }}
}

// essence keeps of an object what is asked for here; the rest would be memory.
func essence(object any) (any, error) {
	switch o := object.(type) {
	case *corev1.Node:
		return &corev1.Node{ObjectMeta: bare(o.ObjectMeta), Status: corev1.NodeStatus{Addresses: o.Status.Addresses}}, nil
	case *corev1.ConfigMap:
		kept := &corev1.ConfigMap{ObjectMeta: bare(o.ObjectMeta)}
		if text, ok := o.Data[key]; ok {
			kept.Data = map[string]string{key: text}
		}
		return kept, nil
	}
	return object, nil
}

func bare(m metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion}
}

type writer struct {
	client   kubernetes.Interface
	nodes    listers.NodeLister
	settings listers.ConfigMapLister
}

// write makes the key what it ought to be, if there is a ConfigMap to have it.
func (w *writer) write(ctx context.Context) error {
	m, err := w.settings.ConfigMaps(metav1.NamespaceSystem).Get(settings)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	nodes, err := w.nodes.List(labels.Everything())
	if err != nil {
		return err
	}
	text := hosts(nodes)
	if was, ok := m.Data[key]; ok && was == text {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": m.UID}, "data": map[string]string{key: text}})
	if err != nil {
		return err
	}
	_, err = w.client.CoreV1().ConfigMaps(m.Namespace).Patch(ctx, m.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "podo-dns"})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) { // news of those are on their way
		return fmt.Errorf("configmap %s/%s: %w", m.Namespace, m.Name, err)
	}
	return nil
}

// hosts is a hosts file with the nodes, in the order of their names.
func hosts(nodes []*corev1.Node) string {
	nodes = slices.Clone(nodes)
	slices.SortFunc(nodes, func(a, b *corev1.Node) int { return strings.Compare(a.Name, b.Name) })
	var text strings.Builder
	for _, n := range nodes {
		for _, a := range n.Status.Addresses {
			// A node says itself what its addresses are, and a zone may be any text.
			ip, err := netip.ParseAddr(a.Address)
			if err == nil && ip.Zone() == "" && a.Type == corev1.NodeInternalIP {
				fmt.Fprintf(&text, "%s %s\n", ip, n.Name)
			}
		}
	}
	return text.String()
}
