package flannel

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/flannel-io/flannel/pkg/subnet"
	"sigs.k8s.io/knftables"

	"github.com/podo-dev/podo/pkg/plan/plantest"
)

func TestMain(m *testing.M) {
	plantest.Flags()
	flag.Parse()
	os.Exit(m.Run())
}

// given is what the cluster would give the first node of a range for its pods.
func given(ranges []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, r := range ranges {
		bits := 24
		if r.Addr().Is6() {
			bits = 64
		}
		out = append(out, netip.PrefixFrom(r.Addr(), bits))
	}
	return out
}

func TestRender(t *testing.T) {
	plantest.Each(t, "testdata/*.txtar", func(t *testing.T, c plantest.Case) {
		p, err := c.Plan()
		if err != nil {
			t.Fatal(err)
		}
		n := *p.Node.Network
		var b strings.Builder
		list, err := Conflist(n, given(n.PodCIDR))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := libcni.NetworkConfFromBytes(list); err != nil {
			t.Errorf("runtimes do not take the network list: %v\n%s", err, list)
		}
		fmt.Fprintf(&b, "# %s\n%s\n", conflistFile(n.Paths), list)

		conf, err := netConf(n)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := subnet.ParseConfig(string(conf)); err != nil {
			t.Errorf("flannel does not take its configuration: %v\n%s", err, conf)
		}
		fmt.Fprintf(&b, "# %s\n%s\n", netConfFile(n.Paths), conf)

		for _, r := range n.PodCIDR {
			family := knftables.IPv4Family
			if r.Addr().Is6() {
				family = knftables.IPv6Family
			}
			nft := knftables.NewFake(family, Table)
			for range 2 { // the second start must change nothing
				if err := nft.Run(t.Context(), rules(nft, n, r)); err != nil {
					t.Fatal(err)
				}
			}
			dump := "no table\n"
			if nft.Table != nil {
				dump = nft.Dump()
			}
			fmt.Fprintf(&b, "# nft %s\n%s", family, dump)
		}
		c.Got(b.String())
	})
}
