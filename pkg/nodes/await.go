// Package nodes waits for Kubernetes node objects.
//
// Several parts of podo need to know when a node exists, or has been given what it
// needs. They watch one object by name; nothing is cached and nothing is left
// behind when the wait is over.
package nodes

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

// patience is how long one watch may tell nothing that is wanted before another takes its
// place. While a busy machine starts, one was seen that told nothing for more than a minute of
// a node that was there all the time.
const patience = 10 * time.Second

// Await returns the node called name once it exists and is as wanted, or ctx's
// error. Interrupted and silent watches are taken up again.
func Await(ctx context.Context, client kubernetes.Interface, name string, wanted func(*corev1.Node) bool) (*corev1.Node, error) {
	for {
		node, err := await(ctx, client, name, wanted)
		if node != nil {
			return node, nil
		}
		select {
		case <-ctx.Done():
			if err == nil {
				err = ctx.Err()
			}
			return nil, fmt.Errorf("wait for node %s: %w", name, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// await runs one watch, which begins with the node as it is. It returns nil when
// the watch ends first, and the error that it ends with if it says one.
func await(ctx context.Context, client kubernetes.Interface, name string, wanted func(*corev1.Node) bool) (*corev1.Node, error) {
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	w, err := client.CoreV1().Nodes().Watch(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, name).String(),
	})
	if err != nil {
		return nil, err
	}
	defer w.Stop()
	for event := range w.ResultChan() {
		if event.Type == watch.Error {
			return nil, apierrors.FromObject(event.Object)
		}
		if node, ok := event.Object.(*corev1.Node); ok && event.Type != watch.Deleted && wanted(node) {
			return node, nil
		}
	}
	return nil, nil
}
