package proxy

import (
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/podo-dev/podo/pkg/kube/args"
	"github.com/podo-dev/podo/pkg/plan"
)

// Args are the flags that podo gives kube-proxy, with the user's laid over.
func Args(p plan.Proxy) (args.Set, error) {
	set, err := args.Set{
		"kubeconfig":        {p.Paths.AgentKubeconfig("kube-proxy")},
		"hostname-override": {p.Name},
		"proxy-mode":        {"nftables"},
		"cluster-cidr":      {args.Join(p.PodCIDR)},
		// NodePort services answer on every address of the host, as people with
		// more than one network card expect.
		"nodeport-addresses":   {anyAddress(p.IPs)},
		"healthz-bind-address": {"127.0.0.1:10256"},
		"metrics-bind-address": {"127.0.0.1:10249"},
	}.Merge("kube-proxy-arg", p.Args, args.Deny(map[string]string{
		"kubeconfig":        "its credentials are made by podo",
		"config":            "pass its settings as flags; a file would stop kube-proxy when touched",
		"write-config-to":   "podo uses this itself",
		"cleanup":           "use podo kill",
		"hostname-override": "use --node-name",
		"cluster-cidr":      "use --cluster-cidr",
	}))
	if slices.Contains(set["proxy-mode"], "ipvs") {
		err = errors.Join(err, errors.New("kube-proxy-arg: proxy-mode=ipvs: podo does not have it; leave it out for nftables, which came to replace it"))
	}
	return set, err
}

func anyAddress(ips []netip.Addr) string {
	out := []string{}
	for _, ip := range ips {
		if ip.Is4() {
			out = append(out, "0.0.0.0/0")
		} else {
			out = append(out, "::/0")
		}
	}
	return strings.Join(out, ",")
}
