package agent

import (
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/gate"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/plan/plantest"
)

// node is the plan of an ordinary machine. It asks nothing of this one's cgroups.
func node(t *testing.T) plan.Node {
	t.Helper()
	p, err := plan.New(config.Default(), plantest.Machine(), plan.Known{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	p.Node.Kubelet.CgroupV1 = true
	return *p.Node
}

// order lists who waits for whom.
func order(g *lifecycle.Group) []string {
	var out []string
	for _, u := range g.Status() {
		slices.Sort(u.WaitOn)
		out = append(out, strings.TrimSpace(u.Name+" < "+strings.Join(u.WaitOn, " ")))
	}
	return out
}

func TestBuild(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	tests := map[string]struct {
		change func(*plan.Node)
		alone  bool // no control plane in this process
		want   []string
	}{
		"beside a control plane": {want: []string{
			"certificates <",
			"api <",
			"payload <",
			"registries <",
			"containerd < payload registries",
			"images < containerd",
			"network-policy < api certificates containerd payload",
			"kubelet < api certificates containerd network-policy",
			"flannel < api certificates payload",
			"kube-proxy < api certificates flannel payload",
			"volumes < api certificates",
			"host-ports < kubelet",
			"node < flannel kubelet",
		}},
		"by itself": {alone: true, want: []string{
			"payload <",
			"registries <",
			"containerd < payload registries",
			"images < containerd",
			"network-policy < containerd payload",
			"kubelet < containerd network-policy",
			"flannel < payload",
			"kube-proxy < flannel payload",
			"volumes <",
			"host-ports < kubelet",
			"node < flannel kubelet",
		}},
		"without a network or a proxy": {alone: true, change: func(p *plan.Node) { p.Network, p.Policy, p.Proxy = nil, nil, nil }, want: []string{
			"payload <",
			"registries <",
			"containerd < payload registries",
			"images < containerd",
			"network-policy < payload",
			"kubelet < containerd",
			"volumes <",
			"host-ports < kubelet",
			"node < kubelet",
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			g, p := lifecycle.NewGroup(log), node(t)
			if tt.change != nil {
				tt.change(&p)
			}
			d := Deps{Gate: gate.New(), Exe: "/proc/self/exe", Log: log}
			if !tt.alone {
				d.Trust = g.Add(lifecycle.Func("certificates", nil))
				d.API = g.Add(lifecycle.Func("api", nil)).Begun()
			}
			if err := Build(g, p, d); err != nil {
				t.Fatal(err)
			}
			if got := order(g); !slices.Equal(got, tt.want) {
				t.Errorf("order\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
}

func TestBuildReportsEveryWrongFlag(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	p := node(t)
	p.Kubelet.Args, p.Proxy.Args = []string{"bad-a=1"}, []string{"bad-b=1"}
	err := Build(lifecycle.NewGroup(log), p, Deps{Gate: gate.New(), Log: log})
	for _, want := range []string{"kubelet-arg: unknown flag: --bad-a", "kube-proxy-arg: unknown flag: --bad-b"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("err = %v, want %q in it", err, want)
		}
	}
}
