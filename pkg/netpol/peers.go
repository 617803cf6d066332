package netpol

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// peers are matches of the other end of a connection, one of which must hold. No peers
// are everybody.
func (k *compiler) peers(d direction, n *networkingv1.NetworkPolicy, peers []networkingv1.NetworkPolicyPeer) []string {
	if len(peers) == 0 {
		return []string{""}
	}
	var out []string
	for _, f := range k.families {
		if pods := k.podsOf(n, peers); len(pods) > 0 {
			name := "peers-" + short(canonical(n, peers)) + "-" + f.name
			out = append(out, f.end(d.peer)+" "+k.set(name, f.kind))
			k.sets[name].comment = clip("pods " + canonical(n, peers))
			for _, p := range pods {
				for _, a := range p.Addrs {
					if familyOf(a) == f {
						k.sets[name].elements[a.String()] = ""
					}
				}
			}
		}
		if ranges := blocks(peers, f); len(ranges) > 0 {
			out = append(out, f.end(d.peer)+" { "+strings.Join(ranges, ", ")+" }")
		}
	}
	return out
}

// podsOf are the pods among peers; if there are no peers, all.
func (k *compiler) podsOf(n *networkingv1.NetworkPolicy, peers []networkingv1.NetworkPolicyPeer) []pod {
	var out []pod
	if len(peers) == 0 {
		for _, pods := range sorted(k.inside) {
			out = append(out, pods...)
		}
	}
	for _, p := range peers {
		switch {
		case p.IPBlock != nil:
		case p.NamespaceSelector == nil:
			out = append(out, k.matching(n.Namespace, p.PodSelector)...)
		default:
			for name := range sorted(k.inside) {
				if !selector(p.NamespaceSelector).Matches(k.cluster.Namespaces[name]) {
					continue
				}
				if p.PodSelector == nil {
					out = append(out, k.inside[name]...)
				} else {
					out = append(out, k.matching(name, p.PodSelector)...)
				}
			}
		}
	}
	return out
}

// matching are the pods of a namespace that a selector matches.
func (k *compiler) matching(namespace string, s *metav1.LabelSelector) []pod {
	var out []pod
	match := selector(s)
	for _, p := range k.inside[namespace] {
		if match.Matches(p.Labels) {
			out = append(out, p)
		}
	}
	return out
}

// canonical is the same text for peers that are the same pods, whatever pods those are.
func canonical(n *networkingv1.NetworkPolicy, peers []networkingv1.NetworkPolicyPeer) string {
	var out []string
	for _, p := range peers {
		if p.IPBlock != nil {
			continue
		}
		where := "in " + n.Namespace
		if p.NamespaceSelector != nil {
			where = "in namespaces " + cmp.Or(selector(p.NamespaceSelector).String(), "at large")
		}
		if s := selector(p.PodSelector); p.PodSelector != nil && !s.Empty() {
			where = s.String() + " " + where
		}
		out = append(out, where)
	}
	if len(peers) == 0 {
		return "at large"
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), ", or ")
}

// blocks are the address ranges among peers, none inside another.
func blocks(peers []networkingv1.NetworkPolicyPeer, f family) []string {
	var all []netip.Prefix
	for _, p := range peers {
		if p.IPBlock == nil {
			continue
		}
		whole, err := netip.ParsePrefix(p.IPBlock.CIDR)
		if err != nil || familyOf(whole.Addr()) != f {
			continue
		}
		var but []netip.Prefix
		for _, text := range p.IPBlock.Except {
			if e, err := netip.ParsePrefix(text); err == nil {
				but = append(but, e.Masked())
			}
		}
		all = append(all, without(whole.Masked(), but)...)
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		if a.Bits() != b.Bits() {
			return a.Bits() - b.Bits()
		}
		return a.Addr().Compare(b.Addr())
	})
	var out []netip.Prefix
	for _, p := range all {
		if !slices.ContainsFunc(out, func(wide netip.Prefix) bool { return wide.Overlaps(p) }) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	var texts []string
	for _, p := range out {
		texts = append(texts, p.String())
	}
	return texts
}

// without is a prefix less others, in the fewest prefixes.
func without(p netip.Prefix, but []netip.Prefix) []netip.Prefix {
	touched := false
	for _, b := range but {
		if !b.Overlaps(p) {
			continue
		}
		if b.Bits() <= p.Bits() {
			return nil
		}
		touched = true
	}
	if !touched {
		return []netip.Prefix{p}
	}
	low, high := halves(p)
	return append(without(low, but), without(high, but)...)
}

func halves(p netip.Prefix) (low, high netip.Prefix) {
	bytes := p.Addr().AsSlice()
	bytes[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	above, _ := netip.AddrFromSlice(bytes)
	return netip.PrefixFrom(p.Addr(), p.Bits()+1), netip.PrefixFrom(above, p.Bits()+1)
}

// numbers are matches of protocols and numbered ports, one of which must hold.
func (k *compiler) numbers(ports []networkingv1.NetworkPolicyPort) []string {
	spans := map[string][]span{}
	for _, p := range ports {
		proto := protocol(p.Protocol)
		switch {
		case p.Port == nil:
			spans[proto] = append(spans[proto], span{0, 65535})
		case p.Port.StrVal != "":
		case p.EndPort != nil:
			spans[proto] = append(spans[proto], span{p.Port.IntVal, *p.EndPort})
		default:
			spans[proto] = append(spans[proto], span{p.Port.IntVal, p.Port.IntVal})
		}
	}
	var out []string
	for proto, list := range sorted(spans) {
		list = merge(list)
		switch {
		case list[0] == span{0, 65535}:
			out = append(out, "meta l4proto "+proto)
		case len(list) == 1 && list[0].first == list[0].last:
			out = append(out, "meta l4proto "+proto+" "+serverPort+" "+list[0].String())
		default:
			elements := map[string]string{}
			for _, s := range list {
				elements[s.String()] = ""
			}
			var texts []string
			for text := range sorted(elements) {
				texts = append(texts, text)
			}
			name := "ports-" + short(texts...)
			k.sets[name] = &set{kind: "inet_service", interval: true, elements: elements}
			out = append(out, "meta l4proto "+proto+" "+serverPort+" @"+name)
		}
	}
	return out
}

// A span is ports from first to last.
type span struct{ first, last int32 }

func (s span) String() string {
	if s.first == s.last {
		return portText(s.first)
	}
	return portText(s.first) + "-" + portText(s.last)
}

// merge joins spans that touch.
func merge(spans []span) []span {
	slices.SortFunc(spans, func(a, b span) int { return int(a.first - b.first) })
	out := spans[:1]
	for _, s := range spans[1:] {
		if end := &out[len(out)-1].last; s.first <= *end+1 {
			*end = max(*end, s.last)
		} else {
			out = append(out, s)
		}
	}
	return out
}

// protocol is nftables' name of one.
func protocol(p *corev1.Protocol) string {
	if p == nil || *p == "" {
		return "tcp"
	}
	return strings.ToLower(string(*p))
}

// named is a port that each pod may give another number.
type named struct{ name, protocol string }

// named are matches of the end that a connection was opened to: one of pods, at its
// port of that name. About tells the pods apart from others.
func (k *compiler) named(port named, about string, pods []pod) []string {
	var out []string
	for _, f := range k.families {
		name := "named-" + short(about, port.name, port.protocol) + "-" + f.name
		found := false
		for _, p := range pods {
			for _, has := range p.Ports {
				if has.Name != port.name || has.Protocol != port.protocol {
					continue
				}
				for _, a := range p.Addrs {
					if familyOf(a) == f {
						k.set(name, f.kind+" . inet_service")
						k.sets[name].comment = clip("port " + port.name + " of pods " + about)
						k.sets[name].elements[a.String()+" "+portText(int32(has.Number))] = ""
						found = true
					}
				}
			}
		}
		if found {
			out = append(out, "meta l4proto "+port.protocol+" "+f.end("ct reply %s saddr")+" . "+serverPort+" @"+name)
		}
	}
	return out
}
