package helm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"helm.sh/helm/v4/pkg/action"
	ci "helm.sh/helm/v4/pkg/chart"
	v2 "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/release"
	"helm.sh/helm/v4/pkg/release/common"
	v1 "helm.sh/helm/v4/pkg/release/v1"
	"helm.sh/helm/v4/pkg/storage"
	"helm.sh/helm/v4/pkg/storage/driver"
	"k8s.io/client-go/kubernetes"
)

// checksumLabel on a release says what it was made of.
const checksumLabel = "podo.dev/checksum"

// history is how many revisions of a release are kept.
const history = 10

// An order is one operation on one release.
type order struct {
	name      string
	namespace string
	spec      spec
	timeout   time.Duration
	chart     *v2.Chart
	values    map[string]any
	checksum  string
}

// helm is Helm at work on one release. It ends with the context it was made with.
type helm struct {
	order
	ctx context.Context
	cfg *action.Configuration
}

func newHelm(ctx context.Context, host string, base http.RoundTripper, o order, log *slog.Logger) (*helm, error) {
	g, err := newGetter(ctx, host, base, o.namespace)
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(g.config)
	if err != nil {
		return nil, err
	}
	h := quiet{log.Handler()}
	var records driver.Driver
	if o.spec.Driver == "configmap" {
		records = driver.NewConfigMaps(client.CoreV1().ConfigMaps(o.namespace))
	} else {
		records = driver.NewSecrets(client.CoreV1().Secrets(o.namespace))
	}
	cluster := kube.New(g)
	cluster.Namespace = o.namespace
	cluster.SetLogger(h)
	cfg := action.NewConfiguration(action.ConfigurationSetLogger(h))
	cfg.RESTClientGetter, cfg.KubeClient, cfg.Releases = g, cluster, storage.Init(records)
	cfg.Releases.SetLogger(h)
	cfg.SetHookOutputFunc(func(_, _, _ string) io.Writer { return io.Discard })
	return &helm{order: o, ctx: ctx, cfg: cfg}, nil
}

// quiet is a log to which nothing is worse than a detail: what matters of an operation
// is in what it returns.
type quiet struct{ slog.Handler }

func (q quiet) Enabled(ctx context.Context, _ slog.Level) bool {
	return q.Handler.Enabled(ctx, slog.LevelDebug)
}

func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return q.Handler.Handle(ctx, r)
}

func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(attrs)} }
func (q quiet) WithGroup(name string) slog.Handler       { return quiet{q.Handler.WithGroup(name)} }

// waiting has an operation end with the context.
func (h *helm) waiting() []kube.WaitOption { return []kube.WaitOption{kube.WithWaitContext(h.ctx)} }

// patience is for how much of a release an operation waits: for its hooks, or for all of
// it, if what does not come up is to be rolled back.
func (h *helm) patience() kube.WaitStrategy {
	if h.spec.FailurePolicy == rollsBack {
		return kube.StatusWatcherStrategy
	}
	return kube.HookOnlyStrategy
}

func (h *helm) install() (*v1.Release, error) {
	i := action.NewInstall(h.cfg)
	i.ReleaseName, i.Namespace = h.name, h.namespace
	i.CreateNamespace, i.TakeOwnership = h.spec.CreateNamespace, h.spec.TakeOwnership
	i.ServerSideApply = h.spec.ServerSide != "false"
	i.ForceConflicts = h.spec.ForceConflicts && i.ServerSideApply
	i.Timeout, i.WaitStrategy, i.WaitOptions = h.timeout, h.patience(), h.waiting()
	i.Labels = map[string]string{checksumLabel: h.checksum}
	i.Replace = true // what is kept of one that was uninstalled
	return opened(i.RunWithContext(context.WithoutCancel(h.ctx), h.chart, h.values))
}

func (h *helm) upgrade() (*v1.Release, error) {
	if err := h.settle(); err != nil {
		return nil, err
	}
	u := action.NewUpgrade(h.cfg)
	u.Namespace, u.TakeOwnership = h.namespace, h.spec.TakeOwnership
	if h.spec.ServerSide != "" {
		u.ServerSideApply = h.spec.ServerSide
	}
	u.ForceConflicts = h.spec.ForceConflicts && h.spec.ServerSide != "false"
	u.Timeout, u.WaitStrategy, u.WaitOptions = h.timeout, h.patience(), h.waiting()
	u.RollbackOnFailure = h.spec.FailurePolicy == rollsBack
	u.ResetValues, u.MaxHistory = true, history
	u.Labels = map[string]string{checksumLabel: h.checksum}
	return opened(u.RunWithContext(context.WithoutCancel(h.ctx), h.name, h.chart, h.values))
}

// settle notes a release as failed that was cut short. Helm takes one that is pending
// for the work of somebody else.
func (h *helm) settle() error {
	last, err := opened(h.cfg.Releases.Last(h.name))
	if err != nil {
		return err
	}
	switch s := last.Info.Status; {
	case s.IsPending(), s == common.StatusSuperseded, s == common.StatusUninstalling:
		last.SetStatus(common.StatusFailed, "cut short while it was "+s.String())
		return h.cfg.Releases.Update(last)
	}
	return nil
}

// uninstall deletes a release. Without hooks it makes nothing new on the way.
func (h *helm) uninstall(hooks bool) error {
	if _, err := h.cfg.Releases.History(h.name); errors.Is(err, driver.ErrReleaseNotFound) {
		return nil
	} else if err != nil { // Helm would take it for the same
		return err
	}
	u := action.NewUninstall(h.cfg)
	u.DisableHooks = !hooks
	u.Timeout, u.WaitStrategy, u.WaitOptions = h.timeout, kube.StatusWatcherStrategy, h.waiting()
	_, err := u.Run(h.name)
	return err
}

// opened is a release as this version of charts makes it.
func opened(r release.Releaser, err error) (*v1.Release, error) {
	found, _ := r.(*v1.Release)
	if err == nil && found == nil {
		err = fmt.Errorf("release of an unknown kind %T", r)
	}
	return found, err
}

// usable reports why a chart cannot be installed, if so.
func usable(c *v2.Chart) error {
	if c.Metadata.Type == "library" {
		return fmt.Errorf("%wchart %s is a library for other charts, and installs nothing", errFinal, c.Name())
	}
	access, err := ci.NewAccessor(c)
	if err != nil {
		return err
	}
	if needs := access.MetaDependencies(); len(needs) > 0 {
		if err := action.CheckDependencies(c, needs); err != nil {
			return fmt.Errorf("%wchart %s is not packed with all it depends on: %w", errFinal, c.Name(), err)
		}
	}
	return nil
}
