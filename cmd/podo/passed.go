package main

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/kube"
	"github.com/podo-dev/podo/pkg/kube/apiserver"
	"github.com/podo-dev/podo/pkg/kube/args"
	"github.com/podo-dev/podo/pkg/kube/controllermanager"
	"github.com/podo-dev/podo/pkg/kube/kubelet"
	"github.com/podo-dev/podo/pkg/kube/proxy"
	"github.com/podo-dev/podo/pkg/kube/scheduler"
	"github.com/podo-dev/podo/pkg/local"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/storage/etcd"
)

// judgePassed has Kubernetes judge what is passed on to it, as far as that can be told
// without a plan. Each mistake is told with its place.
func judgePassed(cfg config.Server, origins config.Origins) error {
	return judge(cfg, origins, "")
}

// judge is judgePassed with a KubeletConfiguration in YAML that the kubelet will have.
func judge(cfg config.Server, origins config.Origins, configuration string) error {
	silent, usual := slog.New(slog.DiscardHandler), config.Default().Network // those that were asked for may be mistaken
	off := cfg.Components
	readable := !off.NoAgent // what is asked of the kubelet
	var errs []error
	for _, part := range []struct {
		setting string
		off     bool // flags of what does not run matter to nobody
		args    []string
		judge   func(theirs []string) error
	}{
		{"kube-apiserver-arg", off.NoAPIServer, cfg.Components.APIServerArgs, func(theirs []string) error {
			_, err := apiserver.New(plan.APIServer{Args: theirs, Advertise: usual.ClusterCIDR[0].Addr(), Bind: usual.ClusterCIDR[0].Addr()}, apiserver.Hooks{}, nil, silent)
			return err
		}},
		{"kube-controller-manager-arg", off.NoControllers, cfg.Components.ControllerManagerArgs, func(theirs []string) error {
			_, err := controllermanager.New(plan.ControllerManager{Args: theirs}, nil, silent)
			return err
		}},
		{"kube-scheduler-arg", off.NoScheduler, cfg.Components.SchedulerArgs, func(theirs []string) error {
			_, err := scheduler.New(plan.Scheduler{Args: theirs}, nil, silent)
			return err
		}},
		{"etcd-arg", off.NoEtcd, cfg.Datastore.EtcdArgs, func(theirs []string) error { return etcd.CheckArgs("etcd-arg", theirs) }},
		{"kubelet-arg", off.NoAgent, cfg.KubeletArgs, kubelet.CheckFlags},
		{"kube-proxy-arg", off.NoAgent || off.NoKubeProxy, cfg.KubeProxyArgs, func(theirs []string) error {
			_, _, err := proxy.Options(plan.Proxy{Args: theirs, PodCIDR: usual.ClusterCIDR})
			return err
		}},
	} {
		// Flag by flag, since each stops at its first mistake. How flags go together, a
		// start tells, but for the kubelet's.
		for !part.off && len(part.args) > 0 {
			name := args.Name(part.args[0])
			same := func(arg string) bool { return args.Name(arg) == name }
			judged := slices.DeleteFunc(slices.Clone(part.args), func(arg string) bool { return !same(arg) })
			wrong := placed(part.setting, origins, part.judge(judged))
			readable = readable && (part.setting != "kubelet-arg" || len(wrong) == 0)
			errs = append(errs, wrong...)
			part.args = slices.DeleteFunc(slices.Clone(part.args), same)
		}
	}
	gates := map[string]bool{}
	for name, text := range cfg.FeatureGates {
		if on, err := strconv.ParseBool(text); err == nil { // the other values are told as such
			gates[name] = on
		}
	}
	wrong := placed("feature-gates", origins, kube.CheckGates(gates))
	readable = readable && len(wrong) == 0 // values may go with gates
	errs = append(errs, wrong...)
	if !off.NoAPIServer {
		errs = append(errs, placed("feature-gates", origins, served(gates, off.APIServerArgs))...)
	}
	if readable {
		place := "kubelet-arg"
		if configuration != "" {
			place = "KubeletConfiguration or kubeletExtraArgs"
		}
		errs = append(errs, placed(place, origins, kubelet.CheckValues(cfg.KubeletArgs, configuration, gates))...)
	}
	return errors.Join(errs...)
}

// served says which feature gates would have the API server wait for ever: they turn on what
// reads APIs that are off unless runtime-config names them.
func served(gates map[string]bool, flags []string) error {
	versions := map[string]bool{} // those that are named, on or off
	for _, flag := range flags {
		if args.Name(flag) != "runtime-config" {
			continue
		}
		_, list, _ := strings.Cut(flag, "=")
		for version := range strings.SplitSeq(list, ",") {
			name, text, _ := strings.Cut(version, "=")
			on, err := strconv.ParseBool(strings.TrimSpace(text))
			versions[strings.TrimSpace(name)] = on || err != nil // what is neither is told by the API server
		}
	}
	var errs []error
	needs := func(gate, api string, first ...string) {
		for _, name := range append(first, api, "api/all") { // the narrower counts
			if on, said := versions[name]; said && on {
				return
			} else if said {
				break
			}
		}
		errs = append(errs, fmt.Errorf("%s: the API server would wait for ever for an API that this reads and that is off; turn it on too, with --kube-apiserver-arg=runtime-config=%s=true", gate, api))
	}
	storage, said := gates["StorageVersionAPI"]
	switch {
	case storage:
		needs("StorageVersionAPI", "api/alpha", "internal.apiserver.k8s.io/v1alpha1")
	case gates["AllAlpha"] && !said:
		needs("AllAlpha", "api/alpha", "internal.apiserver.k8s.io/v1alpha1")
	}
	// Whoever leaves single gates out, or names single APIs, may know which.
	single := slices.Contains(slices.Collect(maps.Values(gates)), false) ||
		slices.ContainsFunc(slices.Collect(maps.Keys(versions)), func(name string) bool { return name != "api/beta" && strings.Contains(name, "beta") && versions[name] })
	if gates["AllBeta"] && !single {
		needs("AllBeta", "api/beta")
	}
	return errors.Join(errs...)
}

// judgeNode is judgePassed for a node of a cluster on this machine, with the
// KubeletConfiguration that it will have.
func judgeNode(cfg config.Server, configuration string) error {
	if err := kubelet.CheckConfiguration(configuration); err != nil {
		return errors.Join(append(placed("KubeletConfiguration", nil, err), judgePassed(cfg, nil))...)
	}
	cfg.KubeletArgs = slices.DeleteFunc(slices.Clone(cfg.KubeletArgs), func(arg string) bool { return arg == local.KubeletArg })
	return judge(cfg, nil, configuration)
}

// placed gives each of the mistakes in err the place where the setting was made.
func placed(setting string, origins config.Origins, err error) []error {
	var out []error
	for _, e := range kube.Each(err) {
		text := strings.TrimPrefix(e.Error(), setting+": ") // the place has it
		out = append(out, config.Mistake{Setting: setting, Origin: origins[setting], Err: errors.New(text)})
	}
	return out
}
