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

	"github.com/podo-dev/podo/pkg/containerd"
	"github.com/podo-dev/podo/pkg/flannel"
	"github.com/podo-dev/podo/pkg/gate"
	"github.com/podo-dev/podo/pkg/images"
	"github.com/podo-dev/podo/pkg/kube/kubelet"
	"github.com/podo-dev/podo/pkg/kube/proxy"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/payload"
	"github.com/podo-dev/podo/pkg/plan"
)

// Deps are what a node takes from its surroundings.
type Deps struct {
	Gate *gate.Gate
	Exe  string // the running binary, which holds the payload
	// Trust is met once the node's certificates and kubeconfigs are on disk, API
	// once the API server has begun to start. On a node by itself both are nil.
	Trust, API lifecycle.Need
	Log        *slog.Logger
}

// Build adds the node to g. An error means that a flag passed through to a
// component is wrong; all such mistakes are in it.
func Build(g *lifecycle.Group, p plan.Node, d Deps) error {
	let, err1 := kubelet.New(p.Kubelet, d.Gate, d.Log)
	var prox *proxy.Proxy
	var err2 error
	if p.Proxy != nil {
		prox, err2 = proxy.New(*p.Proxy, d.Gate, d.Log)
	}
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	api := needs(d.Trust, d.API)

	files := g.Add(Files(d.Exe, p, d.Log))
	engine := g.Add(containerd.New(p.Containerd, d.Log), files)
	g.Add(images.Import(p.Paths.Socket("containerd"), p.Containerd.Snapshotter, p.Paths.ContainerdRoot(),
		[]string{p.Paths.PayloadImages(), p.Paths.Images()}, d.Log), engine)
	node := g.Add(let, append(api, engine)...)
	network := node
	if p.Network != nil {
		network = g.Add(flannel.New(*p.Network, d.Gate.Dial, d.Log), append(api, files)...)
	}
	if prox != nil {
		g.Add(prox, append(api, files, network)...)
	}
	g.Add(Ready(p, d.Gate), node, network)
	return nil
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
		for _, dir := range []string{p.Paths.Images(), p.Paths.StaticPods()} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
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
