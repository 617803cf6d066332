package helm

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// patience is how long a HelmChartConfig may be there before its HelmChart, which may be
// of another file.
const patience = 30 * time.Second

// stray tells of a HelmChartConfig that has no HelmChart. The API takes it all the same, and
// whoever wrote it would look for its effect in vain.
func (w *worker) stray(ctx context.Context, key string) error {
	namespace, name, _ := strings.Cut(key, "/")
	over := &config{}
	if err := w.read(ctx, configsPath, namespace, name, over); err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	}
	if wait := patience - time.Since(over.Metadata.CreationTimestamp.Time); wait > 0 {
		w.queue.AddAfter(key, min(wait, patience))
		return nil
	}
	why := fmt.Sprintf("there is no HelmChart %s, so this changes nothing", key)
	if key == "kube-system/traefik" {
		why += ": podo's Traefik comes from no chart, and its settings go into the ConfigMap traefik-custom (docs/ingress.md)"
	}
	w.log.Warn("HelmChartConfig without a HelmChart", "config", key, "why", why)
	w.events.Event(reference(configKind, over.Metadata), corev1.EventTypeWarning, "NoHelmChart", why)
	return nil
}
