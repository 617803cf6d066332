package kubelet

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	config "k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/util/taints"
	netutils "k8s.io/utils/net"
	"sigs.k8s.io/yaml"

	"github.com/podo-dev/podo/pkg/kube"
	"github.com/podo-dev/podo/pkg/kube/args"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/plan"
)

// denied are the kubelet flags that a user may not set, and what to do instead.
func denied() map[string]string {
	return map[string]string{
		"kubeconfig":                        "its credentials are made by podo",
		"bootstrap-kubeconfig":              "its credentials are made by podo",
		"container-runtime-endpoint":        "the container engine is podo's own",
		"hostname-override":                 "use --node-name",
		"node-ip":                           "use --node-ip",
		"cluster-dns":                       "use --cluster-dns",
		"cluster-domain":                    "use --cluster-domain",
		"resolv-conf":                       "use --resolv-conf",
		"image-credential-provider-bin-dir": "use --image-credential-provider-bin-dir",
		"image-credential-provider-config":  "use --image-credential-provider-config",
		"node-labels":                       "use --node-label",
		"register-with-taints":              "use --node-taint",
		"tls-cert-file":                     "its certificate is made by podo",
		"tls-private-key-file":              "its certificate is made by podo",
		"client-ca-file":                    "the cluster's CAs are made by podo",
		"protect-kernel-defaults":           "use --protect-kernel-defaults",
		"cgroup-driver":                     "it follows the host's init system",
		"rotate-server-certificates":        "podo renews its certificates",
		"rotate-certificates":               "podo renews its certificates",
		"root-dir":                          "podo kill and podo uninstall clean /var/lib/kubelet; mount the disk that is meant there",
	}
}

// Flags are what the kubelet has no configuration field for.
func flags(p plan.Kubelet) *options.KubeletFlags {
	f := options.NewKubeletFlags()
	f.KubeConfig = p.Paths.AgentKubeconfig("kubelet")
	f.HostnameOverride = p.Name
	f.NodeIP = args.Join(p.IPs)
	f.RootDirectory = paths.KubeletRoot
	f.CertDirectory = paths.KubeletRoot + "/pki"
	f.NodeLabels = map[string]string{}
	for _, l := range p.Labels {
		k, v, _ := strings.Cut(l, "=")
		f.NodeLabels[k] = v
	}
	f.ImageCredentialProviderBinDir, f.ImageCredentialProviderConfigPath = p.ProviderDir, p.Providers
	if p.ExternalCloud {
		f.CloudProvider = "external"
	}
	return f
}

// configure fills in the kubelet's own configuration over upstream's defaults.
func configure(c *config.KubeletConfiguration, p plan.Kubelet) error {
	f := p.Paths
	serving := f.AgentLeaf("kubelet-serving")
	c.ContainerRuntimeEndpoint = "unix://" + f.Socket("containerd")
	c.CgroupDriver = "cgroupfs"
	if p.SystemdCgroup {
		c.CgroupDriver = "systemd"
	}
	c.FailCgroupV1 = !p.CgroupV1
	c.FailSwapOn = false
	c.ReadOnlyPort = 0
	c.TLSCertFile, c.TLSPrivateKeyFile = serving.Cert, serving.Key
	c.RotateCertificates, c.ServerTLSBootstrap = false, false
	c.Authentication.X509.ClientCAFile = f.AgentCA("client")
	c.Authentication.Anonymous.Enabled = false
	c.Authentication.Webhook.Enabled = true
	c.Authorization.Mode = config.KubeletAuthorizationModeWebhook
	c.ClusterDomain = p.ClusterDomain
	c.ClusterDNS = nil
	for _, a := range p.ClusterDNS {
		c.ClusterDNS = append(c.ClusterDNS, a.String())
	}
	c.ResolverConfig = p.ResolvConf
	c.StaticPodPath = f.StaticPods()
	c.PodLogsDir = paths.PodLogs
	c.VolumePluginDir = paths.KubeletRoot + "/volumeplugins"
	c.MakeIPTablesUtilChains = false // those are for kube-proxy's iptables mode
	c.SerializeImagePulls = false
	c.ProtectKernelDefaults = p.ProtectKernel
	c.NodeLeaseDurationSeconds = p.LeaseSeconds
	c.ShutdownGracePeriod.Duration = time.Duration(p.ShutdownWait) * time.Second
	// The last third of it is for critical pods: the others may need DNS until their end.
	c.ShutdownGracePeriodCriticalPods.Duration = c.ShutdownGracePeriod.Duration / 3
	if !p.Logind {
		c.ShutdownGracePeriod.Duration = 24 * time.Hour // who asks podo to end pods says how long that may take
	}
	c.EvictionHard = map[string]string{"memory.available": "100Mi", "nodefs.available": "5%", "imagefs.available": "5%", "nodefs.inodesFree": "5%", "imagefs.inodesFree": "5%"}
	c.EvictionMinimumReclaim = map[string]string{"nodefs.available": "10%", "imagefs.available": "10%"}
	if !p.ExternalCloud {
		c.ProviderID = "podo://" + p.Name
	}
	var err error
	c.RegisterWithTaints, err = parseTaints(p.Taints)
	return err
}

// parse lays the user's flags over flags and c: first the configuration files
// they name, then the flags themselves, as upstream ranks them.
func parse(f *options.KubeletFlags, c *config.KubeletConfiguration, theirs []string) error {
	set, err := passed(theirs)
	if err != nil {
		return err
	}
	// The files come first but are named by flags, so a throw-away parse finds them.
	scratchFlags, scratchConfig := *f, c.DeepCopy()
	if err := parseFlags(&scratchFlags, scratchConfig, set.Flags()); err != nil {
		return err
	}
	if err := mergeFiles(c, scratchFlags.KubeletConfigFile, scratchFlags.KubeletDropinConfigDirectory); err != nil {
		return fmt.Errorf("kubelet-arg: %w", err)
	}
	return parseFlags(f, c, set.Flags())
}

func passed(theirs []string) (args.Set, error) {
	return args.Set{}.Merge("kubelet-arg", theirs, args.Deny(denied()))
}

// CheckFlags judges flags by themselves, and reads no file that they name.
func CheckFlags(theirs []string) error {
	set, err := passed(theirs)
	if err != nil {
		return err
	}
	c, err := options.NewKubeletConfiguration()
	if err != nil {
		return err
	}
	return parseFlags(options.NewKubeletFlags(), c, set.Flags())
}

// CheckValues judges flags that CheckFlags has nothing against by what they say, over a
// KubeletConfiguration in YAML that CheckConfiguration has nothing against, if there is one,
// and with feature gates as a user sets them. What files add, a start reads.
func CheckValues(theirs []string, configuration string, gates map[string]bool) error {
	if args.Given(theirs, "config", "config-dir") {
		return nil
	}
	set, err := kube.Gates(telling(gates))
	if err != nil {
		return err
	}
	usual, err := valued(nil, "")
	if err != nil {
		return err
	}
	c, err := valued(theirs, configuration)
	if err != nil {
		return err
	}
	// The defaults are made before gates are set, and may not go with them: a start makes
	// them afterwards.
	own := map[string]bool{}
	for _, e := range impossible(usual, set) {
		own[e.Error()] = true
	}
	errs := slices.DeleteFunc(impossible(c, set), func(e error) bool { return own[e.Error()] })
	for _, server := range c.ClusterDNS { // which upstream leaves out
		if configuration != "" && netutils.ParseIPSloppy(server) == nil {
			errs = append(errs, fmt.Errorf("clusterDNS: %q is not an IP address", server))
		}
	}
	return errors.Join(errs...)
}

// valued is what a kubelet would have of the values that it is given, wherever it ran.
func valued(theirs []string, configuration string) (*config.KubeletConfiguration, error) {
	anywhere := plan.Kubelet{CgroupV1: true, LeaseSeconds: 40}
	c, err := options.NewKubeletConfiguration()
	if err == nil {
		err = configure(c, anywhere)
	}
	if err == nil && configuration != "" {
		var patch []byte
		if patch, err = yaml.YAMLToJSON([]byte(configuration)); err == nil {
			err = merge(c, []layer{{"KubeletConfiguration", patch}})
		}
	}
	if err == nil {
		err = parse(flags(anywhere), c, theirs)
	}
	return c, err
}

func parseFlags(f *options.KubeletFlags, c *config.KubeletConfiguration, flags []string) error {
	fs := pflag.NewFlagSet("kubelet-arg", pflag.ContinueOnError)
	fs.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	fs.SetOutput(io.Discard) // upstream prefers files to flags, and would say so for each
	f.AddFlags(fs)
	options.AddKubeletConfigFlags(fs, c)
	return kube.ParseSet(fs, flags)
}

// parseTaints reads KEY=VALUE:EFFECT.
func parseTaints(texts []string) ([]corev1.Taint, error) {
	taints, _, err := taints.ParseTaints(texts)
	if err != nil {
		return nil, fmt.Errorf("node-taint: %w", err)
	}
	return taints, nil
}
