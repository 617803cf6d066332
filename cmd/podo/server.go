package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"

	"github.com/podo-dev/podo/manifests"
	"github.com/podo-dev/podo/pkg/agent"
	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/datadir"
	"github.com/podo-dev/podo/pkg/gate"
	"github.com/podo-dev/podo/pkg/host"
	"github.com/podo-dev/podo/pkg/join"
	"github.com/podo-dev/podo/pkg/kube"
	"github.com/podo-dev/podo/pkg/kube/lease"
	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/paths"
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
  podo server --kubelet-arg max-pods=250 --feature-gates InPlacePodVerticalScaling=true`,
		CustomHelpTemplate: settingsHelp(flags),
		Flags:              flags,
		OnUsageError:       flagProblem,
		Action: func(c *cli.Context) error {
			notify := takeNotifier()
			cfg, _, err := loadHere(c, typed)
			if err != nil {
				return err
			}
			if os.Geteuid() != 0 {
				return errors.New("server: must be run as root, since it mounts, routes and starts containers; try: sudo podo server")
			}
			// Life ends when podo is told to stop, or when a part of it fails.
			life, end := context.WithCancelCause(c.Context)
			defer end(nil)
			log, closer, err := openLog(life, cfg.Logging, func(reason string) { end(fatal{reason}) })
			if err != nil {
				return err
			}
			defer closer.Close()
			return runServer(life, end, cfg, log, notify)
		},
	}
}

// runServer takes a server from its settings to its end. It calls end as soon as a
// part has failed, before the others have stopped. Nothing is written before it is
// sure that the start goes ahead.
func runServer(ctx context.Context, end func(cause error), cfg config.Server, log *slog.Logger, notify notifier) error {
	began := time.Now()
	told := teller(os.Stderr, began, cfg.Logging, log)
	preferMemory()
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	where := paths.New(cfg.DataDir)
	claim, err := datadir.Judge(where, shape(cfg), cfg.Logging.File)
	if err != nil {
		return unfit(err)
	}
	defer claim.Release()
	settings := host.SettingsOf(cfg)
	facts, err := look(ctx, cfg.DataDir, settings)
	if err != nil {
		return err
	}
	known, err := member(ctx, cfg, facts, claim, told, log)
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
		return resetCluster(ctx, p, claim, log)
	}
	// kube-proxy, the CNI plugins and we ourselves call nft, which is in the payload.
	if err := os.Setenv("PATH", where.Bin()+":"+os.Getenv("PATH")); err != nil {
		return err
	}
	g, srv, err := build(ctx, p, exe, log)
	if err != nil {
		return usageError{err}
	}

	if err := claim.Take(); err != nil {
		return unfit(err)
	}
	if err := prepare(ctx, facts, settings, log); err != nil {
		return err
	}
	report := reporter{began: began, dataDir: cfg.DataDir, node: p.Server.NodeName, group: g, server: srv, plan: *p.Server}
	if ips := p.Server.Certificates.Names.NodeIPs; len(cfg.IP) == 0 {
		g.Add(host.Stays(ips))
	}
	g.Add(status.Serve(where.Socket("podo"), report.report, log))
	tell := serverTale(cfg, p).progress(told, notify)
	g.Observe = func(st lifecycle.Status) {
		if st.State == lifecycle.Failed {
			end(nil)
		}
		tell(st)
	}
	return runGroup(ctx, g, notify)
}

// member returns what is known of this server's cluster. A server that was told of
// another, and has no state of its own or one of which it was taken out, is let in by
// that one here, and given the keys.
func member(ctx context.Context, cfg config.Server, facts host.Facts, claim *datadir.Claim, told *steps, log *slog.Logger) (plan.Known, error) {
	where := paths.New(cfg.DataDir)
	kind, err := datadir.Datastore(where)
	if err != nil || kind == "sqlite" || cfg.Join.Server == "" {
		return plan.Known{Datastore: kind}, err
	}
	if kind == "etcd" {
		if outside, err := etcd.Outside(where.EtcdData()); err != nil || !outside {
			return plan.Known{Datastore: kind}, err
		}
	}
	joining, err := plan.Join(cfg.Node, facts)
	if err != nil {
		return plan.Known{}, usageError{err}
	}
	if err := claim.Hold(); err != nil {
		return plan.Known{}, unfit(err)
	}
	bundle, members, err := join.New(joining, log).JoinPeer(ctx, config.Shared(cfg))
	if _, ok := errors.AsType[*join.Refusal](err); ok {
		return plan.Known{}, usageError{err}
	}
	if err != nil {
		return plan.Known{}, err
	}
	told.Done("join", "let in by the cluster at "+cfg.Join.Server)
	return plan.Known{Datastore: kind, Members: members}, bundle.Import(where)
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
  1. start podo server here, without --cluster-reset
  2. on each other server: podo uninstall, then join again with --server and --token
  3. podo kubectl delete node NAME for servers that will not come back
`, kept)
	return nil
}

// fatal is why a library wanted to end the process.
type fatal struct{ reason string }

func (f fatal) Error() string { return f.reason }

// runGroup runs g until it has stopped, and returns why if nobody asked it to. What a
// new start would mend is mended by one, in this very process, as nobody else may be
// there to start podo again.
func runGroup(ctx context.Context, g *lifecycle.Group, notify notifier) error {
	err := g.Run(ctx)
	if errors.Is(err, host.ErrMoved) || errors.Is(err, lease.ErrLost) {
		return again(err, notify)
	}
	if err != nil {
		return err
	}
	if why, ok := errors.AsType[fatal](context.Cause(ctx)); ok {
		return why
	}
	return nil
}

// again replaces this process by a new one that was started in the same way.
func again(why error, notify notifier) error {
	exe, err := os.Executable()
	if err != nil {
		return errors.Join(why, err)
	}
	fmt.Fprintln(os.Stderr, complaint(why, isJournal(os.Stderr, os.Getenv("JOURNAL_STREAM"))))
	env := os.Environ()
	if notify != "" {
		env = append(env, "NOTIFY_SOCKET="+string(notify))
	}
	return errors.Join(why, unix.Exec(exe, os.Args, env))
}

// unfit tells a data directory that can never do from one that cannot at the moment.
func unfit(err error) error {
	for _, never := range []error{datadir.ErrNewer, datadir.ErrShape, datadir.ErrRole, datadir.ErrForeign} {
		if errors.Is(err, never) {
			return usageError{err}
		}
	}
	return err
}

// look reads the machine and judges it as it is.
func look(ctx context.Context, dataDir string, settings host.Settings) (host.Facts, error) {
	facts, err := host.Discover(ctx, host.Options{DataDir: dataDir, Ports: settings.Ports})
	if err != nil {
		return facts, err
	}
	return facts, host.Err(host.Checks(facts, settings))
}

// prepare makes the machine fit for a node, says what was changed, and returns what
// still stands in the way.
func prepare(ctx context.Context, facts host.Facts, settings host.Settings, log *slog.Logger) error {
	_, findings := host.Prepare(ctx, facts, settings, log)
	for _, f := range findings {
		if f.Level == host.Warn {
			log.Warn(f.Detail, "check", f.Name, "remedy", f.Remedy)
		}
	}
	return host.Err(findings)
}

// build makes every part of the plan and starts none. An error means that a flag
// passed through to one of them is wrong.
func build(ctx context.Context, p plan.Plan, exe string, log *slog.Logger) (*lifecycle.Group, server.Server, error) {
	g, doors := lifecycle.NewGroup(log), gate.New()
	stopping, err := kube.Prepare(p.Gates, os.Exit)
	if err != nil {
		return g, server.Server{}, err
	}
	context.AfterFunc(ctx, stopping)
	context.AfterFunc(ctx, doors.Abandon) // a part that waits for the API would wait for ever
	srv, err := server.Build(g, *p.Server, server.Deps{
		Gate: doors, Manifests: manifests.FS, Values: func() (map[string]string, error) { return imageValues(exe) }, Log: log,
	})
	if err != nil || p.Node == nil {
		return g, srv, err
	}
	return g, srv, agent.Build(g, *p.Node, agent.Deps{Gate: doors, Exe: exe, Trust: srv.Trust, API: srv.API.Begun(), Log: log})
}

// preferMemory makes the garbage collector work sooner than Go would: most of what
// podo holds is made at the start and kept, and a heap that once grew stays holey.
// Starts took no longer with it. GOGC says otherwise.
func preferMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(40)
	}
}

// shape is what a cluster cannot change once it has begun: objects in it carry
// addresses of these ranges, and names in this domain.
func shape(cfg config.Server) map[string]string {
	out := map[string]string{}
	for _, f := range config.Fields(&cfg) {
		switch f.Name {
		case "cluster-cidr", "service-cidr", "cluster-domain", "cluster-dns":
			out[f.Name] = f.String()
		}
	}
	return out
}

// imageValues names the images of the payload in manifests.
func imageValues(exe string) (map[string]string, error) {
	parts, err := payload.Components(exe)
	if err != nil {
		return nil, err
	}
	for _, c := range parts {
		if c.Name == "images/coredns.tar" {
			return map[string]string{"COREDNS_IMAGE": "podo.local/coredns:" + c.Version}, nil
		}
	}
	return nil, errors.New("the payload holds no CoreDNS image")
}

// reporter answers podo status.
type reporter struct {
	began   time.Time
	dataDir string
	node    string
	group   *lifecycle.Group
	server  server.Server
	plan    plan.Server
}

func (r reporter) report(ctx context.Context) status.Report {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	out := status.Report{
		Version: version.Podo(), Kubernetes: version.Kubernetes(), PID: os.Getpid(), Since: r.began,
		DataDir: r.dataDir, Kubeconfig: r.plan.Kubeconfig.Path, Components: r.group.Status(),
		API:       &status.API{Address: r.plan.API},
		Datastore: &status.Datastore{Kind: datastoreKind(r.plan.Storage)},
	}
	if bytes, latency, err := r.server.Store.Health(ctx); err != nil {
		out.Datastore.Error = err.Error()
	} else {
		out.Datastore.Healthy, out.Datastore.Bytes, out.Datastore.LatencySeconds = true, bytes, latency.Seconds()
	}
	if err := server.Healthy(ctx, r.plan); err != nil {
		out.API.Error = err.Error()
	} else {
		out.API.Healthy = true
	}
	if r.node != "" {
		out.Node = &status.Node{Name: r.node}
		if err := r.condition(ctx); err != nil {
			out.Node.Reason = err.Error()
		} else {
			out.Node.Ready = true
		}
	}
	return out
}

func datastoreKind(s plan.Storage) string {
	if s.Etcd != nil {
		return "etcd"
	}
	return "SQLite"
}

func (r reporter) condition(ctx context.Context) error {
	rc, err := kubeconfig.Client(r.plan.Paths.ServerKubeconfig("podo"), nil)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return err
	}
	return agent.Condition(ctx, client, r.node)
}
