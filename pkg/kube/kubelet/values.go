package kubelet

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/api/resource"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/component-base/featuregate"
	config "k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/apis/config/validation"
	"k8s.io/kubernetes/pkg/kubelet/cm/cpumanager"
	"k8s.io/kubernetes/pkg/kubelet/cm/memorymanager"
	"k8s.io/kubernetes/pkg/kubelet/eviction"
)

// impossible says which values of c no kubelet would start with: those that upstream judges
// beforehand, and those that it ends over later, when it comes to them.
func impossible(c *config.KubeletConfiguration, gates featuregate.FeatureGate) error {
	errs := []error{validation.ValidateKubeletConfiguration(c, gates)}
	field := func(name string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	_, err := eviction.ParseThresholdConfig(nil, c.EvictionHard, c.EvictionSoft, c.EvictionSoftGracePeriod, c.EvictionMinimumReclaim)
	field("evictionHard, evictionSoft, evictionSoftGracePeriod, evictionMinimumReclaim", err)
	_, err = cliflag.TLSCipherSuites(c.TLSCipherSuites)
	field("tlsCipherSuites", err)
	_, err = cliflag.TLSVersion(c.TLSMinVersion)
	field("tlsMinVersion", err)
	reserved := false
	for name, list := range map[string]map[string]string{"kubeReserved": c.KubeReserved, "systemReserved": c.SystemReserved} {
		for _, what := range slices.Sorted(maps.Keys(list)) {
			q, err := resource.ParseQuantity(list[what])
			if err != nil {
				field(name+"."+what, fmt.Errorf("%q is no quantity such as 100m or 1Gi", list[what]))
			}
			reserved = reserved || what == "cpu" && !q.IsZero()
		}
	}
	const none, static, staticMemory = "none", string(cpumanager.PolicyStatic), string(memorymanager.PolicyTypeStatic)
	switch c.CPUManagerPolicy {
	case "", none:
	case static:
		if !reserved && c.ReservedSystemCPUs == "" {
			field("cpuManagerPolicy", errors.New("static keeps processors for pods, and takes some reserved for the rest: reservedSystemCPUs, or cpu in kubeReserved or systemReserved"))
		}
	default:
		field("cpuManagerPolicy", fmt.Errorf("%q, want %s or %s", c.CPUManagerPolicy, none, static))
	}
	if p := c.MemoryManagerPolicy; p != "" && p != "None" && p != staticMemory {
		field("memoryManagerPolicy", fmt.Errorf("%q, want None or %s", p, staticMemory))
	}
	for _, server := range c.ClusterDNS {
		if _, err := netip.ParseAddr(server); err != nil {
			field("clusterDNS", fmt.Errorf("%q is not an IP address", server))
		}
	}
	return errors.Join(errs...)
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
