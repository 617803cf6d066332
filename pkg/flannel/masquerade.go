package flannel

import (
	"context"
	"fmt"
	"net/netip"

	"sigs.k8s.io/knftables"

	"github.com/podo-dev/podo/pkg/plan"
)

// Table is the nftables table that hides pods' addresses from the outside.
const Table = "podo-network"

// masquerade replaces our table, in one transaction a family, by rules that give
// traffic from pods to outside the pod network the node's own address.
func masquerade(ctx context.Context, p plan.Network) error {
	for _, c := range p.PodCIDR {
		family := knftables.IPv4Family
		if c.Addr().Is6() {
			family = knftables.IPv6Family
		}
		nft, err := knftables.New(family, Table)
		if err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
		if err := nft.Run(ctx, rules(nft, p, c)); err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
	}
	return nil
}

func rules(nft knftables.Interface, p plan.Network, pods netip.Prefix) *knftables.Transaction {
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("podo: pods speak to the outside with the node's address")})
	ip, multicast := "ip", "224.0.0.0/4"
	if pods.Addr().Is6() {
		if !p.IPv6NAT {
			tx.Delete(&knftables.Table{}) // an earlier start may have been told otherwise
			return tx
		}
		ip, multicast = "ip6", "ff00::/8"
	}
	tx.Add(&knftables.Chain{
		Name:     "postrouting",
		Type:     knftables.PtrTo(knftables.NATType),
		Hook:     knftables.PtrTo(knftables.PostroutingHook),
		Priority: knftables.PtrTo(knftables.SNATPriority),
	})
	tx.Flush(&knftables.Chain{Name: "postrouting"})
	add := func(match ...any) {
		tx.Add(&knftables.Rule{Chain: "postrouting", Rule: knftables.Concat(match...)})
	}
	add(ip, "saddr !=", pods.String(), "return")
	add(ip, "daddr", pods.String(), "return")
	add(ip, "daddr", multicast, "return")
	add("masquerade fully-random")
	return tx
}
