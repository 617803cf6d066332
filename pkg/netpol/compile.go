package netpol

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/knftables"
)

// LogDropped is the annotation by which a policy has what is dropped on its account
// written to the kernel's log.
const LogDropped = "podo.dev/log-dropped"

// place is where this node's pods are: at ports of a bridge, with addresses of the
// cluster's ranges.
type place struct {
	Bridge string
	Pods   []netip.Prefix
}

// A family is how rules speak of one IP family.
type family struct {
	name string // for names of sets
	ip   string // the protocol
	kind string // type of addresses
}

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return family{"4", "ip", "ipv4_addr"}
	}
	return family{"6", "ip6", "ipv6_addr"}
}

// A direction is how rules speak of one direction of traffic, as its isolated pod
// sees it.
type direction struct {
	name  string // of the map
	chain string // prefix of chains
	self  string // the isolated pod's end of the connection
	peer  string // the other end
	raw   string // the isolated pod's end of a packet
	kind  networkingv1.PolicyType
}

func directions() []direction {
	const client, server = "ct original %s saddr", "ct reply %s saddr"
	return []direction{
		{"egress", "out-", client, server, "saddr", networkingv1.PolicyTypeEgress},
		{"ingress", "in-", server, client, "daddr", networkingv1.PolicyTypeIngress},
	}
}

// end is one end of a connection in one family.
func (f family) end(which string) string { return strings.Replace(which, "%s", f.ip, 1) }

// serverPort is the port of the end that a connection was opened to.
const serverPort = "ct reply proto-src"

type compiler struct {
	*ruleset
	cluster  cluster
	at       place
	families []family
	inside   map[string][]pod // all pods, by namespace
	policies map[string][]*networkingv1.NetworkPolicy
}

// compile turns the policies of a cluster into rules for the node whose pods own are.
// With hold there is a table without policies too: pods other than own are cut off.
func compile(c cluster, own []pod, at place, hold bool) *ruleset {
	k := &compiler{
		ruleset: newRuleset(), cluster: c, at: at,
		inside: map[string][]pod{}, policies: map[string][]*networkingv1.NetworkPolicy{},
	}
	if len(c.Policies) == 0 && !hold {
		return k.ruleset
	}
	for _, p := range c.Policies {
		k.policies[p.Namespace] = append(k.policies[p.Namespace], p)
	}
	all := c.with(own)
	for _, p := range all {
		k.inside[p.Namespace] = append(k.inside[p.Namespace], p)
	}
	for _, p := range at.Pods {
		k.families = append(k.families, familyOf(p.Addr()))
	}
	k.forward()
	for _, p := range all[:len(own)] {
		k.pod(p)
	}
	return k.ruleset
}

// forward makes the chain that packets come to, and the sets that it asks.
func (k *compiler) forward() {
	c := &chain{}
	k.chains[base] = c
	add := func(why string, match ...any) { c.rules = append(c.rules, rule{knftables.Concat(match...), why}) }
	from, to := "iifname "+k.at.Bridge, "oifname "+k.at.Bridge
	add("not a pod's", "iifname !=", k.at.Bridge, "oifname !=", k.at.Bridge, "accept")
	add("neighbours", from, to, "icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert,",
		"mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report } accept")
	// A source is a known pod's whatever it is: one that no pod has would be nobody's egress.
	for i, f := range k.families {
		known := k.set("pods"+f.name, f.kind)
		add("from no known pod", from, f.ip, "saddr !=", known, "drop")
		add("not known yet", to, f.ip, "daddr", k.at.Pods[i], f.ip, "daddr !=", known, "drop")
	}
	for _, ip := range k.unused() {
		add("of a family that no pod has", from, "meta nfproto", ip, "drop")
	}
	add("to nobody in particular", from, to, "ip daddr { 169.254.0.0/16, 224.0.0.0/4, 255.255.255.255 } drop")
	add("to nobody in particular", from, to, "ip6 daddr { fe80::/10, ff00::/8 } drop")
	add("errors of connections", "meta l4proto { icmp, icmpv6 } ct state related accept")
	for _, f := range k.families {
		add("with itself", f.end("ct original %s saddr"), ".", f.end("ct reply %s saddr"), k.set("self"+f.name, f.kind+" . "+f.kind), "accept")
	}
	for _, d := range directions() {
		for _, f := range k.families {
			verdicts := k.set(d.name+f.name, f.kind)
			k.sets[d.name+f.name].verdicts = true
			add("", "ct state { invalid, untracked }", f.ip, d.raw, "vmap", verdicts)
			add("", f.end(d.self), "vmap", verdicts)
		}
	}
}

// untagged are the rules for frames between ports of the bridge. The kernel shows the forward
// hook no packet in a frame with VLAN tags, and the pod at the other end takes off
// those that name no VLAN.
func untagged(at place, held bool) *ruleset {
	out := newRuleset()
	if held {
		out.chains[base] = &chain{rules: []rule{{"meta ibrname " + at.Bridge + " ether type { 8021q, 8021ad } drop", "not seen by policies"}}}
	}
	return out
}

// unused are the families that this cluster's pods have no addresses of.
func (k *compiler) unused() (out []string) {
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if f := familyOf(any); !slices.Contains(k.families, f) {
			out = append(out, "ipv"+f.name)
		}
	}
	return out
}

// set returns the reference to a set, which is made if it is not there.
func (k *compiler) set(name, kind string) string {
	if k.sets[name] == nil {
		k.sets[name] = &set{kind: kind, elements: map[string]string{}}
	}
	return "@" + name
}

// pod makes a pod of this node known and leads its traffic to its policies.
func (k *compiler) pod(p pod) {
	for _, d := range directions() {
		selecting := k.selecting(p, d.kind)
		chain := ""
		if len(selecting) > 0 {
			chain = k.chain(d, selecting)
		}
		for _, a := range p.Addrs {
			f := familyOf(a)
			if !slices.Contains(k.families, f) {
				continue
			}
			k.sets["pods"+f.name].elements[a.String()] = ""
			if chain != "" {
				k.sets["self"+f.name].elements[a.String()+" "+a.String()] = ""
				k.sets[d.name+f.name].elements[a.String()] = "jump " + chain
			}
		}
	}
}

// selecting are the policies that select a pod and rule a direction of its traffic.
func (k *compiler) selecting(p pod, kind networkingv1.PolicyType) []*networkingv1.NetworkPolicy {
	var out []*networkingv1.NetworkPolicy
	for _, n := range k.policies[p.Namespace] {
		if rules(n, kind) && selector(&n.Spec.PodSelector).Matches(p.Labels) {
			out = append(out, n)
		}
	}
	return out
}

// rules reports whether a policy rules a direction.
func rules(n *networkingv1.NetworkPolicy, kind networkingv1.PolicyType) bool {
	if len(n.Spec.PolicyTypes) == 0 {
		return kind == networkingv1.PolicyTypeIngress || len(n.Spec.Egress) > 0
	}
	return slices.Contains(n.Spec.PolicyTypes, kind)
}

// selector selects nothing if it is nil or makes no sense.
func selector(s *metav1.LabelSelector) labels.Selector {
	out, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing()
	}
	return out
}

// chain is the one for pods that these policies select. It returns to its caller what
// one of them allows, and drops the rest.
func (k *compiler) chain(d direction, policies []*networkingv1.NetworkPolicy) string {
	var names []string
	logged := false
	for _, n := range policies {
		names = append(names, key(n))
		logged = logged || n.Annotations[LogDropped] == "true"
	}
	name := d.chain + short(names...)
	if k.chains[name] != nil {
		return name
	}
	c := &chain{comment: clip(strings.Join(names, " "))}
	k.chains[name] = c
	for _, n := range policies {
		add := func(match string) {
			c.rules = append(c.rules, rule{strings.TrimSpace(match + " return"), clip(key(n))})
		}
		if d.kind == networkingv1.PolicyTypeIngress {
			for _, r := range n.Spec.Ingress {
				k.allow(d, n, r.From, r.Ports, add)
			}
		} else {
			for _, r := range n.Spec.Egress {
				k.allow(d, n, r.To, r.Ports, add)
			}
		}
	}
	if logged {
		c.rules = append(c.rules, rule{text: `limit rate 10/minute burst 20 packets log prefix "podo: dropped by ` + name + `: "`})
	}
	c.rules = append(c.rules, rule{text: "counter drop"})
	return name
}

// allow adds what a policy's rule matches: each of its peers at each of its ports.
func (k *compiler) allow(d direction, n *networkingv1.NetworkPolicy, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort, add func(match string)) {
	from := k.peers(d, n, peers)
	if len(ports) == 0 {
		for _, peer := range from {
			add(peer)
		}
		return
	}
	for _, port := range k.numbers(ports) {
		for _, peer := range from {
			add(strings.TrimSpace(peer + " " + port))
		}
	}
	for _, port := range ports {
		if port.Port == nil || port.Port.StrVal == "" {
			continue
		}
		named := named{port.Port.StrVal, protocol(port.Protocol)}
		if d.kind == networkingv1.PolicyTypeIngress {
			// The port is this pod's.
			self := []networkingv1.NetworkPolicyPeer{{PodSelector: &n.Spec.PodSelector}}
			at := k.named(named, canonical(n, self), k.podsOf(n, self))
			for _, peer := range from {
				for _, match := range at {
					add(strings.TrimSpace(peer + " " + match))
				}
			}
		} else {
			// The port is the peer's, and who has it is one of the peers.
			for _, match := range k.named(named, canonical(n, peers), k.podsOf(n, peers)) {
				add(match)
			}
		}
	}
}

// short is a name for whatever is told apart by these words.
func short(words ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(words, "\n")))
	return hex.EncodeToString(sum[:6])
}

// clip makes a text a comment.
func clip(text string) string {
	if len(text) > knftables.CommentLengthMax-1 {
		text = text[:knftables.CommentLengthMax-4] + "..."
	}
	return strings.ReplaceAll(text, `"`, "'")
}

func portText(n int32) string { return strconv.Itoa(int(n)) }
