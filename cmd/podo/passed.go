package main

import (
	"errors"
	"log/slog"
	"strconv"
	"strings"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/kube"
	"github.com/podo-dev/podo/pkg/kube/apiserver"
	"github.com/podo-dev/podo/pkg/kube/controllermanager"
	"github.com/podo-dev/podo/pkg/kube/kubelet"
	"github.com/podo-dev/podo/pkg/kube/proxy"
	"github.com/podo-dev/podo/pkg/kube/scheduler"
	"github.com/podo-dev/podo/pkg/plan"
)

// judgePassed has Kubernetes judge what is passed on to it, as far as that can be told
// without a plan. Each mistake is told with its place.
func judgePassed(cfg config.Server, origins config.Origins) error {
	silent, usual := slog.New(slog.DiscardHandler), config.Default().Network // those that were asked for may be mistaken
	var errs []error
	for _, part := range []struct {
		setting string
		args    []string
		judge   func(args []string) error
	}{
		{"kube-apiserver-arg", cfg.Components.APIServerArgs, func(args []string) error {
			_, err := apiserver.New(plan.APIServer{Args: args, Advertise: usual.ClusterCIDR[0].Addr(), Bind: usual.ClusterCIDR[0].Addr()}, apiserver.Hooks{}, nil, silent)
			return err
		}},
		{"kube-controller-manager-arg", cfg.Components.ControllerManagerArgs, func(args []string) error {
			_, err := controllermanager.New(plan.ControllerManager{Args: args}, nil, silent)
			return err
		}},
		{"kube-scheduler-arg", cfg.Components.SchedulerArgs, func(args []string) error {
			_, err := scheduler.New(plan.Scheduler{Args: args}, nil, silent)
			return err
		}},
		{"kubelet-arg", cfg.KubeletArgs, func(args []string) error {
			_, err := kubelet.Options(plan.Kubelet{Args: args})
			return err
		}},
		{"kube-proxy-arg", cfg.KubeProxyArgs, func(args []string) error {
			_, err := proxy.New(plan.Proxy{Args: args, PodCIDR: usual.ClusterCIDR}, nil, silent)
			return err
		}},
	} {
		// One by one: each stops at its first mistake.
		sound := true
		for _, arg := range part.args {
			if err := part.judge([]string{arg}); err != nil {
				errs, sound = append(errs, placed(part.setting, origins, err)...), false
			}
		}
		if sound && len(part.args) > 1 {
			errs = append(errs, placed(part.setting, origins, part.judge(part.args))...)
		}
	}
	gates := map[string]bool{}
	for name, text := range cfg.FeatureGates {
		if on, err := strconv.ParseBool(text); err == nil { // the other values are told as such
			gates[name] = on
		}
	}
	return errors.Join(append(errs, placed("feature-gates", origins, kube.CheckGates(gates))...)...)
}

// placed gives each of the mistakes in err the place where the setting was made.
func placed(setting string, origins config.Origins, err error) []error {
	if err == nil {
		return nil
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, e := range many.Unwrap() {
			out = append(out, placed(setting, origins, e)...)
		}
		return out
	}
	text := strings.TrimPrefix(err.Error(), setting+": ") // the place has it
	return []error{config.Mistake{Setting: setting, Origin: origins[setting], Err: errors.New(text)}}
}
