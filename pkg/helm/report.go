package helm

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podo-dev/podo/pkg/logging"
)

func (c *chart) key() string { return c.Metadata.Namespace + "/" + c.Metadata.Name }

// reference is the HelmChart as events name it.
func (c *chart) reference() *corev1.ObjectReference { return reference(chartKind, c.Metadata) }

func reference(kind string, m metav1.ObjectMeta) *corev1.ObjectReference {
	return &corev1.ObjectReference{APIVersion: group + "/" + version, Kind: kind, Namespace: m.Namespace, Name: m.Name, UID: m.UID}
}

// The conditions of a HelmChart.
const (
	ready  = "Ready"
	failed = "Failed"
)

func (s status) condition(kind string) condition {
	for _, c := range s.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return condition{}
}

// message is what went wrong last, if anything did.
func (s status) message() string {
	if c := s.condition(failed); c.Status == "True" {
		return c.Message
	}
	return ""
}

// fail tells what went wrong: in the status, and the first time in an event and the log.
func (w *worker) fail(ctx context.Context, c *chart, err error) {
	reason := "Retrying"
	if errors.Is(err, errFinal) {
		reason = "Stopped"
	}
	said := logging.Discreet(err)
	if c.Status.message() != said {
		w.log.Warn("release not made", "chart", c.key(), "err", said)
		w.events.Event(c.reference(), corev1.EventTypeWarning, failed, said)
	}
	what := condition{Reason: reason, Message: said}
	if err := w.note(ctx, c, c.Status.Release, what.as(ready, "False"), what.as(failed, "True")); err != nil {
		w.log.Debug("status not written", "chart", c.key(), "err", err)
	}
}

// as is what a condition says, for one of the two types.
func (c condition) as(kind, is string) condition {
	c.Type, c.Status = kind, is
	return c
}

// note writes the status of a HelmChart, unless it is so already. A condition that is not
// given stays.
func (w *worker) note(ctx context.Context, c *chart, at *released, given ...condition) error {
	want := status{ObservedGeneration: c.Metadata.Generation, Release: at}
	for _, kind := range []string{ready, failed} {
		old := c.Status.condition(kind)
		now := old
		for _, g := range given {
			if g.Type == kind {
				now = g
			}
		}
		if now.Type == "" {
			now = condition{Type: kind, Status: "False", Reason: given[0].Reason}
		}
		now.LastTransitionTime = metav1.Now().Rfc3339Copy()
		if old.Status == now.Status {
			now.LastTransitionTime = old.LastTransitionTime
		}
		want.Conditions = append(want.Conditions, now)
	}
	if reflect.DeepEqual(want, c.Status) {
		return nil
	}
	return w.patch(ctx, c, "status", map[string]any{"status": want})
}

// patch changes a HelmChart, and reads what it became.
func (w *worker) patch(ctx context.Context, c *chart, part string, change any) error {
	text, err := json.Marshal(change)
	if err != nil {
		return err
	}
	path := []string{"/apis", group, version, "namespaces", c.Metadata.Namespace, chartsPath, c.Metadata.Name}
	if part != "" {
		path = append(path, part)
	}
	answer, err := w.core.CoreV1().RESTClient().Patch(types.MergePatchType).AbsPath(path...).Param("fieldManager", "podo-helm").Body(text).DoRaw(ctx)
	if err != nil {
		return err
	}
	*c = chart{}
	return json.Unmarshal(answer, c)
}
