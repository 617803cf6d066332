// Package flannel is this node's end of the pod network.
//
// It writes the CNI network list for the addresses that the cluster gave the
// node, masquerades what pods send to the outside, and runs flannel's backend,
// which carries traffic to the pods of other nodes. What it programmes stays in
// the kernel when it stops, so pods keep their network while podo restarts.
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
	"k8s.io/client-go/kubernetes"

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
	cidrs, err := o.podCIDRs(ctx)
	if err != nil {
		return ignoreStop(ctx, err)
	}
	text, err := Conflist(o.plan, cidrs)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.plan.Paths.CNIConfig(), 0o755); err != nil {
		return err
	}
	if _, err := atomicfile.WriteIfChanged(conflistFile(o.plan.Paths), text, 0o644); err != nil {
		return err
	}
	ready()
	return ignoreStop(ctx, o.carry(ctx))
}

// podCIDRs waits until the cluster has given this node addresses for its pods.
func (o *Overlay) podCIDRs(ctx context.Context) ([]netip.Prefix, error) {
	rc, err := kubeconfig.Client(o.plan.Paths.AgentKubeconfig("kubelet"), o.dial)
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(rc)
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

// carry runs flannel's backend until ctx ends.
func (o *Overlay) carry(ctx context.Context) error {
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
	b, err := backend.NewManager(ctx, subnets, iface).GetBackend(config.BackendType)
	if err != nil {
		return err
	}
	var rest sync.WaitGroup
	network, err := b.RegisterNetwork(ctx, &rest, config)
	if err != nil {
		return fmt.Errorf("%s backend: %w; --flannel-backend names another", o.plan.Backend, err)
	}
	defer rest.Wait()
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
