package kubelet

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/api/resource"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/component-base/featuregate"
	config "k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/apis/config/validation"
	"k8s.io/kubernetes/pkg/kubelet/cm"
	"k8s.io/kubernetes/pkg/kubelet/cm/cpumanager"
	"k8s.io/kubernetes/pkg/kubelet/cm/memorymanager"
	"k8s.io/kubernetes/pkg/kubelet/eviction"

	"github.com/podo-dev/podo/pkg/kube"
)

// impossible lists the values of c that no kubelet would start with: those that upstream
// judges beforehand, and those that it ends over later, when it comes to them.
func impossible(c *config.KubeletConfiguration, gates featuregate.FeatureGate) []error {
	errs := kube.Each(validation.ValidateKubeletConfiguration(c, gates))
	field := func(name string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	_, err := eviction.ParseThresholdConfig(nil, c.EvictionHard, c.EvictionSoft, c.EvictionSoftGracePeriod, c.EvictionMinimumReclaim)
	field("evictionHard, evictionSoft, evictionSoftGracePeriod, evictionMinimumReclaim", err)
	_, err = cliflag.TLSCipherSuites(c.TLSCipherSuites)
	field("tlsCipherSuites", err)
	_, err = cliflag.TLSCurvePreferences(c.TLSCurvePreferences)
	field("tlsCurvePreferences", err)
	_, err = cliflag.TLSVersion(c.TLSMinVersion)
	field("tlsMinVersion", err)
	_, err = cm.ParseQOSReserved(c.QOSReserved)
	field("qosReserved", err)
	kept := unreserved("kubeReserved", c.KubeReserved, c.ReservedSystemCPUs, field)
	kept = unreserved("systemReserved", c.SystemReserved, c.ReservedSystemCPUs, field) || kept
	const none, static, staticMemory = "none", string(cpumanager.PolicyStatic), string(memorymanager.PolicyTypeStatic)
	switch c.CPUManagerPolicy {
	case "", none:
	case static:
		if !kept && c.ReservedSystemCPUs == "" {
			field("cpuManagerPolicy", errors.New("static keeps processors for pods, and takes some reserved for the rest: reservedSystemCPUs, or cpu in kubeReserved or systemReserved"))
		}
	default:
		field("cpuManagerPolicy", fmt.Errorf("%q, want %s or %s", c.CPUManagerPolicy, none, static))
	}
	if p := c.MemoryManagerPolicy; p != "" && p != "None" && p != staticMemory {
		field("memoryManagerPolicy", fmt.Errorf("%q, want None or %s", p, staticMemory))
	}
	return errs
}

// unreserved tells what cannot be reserved, and reports whether processors are. Their number
// is upstream's own where they are named.
func unreserved(list string, amounts map[string]string, processors string, tell func(string, error)) (cpu bool) {
	for _, what := range slices.Sorted(maps.Keys(amounts)) {
		if what == "cpu" && processors != "" {
			continue
		}
		q, err := resource.ParseQuantity(amounts[what])
		switch {
		case !slices.Contains([]string{"cpu", "memory", "ephemeral-storage", "pid"}, what):
			tell(list, fmt.Errorf("%s cannot be reserved; want cpu, memory, ephemeral-storage or pid", what))
		case err != nil || q.Sign() < 0:
			tell(list+"."+what, fmt.Errorf("%q is no quantity such as 100m or 1Gi", amounts[what]))
		case what == "cpu":
			cpu = !q.IsZero()
		}
	}
	return cpu
}

// telling leaves gates out that change nothing any more, or are about to go: what judges
// values would warn of them, as the start does.
func telling(gates map[string]bool) map[string]bool {
	known := utilfeature.DefaultMutableFeatureGate.GetAll()
	out := maps.Clone(gates)
	maps.DeleteFunc(out, func(name string, _ bool) bool {
		stage := known[featuregate.Feature(name)].PreRelease
		return stage == featuregate.GA || stage == featuregate.Deprecated
	})
	return out
}
