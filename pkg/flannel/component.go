// Package flannel is this node's end of the pod network.
//
// It writes the CNI network list for the addresses that the cluster gave the
// node, masquerades what pods send to the outside, and runs flannel's backend,
// which carries traffic to the pods of other nodes. What it programmes stays in
// the kernel when it stops, so pods keep their network while podo restarts. A node
// whose servers are elsewhere remembers the network, for a boot when none answers.
package flannel

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/flannel-io/flannel/pkg/backend"
	_ "github.com/flannel-io/flannel/pkg/backend/hostgw"
	_ "github.com/flannel-io/flannel/pkg/backend/vxlan"
	_ "github.com/flannel-io/flannel/pkg/backend/wireguard"
	"github.com/flannel-io/flannel/pkg/subnet/kube"
	corev1 "k8s.io/api/core/v1"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/nodes"
	"github.com/podo-dev/podo/pkg/plan"
)

// Overlay is one node's end of the pod network.
type Overlay struct {
	plan plan.Network
	dial kubeconfig.Dial
	log  *slog.Logger
}

// New returns the overlay. Clients dial through dial.
func New(p plan.Network, dial kubeconfig.Dial, log *slog.Logger) *Overlay {
	return &Overlay{plan: p, dial: dial, log: log}
}

// Name is the component's name.
func (o *Overlay) Name() string { return "flannel" }

// Run is ready once pods can be given addresses.
func (o *Overlay) Run(ctx context.Context, ready func()) error {
	if err := masquerade(ctx, o.plan); err != nil {
		return err
	}
	cidrs, resumed, err := o.begin(ctx, ready)
	if err != nil {
		return ignoreStop(ctx, err)
	}
	if err := o.configure(cidrs); err != nil {
		return err
	}
	ready()
	for {
		err := o.carry(ctx, cidrs, resumed)
		if err == nil || ctx.Err() != nil || !o.plan.Offline || o.reached(ctx) {
			return ignoreStop(ctx, err)
		}
		o.log.Warn("the pod network waits for a server", "component", o.Name(), "err", err)
		if _, err := o.podCIDRs(ctx); err != nil {
			return ignoreStop(ctx, err)
		}
	}
}

// begin returns the addresses of this node's pods once the cluster tells them. If no
// server does, it first has the network as it was, so that pods can start.
func (o *Overlay) begin(ctx context.Context, ready func()) (cidrs []netip.Prefix, resumed *known, err error) {
	var last *known
	if o.plan.Offline {
		if last, err = recall(o.plan); err != nil {
			o.log.Warn("what was known of the pod network does not serve", "component", o.Name(), "err", err)
		}
	}
	if last == nil {
		cidrs, err = o.podCIDRs(ctx)
		return cidrs, nil, err
	}
	waiting, stop := context.WithTimeout(ctx, patience)
	cidrs, err = o.podCIDRs(waiting)
	stop()
	if err == nil || ctx.Err() != nil {
		return cidrs, last, err
	}
	o.log.Warn("no server answers; the pod network is as it was", "component", o.Name())
	if iface, err := o.external(); err != nil {
		o.log.Warn("other nodes' pods are out of reach", "component", o.Name(), "err", err)
	} else if err := last.resume(iface, o.plan, o.log); err != nil {
		o.log.Warn("other nodes' pods are out of reach", "component", o.Name(), "err", err)
	}
	if err := o.configure(last.Pods); err != nil {
		return nil, nil, err
	}
	ready()
	cidrs, err = o.podCIDRs(ctx)
	return cidrs, last, err
}

// configure tells the container engine of the pod network.
func (o *Overlay) configure(cidrs []netip.Prefix) error {
	text, err := Conflist(o.plan, cidrs)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.plan.Paths.CNIConfig(), 0o755); err != nil {
		return err
	}
	_, err = atomicfile.WriteIfChanged(conflistFile(o.plan.Paths), text, 0o644)
	return err
}

// reached reports whether a server answers now.
func (o *Overlay) reached(ctx context.Context) bool {
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	_, err := o.podCIDRs(ctx)
	return err == nil
}

// podCIDRs waits until the cluster has given this node addresses for its pods.
func (o *Overlay) podCIDRs(ctx context.Context) ([]netip.Prefix, error) {
	client, err := kubeconfig.Clientset(o.plan.Paths.AgentKubeconfig("kubelet"), o.dial)
	if err != nil {
		return nil, err
	}
	node, err := nodes.Await(ctx, client, o.plan.NodeName, func(n *corev1.Node) bool {
		return len(n.Spec.PodCIDRs) >= len(o.plan.PodCIDR)
	})
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, text := range node.Spec.PodCIDRs {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("node %s: pod addresses: %w", o.plan.NodeName, err)
		}
		out = append(out, p)
	}
	return out, nil
}

// carry runs flannel's backend until ctx ends. Last is what was known before, if
// anything was.
func (o *Overlay) carry(ctx context.Context, cidrs []netip.Prefix, last *known) error {
	ctx, stop := context.WithCancel(ctx)
	var rest sync.WaitGroup
	defer func() {
		stop() // what an attempt that failed has started
		rest.Wait()
	}()
	conf, err := netConf(o.plan)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(netConfFile(o.plan.Paths), conf, 0o644); err != nil {
		return err
	}
	// Flannel takes the node's name from nowhere else.
	if err := os.Setenv("NODE_NAME", o.plan.NodeName); err != nil {
		return err
	}
	subnets, err := kube.NewSubnetManager(ctx, "", o.plan.Paths.AgentKubeconfig("podo-node"),
		"flannel.alpha.coreos.com", netConfFile(o.plan.Paths), false)
	if err != nil {
		return err
	}
	config, err := subnets.GetNetworkConfig(ctx)
	if err != nil {
		return err
	}
	iface, err := o.external()
	if err != nil {
		return err
	}
	keeper := &remembering{Manager: subnets, iface: iface, plan: o.plan, log: o.log}
	if o.plan.Offline {
		subnets = keeper
	}
	b, err := backend.NewManager(ctx, subnets, iface).GetBackend(config.BackendType)
	if err != nil {
		return err
	}
	network, err := b.RegisterNetwork(ctx, &rest, config)
	if err != nil {
		return fmt.Errorf("%s backend: %w; --flannel-backend names another", o.plan.Backend, err)
	}
	keeper.known = &known{Backend: o.plan.Backend, Pods: cidrs, Own: ways(*network.Lease())}
	if last != nil {
		keeper.stale = last.Others
	}
	if o.plan.Backend == "vxlan" {
		return vxlan(ctx, subnets, network.Lease(), o.log)
	}
	network.Run(ctx)
	return nil
}

// external is the link that other nodes reach this one by.
func (o *Overlay) external() (*backend.ExternalInterface, error) {
	link, err := net.InterfaceByName(o.plan.Interface)
	if err != nil {
		return nil, fmt.Errorf("interface %q: %w; choose one with --flannel-iface", o.plan.Interface, err)
	}
	out := &backend.ExternalInterface{Iface: link, IfaceName: link.Name}
	for _, ip := range slices.Backward(o.plan.IPs) {
		if ip.Is4() {
			out.IfaceAddr, out.ExtAddr = ip.AsSlice(), ip.AsSlice()
		} else {
			out.IfaceV6Addr, out.ExtV6Addr = ip.AsSlice(), ip.AsSlice()
		}
	}
	return out, nil
}

func ignoreStop(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
