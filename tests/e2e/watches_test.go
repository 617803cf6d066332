package e2e

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// quietWatches: a watch that names no revision begins at once, also of a kind that nobody
// has changed for long, and tells what comes.
func quietWatches(t *testing.T) {
	s := scenario(t)
	quiet := s.CoreV1().PodTemplates(s.ns)
	w, err := quiet.Watch(s.ctx, metav1.ListOptions{})
	s.ok(err)
	defer w.Stop()
	select {
	case e := <-w.ResultChan():
		t.Fatalf("it tells at once: %+v", e)
	case <-time.After(5 * time.Second): // the API server gives up after three
	}
	made := &corev1.PodTemplate{ObjectMeta: metav1.ObjectMeta{Name: "made"}}
	made.Template.Spec.Containers = []corev1.Container{{Name: "main", Image: "none"}}
	_, err = quiet.Create(s.ctx, made, metav1.CreateOptions{})
	s.ok(err)
	select {
	case e := <-w.ResultChan():
		if got, ok := e.Object.(*corev1.PodTemplate); e.Type != watch.Added || !ok || got.Name != "made" {
			t.Errorf("it tells %+v", e)
		}
	case <-time.After(5 * time.Second):
		t.Error("it does not tell what was made")
	}
}
