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
	"slices"
	"time"

	"k8s.io/client-go/rest"

	"github.com/podo-dev/podo/pkg/balancer"
	"github.com/podo-dev/podo/pkg/deploy"
	"github.com/podo-dev/podo/pkg/dns"
	"github.com/podo-dev/podo/pkg/gate"
	"github.com/podo-dev/podo/pkg/helm"
	"github.com/podo-dev/podo/pkg/kube/apiserver"
	"github.com/podo-dev/podo/pkg/kube/controllermanager"
	"github.com/podo-dev/podo/pkg/kube/lease"
	"github.com/podo-dev/podo/pkg/kube/scheduler"
	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/loadbalancer"
	"github.com/podo-dev/podo/pkg/metrics"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/storage/etcd"
	"github.com/podo-dev/podo/pkg/storage/external"
	"github.com/podo-dev/podo/pkg/storage/migrate"
	"github.com/podo-dev/podo/pkg/storage/sqlite"
	"github.com/podo-dev/podo/pkg/volumes"
)

// patience is how long the API may take to become ready: a cold start on a small
// board with a slow card takes a tenth of it.
const patience = 5 * time.Minute

// A Server is the control plane's place in a group.
type Server struct {
	Trust *lifecycle.Unit // certificates and kubeconfigs are on disk
	API   *lifecycle.Unit // the API is ready, be it this server's or others'
	Near  lifecycle.Need  // met once what talks to the API may start
	Store Store

	// Servers are the API servers that one without its own knows. Nil on all others.
	Servers func() []balancer.Server
}

// Store is a datastore. Health asks it one small question, and returns its size in
// bytes and how long the answer took.
type Store interface {
	lifecycle.Component
	Health(ctx context.Context) (bytes int64, latency time.Duration, err error)
}

// members is a datastore that has members.
type members interface {
	Admin() (*etcd.Admin, error)
}

// newStore makes the datastore of the plan.
func newStore(p plan.Storage, log *slog.Logger) Store {
	switch {
	case p.External != nil:
		return external.New(*p.External, log)
	case p.Etcd != nil:
		return etcd.New(*p.Etcd, log)
	case p.Remote != nil:
		return etcd.NewRemote(*p.Remote, log)
	}
	return sqlite.New(*p.SQLite, log)
}

// keep adds the datastore and what says who is who. A cluster's CA comes before its
// first object, except where it comes from the datastore itself. What is returned must
// be there before the API.
func (s *Server) keep(g *lifecycle.Group, p plan.Storage, who *keyring, log *slog.Logger) []lifecycle.Need {
	if p.External != nil {
		store := g.Add(s.Store)
		s.Trust = g.Add(who.component(), store.Begun())
		return []lifecycle.Need{s.Trust, g.Add(who.secrets(), store, s.Trust)}
	}
	s.Trust = g.Add(who.component())
	before := []lifecycle.Need{s.Trust}
	if p.From != nil {
		before = append(before, g.Add(migrate.Before(p, log), s.Trust))
	}
	store := g.Add(s.Store, before...)
	if p.SQLite == nil {
		g.Add(who.secrets(), store)
	}
	return []lifecycle.Need{store, s.Trust}
}

// Deps are what the control plane takes from its surroundings.
type Deps struct {
	Gate      *gate.Gate
	Manifests fs.FS
	// Values are for ${NAME} in manifests, beyond those of the plan. Called once
	// the API is ready.
	Values func() (map[string]string, error)
	// Started is closed when the machine's own start is over.
	Started <-chan struct{}
	Log     *slog.Logger
}

// Build adds the control plane to g. An error means that a flag passed through to
// a component is wrong; all such mistakes are in it.
func Build(g *lifecycle.Group, p plan.Server, d Deps) (Server, error) {
	who := &keyring{plan: p, log: d.Log}
	s := Server{Store: newStore(p.Storage, d.Log)}
	super := newSupervisor(p, who, s.Store, d.Gate, d.Log)
	parts, err := newParts(p, super, d)
	if err != nil {
		return Server{}, err
	}

	needs := s.keep(g, p.Storage, who, d.Log)
	if parts.api != nil {
		if p.Egress.Config != "" {
			needs = append(needs, g.Add(super.egress()))
		}
		s.API = g.Add(lifecycle.Within(patience, lifecycle.Hasty(parts.api)), needs...)
		s.Near = s.API.Begun()
	} else {
		s.borrow(g, newElsewhere(p, super, d), needs...)
	}
	g.Add(super.component(), s.API)
	if parts.metrics != nil {
		g.Add(parts.metrics, s.Near)
	}
	switch {
	case p.LoadBalancer != nil:
		g.Add(alone(p, d, loadbalancer.New(*p.LoadBalancer, client(p, d.Gate), d.Log)), s.Near)
	case parts.api != nil:
		g.Add(loadbalancer.Remove(client(p, d.Gate), d.Log), s.API)
	}
	if parts.controllers != nil {
		g.Add(alone(p, d, parts.controllers), s.Near)
	}
	if parts.scheduler != nil {
		g.Add(alone(p, d, parts.scheduler), s.Near)
	}
	if p.Provision {
		g.Add(alone(p, d, volumes.NewProvisioner(client(p, d.Gate), d.Log)), s.Near)
	}
	if p.NodeName != "" {
		g.Add(Role(p, d.Gate), s.API)
	}
	g.Add(deploy.Files(p.Paths.Manifests(), p.Paths.AgreedManifests(), p.Certificates.Names.Node, client(p, d.Gate), d.Log), s.API)
	if parts.api != nil {
		g.Add(inTurn(p, d, deployer(p, d)), s.API)
	}
	if p.Helm {
		g.Add(alone(p, d, helm.New(p.Paths.Charts(), client(p, d.Gate), d.Log)), s.API)
	}
	return s, nil
}

// borrow adds to g what a server does without an API server of its own. Those of
// others may come hours later, so nothing is started before one answers.
func (s *Server) borrow(g *lifecycle.Group, e *elsewhere, needs ...lifecycle.Need) {
	g.Add(e.port(), needs...)
	way := g.Add(e.balancer, s.Trust)
	g.Add(e.servers(), append(needs, way)...)
	s.API = g.Add(e.api(), way)
	s.Near = s.API
	s.Servers = e.balancer.Servers
}

// parts are Kubernetes' own. One that the plan leaves out is nil.
type parts struct {
	api         *apiserver.Server
	controllers *controllermanager.Manager
	scheduler   *scheduler.Scheduler
	metrics     *metrics.Server
}

func newParts(p plan.Server, super *supervisor, d Deps) (out parts, err error) {
	var errs [3]error
	if p.APIServer != nil {
		hooks := apiserver.Hooks{Front: super.front, Settle: super.settle}
		if p.Metrics {
			out.metrics = metrics.New(metrics.Options{Client: client(p, d.Gate), Kubelets: super.kubelets(), Nodes: super.known, Gate: d.Gate, Log: d.Log})
			hooks.Extra = out.metrics
		}
		out.api, errs[0] = apiserver.New(*p.APIServer, hooks, d.Gate, d.Log)
	}
	if p.ControllerManager != nil {
		out.controllers, errs[1] = controllermanager.New(*p.ControllerManager, d.Gate, d.Log)
	}
	if p.Scheduler != nil {
		out.scheduler, errs[2] = scheduler.New(*p.Scheduler, d.Gate, d.Log)
	}
	return out, errors.Join(errs[:]...)
}

// deployer deploys manifests, and beside that keeps what CoreDNS' is to know of nodes: that
// is small, and needs no lease of its own.
func deployer(p plan.Server, d Deps) lifecycle.Component {
	c := deploy.New(deploy.Options{
		Addons: p.Addons, Files: d.Manifests, Values: d.Values, Started: d.Started, Client: client(p, d.Gate), Log: d.Log,
	})
	if !slices.Contains(p.Addons.Enabled, "coredns") {
		return c
	}
	return lifecycle.Func(c.Name(), func(ctx context.Context, ready func()) error {
		ctx, end := context.WithCancel(ctx)
		named := make(chan error, 1)
		go func() {
			err := dns.Names(ctx, client(p, d.Gate), d.Log)
			if err != nil {
				end() // so that it is told now, and tried again
			}
			named <- err
		}()
		err := c.Run(ctx, ready)
		end()
		return errors.Join(err, <-named)
	})
}

// alone sees to it that a part is at work on one of several servers only. The lease
// is ours rather than upstream's, which ends the process when it loses one.
func alone(p plan.Server, d Deps, c lifecycle.Component) lifecycle.Component {
	if !p.Election {
		return c
	}
	return lease.Hold(lease.Options{Name: "podo-" + c.Name(), Identity: p.Certificates.Names.Node + "-" + rand.Text(), Client: client(p, d.Gate), Log: d.Log}, c)
}

// inTurn is alone for a part that can run twice in a process: it stands in line again
// when it loses its lease.
func inTurn(p plan.Server, d Deps, c lifecycle.Component) lifecycle.Component {
	return lifecycle.Func(c.Name(), func(ctx context.Context, ready func()) error {
		for {
			err := alone(p, d, c).Run(ctx, ready)
			if !errors.Is(err, lease.ErrLost) || ctx.Err() != nil {
				return err
			}
			d.Log.Warn("standing in line again", "component", c.Name(), "err", err)
		}
	})
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
