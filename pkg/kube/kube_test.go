package kube_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/component-base/featuregate"
	"k8s.io/klog/v2"
	"k8s.io/kubelet/config/v1beta1"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	conversion "k8s.io/kubernetes/pkg/kubelet/apis/config/v1beta1"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/gate"
	"github.com/podo-dev/podo/pkg/kube"
	"github.com/podo-dev/podo/pkg/kube/apiserver"
	"github.com/podo-dev/podo/pkg/kube/args"
	"github.com/podo-dev/podo/pkg/kube/controllermanager"
	"github.com/podo-dev/podo/pkg/kube/kubelet"
	"github.com/podo-dev/podo/pkg/kube/proxy"
	"github.com/podo-dev/podo/pkg/kube/scheduler"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/plan/plantest"
)

// The tests of all components are in one package, since each binary that links
// Kubernetes takes a long time to build.

// exits records what upstream wanted to end the process with.
var exits = make(chan int, 10)

var stopping func()

func TestMain(m *testing.M) {
	plantest.Flags()
	flag.Parse()
	var err error
	stopping, err = kube.Prepare(map[string]bool{"APIServerIdentity": false, "UnknownVersionInteroperabilityProxy": false}, func(code int) { exits <- code })
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func ordinary(t *testing.T) plan.Plan {
	t.Helper()
	p, err := plan.New(config.Default(), plantest.Machine(), plan.Known{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// golden compares what render makes of each case's plan with what it makes of an
// ordinary machine's. The case called default shows the latter in full.
func golden(t *testing.T, dir string, render func(plan.Plan) ([]string, error)) {
	base, err := render(ordinary(t))
	if err != nil {
		t.Fatal(err)
	}
	plantest.Each(t, filepath.Join(dir, "testdata", "*.txtar"), func(t *testing.T, c plantest.Case) {
		p, err := c.Plan()
		if err != nil {
			t.Fatal(err)
		}
		lines, err := render(p)
		switch {
		case err != nil:
			c.Got("error: " + err.Error() + "\n")
		case strings.HasSuffix(t.Name(), "/default"):
			c.Got(strings.Join(lines, "\n") + "\n")
		default:
			c.Got(plantest.Difference(base, lines))
		}
	})
}

// flags renders a component's flags, once its New has taken them.
func flags[C any](set args.Set, err error, component func() (C, error)) ([]string, error) {
	if _, newErr := component(); newErr != nil {
		return nil, newErr
	}
	return set.Flags(), err
}

func TestFlags(t *testing.T) {
	doors, log := gate.New(), slog.New(slog.DiscardHandler)
	t.Run("apiserver", func(t *testing.T) {
		golden(t, "apiserver", func(p plan.Plan) ([]string, error) {
			set, err := apiserver.Args(*p.Server.APIServer)
			return flags(set, err, func() (*apiserver.Server, error) {
				return apiserver.New(*p.Server.APIServer, apiserver.Hooks{}, doors, log)
			})
		})
	})
	t.Run("controllermanager", func(t *testing.T) {
		golden(t, "controllermanager", func(p plan.Plan) ([]string, error) {
			set, err := controllermanager.Args(*p.Server.ControllerManager)
			return flags(set, err, func() (*controllermanager.Manager, error) {
				return controllermanager.New(*p.Server.ControllerManager, doors, log)
			})
		})
	})
	t.Run("scheduler", func(t *testing.T) {
		golden(t, "scheduler", func(p plan.Plan) ([]string, error) {
			set, err := scheduler.Args(*p.Server.Scheduler)
			return flags(set, err, func() (*scheduler.Scheduler, error) { return scheduler.New(*p.Server.Scheduler, doors, log) })
		})
	})
	t.Run("proxy", func(t *testing.T) {
		golden(t, "proxy", func(p plan.Plan) ([]string, error) {
			set, err := proxy.Args(*p.Node.Proxy)
			return flags(set, err, func() (*proxy.Proxy, error) { return proxy.New(*p.Node.Proxy, doors, log) })
		})
	})
	t.Run("kubelet", func(t *testing.T) {
		golden(t, "kubelet", func(p plan.Plan) ([]string, error) {
			// New looks at the cgroups of this machine rather than those of the case.
			anywhere := p.Node.Kubelet
			anywhere.CgroupV1 = true
			if _, err := kubelet.New(anywhere, doors, nil, log); err != nil {
				return nil, err
			}
			s, err := kubelet.Options(p.Node.Kubelet)
			if err != nil {
				return nil, err
			}
			return kubeletLines(s)
		})
	})
}

// kubeletLines lists the kubelet's flags and settings that are not upstream's
// defaults, by their path.
func kubeletLines(s *options.KubeletServer) ([]string, error) {
	c, err := options.NewKubeletConfiguration()
	if err != nil {
		return nil, err
	}
	theirs, err := settingsOf(&options.KubeletServer{KubeletFlags: *options.NewKubeletFlags(), KubeletConfiguration: *c})
	if err != nil {
		return nil, err
	}
	ours, err := settingsOf(s)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, line := range ours {
		if !slices.Contains(theirs, line) {
			out = append(out, line)
		}
	}
	return out, nil
}

func settingsOf(s *options.KubeletServer) ([]string, error) {
	versioned := &v1beta1.KubeletConfiguration{}
	if err := conversion.Convert_config_KubeletConfiguration_To_v1beta1_KubeletConfiguration(&s.KubeletConfiguration, versioned, nil); err != nil {
		return nil, err
	}
	var out []string
	for prefix, part := range map[string]any{"flag": s.KubeletFlags, "config": versioned} {
		text, err := json.Marshal(part)
		if err != nil {
			return nil, err
		}
		var tree any
		if err := json.Unmarshal(text, &tree); err != nil {
			return nil, err
		}
		out = append(out, flatten(prefix, tree)...)
	}
	slices.Sort(out)
	return out, nil
}

func flatten(path string, v any) (out []string) {
	switch v := v.(type) {
	case map[string]any:
		for k, below := range v {
			out = append(out, flatten(path+"."+k, below)...)
		}
	case []any:
		for i, below := range v {
			out = append(out, flatten(fmt.Sprintf("%s[%d]", path, i), below)...)
		}
	default:
		out = append(out, fmt.Sprintf("%s: %v", path, v))
	}
	return out
}

// TestKubeletFiles checks what wins: a flag over a drop-in, that over the file, and
// that over podo's own settings.
func TestKubeletFiles(t *testing.T) {
	const head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	main := write("kubelet.yaml", head+"shutdownGracePeriod: 30s\nshutdownGracePeriodCriticalPods: 10s\nmaxPods: 50\nimageGCHighThresholdPercent: 90\nserializeImagePulls: true\n")
	write("d/10.conf", head+"maxPods: 60\nimageGCHighThresholdPercent: 91\n")
	write("d/20.conf", head+"imageGCHighThresholdPercent: 92\n")
	write("d/30.txt", "not a drop-in")
	options := func(list ...string) (*options.KubeletServer, error) {
		p := ordinary(t).Node.Kubelet
		p.Args, p.CgroupV1 = list, true
		if _, err := kubelet.New(p, gate.New(), nil, slog.New(slog.DiscardHandler)); err != nil {
			return nil, err
		}
		return kubelet.Options(p)
	}

	s, err := options("config="+main, "config-dir="+filepath.Join(dir, "d"), "max-pods=250")
	if err != nil {
		t.Fatal(err)
	}
	if s.ShutdownGracePeriod.Duration != 30*time.Second || !s.SerializeImagePulls || s.ImageGCHighThresholdPercent != 92 || s.MaxPods != 250 {
		t.Errorf("grace %v, serialize %v, threshold %d, pods %d; want 30s, true, 92, 250",
			s.ShutdownGracePeriod.Duration, s.SerializeImagePulls, s.ImageGCHighThresholdPercent, s.MaxPods)
	}
	if s.ClusterDomain != "cluster.local" || s.Authentication.Anonymous.Enabled || s.ContainerRuntimeEndpoint != "unix:///run/podo/containerd.sock" {
		t.Errorf("a file took what podo set: domain %q, anonymous %v, endpoint %q", s.ClusterDomain, s.Authentication.Anonymous.Enabled, s.ContainerRuntimeEndpoint)
	}
	for name, arg := range map[string]string{
		"missing file":      "config=" + filepath.Join(dir, "none.yaml"),
		"missing drop-ins":  "config-dir=" + filepath.Join(dir, "none.d"),
		"setting misspelt":  "config=" + write("case.yaml", head+"maxpods: 1\n"),
		"no YAML":           "config=" + write("no.yaml", "{"),
		"empty file":        "config=" + write("empty.yaml", ""),
		"unknown setting":   "config=" + write("unknown.yaml", head+"maxPodz: 1\n"),
		"unknown gate":      "config=" + write("gate.yaml", head+"featureGates: {NoSuchGate: true}\n"),
		"something else":    "config=" + write("else.yaml", "apiVersion: v1\nkind: ConfigMap\n"),
		"impossible values": "config=" + write("bad.yaml", head+"maxPods: -1\n"),
	} {
		if _, err := options(arg); err == nil || !strings.Contains(err.Error(), "kubelet-arg: ") {
			t.Errorf("%s: err = %v, want one that blames kubelet-arg", name, err)
		}
	}
}

func TestPrepareRefusesGates(t *testing.T) {
	_, err := kube.Prepare(map[string]bool{"NoSuchGate": true, "AlsoNone": false}, func(int) {})
	for _, want := range []string{"feature-gates: NoSuchGate is not a feature gate", "AlsoNone"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("err = %v, want %q in it", err, want)
		}
	}
	for name, spec := range utilfeature.DefaultMutableFeatureGate.GetAll() {
		if spec.LockToDefault {
			_, err := kube.Prepare(map[string]bool{string(name): !spec.Default}, func(int) {})
			if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("feature-gates: %s is fixed at %t", name, spec.Default)) {
				t.Errorf("%s, which is locked: err = %v", name, err)
			}
			break
		}
	}
	if utilfeature.DefaultFeatureGate.Enabled("APIServerIdentity") {
		t.Error("APIServerIdentity is on, but Prepare was told to switch it off")
	}
	// Every component's gates are known, not only those of the first one linked.
	for _, name := range []featuregate.Feature{"InPlacePodVerticalScaling", "NodeSwap", "APIServerIdentity"} {
		if _, ok := utilfeature.DefaultMutableFeatureGate.GetAll()[name]; !ok {
			t.Errorf("%s is not registered", name)
		}
	}
}

// TestFatalWhileStopping checks that klog.Fatal ends the process, but only its own
// goroutine once podo is stopping.
func TestFatalWhileStopping(t *testing.T) {
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	klog.OsExit(7)
	if code := <-exits; code != 7 {
		t.Errorf("exit code %d, want 7", code)
	}
	stopping()
	survived := make(chan bool, 1)
	go func() {
		went := true
		defer func() { survived <- went }()
		klog.OsExit(8)
		went = false
	}()
	if !<-survived {
		t.Error("a goroutine went on after klog.Fatal")
	}
	select {
	case code := <-exits:
		t.Errorf("the process was ended with %d while stopping", code)
	default:
	}
}

func TestParseNamesTheSetting(t *testing.T) {
	p := ordinary(t)
	p.Server.Scheduler.Args = []string{"no-such-flag=1"}
	_, err := scheduler.New(*p.Server.Scheduler, gate.New(), slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "kube-scheduler-arg: unknown flag: --no-such-flag") {
		t.Errorf("err = %v", err)
	}
	if errors.Is(err, flag.ErrHelp) {
		t.Error("an unknown flag is no question for help")
	}
}
