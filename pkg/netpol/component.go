// Package netpol holds this node's pods to the cluster's network policies.
//
// It compiles every NetworkPolicy that selects a pod of this node into one nftables
// table of podo's own, and changes that table in single transactions. A second one, of
// the family bridge, drops frames that the first never sees. Both stay in the kernel
// while podo is away. A cluster without policies has none, and its nodes watch nothing
// but policies.
//
// Design. Every packet that is forwarded from or to a pod is judged by its connection's
// ends as conntrack knows them: who opened it, and whom the first packet was sent to
// once a Service's address was translated. So a packet and its reply meet the same
// rules, none passes merely because its connection is established, and a change of
// policy ends connections that are no longer allowed. A map leads from a pod's address
// to a chain for the policies that select it, which pods with the same policies share,
// and sets hold the addresses of peers; so what a packet costs does not grow with the
// number of pods. What the node itself sends to its pods and hears of them is not
// forwarded, and always passes, as the API demands.
//
// A new pod's policy is in force before its first packet because a node with policies
// forwards nothing for addresses of its bridge that it does not know. The container
// engine tells of a pod's address as soon as it has one, some time before the pod's
// first program starts, and the address becomes known in the transaction that sets up
// its policies. A CNI plugin that waits for the same would cost each pod another
// program, and would not hold for pods that start while nobody answers it. Before the
// first answer of an API server the policies are those remembered from the last run; on
// a node that remembers nothing, new pods wait for that answer.
package netpol

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/knftables"

	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/plan"
)

// Table is the nftables table that holds the policies, of the family inet. One of the family
// bridge has the same name.
const Table = "podo-netpol"

// Enforcer is the network policy of one node.
type Enforcer struct {
	plan plan.Policy
	at   place
	dial kubeconfig.Dial
	log  *slog.Logger
}

// New returns the enforcer of a node whose pods are plugged into bridge. Clients dial
// through dial.
func New(p plan.Policy, bridge string, dial kubeconfig.Dial, log *slog.Logger) *Enforcer {
	return &Enforcer{plan: p, at: place{Bridge: bridge, Pods: p.PodCIDR}, dial: dial, log: log}
}

// Name is the component's name.
func (e *Enforcer) Name() string { return "network-policy" }

// Run is ready once no new pod can send or be sent anything that a policy forbids.
func (e *Enforcer) Run(ctx context.Context, ready func()) error {
	err := e.run(ctx, ready)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (e *Enforcer) run(ctx context.Context, ready func()) error {
	nft, err := knftables.New(knftables.InetFamily, Table)
	if err != nil {
		return fmt.Errorf("nftables: %w; --disable-network-policy on the servers leaves network policy out", err)
	}
	client, err := kubeconfig.Clientset(e.plan.Paths.AgentKubeconfig("podo-node"), e.dial)
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient("unix://"+e.plan.Paths.Socket("containerd"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	if !bridgeFiltered() {
		e.log.Warn("traffic between pods of this node escapes network policy: br_netfilter is not at work", "component", e.Name())
	}
	changed := make(chan struct{}, 1)
	poke := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	bridge, unheld := knftables.New(knftables.BridgeFamily, Table)
	own := &sandboxes{engine: cri.NewRuntimeServiceClient(conn), known: map[string]pod{}, changed: poke}
	k := keeper{Enforcer: e, packets: &table{nft: nft}, frames: &table{nft: bridge}, unheld: unheld, own: own, source: newSource(client, poke)}
	if err := k.begin(ctx); err != nil {
		return err
	}
	ready()
	return k.keep(ctx, changed)
}

// Leave is the component of a node that heeds no policies: it removes what an earlier
// start has left in the kernel, and forgets it.
func Leave(p paths.Paths) lifecycle.Component {
	return lifecycle.Task("network-policy", func(ctx context.Context) error {
		if err := os.Remove(memoryFile(p)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, f := range []knftables.Family{knftables.InetFamily, knftables.BridgeFamily} {
			nft, err := knftables.New(f, Table)
			if err != nil {
				continue // a kernel without nftables holds none of ours
			}
			if _, err := nft.List(ctx, "chains"); err != nil {
				continue
			}
			if err := (&table{nft: nft}).apply(ctx, newRuleset()); err != nil {
				return err
			}
		}
		return nil
	})
}

// bridgeFiltered reports whether the kernel shows packets between ports of a bridge to
// the forward hook.
func bridgeFiltered() bool {
	text, err := os.ReadFile("/proc/sys/net/bridge/bridge-nf-call-iptables")
	return err == nil && strings.TrimSpace(string(text)) == "1"
}

// keeper keeps the kernel's tables as the cluster says.
type keeper struct {
	*Enforcer
	packets *table
	frames  *table
	own     *sandboxes
	source  *source

	last    *cluster // what was seen last; nil: nothing yet
	follows bool     // the engine is followed
	unheld  error    // why frames are not
	told    bool     // of that
	memory  memory
}

// begin sees to it that new pods are held to the policies as they were known last, or
// wait if nothing was. A table that is in force stays until more is known.
func (k *keeper) begin(ctx context.Context) error {
	k.memory = memory{file: memoryFile(k.plan.Paths)}
	last, err := k.memory.recall()
	if err != nil {
		k.log.Warn("the network policies of the last run are not remembered", "component", k.Name(), "err", err)
	}
	k.last = last
	if last != nil {
		return k.enforce(ctx)
	}
	switch _, err := k.packets.nft.List(ctx, "chains"); {
	case err == nil:
		return nil
	case !knftables.IsNotFound(err):
		return fmt.Errorf("nftables: %w", err)
	}
	if err := k.own.list(ctx); err != nil {
		return err
	}
	return k.apply(ctx, compile(cluster{}, k.own.pods(), k.at, true))
}

// keep follows the cluster until ctx ends.
func (k *keeper) keep(ctx context.Context, changed <-chan struct{}) error {
	k.source.watchPolicies(ctx)
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return k.memory.keep(k.last)
		case <-again.C:
			again.Reset(look)
			k.look(ctx)
		case <-changed:
		}
		c, known := k.source.cluster()
		if known {
			k.last = &c
		}
		if k.source.hasPolicies() {
			k.source.watchAll(ctx)
		}
		if k.last == nil {
			continue
		}
		if err := k.enforce(ctx); err != nil && ctx.Err() == nil {
			k.log.Warn("network policies not in force as they are; trying again", "component", k.Name(), "err", err)
			again.Reset(retry)
			continue
		}
		if known {
			if err := k.memory.note(k.last); err != nil {
				k.log.Warn("network policies will not be remembered", "component", k.Name(), "err", err)
			}
		}
		wait(ctx, gather)
	}
}

const (
	retry  = 5 * time.Second
	gather = 50 * time.Millisecond // of changes, until the next transaction
	look   = time.Minute           // after the table, which others could have deleted
)

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// look finds out whether somebody has deleted a table, as a firewall that starts afresh may
// do, and has frames tried again.
func (k *keeper) look(ctx context.Context) {
	if k.frames.nft != nil {
		k.unheld = nil // once more
	}
	for _, t := range []*table{k.packets, k.frames} {
		if t.inForce == nil || len(t.inForce.chains) == 0 {
			continue
		}
		if _, err := t.nft.List(ctx, "chains"); knftables.IsNotFound(err) {
			k.log.Warn("network policies were deleted from the kernel", "component", k.Name())
			t.inForce = nil
		}
	}
}

// enforce brings the kernel up to what was seen last.
func (k *keeper) enforce(ctx context.Context) error {
	if len(k.last.Policies) > 0 && !k.follows {
		k.follows = true
		if err := k.own.list(ctx); err != nil {
			k.follows = false
			return err
		}
		go k.own.follow(ctx, k.log.With("component", k.Name()))
	}
	return k.apply(ctx, compile(*k.last, k.own.pods(), k.at, false))
}

// apply puts rules in force. A kernel that cannot look at frames holds packets all the same.
func (k *keeper) apply(ctx context.Context, next *ruleset) error {
	if err := k.packets.apply(ctx, next); err != nil {
		return err
	}
	if k.unheld == nil {
		k.unheld = k.frames.apply(ctx, untagged(k.at, len(next.chains) > 0))
	}
	switch {
	case k.unheld == nil:
		k.told = false
	case ctx.Err() == nil && !k.told && k.last != nil && len(k.last.Policies) > 0:
		k.told = true
		k.log.Warn("what pods of this node send each other in VLAN tags escapes network policy; a kernel with CONFIG_NFT_BRIDGE_META holds it too",
			"component", k.Name(), "err", k.unheld)
	}
	return nil
}
