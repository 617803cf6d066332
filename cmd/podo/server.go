package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/podo-dev/podo/manifests"
	"github.com/podo-dev/podo/pkg/agent"
	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/datadir"
	"github.com/podo-dev/podo/pkg/host"
	"github.com/podo-dev/podo/pkg/join"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/payload"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/server"
	"github.com/podo-dev/podo/pkg/status"
	"github.com/podo-dev/podo/pkg/storage/etcd"
	"github.com/podo-dev/podo/pkg/version"
)

func serverCommand() *cli.Command {
	cfg, typed := config.Default(), []config.Setting(nil)
	flags := settingFlags(&cfg, &typed)
	return &cli.Command{
		Name:  "server",
		Usage: "run a cluster: control plane, and by default a node",
		Description: `Runs until it is told to stop. Pods outlive it: stopping, killing or upgrading podo
leaves them running, and the next start takes them over. To stop them too, use
podo kill; to remove every trace, podo uninstall.

Examples:
  podo server
  podo server --write-kubeconfig-mode 644 --tls-san cluster.example.org
  podo server --cluster-cidr 10.52.0.0/16 --service-cidr 10.53.0.0/16
  podo server --kubelet-arg max-pods=250 --feature-gates InPlacePodVerticalScaling=true
  podo server --server https://10.0.0.1:6443 --token K10... --disable-etcd`,
		CustomHelpTemplate: settingsHelp(flags),
		Flags:              flags,
		OnUsageError:       flagProblem,
		Action: func(c *cli.Context) error {
			cfg, _, err := loadHere(c, typed)
			if err != nil {
				return err
			}
			return launch(c, cfg.Node, func(ctx context.Context, s start) error { return runServer(ctx, s, cfg) })
		},
	}
}

// runServer takes a server from its settings to its end. Nothing is written before it
// is sure that the start goes ahead, but what a server needs that joins another.
func runServer(ctx context.Context, s start, cfg config.Server) error {
	claim, err := datadir.Judge(s.where, version.Kubernetes(), shape(cfg), cfg.Logging.File)
	if err != nil {
		return unfit(err)
	}
	defer claim.Release()
	if cfg.Name, err = nodeName(s.where, cfg.Node); err != nil {
		return err
	}
	settings := host.SettingsOf(cfg)
	facts, err := look(ctx, cfg.DataDir, settings)
	if err != nil {
		return err
	}
	known, err := member(ctx, s, cfg, facts, claim)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	p, err := plan.New(cfg, facts, known, os.Environ())
	if err != nil {
		return usageError{err}
	}
	if cfg.Datastore.Reset {
		return resetCluster(ctx, p, claim, s.log)
	}
	g, srv, err := build(ctx, s, p)
	if err != nil {
		return usageError{err}
	}

	if err := claim.Take(); err != nil {
		return unfit(err)
	}
	s.remember(claim)
	if err := claim.Name(p.Server.Certificates.Names.Node); err != nil {
		return err
	}
	if err := claim.Outside(map[string]string{p.Server.Kubeconfig.Path: p.Server.Kubeconfig.Name, cfg.Logging.File: ""}); err != nil {
		return err
	}
	if err := prepare(ctx, facts, settings, s.where, s.log); err != nil {
		return err
	}
	go s.settle(ctx, claim)
	report := reporter{start: s, group: g, server: srv, plan: *p.Server}
	err = s.run(ctx, g, p.Server.Certificates.Names.NodeIPs, report.report, serverTale(cfg, p))
	if _, ok := errors.AsType[fatal](err); ok && p.Server.Storage.External != nil {
		// kine wants to end the process if the database goes away in the middle of a
		// transaction of its own (0.16). A start waits until it is back.
		return s.again(err)
	}
	return err
}

// member returns what is known of this server's cluster. A server that was told of
// another is let in by that one here, and given the keys, if it has no state of its own
// or one of which it was taken out, or is to run a member of etcd for the first time.
func member(ctx context.Context, s start, cfg config.Server, facts host.Facts, claim *datadir.Claim) (plan.Known, error) {
	kind, err := datadir.Datastore(s.where)
	if err != nil || kind == "sqlite" || kind == "external" || cfg.Join.Server == "" {
		return plan.Known{Datastore: kind}, err
	}
	switch kind {
	case "etcd":
		if outside, err := etcd.Outside(s.where.EtcdData()); err != nil || !outside {
			return plan.Known{Datastore: kind}, err
		}
	case "remote":
		if cfg.Components.NoEtcd {
			return plan.Known{Datastore: kind}, nil
		}
	}
	joining, err := plan.Join(cfg.Node, facts)
	if err != nil {
		return plan.Known{}, usageError{err}
	}
	if err := claim.Hold(); err != nil {
		return plan.Known{}, unfit(err)
	}
	bundle, members, err := join.New(joining, s.log).JoinPeer(ctx, config.Shared(cfg))
	if _, ok := errors.AsType[*join.Refusal](err); ok {
		return plan.Known{}, usageError{err}
	}
	if err != nil {
		return plan.Known{}, err
	}
	s.told.Done("join", "let in by the cluster at "+cfg.Join.Server)
	return plan.Known{Datastore: kind, Members: members}, bundle.Import(s.where)
}

// resetCluster makes a cluster of this server alone, and says what comes next.
func resetCluster(ctx context.Context, p plan.Plan, claim *datadir.Claim, log *slog.Logger) error {
	if err := claim.Take(); err != nil {
		return unfit(err)
	}
	kept, err := server.Reset(ctx, *p.Server, log)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, `This server's data is now a cluster of one server. The data as it was is kept in
%s

Next:
  1. on each other server, before podo is started there again: podo uninstall
  2. start podo server here, without --cluster-reset
  3. join the other servers again, with --server and --token
  4. podo kubectl delete node NAME for servers that will not come back
`, kept)
	return nil
}

// build makes every part of the plan and starts none. An error means that a flag
// passed through to one of them is wrong.
func build(ctx context.Context, s start, p plan.Plan) (*lifecycle.Group, server.Server, error) {
	g, doors, err := s.group(ctx, p.Gates)
	if err != nil {
		return g, server.Server{}, err
	}
	srv, err := server.Build(g, *p.Server, server.Deps{
		Gate: doors, Manifests: ownManifests{s.exe}, Values: func() (map[string]string, error) { return imageValues(s.exe, p.Server.Cluster) },
		Started: s.over, Log: s.log,
	})
	if p.Node == nil {
		return g, srv, err
	}
	deps := agent.Deps{Gate: doors, Exe: s.exe, Trust: srv.Trust, API: srv.Near, Ending: s.ending, Log: s.log}
	if err != nil {
		return g, srv, errors.Join(err, agent.Judge(*p.Node, deps))
	}
	err = agent.Build(g, *p.Node, deps)
	return g, srv, err
}

// shape is what a cluster cannot change once it has begun: objects in it carry
// addresses of these ranges, and names in this domain. The way that packets take
// between nodes is the same on all of them, and one restart cannot change it on all.
func shape(cfg config.Server) map[string]string {
	out := map[string]string{}
	for _, f := range config.Fields(&cfg) {
		switch f.Name {
		case "cluster-cidr", "service-cidr", "cluster-domain", "cluster-dns", "flannel-backend":
			out[f.Name] = f.String()
		}
	}
	return out
}

// imageValues names the images of the payload in manifests.
func imageValues(exe string, in plan.Cluster) (map[string]string, error) {
	parts, err := payload.Components(exe)
	if err != nil {
		return nil, err
	}
	values := map[string]string{}
	for _, c := range parts {
		switch c.Name {
		case "images/coredns.tar":
			values["COREDNS_IMAGE"] = in.Image("coredns:" + c.Version)
		case "images/traefik.tar":
			values["TRAEFIK_IMAGE"] = in.Image("traefik:" + c.Version)
		}
	}
	if len(values) < 2 {
		return nil, errors.New("the payload holds no image of CoreDNS or Traefik")
	}
	return values, nil
}

// ownManifests are those that are linked in. The payload has the kinds of some, which
// follow.
type ownManifests struct{ exe string }

func (o ownManifests) Open(name string) (fs.File, error) { return manifests.FS.Open(name) }

// ReadFile is what fs.ReadFile calls.
func (o ownManifests) ReadFile(name string) ([]byte, error) {
	text, err := manifests.FS.ReadFile(name)
	if err != nil {
		return nil, err
	}
	p, err := payload.Open(o.exe)
	if err != nil {
		return nil, err
	}
	more := "manifests/" + name
	if !slices.ContainsFunc(p.Components(), func(c payload.Component) bool { return c.Name == more }) {
		return text, nil
	}
	out := bytes.NewBuffer(text)
	err = p.Extract(out, more)
	return out.Bytes(), err
}

// reporter answers podo status.
type reporter struct {
	start  start
	group  *lifecycle.Group
	server server.Server
	plan   plan.Server
}

func (r reporter) report(ctx context.Context) status.Report {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	out := r.start.report(r.group)
	out.Kubeconfig = r.plan.Kubeconfig.Path
	out.API = &status.API{Address: r.plan.API}
	out.Datastore = &status.Datastore{Kind: datastoreKind(r.plan.Storage)}
	if bytes, latency, err := r.server.Store.Health(ctx); err != nil {
		out.Datastore.Error = err.Error()
	} else {
		out.Datastore.Healthy, out.Datastore.Bytes, out.Datastore.LatencySeconds = true, bytes, latency.Seconds()
	}
	if r.server.Servers != nil {
		out.Servers = r.server.Servers()
	}
	switch err := server.Healthy(ctx, r.plan); {
	case err == nil:
		out.API.Healthy = true
	case r.server.Servers != nil && len(out.Servers) == 0:
		out.API.Error = "no server that runs an API server has joined yet"
	default:
		out.API.Error = err.Error()
	}
	switch {
	case r.plan.NodeName == "":
	case r.server.Servers != nil && !out.API.Healthy:
		out.Node = &status.Node{Name: r.plan.NodeName, Reason: "no API server answers, so nobody can tell"}
	default:
		out.Node = nodeStatus(ctx, r.plan.Paths.ServerKubeconfig("podo"), r.plan.NodeName)
	}
	return out
}

func datastoreKind(s plan.Storage) string {
	switch {
	case s.External != nil:
		return s.External.Product()
	case s.Etcd != nil:
		return "etcd"
	case s.Remote != nil:
		return "etcd of other servers"
	}
	return "SQLite"
}
