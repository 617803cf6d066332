package volumes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
)

// A Provisioner makes and deletes PersistentVolumes. One of a cluster is at work.
type Provisioner struct {
	client func() (*rest.Config, error)
	log    *slog.Logger
}

// NewProvisioner returns a Provisioner. Client is called once, by Run.
func NewProvisioner(client func() (*rest.Config, error), log *slog.Logger) *Provisioner {
	return &Provisioner{client: client, log: log.With("component", "volume-provisioner")}
}

// Name is the component's name.
func (p *Provisioner) Name() string { return "volume-provisioner" }

// Run grants claims until ctx ends.
func (p *Provisioner) Run(ctx context.Context, ready func()) error {
	rc, err := p.client()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return err
	}
	events, stop := recorder(ctx, client, "podo-volumes")
	defer stop()
	f := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(lean))
	c := &cluster{
		client: client, events: events, log: p.log, queue: newQueue(),
		claims: f.Core().V1().PersistentVolumeClaims().Lister(), volumes: f.Core().V1().PersistentVolumes().Lister(),
		nodes: f.Core().V1().Nodes().Lister(), classes: f.Storage().V1().StorageClasses().Lister(),
	}
	defer c.queue.ShutDown()
	if err := c.follow(f); err != nil {
		return err
	}
	f.StartWithContext(ctx)
	defer f.Shutdown()
	ready()
	f.WaitForCacheSync(ctx.Done())
	go func() {
		<-ctx.Done()
		c.queue.ShutDown()
	}()
	work(ctx, c.queue, c.do) // one after the other, so that no two get one folder
	return nil
}

// cluster is a Provisioner at work.
type cluster struct {
	client  kubernetes.Interface
	events  record.EventRecorder
	log     *slog.Logger
	queue   workqueue.TypedRateLimitingInterface[string]
	claims  listers.PersistentVolumeClaimLister
	volumes listers.PersistentVolumeLister
	nodes   listers.NodeLister
	classes storagelisters.StorageClassLister
}

// Jobs are names of claims with their namespaces, and of volumes with a slash before.
func claimJob(namespace, name string) string { return namespace + "/" + name }
func volumeJob(name string) string           { return "/" + name }

func (c *cluster) follow(f informers.SharedInformerFactory) error {
	return errors.Join(
		onChange(f.Core().V1().PersistentVolumeClaims().Informer(), func(o metav1.Object) {
			c.queue.Add(claimJob(o.GetNamespace(), o.GetName()))
		}),
		onChange(f.Core().V1().PersistentVolumes().Informer(), func(o metav1.Object) {
			c.queue.Add(volumeJob(o.GetName()))
			if ref := o.(*corev1.PersistentVolume).Spec.ClaimRef; ref != nil {
				c.queue.Add(claimJob(ref.Namespace, ref.Name))
			}
		}),
		// Of nodes only the end matters: with them the folders have gone.
		deleted(f.Core().V1().Nodes().Informer(), func() {
			all, _ := c.volumes.List(everything()) // from memory
			for _, pv := range all {
				c.queue.Add(volumeJob(pv.Name))
			}
		}),
	)
}

func deleted(informer cache.SharedIndexInformer, tell func()) error {
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{DeleteFunc: func(any) { tell() }})
	return err
}

// do does what a name in the queue stands for.
func (c *cluster) do(ctx context.Context, job string) error {
	namespace, name, _ := strings.Cut(job, "/")
	if namespace == "" {
		return c.volume(ctx, name)
	}
	claim, err := c.claims.PersistentVolumeClaims(namespace).Get(name)
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return err
	case claim.Spec.VolumeName != "":
		return c.grow(ctx, claim)
	case claim.DeletionTimestamp != nil || claim.Annotations[provisioner] != Driver:
		return nil
	}
	err = c.grant(ctx, claim)
	if err != nil && ctx.Err() == nil {
		c.events.Event(claim, corev1.EventTypeWarning, "ProvisioningFailed", err.Error())
	}
	if errors.Is(err, errElsewhere) && c.elsewhere(claim) {
		return c.reschedule(ctx, claim)
	}
	return err
}

// grant makes the volume of a claim once a node has been chosen for it.
func (c *cluster) grant(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	if _, err := c.volumes.Get(volumeName(claim)); err == nil {
		return nil // it is not bound yet
	}
	if claim.Spec.StorageClassName == nil {
		return nil
	}
	class, err := c.classes.Get(*claim.Spec.StorageClassName)
	if err != nil {
		return err
	}
	if class.Provisioner != Driver {
		return nil // whoever writes claims can say whose they are, and the class says otherwise
	}
	if err := possible(claim, class); err != nil {
		return err
	}
	chosen, ok := claim.Annotations[selectedNode]
	if !ok {
		return nil // it was given back to the scheduler
	}
	node, err := c.nodes.Get(chosen)
	if apierrors.IsNotFound(err) {
		return c.reschedule(ctx, claim)
	}
	if err != nil {
		return err
	}
	pv, root, err := decide(claim, class, node)
	if err != nil {
		return err
	}
	if err := c.free(ctx, pv, node); err != nil {
		return err
	}
	if _, err := c.client.CoreV1().PersistentVolumes().Create(ctx, pv, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	c.log.Info("volume granted", "volume", pv.Name, "claim", claim.Namespace+"/"+claim.Name, "node", node.Name, "path", folderOf(pv))
	c.events.Eventf(claim, corev1.EventTypeNormal, "ProvisioningSucceeded", "volume %s is folder %s of node %s", pv.Name, folderOf(pv), node.Name)
	if !root.Quota {
		c.events.Eventf(claim, corev1.EventTypeNormal, "SizeNotEnforced", "nothing holds the volume to its size: the file system of %s on node %s is not mounted with project quotas", root.Path, node.Name)
	}
	return nil
}

// free reports whether a volume's folder is nobody else's. It asks the API server, as
// what was made a moment ago may not be known here yet.
func (c *cluster) free(ctx context.Context, pv *corev1.PersistentVolume, node *corev1.Node) error {
	others, err := c.client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	roots, _, err := rootsOf(node)
	if err != nil {
		return err
	}
	var paths []string
	for _, r := range roots {
		paths = append(paths, r.Path)
	}
	others.Items = slices.DeleteFunc(others.Items, func(o corev1.PersistentVolume) bool {
		ours := folderOf(&o) != "" && o.Labels[nodeLabel] == node.Name
		return o.Name == pv.Name || !ours && !strange(&o, node, paths...)
	})
	return conflict(folderOf(pv), roots, others.Items)
}

// elsewhere reports whether another node than the one that was chosen has a disk that
// is large enough for a claim.
func (c *cluster) elsewhere(claim *corev1.PersistentVolumeClaim) bool {
	all, err := c.nodes.List(everything())
	return err == nil && slices.ContainsFunc(all, func(n *corev1.Node) bool {
		roots, _, err := rootsOf(n)
		return err == nil && n.Name != claim.Annotations[selectedNode] && slices.ContainsFunc(roots, func(r Root) bool {
			return r.Problem == "" && r.Bytes >= claim.Spec.Resources.Requests.Storage().Value()
		})
	})
}

// reschedule asks the scheduler for another node.
func (c *cluster) reschedule(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"resourceVersion": claim.ResourceVersion, "annotations": map[string]any{selectedNode: nil},
	}})
	if err != nil {
		return err
	}
	_, err = c.client.CoreV1().PersistentVolumeClaims(claim.Namespace).Patch(ctx, claim.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

// volume deletes a volume whose claim has gone, and lets one go whose node has.
func (c *cluster) volume(ctx context.Context, name string) error {
	pv, err := c.volumes.Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil || pv.Annotations[provisionedBy] != Driver {
		return err
	}
	api := c.client.CoreV1().PersistentVolumes()
	if pv.DeletionTimestamp != nil {
		if !slices.Contains(pv.Finalizers, finalizer) || c.alive(ctx, pv.Labels[nodeLabel]) {
			return nil
		}
		c.events.Eventf(pv, corev1.EventTypeWarning, "VolumeFolder", "node %s is no more; if its disk is, the folder %s is left on it", pv.Labels[nodeLabel], folderOf(pv))
		patch := []byte(`{"metadata":{"$deleteFromPrimitiveList/finalizers":["` + finalizer + `"]}}`)
		_, err := api.Patch(ctx, name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
		return ignoreGone(err)
	}
	if pv.Status.Phase != corev1.VolumeReleased || pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete {
		return nil
	}
	if folderOf(pv) == "" {
		c.events.Event(pv, corev1.EventTypeWarning, "VolumeFailedDelete", "podo did not make this volume, and removes nothing that it did not make: remove its folder by hand, then delete the volume")
		return nil
	}
	return ignoreGone(api.Delete(ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pv.UID}}))
}

// alive reports whether the cluster has a node. In doubt it does.
func (c *cluster) alive(ctx context.Context, name string) bool {
	if _, err := c.nodes.Get(name); err == nil {
		return true
	}
	_, err := c.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	return !apierrors.IsNotFound(err)
}

func ignoreGone(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// grow makes a bound volume as large as its claim asks for, and says so on the claim
// once the node holds it to the new size.
func (c *cluster) grow(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	pv, err := c.volumes.Get(claim.Spec.VolumeName)
	if apierrors.IsNotFound(err) || err == nil && (folderOf(pv) == "" || claim.Status.Phase != corev1.ClaimBound || pv.DeletionTimestamp != nil) {
		return nil
	}
	if err != nil {
		return err
	}
	want, has := claim.Spec.Resources.Requests.Storage(), pv.Spec.Capacity.Storage()
	if want.Cmp(*has) > 0 {
		if err := c.fits(claim, pv); err != nil {
			c.events.Event(claim, corev1.EventTypeWarning, "VolumeResizeFailed", err.Error())
			return err
		}
		patch, err := json.Marshal(map[string]any{"spec": map[string]any{"capacity": corev1.ResourceList{corev1.ResourceStorage: *want}}})
		if err != nil {
			return err
		}
		_, err = c.client.CoreV1().PersistentVolumes().Patch(ctx, pv.Name, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	}
	q, said := quotaOf(pv)
	if !said || q.Limit != 0 && q.Limit != size(pv) || claim.Status.Capacity.Storage().Cmp(*has) >= 0 {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"capacity": corev1.ResourceList{corev1.ResourceStorage: *has}}})
	if err != nil {
		return err
	}
	if _, err := c.client.CoreV1().PersistentVolumeClaims(claim.Namespace).Patch(ctx, claim.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
		return err
	}
	c.events.Eventf(claim, corev1.EventTypeNormal, "VolumeResizeSuccessful", "volume %s has %s", pv.Name, has)
	return nil
}

// fits says if a volume cannot be as large as its claim wants.
func (c *cluster) fits(claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) error {
	node, err := c.nodes.Get(pv.Labels[nodeLabel])
	if err != nil {
		return err
	}
	roots, _, err := rootsOf(node)
	if err != nil {
		return err
	}
	want := claim.Spec.Resources.Requests.Storage()
	for _, r := range roots {
		if _, ok := below(r.Path, folderOf(pv)); ok && want.Value() > r.Bytes {
			return fmt.Errorf("%s is more than the whole disk of %s on node %s, which has %s; ask for less", want, r.Path, node.Name, resource.NewQuantity(r.Bytes>>20<<20, resource.BinarySI))
		}
	}
	return nil
}
