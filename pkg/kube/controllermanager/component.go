// Package controllermanager runs kube-controller-manager in this process.
//
// It uses upstream's options and Run with clients that dial through the gate, so
// it can be started together with the API server. It is ready when it runs and the API answers;
// what it does shows in the objects it reconciles.
package controllermanager

import (
	"context"
	"log/slog"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app/options"

	"github.com/podo-dev/podo/pkg/gate"
	"github.com/podo-dev/podo/pkg/kube"
	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/plan"
)

// Manager is kube-controller-manager.
type Manager struct {
	plan    plan.ControllerManager
	options *options.KubeControllerManagerOptions
	gate    *gate.Gate
	log     *slog.Logger
}

// New checks the flags of p. Clients dial through g.
func New(p plan.ControllerManager, g *gate.Gate, log *slog.Logger) (*Manager, error) {
	set, err := Args(p)
	if err != nil {
		return nil, err
	}
	o, err := options.NewKubeControllerManagerOptions()
	if err != nil {
		return nil, err
	}
	all, off, aliases := app.KnownControllers(), app.ControllersDisabledByDefault(), app.ControllerAliases()
	if err := kube.Parse("kube-controller-manager-arg", o.Flags(all, off, aliases), set.Flags()); err != nil {
		return nil, err
	}
	return &Manager{plan: p, options: o, gate: g, log: log}, nil
}

// Name is the component's name.
func (m *Manager) Name() string { return "kube-controller-manager" }

// Run runs the controllers until ctx ends.
func (m *Manager) Run(ctx context.Context, ready func()) error {
	all, off, aliases := app.KnownControllers(), app.ControllersDisabledByDefault(), app.ControllerAliases()
	if err := m.options.Validate(all, off, aliases); err != nil {
		return kube.Refuse("kube-controller-manager-arg", m.plan.Args, err)
	}
	c, err := m.options.Config(ctx, all, off, aliases)
	if err != nil {
		return err
	}
	rc, err := kubeconfig.Client(m.plan.Paths.ServerKubeconfig("kube-controller-manager"), m.gate.Dial)
	if err != nil {
		return err
	}
	rc.QPS, rc.Burst, rc.ContentConfig = c.Kubeconfig.QPS, c.Kubeconfig.Burst, c.Kubeconfig.ContentConfig
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(rest.CopyConfig(rc), "kube-controller-manager"))
	if err != nil {
		return err
	}
	c.Kubeconfig, c.Client = rc, client
	// Upstream would wait for the API server itself, ten seconds long, and hear no ctx.
	if !m.gate.Pass(ctx) {
		return nil
	}
	ready()
	err = app.Run(ctx, c.Complete())
	if ctx.Err() != nil {
		return nil // stopped while it was still building controllers
	}
	return err
}
