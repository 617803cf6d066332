package apiserver

import (
	"slices"
	"strconv"
	"strings"

	"github.com/podo-dev/podo/pkg/kube/args"
	"github.com/podo-dev/podo/pkg/pki"
	"github.com/podo-dev/podo/pkg/plan"
)

// Args are the flags that podo gives kube-apiserver, with the user's laid over.
func Args(p plan.APIServer) (args.Set, error) {
	f := p.Paths
	serving, kubelet, proxy := f.ServerLeaf("kube-apiserver"), f.ServerLeaf("kube-apiserver-kubelet"), f.ServerLeaf("front-proxy")
	ours := args.Set{
		"etcd-servers":                       {strings.Join(p.Storage.URLs, ",")},
		"storage-media-type":                 {"application/vnd.kubernetes.protobuf"},
		"bind-address":                       {p.Bind.String()},
		"secure-port":                        {strconv.Itoa(p.Port)},
		"advertise-address":                  {p.Advertise.String()},
		"service-cluster-ip-range":           {args.Join(p.ServiceCIDR)},
		"service-node-port-range":            {p.NodePortRange},
		"cert-dir":                           {f.Data + "/server/tls/temporary"},
		"tls-cert-file":                      {serving.Cert},
		"tls-private-key-file":               {serving.Key},
		"client-ca-file":                     {f.CA("client").Cert},
		"kubelet-certificate-authority":      {f.CA("kubelet").Cert},
		"kubelet-client-certificate":         {kubelet.Cert},
		"kubelet-client-key":                 {kubelet.Key},
		"kubelet-preferred-address-types":    {"InternalIP,ExternalIP,Hostname"},
		"proxy-client-cert-file":             {proxy.Cert},
		"proxy-client-key-file":              {proxy.Key},
		"requestheader-client-ca-file":       {f.CA("request-header").Cert},
		"requestheader-allowed-names":        {pki.FrontProxy},
		"requestheader-extra-headers-prefix": {"X-Remote-Extra-"},
		"requestheader-group-headers":        {"X-Remote-Group"},
		"requestheader-username-headers":     {"X-Remote-User"},
		"service-account-issuer":             {p.Issuer},
		"service-account-key-file":           {f.ServiceAccountKey()},
		"service-account-signing-key-file":   {f.ServiceAccountKey()},
		"authentication-config":              {authentication(f)},
		"authorization-mode":                 {"Node,RBAC"},
		"enable-admission-plugins":           {"NodeRestriction"},
		"enable-bootstrap-token-auth":        {"true"},
		"enable-aggregator-routing":          {"true"},
		"allow-privileged":                   {"true"},
		"profiling":                          {"false"},
		"shutdown-delay-duration":            {"0s"},
		// One server needs no lease to say that it is there; writing one every
		// ten seconds is most of what an idle disk would see.
		"endpoint-reconciler-type": {"master-count"},
	}
	for name, file := range map[string]string{"etcd-cafile": p.Storage.CA, "etcd-certfile": p.Storage.Files.Cert, "etcd-keyfile": p.Storage.Files.Key} {
		if file != "" {
			ours[name] = []string{file}
		}
	}
	if p.Several {
		ours["endpoint-reconciler-type"] = []string{"lease"}
	}
	if p.EgressConfig != "" {
		ours["egress-selector-config-file"] = []string{p.EgressConfig}
	}
	if args.Given(p.Args, "anonymous-auth", "authentication-config") || hasPrefix(p.Args, "oidc-") {
		delete(ours, "authentication-config") // upstream refuses it beside the older flags
		if !args.Given(p.Args, "authentication-config") {
			ours["anonymous-auth"] = []string{"false"} // a file of the user's says it itself
		}
	}
	return ours.Merge("kube-apiserver-arg", p.Args, args.Deny(map[string]string{
		"etcd-servers":                     "use --datastore-endpoint",
		"etcd-cafile":                      "use --datastore-cafile",
		"etcd-certfile":                    "use --datastore-certfile",
		"etcd-keyfile":                     "use --datastore-keyfile",
		"egress-selector-config-file":      "use --egress-selector-mode",
		"secure-port":                      "use --https-listen-port",
		"bind-address":                     "use --bind-address",
		"service-cluster-ip-range":         "use --service-cidr",
		"service-node-port-range":          "use --service-node-port-range",
		"advertise-address":                "use --advertise-address",
		"client-ca-file":                   "the cluster's CAs are made by podo",
		"tls-cert-file":                    "use --tls-san for further names, or --kube-apiserver-arg=tls-sni-cert-key=… for a certificate of your own",
		"tls-private-key-file":             "use --tls-san for further names, or --kube-apiserver-arg=tls-sni-cert-key=… for a certificate of your own",
		"service-account-signing-key-file": "the cluster's keys are made by podo",
	}))
}

func hasPrefix(list []string, prefix string) bool {
	return slices.ContainsFunc(list, func(text string) bool { return strings.HasPrefix(args.Name(text), prefix) })
}
