// Package server wires the control plane.
//
// Build is the boot order: each line adds a part and names what it needs. Parts
// that only talk to the API are started together with it, behind the gate, and
// stop before it. Nothing is decided here; that is package plan's work.
package server

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"log/slog"
	"time"

	"k8s.io/client-go/rest"

	"github.com/podo-dev/podo/pkg/deploy"
	"github.com/podo-dev/podo/pkg/gate"
	"github.com/podo-dev/podo/pkg/kube/apiserver"
	"github.com/podo-dev/podo/pkg/kube/controllermanager"
	"github.com/podo-dev/podo/pkg/kube/lease"
	"github.com/podo-dev/podo/pkg/kube/scheduler"
	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/storage/etcd"
	"github.com/podo-dev/podo/pkg/storage/sqlite"
)

// patience is how long the API may take to become ready: a cold start on a small
// board with a slow card takes a tenth of it.
const patience = 5 * time.Minute

// A Server is the control plane's place in a group.
type Server struct {
	Trust *lifecycle.Unit // certificates and kubeconfigs are on disk
	API   *lifecycle.Unit // the API is ready
	Store Store
}

// Store is a datastore. Health asks it one small question, and returns its size in
// bytes and how long the answer took.
type Store interface {
	lifecycle.Component
	Health(ctx context.Context) (bytes int64, latency time.Duration, err error)
}

// newStore makes the datastore of the plan.
func newStore(p plan.Storage, log *slog.Logger) Store {
	if p.Etcd != nil {
		return etcd.New(*p.Etcd, log)
	}
	return sqlite.New(*p.SQLite, log)
}

// Deps are what the control plane takes from its surroundings.
type Deps struct {
	Gate      *gate.Gate
	Manifests fs.FS
	// Values are for ${NAME} in manifests, beyond those of the plan. Called once
	// the API is ready.
	Values func() (map[string]string, error)
	Log    *slog.Logger
}

// Build adds the control plane to g. An error means that a flag passed through to
// a component is wrong; all such mistakes are in it.
func Build(g *lifecycle.Group, p plan.Server, d Deps) (Server, error) {
	who := &keyring{plan: p}
	s := Server{Store: newStore(p.Storage, d.Log)}
	super := newSupervisor(p, who, s.Store, d.Gate, d.Log)
	api, err1 := apiserver.New(p.APIServer, super.front, d.Gate, d.Log)
	controllers, err2 := controllermanager.New(p.ControllerManager, d.Gate, d.Log)
	var sched *scheduler.Scheduler
	var err3 error
	if p.Scheduler != nil {
		sched, err3 = scheduler.New(*p.Scheduler, d.Gate, d.Log)
	}
	if err := errors.Join(err1, err2, err3); err != nil {
		return Server{}, err
	}

	s.Trust = g.Add(who.component())
	store := g.Add(s.Store, s.Trust) // a cluster's CA comes before its first object
	needs := []lifecycle.Need{store, s.Trust}
	if p.Egress.Config != "" {
		needs = append(needs, g.Add(super.egress()))
	}
	s.API = g.Add(lifecycle.Within(patience, api), needs...)
	g.Add(super.component(), s.API)
	g.Add(alone(p, d, controllers), s.API.Begun())
	if sched != nil {
		g.Add(alone(p, d, sched), s.API.Begun())
	}
	if p.NodeName != "" {
		g.Add(Role(p, d.Gate), s.API)
	}
	g.Add(deploy.New(p.Addons, d.Manifests, client(p, d.Gate), d.Values, d.Log), s.API)
	return s, nil
}

// alone sees to it that a part is at work on one of several servers only. The lease
// is ours rather than upstream's, which ends the process when it loses one.
func alone(p plan.Server, d Deps, c lifecycle.Component) lifecycle.Component {
	if !p.Election {
		return c
	}
	return lease.Hold(lease.Options{Name: "podo-" + c.Name(), Identity: p.Certificates.Names.Node + "-" + rand.Text(), Client: client(p, d.Gate), Log: d.Log}, c)
}

// client is for podo's own work on the cluster.
func client(p plan.Server, g *gate.Gate) func() (*rest.Config, error) {
	return func() (*rest.Config, error) { return kubeconfig.Client(p.Paths.ServerKubeconfig("podo"), g.Dial) }
}

// Healthy reports whether the API answers, with the reason if it does not.
func Healthy(ctx context.Context, p plan.Server) error {
	rc, err := kubeconfig.Client(p.Paths.ServerKubeconfig("podo"), nil)
	if err != nil {
		return err
	}
	return ready(ctx, rc)
}
