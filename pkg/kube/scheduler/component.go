// Package scheduler runs kube-scheduler in this process.
//
// Upstream's Setup makes its own client, so this package assembles the scheduler
// from the same exported parts with a client that dials through the gate. It is
// ready when it runs and the API answers.
package scheduler

import (
	"context"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	"k8s.io/kubernetes/cmd/kube-scheduler/app"
	"k8s.io/kubernetes/cmd/kube-scheduler/app/options"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/latest"
	"k8s.io/kubernetes/pkg/scheduler/profile"

	"github.com/podo-dev/podo/pkg/gate"
	"github.com/podo-dev/podo/pkg/kube"
	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/plan"
)

// Scheduler is kube-scheduler.
type Scheduler struct {
	plan    plan.Scheduler
	options *options.Options
	gate    *gate.Gate
	log     *slog.Logger
}

// New checks the flags of p. Clients dial through g.
func New(p plan.Scheduler, g *gate.Gate, log *slog.Logger) (*Scheduler, error) {
	set, err := Args(p)
	if err != nil {
		return nil, err
	}
	o := options.NewOptions()
	if err := kube.Parse("kube-scheduler-arg", *o.Flags, set.Flags()); err != nil {
		return nil, err
	}
	return &Scheduler{plan: p, options: o, gate: g, log: log}, nil
}

// Name is the component's name.
func (s *Scheduler) Name() string { return "kube-scheduler" }

// Run schedules pods until ctx ends.
func (s *Scheduler) Run(ctx context.Context, ready func()) error {
	if s.options.ConfigFile == "" {
		cfg, err := latest.Default()
		if err != nil {
			return err
		}
		s.options.ComponentConfig = cfg
	}
	c, err := s.options.Config(ctx)
	if err != nil {
		return err
	}
	c.ComponentConfig.LeaderElection.LeaderElect = false
	if err := s.connect(ctx, c.ComponentConfig.ClientConnection.QPS, func(rc *rest.Config, client kubernetes.Interface, dyn dynamic.Interface) {
		c.KubeConfig, c.Client = rc, client
		c.EventBroadcaster = events.NewEventBroadcasterAdapterWithContext(ctx, client)
		c.InformerFactory = scheduler.NewInformerFactory(client, 0)
		c.DynInformerFactory = dynamicinformer.NewFilteredDynamicSharedInformerFactory(dyn, 0, corev1.NamespaceAll, nil)
	}); err != nil {
		return err
	}
	cc := c.Complete()
	sched, err := scheduler.New(ctx, cc.Client, cc.InformerFactory, cc.DynInformerFactory,
		profile.RecorderFactory(cc.EventBroadcaster.NewRecorder),
		scheduler.WithComponentConfigVersion(cc.ComponentConfig.TypeMeta.APIVersion),
		scheduler.WithKubeConfig(cc.KubeConfig),
		scheduler.WithProfiles(cc.ComponentConfig.Profiles...),
		scheduler.WithPercentageOfNodesToScore(cc.ComponentConfig.PercentageOfNodesToScore),
		scheduler.WithPodMaxBackoffSeconds(cc.ComponentConfig.PodMaxBackoffSeconds),
		scheduler.WithPodInitialBackoffSeconds(cc.ComponentConfig.PodInitialBackoffSeconds),
		scheduler.WithPodMaxInUnschedulablePodsDuration(cc.PodMaxInUnschedulablePodsDuration),
		scheduler.WithExtenders(cc.ComponentConfig.Extenders...),
		scheduler.WithParallelism(cc.ComponentConfig.Parallelism))
	if err != nil {
		return err
	}
	s.gate.Announce(ctx, ready)
	err = app.Run(ctx, &cc, sched)
	if ctx.Err() != nil {
		return nil // without an election, upstream calls an orderly stop an error
	}
	return err
}

func (s *Scheduler) connect(ctx context.Context, qps float32, use func(*rest.Config, kubernetes.Interface, dynamic.Interface)) error {
	rc, err := kubeconfig.Client(s.plan.Paths.ServerKubeconfig("kube-scheduler"), s.gate.Dial)
	if err != nil {
		return err
	}
	rc.QPS, rc.Burst = max(qps, 500), 1000
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(rc, "scheduler"))
	if err != nil {
		return err
	}
	// Resources without a generated client may have no protobuf form.
	plain := rest.CopyConfig(rc)
	plain.ContentType, plain.AcceptContentTypes = "", ""
	dyn, err := dynamic.NewForConfig(plain)
	if err != nil {
		return err
	}
	use(rc, client, dyn)
	return nil
}
