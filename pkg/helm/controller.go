package helm

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"helm.sh/helm/v4/pkg/kube"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcore "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
)

// The kinds, as the API calls them.
const (
	group       = "helm.cattle.io"
	version     = "v1"
	chartKind   = "HelmChart"
	configKind  = "HelmChartConfig"
	chartsPath  = "helmcharts"
	configsPath = "helmchartconfigs"
)

// atOnce is how many releases are worked on at a time: one may wait for its hooks for
// minutes.
const atOnce = 16

// Controller makes releases of HelmCharts. One of a cluster is at work.
type Controller struct {
	charts string
	client func() (*rest.Config, error)
	log    *slog.Logger
}

// New returns a Controller that keeps the charts it fetches in a folder. Client is called
// once, by Run.
func New(charts string, client func() (*rest.Config, error), log *slog.Logger) *Controller {
	return &Controller{charts: charts, client: client, log: log.With("component", "helm-controller")}
}

// Name is the component's name.
func (c *Controller) Name() string { return "helm-controller" }

// Run makes, changes and deletes releases until ctx ends. What is under way then is
// left as it is, and finished by the next.
func (c *Controller) Run(ctx context.Context, ready func()) error {
	rc, err := c.client()
	if err != nil {
		return err
	}
	rc.ContentType, rc.AcceptContentTypes = "", "" // kinds of CustomResourceDefinitions have no protobuf form
	w, err := newWorker(ctx, c, rc)
	if err != nil {
		return err
	}
	told := record.NewBroadcaster(record.WithContext(ctx))
	defer told.Shutdown()
	told.StartRecordingToSink(&typedcore.EventSinkImpl{Interface: w.core.CoreV1().Events("")})
	w.events = told.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "podo-" + c.Name()})
	kube.ManagedFieldsManager = "helm" // as whom Helm's own command applies
	ready()
	return w.run(ctx)
}

// A worker is a Controller at work.
type worker struct {
	*Controller
	core    kubernetes.Interface
	meta    metadata.Interface
	events  record.EventRecorder
	queue   workqueue.TypedRateLimitingInterface[string]
	fetcher *fetcher
	kept    cache
	secrets *follower

	mu      sync.Mutex
	ongoing map[string]context.CancelFunc
}

func newWorker(ctx context.Context, c *Controller, rc *rest.Config) (*worker, error) {
	w := &worker{
		Controller: c,
		kept:       cache{c.charts},
		queue:      workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](time.Second, 5*time.Minute)),
		ongoing:    map[string]context.CancelFunc{},
	}
	var errs [3]error
	var way http.RoundTripper
	w.core, errs[0] = kubernetes.NewForConfig(rc)
	w.meta, errs[1] = metadata.NewForConfig(rc)
	way, errs[2] = rest.TransportFor(rc)
	w.fetcher = &fetcher{host: rc.Host, api: way, core: w.core}
	w.secrets = newFollower(ctx, w.meta, w.queue.Add)
	return w, errors.Join(errs[:]...)
}

func (w *worker) run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	defer w.queue.ShutDown()
	if !w.served(ctx) {
		return nil
	}
	f := metadatainformer.NewSharedInformerFactory(w.meta, 0)
	defer f.Shutdown()
	charts := f.ForResource(schema.GroupVersionResource{Group: group, Version: version, Resource: chartsPath}).Informer()
	configs := f.ForResource(schema.GroupVersionResource{Group: group, Version: version, Resource: configsPath}).Informer()
	if err := errors.Join(w.heed(charts), w.heed(configs)); err != nil {
		return err
	}
	f.Start(ctx.Done())
	for range atOnce {
		all.Go(func() { w.work(ctx) })
	}
	<-ctx.Done()
	return nil
}

// served waits until the API knows the kinds: at a cluster's first start it is told
// them about now.
func (w *worker) served(ctx context.Context) bool {
	for _, path := range []string{chartsPath, configsPath} {
		for w.core.CoreV1().RESTClient().Get().AbsPath("/apis", group, version, path).Param("limit", "1").Do(ctx).Error() != nil {
			select {
			case <-ctx.Done():
				return false
			case <-time.After(250 * time.Millisecond):
			}
		}
	}
	return true
}

// heed queues the HelmChart of whatever changes: a HelmChartConfig has its name.
func (w *worker) heed(i toolscache.SharedIndexInformer) error {
	if err := i.SetTransform(essence); err != nil {
		return err
	}
	_, err := i.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    w.changed,
		DeleteFunc: w.changed,
		UpdateFunc: func(was, is any) {
			if !same(was, is) {
				w.changed(is)
			}
		},
	})
	return err
}

// changed gives a HelmChart a turn at once, whatever became of it before. One that is to
// go need not be finished first.
func (w *worker) changed(o any) {
	key, err := toolscache.DeletionHandlingMetaNamespaceKeyFunc(o)
	if err != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if m, ok := o.(*metav1.PartialObjectMetadata); ok && m.DeletionTimestamp != nil {
		if stop := w.ongoing[key]; stop != nil {
			stop()
		}
	}
	w.queue.Forget(key)
	w.queue.Add(key) // at last, so that it is not the new turn that was stopped
}

// essence is what is remembered of an object.
func essence(o any) (any, error) {
	m, ok := o.(*metav1.PartialObjectMetadata)
	if !ok {
		return o, nil
	}
	notes := map[string]string{}
	for _, name := range []string{managedBy, unmanaged, retryAnnotation} {
		if v, ok := m.Annotations[name]; ok {
			notes[name] = v
		}
	}
	m.ObjectMeta = metav1.ObjectMeta{
		Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion,
		Generation: m.Generation, DeletionTimestamp: m.DeletionTimestamp, Annotations: notes,
	}
	return m, nil
}

// same reports whether two states of an object ask for the same. To have been claimed
// is no change.
func same(was, is any) bool {
	a, ok := was.(*metav1.PartialObjectMetadata)
	b, fine := is.(*metav1.PartialObjectMetadata)
	return ok && fine && a.UID == b.UID && a.Generation == b.Generation &&
		(a.DeletionTimestamp == nil) == (b.DeletionTimestamp == nil) &&
		mine(a.Annotations) == mine(b.Annotations) && a.Annotations[retryAnnotation] == b.Annotations[retryAnnotation]
}

func (w *worker) work(ctx context.Context) {
	for {
		key, closed := w.queue.Get()
		if closed {
			return
		}
		if ctx.Err() == nil {
			w.turn(ctx, key)
		}
		w.queue.Done(key)
	}
}

// turn does what there is to do about one HelmChart.
func (w *worker) turn(ctx context.Context, key string) {
	own, stop := context.WithCancel(ctx)
	defer stop()
	w.mu.Lock()
	w.ongoing[key] = stop
	w.mu.Unlock()
	err := w.reconcile(own, key)
	w.mu.Lock()
	delete(w.ongoing, key)
	w.mu.Unlock()
	switch {
	case own.Err() != nil: // whatever stopped it has queued it
	case err == nil, errors.Is(err, errFinal):
		w.queue.Forget(key)
	default:
		w.queue.AddRateLimited(key)
	}
}

// without is a list less one word.
func without(list []string, word string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(w string) bool { return w == word })
}
