package helm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
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
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"github.com/podo-dev/podo/pkg/logging"
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
	log quiet
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
	h := quiet{log.Handler(), &atomic.Pointer[string]{}}
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
	return &helm{order: o, ctx: ctx, cfg: cfg, log: h}, nil
}

// quiet is a log to which nothing is worse than a detail: what matters of an operation
// is in what it returns. Where it is not, there is the last error that was logged.
type quiet struct {
	slog.Handler
	last *atomic.Pointer[string]
}

func (quiet) Enabled(context.Context, slog.Level) bool { return true }

func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	detail := slog.NewRecord(r.Time, slog.LevelDebug, r.Message, r.PC)
	r.Attrs(func(a slog.Attr) bool {
		err, _ := a.Value.Any().(error)
		if several, ok := a.Value.Any().([]error); ok {
			err = errors.Join(several...)
		}
		if err != nil {
			said := logging.Discreet(err)
			q.last.Store(&said)
			a = slog.String(a.Key, said)
		}
		detail.AddAttrs(a)
		return true
	})
	if !q.Handler.Enabled(ctx, slog.LevelDebug) {
		return nil
	}
	return q.Handler.Handle(ctx, detail)
}

func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler {
	return quiet{q.Handler.WithAttrs(attrs), q.last}
}
func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.Handler.WithGroup(name), q.last} }

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
	i.ForceConflicts = i.ServerSideApply && ptr.Deref(h.spec.ForceConflicts, false)
	i.Timeout, i.WaitStrategy, i.WaitOptions = h.timeout, h.patience(), h.waiting()
	i.Labels = map[string]string{checksumLabel: h.checksum}
	i.Replace = true // what is kept of one that was uninstalled
	return opened(i.RunWithContext(context.WithoutCancel(h.ctx), h.chart, h.values))
}

func (h *helm) upgrade() (*v1.Release, error) {
	last, err := h.settle()
	if err != nil {
		return nil, err
	}
	u := action.NewUpgrade(h.cfg)
	u.Namespace, u.TakeOwnership = h.namespace, h.spec.TakeOwnership
	u.ServerSideApply, u.ForceConflicts = h.spec.applies(last.ApplyMethod)
	u.Timeout, u.WaitStrategy, u.WaitOptions = h.timeout, h.patience(), h.waiting()
	u.RollbackOnFailure = h.spec.FailurePolicy == rollsBack
	u.ResetValues, u.MaxHistory = true, history
	u.Labels = map[string]string{checksumLabel: h.checksum}
	made, err := opened(u.RunWithContext(context.WithoutCancel(h.ctx), h.name, h.chart, h.values))
	if apierrors.IsConflict(err) && h.spec.yields() {
		err = fmt.Errorf("%w; spec.forceConflicts: true takes the fields over", err)
	}
	return made, err
}

// applies is how an upgrade applies, as Helm would choose, and whether it wins over others
// who manage fields of the same objects: it may only be told to on the server's side.
func (s spec) applies(before string) (serverSide string, force bool) {
	if serverSide = s.ServerSide; serverSide == "" || serverSide == "auto" {
		serverSide = strconv.FormatBool(before == string(v1.ApplyMethodServerSideApply))
	}
	return serverSide, serverSide == "true" && !s.yields()
}

// settle returns the last release, and notes it as failed if it was cut short. Helm takes
// one that is pending for the work of somebody else.
func (h *helm) settle() (*v1.Release, error) {
	last, err := opened(h.cfg.Releases.Last(h.name))
	if err != nil {
		return nil, err
	}
	switch s := last.Info.Status; {
	case s.IsPending(), s == common.StatusSuperseded, s == common.StatusUninstalling:
		last.SetStatus(common.StatusFailed, "cut short while it was "+s.String())
		return last, h.cfg.Releases.Update(last)
	}
	return last, nil
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
	h.log.last.Store(nil)
	_, err := u.Run(h.name)
	if why := h.log.last.Load(); err != nil && why != nil && !strings.Contains(err.Error(), *why) {
		err = fmt.Errorf("%w: %s", err, *why) // Helm only logs why an object could not be deleted
	}
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
