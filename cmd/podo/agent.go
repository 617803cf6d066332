package main

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/podo-dev/podo/pkg/agent"
	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/datadir"
	"github.com/podo-dev/podo/pkg/host"
	"github.com/podo-dev/podo/pkg/join"
	"github.com/podo-dev/podo/pkg/lifecycle"
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
			cfg, err := loadAgent(c, typed)
			if err != nil {
				return err
			}
			return launch(c, cfg, func(ctx context.Context, s start) error { return runAgent(ctx, s, cfg) })
		},
	}
}

// runAgent takes an agent from its settings to its end, as runServer does a server.
// What it runs depends on what its cluster is like, so it joins first.
func runAgent(ctx context.Context, s start, cfg config.Node) error {
	claim, err := datadir.Judge(s.where, version.Kubernetes(), nil, cfg.Logging.File)
	if err != nil {
		return unfit(err)
	}
	defer claim.Release()
	if cfg.Name, err = nodeName(s.where, cfg); err != nil {
		return err
	}
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
	s.remember(claim)
	if err := claim.Outside(map[string]string{cfg.Logging.File: ""}); err != nil {
		return err
	}
	given, fresh, err := join.New(joining, s.log).Join(ctx)
	if ctx.Err() != nil {
		return nil
	}
	if _, ok := errors.AsType[*join.Refusal](err); ok {
		return usageError{err}
	}
	if err != nil {
		return err
	}
	if err := claim.Name(given.Name); err != nil {
		return err
	}
	s.told.Done("join", "member of the cluster at "+cfg.Join.Server+", as "+given.Name)

	p, err := plan.NewAgent(cfg, facts, given.Cluster, os.Environ())
	if err != nil {
		return usageError{err}
	}
	g, tie, err := buildAgent(ctx, s, p, given, fresh)
	if err != nil {
		return usageError{err}
	}
	network := config.Network{ClusterCIDR: given.Cluster.PodCIDR, ServiceCIDR: given.Cluster.ServiceCIDR, FlannelBackend: given.Cluster.FlannelBackend}
	settings := host.SettingsOfAgent(cfg, network, given.Cluster.KubeProxy)
	if err := host.Err(host.Checks(facts, settings)); err != nil {
		return err
	}
	if err := prepare(ctx, facts, settings, s.where, s.log); err != nil {
		return err
	}
	go s.settle(ctx, claim)
	report := agentReporter{start: s, group: g, tie: tie, plan: p}
	return s.run(ctx, g, p.Node.Kubelet.IPs, report.report, agentTale(p))
}

// buildAgent makes every part of the plan and starts none.
func buildAgent(ctx context.Context, s start, p plan.Plan, given join.Membership, fresh bool) (*lifecycle.Group, agent.Tie, error) {
	g, doors, err := s.group(ctx, p.Gates)
	if err != nil {
		return g, agent.Tie{}, err
	}
	tie, err := agent.Join(g, *p.Agent, given, fresh, doors, s.log)
	if err != nil {
		return g, tie, err
	}
	return g, tie, agent.Build(g, *p.Node, agent.Deps{Gate: doors, Exe: s.exe, Trust: tie.API, Ending: s.ending, Log: s.log})
}

// agentReporter answers podo status on an agent.
type agentReporter struct {
	start start
	group *lifecycle.Group
	tie   agent.Tie
	plan  plan.Plan
}

func (r agentReporter) report(ctx context.Context) status.Report {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	out := r.start.report(r.group)
	out.Servers = r.tie.Servers()
	out.API = &status.API{Address: r.plan.Agent.API}
	if err := r.tie.Healthy(ctx); err != nil {
		out.API.Error = err.Error()
		out.Node = &status.Node{Name: r.plan.Node.Name, Reason: "no server answers, so nobody can tell"}
		return out
	}
	out.API.Healthy = true
	out.Node = nodeStatus(ctx, r.plan.Agent.Paths.AgentKubeconfig("kubelet"), r.plan.Node.Name)
	return out
}
