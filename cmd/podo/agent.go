package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"github.com/urfave/cli/v2"
	"k8s.io/client-go/kubernetes"

	"github.com/podo-dev/podo/pkg/agent"
	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/datadir"
	"github.com/podo-dev/podo/pkg/gate"
	"github.com/podo-dev/podo/pkg/host"
	"github.com/podo-dev/podo/pkg/join"
	"github.com/podo-dev/podo/pkg/kube"
	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/status"
	"github.com/podo-dev/podo/pkg/version"
)

func agentCommand() *cli.Command {
	cfg, typed := config.Default(), []config.Setting(nil)
	flags := settingFlags(&cfg.Node, &typed)
	return &cli.Command{
		Name:  "agent",
		Usage: "join this machine to a cluster, as a node",
		Description: `Runs until it is told to stop. The first start needs a token; later ones only the
identity that this machine keeps. Pods outlive podo, and a machine that boots while
no server answers starts the pods it last had.

Examples:
  podo token create --print-join-command        (on a server: prints the next line)
  podo agent --server https://10.0.0.1:6443 --token K10...
  podo agent --server https://10.0.0.1:6443 --token-file /etc/podo/token --node-label disk=ssd`,
		CustomHelpTemplate: settingsHelp(flags),
		Flags:              flags,
		OnUsageError:       flagProblem,
		Action: func(c *cli.Context) error {
			notify := takeNotifier()
			cfg, err := loadAgent(c, typed)
			if err != nil {
				return err
			}
			if os.Geteuid() != 0 {
				return errors.New("agent: must be run as root, since it mounts, routes and starts containers; try: sudo podo agent")
			}
			life, end := context.WithCancelCause(c.Context)
			defer end(nil)
			log, closer, err := openLog(life, cfg.Logging, func(reason string) { end(fatal{reason}) })
			if err != nil {
				return err
			}
			defer closer.Close()
			return runAgent(life, end, cfg, log, notify)
		},
	}
}

// runAgent takes an agent from its settings to its end, as runServer does a server.
// What it runs depends on what its cluster is like, so it joins first.
func runAgent(ctx context.Context, end func(cause error), cfg config.Node, log *slog.Logger, notify notifier) error {
	began := time.Now()
	preferMemory()
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	where := paths.New(cfg.DataDir)
	claim, err := datadir.Judge(where, nil, cfg.Logging.File)
	if err != nil {
		return unfit(err)
	}
	defer claim.Release()
	facts, err := look(ctx, cfg.DataDir, host.SettingsOfAgent(cfg, config.Network{}, true))
	if err != nil {
		return err
	}
	joining, err := plan.Join(cfg, facts)
	if err != nil {
		return usageError{err}
	}
	if err := claim.Take(); err != nil {
		return unfit(err)
	}
	told := teller(os.Stderr, began, cfg.Logging, log)
	given, fresh, err := join.New(joining, log).Join(ctx)
	if ctx.Err() != nil {
		return nil
	}
	var no *join.Refusal
	if errors.As(err, &no) {
		return usageError{err}
	}
	if err != nil {
		return err
	}
	told.Done("join", "member of the cluster at "+cfg.Join.Server+", as "+given.Name)

	p, err := plan.NewAgent(cfg, facts, given.Cluster, os.Environ())
	if err != nil {
		return usageError{err}
	}
	if err := os.Setenv("PATH", where.Bin()+":"+os.Getenv("PATH")); err != nil {
		return err
	}
	g, tie, err := buildAgent(ctx, p, given, fresh, exe, log)
	if err != nil {
		return usageError{err}
	}
	network := config.Network{ClusterCIDR: given.Cluster.PodCIDR, ServiceCIDR: given.Cluster.ServiceCIDR, FlannelBackend: given.Cluster.FlannelBackend}
	settings := host.SettingsOfAgent(cfg, network, given.Cluster.KubeProxy)
	if err := host.Err(host.Checks(facts, settings)); err != nil {
		return err
	}
	if err := prepare(ctx, facts, settings, log); err != nil {
		return err
	}
	report := agentReporter{began: began, dataDir: cfg.DataDir, group: g, tie: tie, plan: p}
	if len(cfg.IP) == 0 {
		g.Add(host.Stays(p.Node.Kubelet.IPs))
	}
	g.Add(status.Serve(where.Socket("podo"), report.report, log))
	tell := agentTale(p).progress(told, notify)
	g.Observe = func(st lifecycle.Status) {
		if st.State == lifecycle.Failed {
			end(nil)
		}
		tell(st)
	}
	return runGroup(ctx, g, notify)
}

// buildAgent makes every part of the plan and starts none.
func buildAgent(ctx context.Context, p plan.Plan, given join.Membership, fresh bool, exe string, log *slog.Logger) (*lifecycle.Group, agent.Tie, error) {
	g, doors := lifecycle.NewGroup(log), gate.New()
	stopping, err := kube.Prepare(p.Gates, os.Exit)
	if err != nil {
		return g, agent.Tie{}, err
	}
	context.AfterFunc(ctx, stopping)
	context.AfterFunc(ctx, doors.Abandon)
	tie, err := agent.Join(g, *p.Agent, given, fresh, doors, log)
	if err != nil {
		return g, tie, err
	}
	return g, tie, agent.Build(g, *p.Node, agent.Deps{Gate: doors, Exe: exe, Trust: tie.API, Log: log})
}

// agentReporter answers podo status on an agent.
type agentReporter struct {
	began   time.Time
	dataDir string
	group   *lifecycle.Group
	tie     agent.Tie
	plan    plan.Plan
}

func (r agentReporter) report(ctx context.Context) status.Report {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	out := status.Report{
		Version: version.Podo(), Kubernetes: version.Kubernetes(), PID: os.Getpid(), Since: r.began,
		DataDir: r.dataDir, Components: r.group.Status(), Servers: r.tie.Servers(),
		API:  &status.API{Address: r.plan.Agent.API},
		Node: &status.Node{Name: r.plan.Node.Name},
	}
	if err := r.tie.Healthy(ctx); err != nil {
		out.API.Error, out.Node.Reason = err.Error(), "no server answers, so nobody can tell"
		return out
	}
	out.API.Healthy = true
	if err := r.condition(ctx); err != nil {
		out.Node.Reason = err.Error()
	} else {
		out.Node.Ready = true
	}
	return out
}

func (r agentReporter) condition(ctx context.Context) error {
	rc, err := kubeconfig.Client(r.plan.Agent.Paths.AgentKubeconfig("kubelet"), nil)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return err
	}
	return agent.Condition(ctx, client, r.plan.Node.Name)
}
