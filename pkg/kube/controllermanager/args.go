package controllermanager

import (
	"maps"

	"github.com/podo-dev/podo/pkg/kube/args"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/plan"
)

// Args are the flags that podo gives kube-controller-manager, with the user's
// laid over.
func Args(p plan.ControllerManager) (args.Set, error) {
	f := p.Paths
	client, server, kubelet := f.CA("client"), f.CA("server"), f.CA("kubelet")
	ours := args.Set{
		"kubeconfig":                      {f.ServerKubeconfig("kube-controller-manager")},
		"use-service-account-credentials": {"true"},
		// An election on one server is a write every two seconds for nothing.
		"leader-elect":                     {"false"},
		"service-account-private-key-file": {f.ServiceAccountKey()},
		"root-ca-file":                     {server.Cert},
		"cluster-signing-kube-apiserver-client-cert-file": {client.Cert},
		"cluster-signing-kube-apiserver-client-key-file":  {client.Key},
		"cluster-signing-kubelet-client-cert-file":        {client.Cert},
		"cluster-signing-kubelet-client-key-file":         {client.Key},
		"cluster-signing-kubelet-serving-cert-file":       {kubelet.Cert},
		"cluster-signing-kubelet-serving-key-file":        {kubelet.Key},
		"cluster-signing-legacy-unknown-cert-file":        {client.Cert},
		"cluster-signing-legacy-unknown-key-file":         {client.Key},
		"allocate-node-cidrs":                             {"true"},
		"cluster-cidr":                                    {args.Join(p.PodCIDR)},
		"service-cluster-ip-range":                        {args.Join(p.ServiceCIDR)},
		"configure-cloud-routes":                          {"false"},
		"flex-volume-plugin-dir":                          {paths.KubeletRoot + "/volumeplugins"},
		"controllers":                                     {"*,tokencleaner,bootstrapsigner"},
		// Building the controllers makes a hundred calls in a row; at upstream's 20
		// a second the first pod waits five seconds for its service account.
		"kube-api-qps":   {"500"},
		"kube-api-burst": {"1000"},
		"profiling":      {"false"},
	}
	maps.Copy(ours, args.Listening(p.Args, f.ServerKubeconfig("kube-controller-manager"), client.Cert))
	return ours.Merge("kube-controller-manager-arg", p.Args, args.Deny(map[string]string{
		"kubeconfig":                       "its credentials are made by podo",
		"leader-elect":                     "one server needs no election",
		"root-ca-file":                     "the cluster's CAs are made by podo",
		"service-account-private-key-file": "the cluster's keys are made by podo",
		"cluster-cidr":                     "use --cluster-cidr",
		"service-cluster-ip-range":         "use --service-cidr",
	}))
}
