package volumes

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typed "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
)

// newQueue is a queue in which what failed waits ever longer.
func newQueue() workqueue.TypedRateLimitingInterface[string] {
	return workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](200*time.Millisecond, time.Minute))
}

// work does the jobs of a queue until it is shut down.
func work(ctx context.Context, q workqueue.TypedRateLimitingInterface[string], do func(context.Context, string) error) {
	for {
		job, closed := q.Get()
		if closed {
			return
		}
		if ctx.Err() == nil {
			if err := do(ctx, job); err != nil {
				q.AddRateLimited(job)
			} else {
				q.Forget(job)
			}
		}
		q.Done(job)
	}
}

// onChange calls tell with each object that comes, changes or goes.
func onChange(informer cache.SharedIndexInformer, tell func(metav1.Object)) error {
	told := func(o any) {
		if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = gone.Obj
		}
		if object, ok := o.(metav1.Object); ok {
			tell(object)
		}
	}
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: told, DeleteFunc: told, UpdateFunc: func(_, o any) { told(o) }})
	return err
}

func everything() labels.Selector { return labels.Everything() }

// recorder writes events until it is stopped.
func recorder(ctx context.Context, client kubernetes.Interface, name string) (record.EventRecorder, func()) {
	b := record.NewBroadcaster(record.WithContext(ctx))
	b.StartRecordingToSink(&typed.EventSinkImpl{Interface: client.CoreV1().Events("")})
	return b.NewRecorder(scheme.Scheme, corev1.EventSource{Component: name}), b.Shutdown
}

// lean is what is remembered of an object: nothing about who set what, and of a node
// only what it is called and says of itself.
func lean(o any) (any, error) {
	if m, ok := o.(metav1.Object); ok {
		m.SetManagedFields(nil)
	}
	if n, ok := o.(*corev1.Node); ok {
		n.Spec, n.Status = corev1.NodeSpec{}, corev1.NodeStatus{}
	}
	return o, nil
}
