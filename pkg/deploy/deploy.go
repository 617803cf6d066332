package deploy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typed "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"

	"github.com/podo-dev/podo/pkg/inbox"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/logging"
	"github.com/podo-dev/podo/pkg/plan"
)

// How long what failed waits for the next try.
const (
	firstPause = 200 * time.Millisecond
	lastPause  = time.Minute
)

// atLatest is how long after its start a deployer applies what nobody waits for, whatever
// else there is to do: a node may never be ready without the network that people bring.
const atLatest = time.Minute

// patience is how long one file may take at a time.
const patience = 2 * time.Minute

// An intent is what is to become of a manifest.
type intent int

const (
	apply   intent = iota
	leave          // alone, with all that was made of it
	disable        // delete what was made of it
	forget         // the same, and then the addon: the file is gone
)

// A manifest is a file, or one of the binary's own.
type manifest struct {
	name   string // of its addon
	file   string
	server string // that changed it last; empty for the binary's own
	sum    string
	intent intent

	objects []object // in the order of their kinds
	fault   error    // why there are none
}

// own reports whether a manifest is the binary's.
func (m *manifest) own() bool { return m.server == "" }

func (m *manifest) names(r reference) bool {
	return slices.ContainsFunc(m.objects, func(o object) bool { return r.is(refer(o)) })
}

// errFinal is in errors that no other try mends, but only a change of the file.
var errFinal = errors.New("")

// A deployer makes the cluster what the manifests say.
type deployer struct {
	*cluster
	shared shared
	addons *addons
	events record.EventRecorder
	log    *slog.Logger

	own       []*manifest // in the order they are applied
	disabled  []string
	later     []string        // own that wait
	missing   map[string]bool // own that have not been applied yet
	manifests map[string]*manifest
	turns     map[string]turn
}

// A turn is when a manifest is worked on next, and how long it waits after that.
type turn struct {
	at    time.Time // zero: not before something changes
	pause time.Duration
}

// Options are what a deployer is made of.
type Options struct {
	Addons plan.Addons
	// Files has the manifests of Addons.
	Files fs.FS
	// Values are for ${NAME} in these, beyond those of Addons. Called once the
	// component runs.
	Values func() (map[string]string, error)
	// Started is closed when the machine's own start is over.
	Started <-chan struct{}
	Client  func() (*rest.Config, error)
	Log     *slog.Logger
}

// New returns the deployer: a component that applies the binary's manifests, and those
// that servers share. It is ready when all of the binary's own are applied that do not
// wait for the end of the start, and works on until it is stopped. It may run again.
func New(o Options) lifecycle.Component {
	return lifecycle.Func("addons", func(ctx context.Context, ready func()) error {
		values, err := o.Values()
		if err != nil {
			return err
		}
		values = maps.Clone(values)
		for name, v := range o.Addons.Values {
			if _, ok := values[name]; !ok {
				values[name] = v
			}
		}
		own, err := readOwn(o.Addons, o.Files, values)
		if err != nil {
			return err
		}
		rc, err := o.Client()
		if err != nil {
			return err
		}
		d := &deployer{own: own, disabled: o.Addons.Disabled, later: o.Addons.Later, missing: map[string]bool{}, turns: map[string]turn{}, log: o.Log.With("component", "addons")}
		for _, m := range own {
			if !slices.Contains(d.later, m.name) {
				d.missing[m.name] = true
			}
		}
		if d.cluster, err = newCluster(rc); err != nil {
			return err
		}
		if d.shared, err = newShared(rc); err != nil {
			return err
		}
		core, err := kubernetes.NewForConfig(rc)
		if err != nil {
			return err
		}
		d.addons = newAddons(d.cluster.client)
		told := record.NewBroadcaster()
		defer told.Shutdown()
		told.StartRecordingToSink(&typed.EventSinkImpl{Interface: core.CoreV1().Events("")})
		d.events = told.NewRecorder(scheme.Scheme, corev1.EventSource{Component: fieldManager})
		d.run(ctx, o.Started, ready)
		return nil
	})
}

// readOwn reads the binary's manifests, those that are disabled included.
func readOwn(p plan.Addons, files fs.FS, values map[string]string) ([]*manifest, error) {
	var out []*manifest
	for _, name := range slices.Concat(p.Enabled, p.Disabled) {
		text, err := fs.ReadFile(files, name+".yaml")
		if errors.Is(err, fs.ErrNotExist) && slices.Contains(p.Disabled, name) {
			continue // the name of a file of people's
		}
		if err != nil {
			return nil, err
		}
		if text, err = expand(text, values); err != nil {
			return nil, fmt.Errorf("manifest %s: %w", name, err)
		}
		m := newManifest(name, file{path: name + ".yaml", content: text})
		if m.fault != nil {
			return nil, fmt.Errorf("manifest %s, %w", name, m.fault)
		}
		out = append(out, m)
	}
	return out, nil
}

func newManifest(name string, f file) *manifest {
	m := &manifest{name: name, file: f.path, server: f.server, sum: f.sum()}
	if f.problem != "" {
		m.fault = fmt.Errorf("%w%s: %s", errFinal, f.path, f.problem)
		return m
	}
	objects, err := read(f.content)
	if err != nil {
		m.fault = fmt.Errorf("%w%s, %w", errFinal, f.path, err)
	}
	for _, o := range objects {
		mark(o, f.path)
	}
	order(objects)
	m.objects = objects
	return m
}

// manifestAnnotation on an object says which file it was made of.
const manifestAnnotation = "podo.dev/manifest"

// mark gives an object its annotation. Without it podo would own nothing of an object
// whose manifest gives but a name, and could not tell it from somebody else's.
func mark(o object, path string) {
	if notes, ok, _ := unstructured.NestedFieldNoCopy(o.Object, "metadata", "annotations"); ok && notes == nil {
		unstructured.RemoveNestedField(o.Object, "metadata", "annotations")
	}
	// What is no map of annotations is for the API server to refuse.
	_ = unstructured.SetNestedField(o.Object, path, "metadata", "annotations", manifestAnnotation)
}

func (d *deployer) run(ctx context.Context, started <-chan struct{}, ready func()) {
	changed := make(chan struct{}, 1)
	var helper sync.WaitGroup
	defer helper.Wait()
	helper.Go(func() {
		d.shared.follow(ctx, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	})
	late := time.After(atLatest)
	stale, trouble := true, false
	for ctx.Err() == nil {
		if stale {
			err := d.refresh(ctx)
			if err != nil && !trouble && ctx.Err() == nil {
				d.log.Warn("manifests not to be had, trying again", "err", err)
			}
			if trouble = err != nil; trouble {
				pauseFor(ctx, time.Second)
				continue
			}
		}
		d.takeTurns(ctx, ready)
		stale = false
		select {
		case <-ctx.Done():
		case <-changed:
			stale = true
			pauseFor(ctx, inbox.Settle/5) // changes come together
		case <-d.nextTurn():
		case <-started:
			started, late = nil, nil
			d.proceed()
		case <-late:
			started, late = nil, nil
			d.proceed()
		}
	}
}

// refresh reads what servers share, and gives a turn to each manifest that changed.
func (d *deployer) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	there, err := d.shared.list(ctx)
	if err != nil {
		return err
	}
	if d.manifests == nil {
		if err := d.addons.load(ctx); err != nil {
			return err
		}
	}
	now := d.collect(there)
	for name, m := range now {
		old := d.manifests[name]
		if old == nil || old.sum != m.sum || old.intent != m.intent || old.server != m.server {
			d.turns[name] = turn{at: time.Now()}
			if slices.Contains(d.later, name) {
				d.turns[name] = turn{}
			}
		}
	}
	maps.DeleteFunc(d.turns, func(name string, _ turn) bool { return now[name] == nil })
	d.manifests = now
	return nil
}

// proceed gives a turn to what waited for the end of the start.
func (d *deployer) proceed() {
	for _, name := range d.later {
		if _, waits := d.turns[name]; waits {
			d.turns[name] = turn{at: time.Now()}
		}
	}
	d.later = nil
}

// collect makes manifests of what there is. What is missing without a mark that it was
// deleted stays as it was.
func (d *deployer) collect(there map[string]file) map[string]*manifest {
	out := maps.Clone(d.manifests)
	if out == nil {
		out = map[string]*manifest{}
	}
	marked := map[string]bool{}
	for _, f := range there {
		if path, ok := strings.CutSuffix(f.path, skipSuffix); ok && !f.gone {
			marked[path] = true
		}
	}
	var own []string
	for _, m := range d.own {
		own = append(own, m.name)
		fresh := *m
		fresh.intent = d.intent(m.file, marked)
		out[m.name] = &fresh
	}
	for _, f := range there {
		if !accepted(f.path) || !isManifest(f.path) {
			continue
		}
		name := addonName(f.path, own)
		want := d.intent(f.path, marked)
		if f.gone && want != leave {
			want = forget
		}
		if _, made := d.addons.stored[name]; f.gone && !made {
			delete(out, name)
			continue
		}
		m := out[name]
		if m == nil || m.sum != f.sum() || m.server != f.server || m.file != f.path {
			m = newManifest(name, f)
			if slices.Contains(own, strings.TrimSuffix(f.path, ".yaml")) {
				m.fault = fmt.Errorf("%w%s: podo has a manifest of this name itself; give yours another, and start podo with --disable %s if it is to take that one's place", errFinal, f.path, baseName(f.path))
			}
		}
		fresh := *m
		fresh.intent = want
		out[name] = &fresh
	}
	for name, a := range d.addons.stored {
		if out[name] == nil && a.Spec.Server == "" { // of a podo of another version
			out[name] = &manifest{name: name, file: a.Spec.File, intent: forget}
		}
	}
	return out
}

// intent is what people want of a file.
func (d *deployer) intent(path string, marked map[string]bool) intent {
	switch {
	case marked[path]:
		return leave
	case slices.Contains(d.disabled, baseName(path)):
		return disable
	}
	return apply
}

// nextTurn fires when a manifest is to be worked on.
func (d *deployer) nextTurn() <-chan time.Time {
	var next time.Time
	for _, t := range d.turns {
		if !t.at.IsZero() && (next.IsZero() || t.at.Before(next)) {
			next = t.at
		}
	}
	if next.IsZero() {
		return nil
	}
	return time.After(time.Until(next))
}

// takeTurns works on every manifest whose turn it is. The binary's own come first, and
// are noted when all are applied: at the first start the kind of the notes is not served
// at once.
func (d *deployer) takeTurns(ctx context.Context, ready func()) {
	var mine, others []*manifest
	for _, m := range d.manifests {
		if t := d.turns[m.name]; t.at.IsZero() || time.Now().Before(t.at) {
			continue
		}
		if m.own() {
			mine = append(mine, m)
		} else {
			others = append(others, m)
		}
	}
	place := func(m *manifest) int {
		return slices.IndexFunc(d.own, func(o *manifest) bool { return o.name == m.name })
	}
	slices.SortFunc(mine, func(a, b *manifest) int { return cmp.Compare(place(a), place(b)) })
	// What is let go of comes first, so that another file can have it.
	slices.SortFunc(others, func(a, b *manifest) int {
		return cmp.Or(cmp.Compare(b.intent, a.intent), cmp.Compare(a.file, b.file))
	})
	noted := make([]func(), 0, len(mine))
	for _, m := range mine {
		a, err := d.attempt(ctx, m)
		if err == nil {
			delete(d.missing, m.name)
		}
		noted = append(noted, func() { d.conclude(ctx, m, a, err) })
	}
	if len(d.missing) == 0 {
		ready()
	}
	for _, note := range noted {
		note()
	}
	for _, m := range others {
		if ctx.Err() != nil {
			return
		}
		a, err := d.attempt(ctx, m)
		d.conclude(ctx, m, a, err)
	}
}

// conclude notes what an attempt came to, and when the next one is.
func (d *deployer) conclude(ctx context.Context, m *manifest, a addon, fault error) {
	if ctx.Err() != nil {
		return
	}
	before := d.addons.stored[m.name]
	a.Status.Error = ""
	if fault != nil {
		a.Status.Error = logging.Discreet(fault)
	}
	var err error
	if fault == nil && m.intent == forget {
		err = d.addons.forget(ctx, m.name)
	} else {
		a, err = d.addons.save(ctx, a)
	}
	log := d.log.With("manifest", m.file)
	switch said := a.Status.Error; {
	case fault != nil && (err != nil || said != before.Status.Error):
		log.Warn("manifest not deployed", "err", said)
		if err == nil {
			d.events.Event(&corev1.ObjectReference{APIVersion: a.APIVersion, Kind: a.Kind, Name: m.name, UID: a.Metadata.UID},
				corev1.EventTypeWarning, "NotDeployed", said)
		}
	case err != nil:
		log.Warn("manifest not noted as deployed", "err", err)
	}
	if err = errors.Join(err, fault); err != nil {
		t := d.turns[m.name]
		t.pause = min(max(2*t.pause, firstPause), lastPause)
		t.at = time.Now().Add(t.pause)
		if errors.Is(err, errFinal) {
			t.at = time.Time{}
		}
		d.turns[m.name] = t
		return
	}
	delete(d.turns, m.name)
	if m.intent == forget {
		delete(d.manifests, m.name)
	}
	if before.Status.State == a.Status.State && before.Status.Checksum == a.Status.Checksum {
		return
	}
	if !m.own() {
		log.Info("manifest followed", "state", a.Status.State, "objects", len(a.Status.Objects))
	}
	// What waits may have waited for this.
	for name, t := range d.turns {
		if !t.at.IsZero() {
			d.turns[name] = turn{at: time.Now()}
		}
	}
}
