// Package kube runs unpatched Kubernetes inside this process.
//
// Each component has a package of its own below this one, made of upstream's
// exported options and run functions rather than its commands, which assume that
// a process holds one component. Prepare is the only code that writes upstream's
// process-wide state, and it does so once, before any component starts.
package kube

import (
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync/atomic"

	"github.com/spf13/pflag"
	"k8s.io/apiserver/pkg/util/compatibility"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/rest"
	cliflag "k8s.io/component-base/cli/flag"
	basecompatibility "k8s.io/component-base/compatibility"
	"k8s.io/component-base/featuregate"
	"k8s.io/klog/v2"
	_ "k8s.io/kubernetes/pkg/features" // registers every component's gates
)

// Prepare sets the feature gates of every component and upstream's other
// process-wide switches. It must return before any component is made, and exit
// is called if upstream insists on ending the process while podo is not stopping.
// The returned function announces that podo is stopping.
func Prepare(gates map[string]bool, exit func(code int)) (stopping func(), err error) {
	if err := setGates(gates); err != nil {
		return nil, err
	}
	// The API server's own clients must not log the warnings it sends them.
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
	calmQueues()

	// Upstream calls klog.Fatal when a start-up hook meets a cancelled context.
	// While stopping, that must end its goroutine, not everybody's orderly stop.
	var closing atomic.Bool
	klog.OsExit = func(code int) {
		if closing.Load() {
			runtime.Goexit()
		}
		exit(code)
	}
	return func() { closing.Store(true) }, nil
}

// CheckGates tells which feature gates do not exist, and which cannot be changed. It
// changes nothing.
func CheckGates(gates map[string]bool) error {
	known := utilfeature.DefaultMutableFeatureGate.GetAll()
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(gates)) {
		spec, ok := known[featuregate.Feature(name)]
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("feature-gates: %s is not a feature gate of this Kubernetes version", name))
		case spec.LockToDefault && spec.Default != gates[name]:
			errs = append(errs, fmt.Errorf("feature-gates: %s is fixed at %t in this Kubernetes version", name, spec.Default))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	_, err := Gates(gates) // how they go together
	return err
}

// Gates are upstream's with some set otherwise, in a copy. Nobody is told of those that
// will go away, as Prepare does it.
func Gates(gates map[string]bool) (featuregate.FeatureGate, error) {
	all := utilfeature.DefaultMutableFeatureGate.DeepCopy()
	if err := all.(featuregate.MutableFeatureGateWithLogger).SetFromMapWithLogger(klog.Logger{}, gates); err != nil {
		return nil, fmt.Errorf("feature-gates: %w", err)
	}
	return all, nil
}

// The registry and the gate set are each used by several components; both must
// hold the values before the first of them reads any.
func setGates(gates map[string]bool) error {
	if err := CheckGates(gates); err != nil {
		return err
	}
	registry := compatibility.DefaultComponentGlobalsRegistry
	registry.ComponentGlobalsOrRegister(basecompatibility.DefaultKubeComponent,
		compatibility.DefaultBuildEffectiveVersion(), utilfeature.DefaultMutableFeatureGate)
	if err := registry.Set(); err != nil {
		return err
	}
	if err := utilfeature.DefaultMutableFeatureGate.SetFromMap(gates); err != nil {
		return err
	}
	utilfeature.DefaultMutableFeatureGate.AddMetrics() // kubernetes_feature_enabled, for whoever asks
	return nil
}

// Each lists the errors that were joined in err, by Go or by upstream.
func Each(err error) []error {
	var list []error
	switch many := err.(type) {
	case nil:
		return nil
	case interface{ Unwrap() []error }:
		list = many.Unwrap()
	case interface{ Errors() []error }:
		list = many.Errors()
	}
	if len(list) == 0 {
		return []error{err}
	}
	var out []error
	for _, e := range list {
		out = append(out, Each(e)...)
	}
	return out
}

// Refuse places what a component says of its flags once it runs at those that were passed
// on to it, if there are any. The exit code is then that of what cannot work until a setting
// changes, 2: so it is for checks of flags alone, and not of what may be mended elsewhere.
func Refuse(setting string, given []string, err error) error {
	if len(given) == 0 {
		return err
	}
	return refused{fmt.Errorf("%s: %w", setting, err)}
}

type refused struct{ error }

func (r refused) Unwrap() error { return r.error }

// ExitCode is for who ends the process with the error.
func (refused) ExitCode() int { return 2 }

// Parse hands flags to a component's own flag sets, as its command would.
func Parse(component string, sets cliflag.NamedFlagSets, flags []string) error {
	fs := pflag.NewFlagSet(component, pflag.ContinueOnError)
	fs.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	for _, f := range sets.FlagSets {
		fs.AddFlagSet(f)
	}
	return ParseSet(fs, flags)
}

// ParseSet is Parse for a component that has one flag set.
func ParseSet(fs *pflag.FlagSet, flags []string) error {
	fs.Usage = func() {}
	if err := fs.Parse(flags); err != nil {
		return fmt.Errorf("%s: %w", fs.Name(), err)
	}
	return nil
}
