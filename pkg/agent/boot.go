// Package agent wires what every node runs.
//
// Build is the boot order of the node: the payload first, then the engine, then
// what drives it. The kubelet and its neighbours start together with the API
// server, wherever that is, and meet it at the gate.
package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/podo-dev/podo/pkg/containerd"
	"github.com/podo-dev/podo/pkg/flannel"
	"github.com/podo-dev/podo/pkg/gate"
	"github.com/podo-dev/podo/pkg/images"
	"github.com/podo-dev/podo/pkg/kube/kubelet"
	"github.com/podo-dev/podo/pkg/kube/proxy"
	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/loadbalancer"
	"github.com/podo-dev/podo/pkg/netpol"
	"github.com/podo-dev/podo/pkg/payload"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/registries"
	"github.com/podo-dev/podo/pkg/volumes"
)

// Deps are what a node takes from its surroundings.
type Deps struct {
	Gate *gate.Gate
	Exe  string // the running binary, which holds the payload
	// Trust is met once the node's certificates and kubeconfigs are on disk, API
	// once the API server has begun to start. On a node by itself both are nil.
	Trust, API lifecycle.Need
	// Ending is what the node's pods can be ended by. It may be nil.
	Ending *kubelet.Ending
	Log    *slog.Logger
}

// Build adds the node to g. An error means that a flag passed through to a
// component is wrong; all such mistakes are in it.
func Build(g *lifecycle.Group, p plan.Node, d Deps) error {
	parts, err := newParts(p, d)
	if err != nil {
		return err
	}
	api := needs(d.Trust, d.API)

	files := g.Add(Files(d.Exe, p, d.Log))
	store := images.Store{Socket: p.Paths.Socket("containerd"), Root: p.Paths.ContainerdRoot()}
	engine := g.Add(containerd.New(p.Containerd, d.Log), files, g.Add(parts.registries))
	g.Add(images.Import(store, p.Containerd.Snapshotter, images.Sources{
		Folder: p.Paths.Images(), Note: p.Paths.ImportedImages(),
		Node: p.Name, Client: func() (kubernetes.Interface, error) {
			return kubeconfig.Clientset(p.Paths.AgentKubeconfig("kubelet"), d.Gate.Dial)
		},
	}, d.Log), engine)
	before := []lifecycle.Need{engine}
	if p.Policy != nil {
		before = append(before, g.Add(netpol.New(*p.Policy, flannel.Bridge, d.Gate.Dial, d.Log), append(api, files, engine)...))
	} else {
		g.Add(netpol.Leave(p.Paths), files)
	}
	node := g.Add(parts.kubelet, append(before, api...)...)
	network := node
	if p.Network != nil {
		network = g.Add(flannel.New(*p.Network, d.Gate.Dial, d.Log), append(api, files)...)
	}
	if parts.proxy != nil {
		g.Add(parts.proxy, append(api, files, network)...)
	}
	g.Add(volumes.NewKeeper(p.Volumes, d.Gate.Dial, d.Log), api...)
	if p.Tunnels != nil {
		g.Add(Tunnels(*p.Tunnels, d.Gate, d.Log), api...)
	}
	g.Add(loadbalancer.Report(p.Name, p.Kubelet.IPs, func() (kubernetes.Interface, error) {
		return kubeconfig.Clientset(p.Paths.AgentKubeconfig("podo-node"), d.Gate.Dial)
	}, d.Log), node)
	g.Add(Ready(p, parts.kubelet.MaxPods(), d.Gate, d.Log), node, network)
	return nil
}

// Judge tells what is wrong with what is passed on to the parts of a node, and builds
// nothing.
func Judge(p plan.Node, d Deps) error {
	_, err := newParts(p, d)
	return err
}

// parts are those that take flags and files of the user's.
type parts struct {
	kubelet    *kubelet.Kubelet
	proxy      *proxy.Proxy // nil if the node runs none
	registries lifecycle.Component
}

func newParts(p plan.Node, d Deps) (parts, error) {
	var out parts
	var err1, err2, err3 error
	out.kubelet, err1 = kubelet.New(p.Kubelet, d.Gate, d.Ending, d.Log)
	if p.Proxy != nil {
		out.proxy, err2 = proxy.New(*p.Proxy, d.Gate, d.Log)
	}
	out.registries, err3 = registries.New(p.Registries, images.Own(p.Paths.PayloadImages()), d.Log)
	return out, errors.Join(err1, err2, err3)
}

// Files unpacks the payload. Nothing waits for it to reach the disk; a start after
// a power cut unpacks it again.
func Files(exe string, p plan.Node, log *slog.Logger) lifecycle.Component {
	return lifecycle.Func("payload", func(ctx context.Context, ready func()) error {
		load, err := payload.Open(exe)
		if err != nil {
			return err
		}
		if err := load.Place(ctx, p.Paths.Payload()); err != nil {
			return err
		}
		if err := os.MkdirAll(p.Paths.StaticPods(), 0o755); err != nil {
			return err
		}
		ready()
		// The first seconds of a start belong to those who wait for it.
		select {
		case <-ctx.Done():
		case <-time.After(settleAfter):
		}
		// What is left are tools for people. A disk that is full has time until it is not.
		for ctx.Err() == nil {
			err := load.Settle(ctx, p.Paths.Payload())
			if err == nil || ctx.Err() != nil {
				break
			}
			log.Warn("not all programs are unpacked; trying again", "component", "payload", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(settleAgain):
			}
		}
		<-ctx.Done()
		return nil
	})
}

const (
	settleAfter = 10 * time.Second
	settleAgain = time.Minute
)

func needs(list ...lifecycle.Need) []lifecycle.Need {
	var out []lifecycle.Need
	for _, n := range list {
		if n != nil {
			out = append(out, n)
		}
	}
	return out
}
