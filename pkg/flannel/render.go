package flannel

import (
	"encoding/json"
	"net/netip"

	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/plan"
)

// Bridge is the link that this node's pods are plugged into.
const Bridge = "cni0"

type object = map[string]any

// Conflist is the CNI network list of a node that was given cidrs for its pods.
func Conflist(p plan.Network, cidrs []netip.Prefix) ([]byte, error) {
	var ranges, routes []any
	for _, c := range cidrs {
		ranges = append(ranges, []any{object{"subnet": c.String()}})
		all := "0.0.0.0/0"
		if c.Addr().Is6() {
			all = "::/0"
		}
		routes = append(routes, object{"dst": all})
	}
	return json.MarshalIndent(object{
		"cniVersion": "1.0.0",
		"name":       "podo",
		"plugins": []any{
			object{
				"type": "bridge", "bridge": Bridge, "mtu": p.MTU,
				"isGateway": true, "forceAddress": true, "hairpinMode": true, "ipMasq": false,
				"ipam": object{"type": "host-local", "dataDir": p.Paths.CNIData(), "ranges": ranges, "routes": routes},
			},
			object{"type": "portmap", "backend": "nftables", "snat": true, "capabilities": object{"portMappings": true}},
			object{"type": "bandwidth", "capabilities": object{"bandwidth": true}},
		},
	}, "", "  ")
}

// netConf is flannel's own configuration.
func netConf(p plan.Network) ([]byte, error) {
	backend := map[string]string{"vxlan": "vxlan", "host-gw": "host-gw", "wireguard-native": "wireguard"}[p.Backend]
	conf := object{"EnableIPv4": false, "EnableIPv6": false, "EnableNFTables": true, "Backend": object{"Type": backend}}
	for _, c := range p.PodCIDR {
		if c.Addr().Is4() {
			conf["EnableIPv4"], conf["Network"] = true, c.String()
		} else {
			conf["EnableIPv6"], conf["IPv6Network"] = true, c.String()
		}
	}
	return json.MarshalIndent(conf, "", "  ")
}

func conflistFile(p paths.Paths) string { return p.CNIConfig() + "/10-podo.conflist" }
func netConfFile(p paths.Paths) string  { return p.Run + "/flannel.json" }
