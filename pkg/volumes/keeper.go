package volumes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"

	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/tree"
)

const (
	// lookAgain is how often a node looks whether its disks have grown.
	lookAgain = 10 * time.Minute
	// patience is how long a server may take to answer.
	patience = 10 * time.Second
	// hands is how many folders are made or removed at once.
	hands = 4
	// tell is the job of saying which roots there are. All others are volumes' names.
	tell = ""
)

// A Keeper makes and removes the folders of one node's volumes.
type Keeper struct {
	plan plan.Volumes
	dial kubeconfig.Dial
	log  *slog.Logger
}

// NewKeeper returns the Keeper of a node. Its clients dial through dial.
func NewKeeper(p plan.Volumes, dial kubeconfig.Dial, log *slog.Logger) *Keeper {
	return &Keeper{plan: p, dial: dial, log: log.With("component", "volumes")}
}

// Name is the component's name.
func (k *Keeper) Name() string { return "volumes" }

// Run keeps the node's folders as its volumes say until ctx ends. It is ready at once:
// a node without a server goes on with the folders it has. A removal that takes long
// is cut short by the end of ctx, and goes on with the next start.
func (k *Keeper) Run(ctx context.Context, ready func()) error {
	client, err := kubeconfig.Clientset(k.plan.Paths.AgentKubeconfig("podo-node"), k.dial)
	if err != nil {
		return err
	}
	// The kubelet's identity may write events; this one's need not.
	own, err := kubeconfig.Clientset(k.plan.Paths.AgentKubeconfig("kubelet"), k.dial)
	if err != nil {
		return err
	}
	events, stop := recorder(ctx, own, "podo-volumes")
	defer stop()
	n := &node{
		name: k.plan.Name, standard: filepath.Clean(k.plan.Root), own: k.plan.Paths, client: client, events: events, log: k.log,
		queue: newQueue(), unheld: map[string]bool{},
	}
	defer n.queue.ShutDown()
	factories, err := n.follow()
	if err != nil {
		return err
	}
	ready()
	n.admitted(ctx)
	for _, f := range factories {
		f.StartWithContext(ctx)
		defer f.Shutdown()
	}
	for _, f := range factories {
		f.WaitForCacheSync(ctx.Done())
	}
	n.queue.Add(tell)
	var working sync.WaitGroup
	defer working.Wait()
	for range hands {
		working.Go(func() { work(ctx, n.queue, n.do) })
	}
	again := time.NewTicker(lookAgain)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			n.queue.ShutDown()
			return nil
		case <-again.C:
			n.queue.Add(tell)
		}
	}
}

// node is a Keeper at work.
type node struct {
	name     string
	standard string // the root if nobody names others
	own      paths.Paths
	client   kubernetes.Interface
	events   record.EventRecorder
	log      *slog.Logger
	queue    workqueue.TypedRateLimitingInterface[string]
	volumes  listers.PersistentVolumeLister
	settings listers.ConfigMapLister

	mu    sync.Mutex
	known []string        // roots that were ever named since the start
	held  map[string]bool // volumes whose folder was looked at since the start

	unheld map[string]bool // roots of which was told that sizes are not enforced there
}

// follow prepares the informers of what the node must know.
func (n *node) follow() ([]informers.SharedInformerFactory, error) {
	lean := informers.WithTransform(lean)
	mine := informers.NewSharedInformerFactoryWithOptions(n.client, 0, lean,
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = nodeLabel + "=" + n.name }))
	said := informers.NewSharedInformerFactoryWithOptions(n.client, 0, lean, informers.WithNamespace(metav1.NamespaceSystem),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, settingsName).String()
		}))
	volumes, settings := mine.Core().V1().PersistentVolumes(), said.Core().V1().ConfigMaps()
	n.volumes, n.settings = volumes.Lister(), settings.Lister()
	n.held = map[string]bool{}
	if err := onChange(volumes.Informer(), func(o metav1.Object) { n.queue.Add(o.GetName()) }); err != nil {
		return nil, err
	}
	err := onChange(settings.Informer(), func(metav1.Object) { n.queue.Add(tell) })
	return []informers.SharedInformerFactory{mine, said}, err
}

// admitted waits until this node may read its volumes: a server must answer, and a new
// cluster takes a moment to say what nodes may do.
func (n *node) admitted(ctx context.Context) {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		try, stop := context.WithTimeout(ctx, patience)
		_, err := n.client.CoreV1().PersistentVolumes().List(try, metav1.ListOptions{LabelSelector: nodeLabel + "=" + n.name, Limit: 1})
		if err == nil {
			_, err = n.client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(try, settingsName, metav1.GetOptions{})
			err = ignoreGone(err)
		}
		stop()
		if err == nil || ctx.Err() != nil {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// do does what a name in the queue stands for.
func (n *node) do(ctx context.Context, job string) error {
	if job == tell {
		return n.tell(ctx)
	}
	pv, err := n.volumes.Get(job)
	if apierrors.IsNotFound(err) {
		n.mu.Lock()
		delete(n.held, job)
		n.mu.Unlock()
		return nil
	}
	if err != nil || folderOf(pv) == "" || !slices.Contains(pv.Finalizers, finalizer) {
		return err
	}
	switch {
	case pv.DeletionTimestamp == nil:
		err = n.keep(ctx, pv)
	case !slices.Contains(pv.Finalizers, protection) && pv.Status.Phase != corev1.VolumeBound:
		err = n.drop(ctx, pv)
	}
	if err != nil && ctx.Err() == nil {
		n.events.Event(pv, corev1.EventTypeWarning, "VolumeFolder", "node "+n.name+": "+err.Error())
		n.log.Warn("volume not as it should be, trying again", "volume", pv.Name, "err", err)
	}
	return err
}

// tell says on the Node which roots there are.
func (n *node) tell(ctx context.Context) error {
	roots := n.roots()
	text, err := json.Marshal(roots)
	if err != nil {
		return err
	}
	now, err := n.client.CoreV1().Nodes().Get(ctx, n.name, metav1.GetOptions{})
	if err != nil || now.Annotations[rootsKey] == string(text) {
		return err // a new node has no object yet
	}
	patch, err := json.Marshal(annotated(rootsKey, string(text)))
	if err != nil {
		return err
	}
	_, err = n.client.CoreV1().Nodes().Patch(ctx, n.name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

// annotated is a patch that sets an annotation.
func annotated(key, value string) any {
	return map[string]any{"metadata": map[string]any{"annotations": map[string]string{key: value}}}
}

// roots looks at the folders that volumes are made in.
func (n *node) roots() []Root {
	list, err := n.places()
	if err != nil {
		return []Root{{Path: n.standard, Problem: err.Error()}}
	}
	out := []Root{}
	for _, p := range list {
		out = append(out, look(p))
	}
	return out
}

// places are the folders that the settings name, or the standard one. It remembers
// them: what is in one that is named no longer must still be removed.
func (n *node) places() ([]string, error) {
	list := []string{n.standard}
	m, err := n.settings.ConfigMaps(metav1.NamespaceSystem).Get(settingsName)
	if err == nil {
		said, err := readSettings(m.Data[settingsKey], n.name)
		if err != nil {
			return nil, err
		}
		if said != nil {
			list = said
		}
	}
	for _, p := range list {
		if err := n.apart(p); err != nil {
			return nil, err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range list {
		if !slices.Contains(n.known, p) {
			n.known = append(n.known, p)
		}
	}
	return list, nil
}

// apart refuses a root in which a volume could be a folder of podo's or the kubelet's.
func (n *node) apart(root string) error {
	_, inside := below(n.own.Storage(), root)
	for _, theirs := range []string{n.own.Data, n.own.Etc, n.own.Run, paths.KubeletRoot, paths.PodLogs} {
		if overlap(root, theirs) && root != n.own.Storage() && !inside {
			return fmt.Errorf("folder %s: files that are no volumes are in %s; name another folder for volumes", root, theirs)
		}
	}
	return nil
}

// find returns the root that a path lies in, the nearest of several, and the way from
// there.
func (n *node) find(path string) (root, rel string, err error) {
	_, problem := n.places()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range append(slices.Clone(n.known), n.standard) {
		if way, ok := below(r, path); ok && len(r) > len(root) && n.apart(r) == nil {
			root, rel = r, way
		}
	}
	if root != "" {
		return root, rel, nil
	}
	if problem != nil {
		return "", "", problem
	}
	return "", "", fmt.Errorf("%s is in none of this node's folders for volumes; name its folder in the ConfigMap %s, or remove the finalizer %s to let the volume go without it", path, settingsName, finalizer)
}

// keep makes the folder of a volume unless it was made before, and holds it to its size.
func (n *node) keep(ctx context.Context, pv *corev1.PersistentVolume) error {
	q, said := quotaOf(pv)
	n.mu.Lock()
	held := n.held[pv.Name]
	n.mu.Unlock()
	if held && (!said || q.Limit == 0 || q.Limit == size(pv)) {
		return nil // what was said may not have come back yet
	}
	path, rel, err := n.find(folderOf(pv))
	if err != nil {
		return err
	}
	root, err := openRoot(path)
	if err != nil {
		return err
	}
	defer root.Close()
	switch {
	case !said:
		if q, err = n.make(ctx, root, rel, pv); err != nil {
			return err
		}
	case q.Limit == 0:
		_, err = os.Stat(folderOf(pv))
	default:
		if _, err = os.Stat(folderOf(pv)); err == nil && q.Limit != size(pv) {
			if err = restrict(root, q.Project, size(pv)); err == nil {
				q.Limit = size(pv)
				err = n.say(ctx, pv, q, nil)
			}
		}
	}
	if said && errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w; it was made earlier, and is not made again empty: bring its disk back, or delete the claim", err)
	}
	if err == nil {
		n.mu.Lock()
		n.held[pv.Name] = true
		n.mu.Unlock()
	}
	return err
}

// make makes a folder, with a quota if it can have one, and says so.
func (n *node) make(ctx context.Context, root *os.File, rel string, pv *corev1.PersistentVolume) (quota, error) {
	why := quotas(root)
	var q quota
	if why == nil {
		q = quota{Limit: size(pv), Project: project(pv.UID, func(id uint32) bool { return n.taken(pv, id) })}
	}
	fresh, err := create(root, rel, pv.Name, func(dir *os.File) error {
		if q.Project == 0 {
			return nil
		}
		// A quota that cannot be set keeps nobody from the volume.
		if why = assign(dir, q.Project); why == nil {
			why = restrict(dir, q.Project, q.Limit)
		}
		return nil
	})
	if err != nil {
		return quota{}, err
	}
	if !fresh && q.Project != 0 {
		q.Project, why = n.adopt(root, rel, pv, q)
	}
	if why != nil {
		q = quota{}
	}
	n.log.Info("volume made", "volume", pv.Name, "path", filepath.Join(root.Name(), rel))
	n.tellUnheld(root.Name(), why)
	return q, n.say(ctx, pv, q, why)
}

// tellUnheld logs, once for each root, that a volume in it is not held to its size. The volume
// says so itself.
func (n *node) tellUnheld(root string, why error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if why != nil && !n.unheld[root] {
		n.unheld[root] = true
		n.log.Info("sizes of volumes are not enforced", "path", root, "err", why)
	}
}

// projectOfPath is the project that the folder of a volume belongs to, 0 if none.
func projectOfPath(root *os.File, rel string) uint32 {
	dir, err := tree.Open(root, rel)
	if err != nil {
		return 0
	}
	defer dir.Close()
	return projectOf(dir)
}

// adopt holds a folder that was there before to the size of its new volume, by the project
// that its files are counted in: that of a volume which was released and is retained.
func (n *node) adopt(root *os.File, rel string, pv *corev1.PersistentVolume, q quota) (uint32, error) {
	found := projectOfPath(root, rel)
	switch {
	case found == q.Project:
		return found, nil
	case !inherits(found, n.others(pv, found)):
		return 0, errors.New("its folder was there before, with files that are not counted")
	}
	return found, restrict(root, found, q.Limit)
}

// inherits reports whether a new volume may have the project of its folder, which other volumes
// have, too: it is of a volume, and of none in use.
func inherits(project uint32, others []*corev1.PersistentVolume) bool {
	inUse := func(pv *corev1.PersistentVolume) bool { return pv.Status.Phase != corev1.VolumeReleased }
	return project >= firstProject && !slices.ContainsFunc(others, inUse)
}

// taken reports whether another volume of the node has a project.
func (n *node) taken(pv *corev1.PersistentVolume, project uint32) bool {
	return len(n.others(pv, project)) > 0
}

// others are the other volumes of the node that have a project.
func (n *node) others(pv *corev1.PersistentVolume, project uint32) []*corev1.PersistentVolume {
	all, _ := n.volumes.List(everything()) // from memory
	return slices.DeleteFunc(all, func(other *corev1.PersistentVolume) bool {
		q, _ := quotaOf(other)
		return other.Name == pv.Name || q.Project != project
	})
}

// say notes on a volume what holds it to its size, or why nothing does.
func (n *node) say(ctx context.Context, pv *corev1.PersistentVolume, q quota, why error) error {
	text, err := json.Marshal(q)
	if err != nil {
		return err
	}
	if q.Limit == 0 && !q.Removing {
		text = []byte(none + why.Error())
	}
	patch, err := json.Marshal(annotated(quotaKey, string(text)))
	if err != nil {
		return err
	}
	_, err = n.client.CoreV1().PersistentVolumes().Patch(ctx, pv.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

// drop removes the folder of a volume that is being deleted, if that is its policy and
// no other volume has it, and lets the volume go.
func (n *node) drop(ctx context.Context, pv *corev1.PersistentVolume) error {
	keeps := pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete
	user, err := n.user(pv)
	if err == nil && user == "" && !keeps {
		user, err = n.stranger(ctx, pv)
	}
	if err != nil {
		return err
	}
	if user != "" {
		n.events.Event(pv, corev1.EventTypeNormal, "VolumeFolder", "its folder stays: volume "+user+" has it now")
		keeps = true
	}
	if !keeps {
		path, rel, err := n.find(folderOf(pv))
		if err != nil {
			return err
		}
		if err := n.remove(ctx, path, rel, pv); err != nil {
			return err
		}
		n.log.Info("volume removed", "volume", pv.Name, "path", folderOf(pv))
	}
	patch := []byte(`{"metadata":{"$deleteFromPrimitiveList/finalizers":["` + finalizer + `"]}}`)
	_, err = n.client.CoreV1().PersistentVolumes().Patch(ctx, pv.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// begin notes that a folder is being removed. One that is missing before that was not removed: it
// is on a disk that is not there.
func (n *node) begin(ctx context.Context, root *os.File, rel string, pv *corev1.PersistentVolume) error {
	q, said := quotaOf(pv)
	if !said || q.Removing {
		return nil
	}
	dir, err := tree.Open(root, rel)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w; it was made earlier, and is not removed: bring its disk back, or take the finalizer %s from the volume to let it go without", err, finalizer)
	}
	if err == nil {
		dir.Close()
	}
	q.Removing = true
	return n.say(ctx, pv, q, nil)
}

func (n *node) remove(ctx context.Context, path, rel string, pv *corev1.PersistentVolume) error {
	root, err := openRoot(path)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := n.begin(ctx, root, rel, pv); err != nil {
		return err
	}
	if err := destroy(root, rel, pv.Name, ctx.Done()); err != nil {
		return err
	}
	if q, _ := quotaOf(pv); q.Project != 0 {
		// The folder is gone, and a disk that is no longer mounted with quotas takes none.
		if err := restrict(root, q.Project, 0); err != nil {
			n.log.Info("the quota of a removed volume stays", "volume", pv.Name, "project", q.Project, "err", err)
		}
	}
	return nil
}

// user is another volume that has the folder of this one, or one around or in it.
func (n *node) user(pv *corev1.PersistentVolume) (string, error) {
	all, err := n.volumes.List(everything())
	for _, other := range all {
		if path := folderOf(other); other.Name != pv.Name && path != "" && other.DeletionTimestamp == nil && overlap(path, folderOf(pv)) {
			return other.Name, err
		}
	}
	return "", err
}

// stranger is a volume that podo did not make and that has the folder of this one, or one around
// or in it. It asks the API server, as the node follows no volumes but its own.
func (n *node) stranger(ctx context.Context, pv *corev1.PersistentVolume) (string, error) {
	root, _, err := n.find(folderOf(pv))
	if err != nil {
		return "", err
	}
	here, err := n.client.CoreV1().Nodes().Get(ctx, n.name, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	all, err := n.client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", err
	}
	for _, other := range all.Items {
		if other.DeletionTimestamp == nil && strange(&other, here, root) && overlap(pathOf(&other), folderOf(pv)) {
			return other.Name, nil
		}
	}
	return "", nil
}
