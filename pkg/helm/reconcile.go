package helm

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	v2 "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/release/common"
	v1 "helm.sh/helm/v4/pkg/release/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// longestName is how long Helm lets the name of a release be.
const longestName = 53

// reconcile makes the release of one HelmChart what that asks for.
func (w *worker) reconcile(ctx context.Context, key string) error {
	namespace, name, _ := strings.Cut(key, "/")
	c := &chart{}
	err := w.read(ctx, chartsPath, namespace, name, c)
	switch {
	case apierrors.IsNotFound(err):
		w.secrets.follow(key, namespace, nil)
		return w.stray(ctx, key)
	case err != nil:
		w.log.Warn("HelmChart not read", "chart", key, "err", err)
		return err
	case c.Metadata.DeletionTimestamp != nil && (!mine(c.Metadata.Annotations) || len(name) > longestName):
		return w.letGo(ctx, key, c)
	case !mine(c.Metadata.Annotations):
		return nil
	case c.Metadata.DeletionTimestamp != nil:
		return w.remove(ctx, key, c)
	}
	if len(name) > longestName {
		err = fmt.Errorf("%wmetadata.name: it has %d letters, and the name of a release may have %d", errFinal, len(name), longestName)
	} else if err = w.claim(ctx, c); err != nil {
		return err
	} else {
		err = w.ensure(ctx, key, c)
	}
	if err != nil && ctx.Err() == nil {
		w.fail(ctx, c, err)
	}
	return err
}

// ensure installs or upgrades, if that is to be done.
func (w *worker) ensure(ctx context.Context, key string, c *chart) error {
	over, err := w.config(ctx, c)
	if err != nil {
		return err
	}
	o := order{name: c.Metadata.Name, namespace: c.namespace(), spec: c.Spec.overlay(over)}
	if err := o.spec.check(); err != nil {
		return err
	}
	if at := c.Status.Release; at != nil && at.Namespace != o.namespace {
		was := o
		was.namespace = at.Namespace
		if made, err := w.revisions(ctx, was); err != nil {
			return err
		} else if len(made) > 0 {
			return fmt.Errorf("%wspec.targetNamespace: the release is in %s, and cannot move to %s; delete the HelmChart first", errFinal, at.Namespace, o.namespace)
		}
		c.Status.Release = nil // it never came to be there, or is gone
	}
	parts, err := w.layers(ctx, key, c, over)
	if err != nil {
		return err
	}
	if o.values, err = merge(parts, o.spec.Set); err != nil {
		return err
	}
	if o.checksum, err = checksum(c, o.spec, parts); err != nil {
		return err
	}
	revisions, err := w.revisions(ctx, o)
	if err != nil {
		return err
	}
	do := decide(revisions, o.checksum, o.spec)
	switch limit := o.spec.BackOffLimit; {
	case do == leave:
		return w.found(ctx, c, o, revisions)
	case do == giveUp:
		return w.gaveUp(c, o)
	case limit != nil && w.queue.NumRequeues(key) > *limit:
		return fmt.Errorf("%wspec.backOffLimit: it has failed as often as that, last with: %s", errFinal, c.Status.message())
	}
	if o.timeout, err = o.spec.timeout(); err != nil {
		return err
	}
	if o.chart, err = w.fetch(ctx, key, c, o.spec); err != nil {
		return err
	}
	return w.perform(ctx, c, do, o)
}

// layers reads the values of a HelmChart, and sees to it that a change of what they are
// read from is noticed.
func (w *worker) layers(ctx context.Context, key string, c *chart, over *config) ([]layer, error) {
	var names []string
	from := c.Spec.ValuesSecrets
	if over != nil {
		from = slices.Concat(from, over.Spec.ValuesSecrets)
	}
	for _, s := range from {
		if !s.IgnoreUpdates && len(s.Keys) > 0 && s.Name != "" {
			names = append(names, s.Name)
		}
	}
	w.secrets.follow(key, c.Metadata.Namespace, names)
	return layers(ctx, c, over, func(ctx context.Context, name string) (*corev1.Secret, error) {
		return w.core.CoreV1().Secrets(c.Metadata.Namespace).Get(ctx, name, metav1.GetOptions{})
	})
}

// perform does what was decided, and tells of it.
func (w *worker) perform(ctx context.Context, c *chart, do act, o order) error {
	words := map[act][2]string{install: {"Installing", "Installed"}, upgrade: {"Upgrading", "Upgraded"}, reinstall: {"Reinstalling", "Reinstalled"}}[do]
	what := fmt.Sprintf("chart %s %s", o.chart.Name(), o.chart.Metadata.Version)
	at := c.Status.Release
	if at == nil {
		at = &released{Namespace: o.namespace}
	}
	if err := w.note(ctx, c, at, condition{Type: ready, Status: "False", Reason: words[0], Message: what}); err != nil {
		return err
	}
	h, err := newHelm(ctx, w.fetcher.host, w.fetcher.api, o, w.log)
	if err != nil {
		return err
	}
	made, err := h.do(do)
	if err != nil {
		return err
	}
	w.log.Info("release made", "chart", c.key(), "how", words[1], "revision", made.Version)
	w.events.Eventf(c.reference(), corev1.EventTypeNormal, words[1], "%s, revision %d", what, made.Version)
	return w.deployed(ctx, c, describe(made))
}

func (h *helm) do(what act) (*v1.Release, error) {
	switch what {
	case upgrade:
		return h.upgrade()
	case reinstall:
		if err := h.uninstall(true); err != nil {
			return nil, fmt.Errorf("uninstall what is there: %w", err)
		}
	}
	return h.install()
}

func describe(r *v1.Release) *released {
	out := &released{Namespace: r.Namespace, Revision: r.Version}
	if r.Chart != nil && r.Chart.Metadata != nil {
		out.Chart, out.AppVersion = r.Chart.Metadata.Name+"-"+r.Chart.Metadata.Version, r.Chart.Metadata.AppVersion
	}
	return out
}

// found tells of a release that is as it is to be, which podo may have ended before it
// could tell.
func (w *worker) found(ctx context.Context, c *chart, o order, revisions []revision) error {
	at := c.Status.Release
	if last := revisions[len(revisions)-1]; at == nil || at.Revision != last.number {
		h, err := newHelm(ctx, w.fetcher.host, w.fetcher.api, o, w.log)
		if err != nil {
			return err
		}
		r, err := opened(h.cfg.Releases.Last(o.name))
		if err != nil {
			return err
		}
		at = describe(r)
	}
	return w.deployed(ctx, c, at)
}

func (w *worker) deployed(ctx context.Context, c *chart, at *released) error {
	what := condition{Reason: "Deployed", Message: fmt.Sprintf("%s, revision %d", at.Chart, at.Revision)}
	return w.note(ctx, c, at, what.as(ready, "True"), what.as(failed, "False"))
}

// gaveUp is why a release that failed is left alone. What it failed with stays in sight.
func (w *worker) gaveUp(c *chart, o order) error {
	why := fmt.Sprintf("it failed, and failurePolicy is %s: podo tries again when the HelmChart changes", o.spec.FailurePolicy)
	if said := c.Status.message(); said != "" {
		why = strings.TrimSuffix(said, " ("+why+")") + " (" + why + ")"
	}
	return fmt.Errorf("%w%s", errFinal, why)
}

// remove uninstalls the release of a HelmChart that is being deleted, and lets it go.
func (w *worker) remove(ctx context.Context, key string, c *chart) error {
	if !slices.Contains(c.Metadata.Finalizers, finalizer) {
		return nil
	}
	w.secrets.follow(key, c.Metadata.Namespace, nil)
	o := order{name: c.Metadata.Name, namespace: c.namespace(), spec: c.Spec}
	if at := c.Status.Release; at != nil {
		o.namespace = at.Namespace
	}
	made, err := w.revisions(ctx, o)
	if err != nil {
		return err
	}
	if c.Status.Release == nil && !slices.ContainsFunc(made, func(r revision) bool { return r.checksum != "" }) {
		return w.letGo(ctx, key, c) // podo never got to it: a release of this name is somebody else's
	}
	if o.timeout, err = c.Spec.timeout(); err != nil {
		o.timeout, _ = spec{}.timeout()
	}
	if err := w.note(ctx, c, c.Status.Release, condition{Type: ready, Status: "False", Reason: "Uninstalling", Message: "the HelmChart is being deleted"}); err != nil {
		return err
	}
	h, err := newHelm(ctx, w.fetcher.host, w.fetcher.api, o, w.log)
	if err != nil {
		return err
	}
	err = h.uninstall(true)
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		err = h.uninstall(false) // its hooks have nowhere to run
	}
	if err != nil {
		if ctx.Err() == nil {
			w.fail(ctx, c, fmt.Errorf("uninstall: %w", err))
		}
		return err
	}
	w.log.Info("release uninstalled", "chart", key)
	w.events.Event(c.reference(), corev1.EventTypeNormal, "Uninstalled", "release in "+o.namespace)
	return w.letGo(ctx, key, c)
}

// letGo lets a HelmChart be deleted. A release that somebody else looks after stays.
func (w *worker) letGo(ctx context.Context, key string, c *chart) error {
	w.secrets.follow(key, c.Metadata.Namespace, nil)
	if !slices.Contains(c.Metadata.Finalizers, finalizer) {
		return nil
	}
	if err := w.kept.drop(key); err != nil {
		w.log.Warn("chart not removed from the cache", "chart", key, "err", err)
	}
	return w.patch(ctx, c, "", map[string]any{"metadata": map[string]any{
		"resourceVersion": c.Metadata.ResourceVersion,
		"finalizers":      without(c.Metadata.Finalizers, finalizer),
	}})
}

// claim makes a HelmChart podo's, before anything is made of it.
func (w *worker) claim(ctx context.Context, c *chart) error {
	if c.Metadata.Annotations[managedBy] == myName && slices.Contains(c.Metadata.Finalizers, finalizer) {
		return nil
	}
	return w.patch(ctx, c, "", map[string]any{"metadata": map[string]any{
		"resourceVersion": c.Metadata.ResourceVersion,
		"finalizers":      append(without(c.Metadata.Finalizers, finalizer), finalizer),
		"annotations":     map[string]string{managedBy: myName},
	}})
}

// config is the HelmChartConfig of a HelmChart, or nil.
func (w *worker) config(ctx context.Context, c *chart) (*config, error) {
	over := &config{}
	err := w.read(ctx, configsPath, c.Metadata.Namespace, c.Metadata.Name, over)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return over, err
}

// revisions are those that there are of a release, the newest last.
func (w *worker) revisions(ctx context.Context, o order) ([]revision, error) {
	kind := schema.GroupVersionResource{Version: "v1", Resource: "secrets"}
	if o.spec.Driver == "configmap" {
		kind.Resource = "configmaps"
	}
	list, err := w.meta.Resource(kind).Namespace(o.namespace).List(ctx, metav1.ListOptions{LabelSelector: "owner=helm,name=" + o.name})
	if err != nil {
		return nil, err
	}
	var out []revision
	for _, m := range list.Items {
		if n, err := strconv.Atoi(m.Labels["version"]); err == nil {
			out = append(out, revision{n, common.Status(m.Labels["status"]), m.Labels[checksumLabel]})
		}
	}
	slices.SortFunc(out, func(a, b revision) int { return cmp.Compare(a.number, b.number) })
	return out, nil
}

// fetch gets the chart of a HelmChart: from where it says, or else the one that was kept.
func (w *worker) fetch(ctx context.Context, key string, c *chart, s spec) (*v2.Chart, error) {
	from, err := w.source(ctx, c, s)
	if err != nil {
		return nil, err
	}
	text, err := w.fetcher.fetch(ctx, from)
	var out *v2.Chart
	if err == nil {
		out, err = loader.LoadArchive(bytes.NewReader(text))
	}
	switch {
	case err == nil && s.ChartContent == "":
		if err := w.kept.keep(key, s, text); err != nil {
			w.log.Warn("chart not kept", "chart", key, "err", err)
		}
	case err != nil && s.ChartContent != "":
		return nil, fmt.Errorf("%wspec.chartContent: it is to be a packed chart in base64: %w", errFinal, err)
	case err != nil:
		kept, missing := w.kept.load(key, s)
		if missing != nil || errors.Is(err, errFinal) || ctx.Err() != nil {
			return nil, fmt.Errorf("fetch the chart: %w", err)
		}
		w.log.Warn("chart not fetched, using the one that was kept", "chart", key, "err", err)
		w.events.Event(c.reference(), corev1.EventTypeWarning, "ChartKept", "the chart that was fetched last is used again: "+err.Error())
		if out, err = loader.LoadArchive(bytes.NewReader(kept)); err != nil {
			return nil, fmt.Errorf("read the chart that was kept: %w", err)
		}
	}
	return out, usable(out)
}

// source is where a chart comes from, with what the objects hold that a HelmChart names.
func (w *worker) source(ctx context.Context, c *chart, s spec) (source, error) {
	out := source{spec: s, authorities: []byte(s.RepoCA)}
	core := w.core.CoreV1()
	if s.RepoCAConfigMap != nil {
		m, err := core.ConfigMaps(c.Metadata.Namespace).Get(ctx, s.RepoCAConfigMap.Name, metav1.GetOptions{})
		if err != nil {
			return out, fmt.Errorf("spec.repoCAConfigMap: %w", err)
		}
		for _, text := range m.Data {
			out.authorities = append(append(out.authorities, '\n'), text...)
		}
	}
	if s.AuthSecret != nil {
		found, err := core.Secrets(c.Metadata.Namespace).Get(ctx, s.AuthSecret.Name, metav1.GetOptions{})
		if err != nil {
			return out, fmt.Errorf("spec.authSecret: %w", err)
		}
		if err := out.credentials(found.Data); err != nil {
			return out, fmt.Errorf("spec.authSecret: Secret %s %w", found.Name, err)
		}
	}
	if s.DockerRegistrySecret != nil {
		found, err := core.Secrets(c.Metadata.Namespace).Get(ctx, s.DockerRegistrySecret.Name, metav1.GetOptions{})
		if err != nil {
			return out, fmt.Errorf("spec.dockerRegistrySecret: %w", err)
		}
		if out.logins = found.Data[corev1.DockerConfigJsonKey]; out.logins == nil {
			return out, fmt.Errorf("spec.dockerRegistrySecret: Secret %s has no key %s", found.Name, corev1.DockerConfigJsonKey)
		}
	}
	return out, nil
}

// credentials are a user's name and password, or a certificate.
func (s *source) credentials(from map[string][]byte) error {
	if user := from[corev1.BasicAuthUsernameKey]; len(user) > 0 {
		s.user, s.password = string(user), string(from[corev1.BasicAuthPasswordKey])
		return nil
	}
	if len(from[corev1.TLSCertKey]) == 0 {
		return fmt.Errorf("has neither %s and %s nor %s and %s", corev1.BasicAuthUsernameKey, corev1.BasicAuthPasswordKey, corev1.TLSCertKey, corev1.TLSPrivateKeyKey)
	}
	pair, err := tls.X509KeyPair(from[corev1.TLSCertKey], from[corev1.TLSPrivateKeyKey])
	if err != nil {
		return fmt.Errorf("has no key pair: %w", err)
	}
	s.certificate = &pair
	return nil
}

// read gets an object.
func (w *worker) read(ctx context.Context, path, namespace, name string, into any) error {
	text, err := w.core.CoreV1().RESTClient().Get().AbsPath("/apis", group, version, "namespaces", namespace, path, name).DoRaw(ctx)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s %s/%s: %w", path, namespace, name, err)
	}
	return nil
}
