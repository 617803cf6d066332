package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/podo-dev/podo/manifests"
	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/containerd"
	"github.com/podo-dev/podo/pkg/datadir"
	"github.com/podo-dev/podo/pkg/deploy"
	"github.com/podo-dev/podo/pkg/host"
	"github.com/podo-dev/podo/pkg/images"
	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/payload"
	"github.com/podo-dev/podo/pkg/pki"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/process"
	"github.com/podo-dev/podo/pkg/version"
)

// baseline is Kubernetes and etcd as upstream builds them, each a process with
// upstream's defaults and what it takes to run on this machine. The container engine,
// its configuration, the images, certificates and addons are podo's.
type baseline struct {
	cfg      config.Server
	facts    host.Facts
	exe      string // podo, for its payload
	programs string // folder
	payload  string // file
	home     string
	env      []string
}

func newBaseline(b baseline) (product, error) {
	b.cfg.Components.Disable = append(b.cfg.Components.Disable, "traefik")
	p, err := plan.New(b.cfg, b.facts, plan.Known{}, b.env)
	if err != nil {
		return product{}, err
	}
	var programs []string
	for _, name := range []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"} {
		programs = append(programs, filepath.Join(b.programs, name))
	}
	where := p.Server.Paths
	admin := where.ServerKubeconfig("admin")
	return product{
		name: "baseline", paths: where, kubeconfig: admin,
		programs: programs, files: append([]string{b.payload}, programs...),
		prepare:   func(ctx context.Context) error { return b.prepare(ctx, p, admin) },
		component: func(logs string) (lifecycle.Component, error) { return b.graph(p, admin, logs) },
		remove:    uninstall(b.exe, b.home, where),
	}, nil
}

// prepare does what an installer would have done: programs, certificates,
// kubeconfigs and configuration are on disk.
func (b baseline) prepare(ctx context.Context, p plan.Plan, admin string) error {
	where := p.Server.Paths
	claim, err := datadir.Judge(where, version.Kubernetes(), nil) // podo uninstall removes only what is marked as podo's
	if err != nil {
		return err
	}
	defer claim.Release()
	if err := claim.Take(); err != nil {
		return err
	}
	if _, err := payload.Unpack(ctx, b.exe, where.Payload()); err != nil {
		return err
	}
	leaves := pki.Table(p.Server.Certificates.Names)
	if _, _, err := pki.Ensure(where, leaves, time.Now); err != nil {
		return err
	}
	for _, leaf := range leaves {
		files, path := leaf.Files(where), where.ServerKubeconfig(leaf.Name)
		if leaf.Node {
			path = where.AgentKubeconfig(leaf.Name)
		}
		if leaf.Usage != pki.Client || leaf.CA != pki.ClientCA {
			continue
		}
		err := kubeconfig.Write(path, kubeconfig.Config{
			Name: "bench", Server: p.Server.API, CAFile: where.CA(pki.ServerCA).Cert, CertFile: files.Cert, KeyFile: files.Key,
		}, kubeconfig.DefaultMode)
		if err != nil {
			return err
		}
	}
	if _, err := os.Stat(admin); err != nil {
		return err
	}
	network, err := b.network(p)
	if err != nil {
		return err
	}
	let, err := b.kubelet(p)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(where.CNIConfig(), 0o755); err != nil {
		return err
	}
	return errors.Join(
		atomicfile.Write(filepath.Join(where.CNIConfig(), "10-bridge.conflist"), network, 0o644),
		atomicfile.Write(kubeletConfig(p), let, 0o644),
		warm(where.Bin()+"/"),
	)
}

type object = map[string]any

// network is a plain bridge with the addresses that the controller-manager gives the
// first node.
func (b baseline) network(p plan.Plan) ([]byte, error) {
	cidr := p.Server.ControllerManager.PodCIDR[0]
	return json.Marshal(object{
		"cniVersion": "1.0.0",
		"name":       "bench",
		"plugins": []any{
			object{
				"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
				"ipMasq": true, "ipMasqBackend": "nftables",
				"ipam": object{
					"type": "host-local", "dataDir": p.Server.Paths.CNIData(),
					"ranges": []any{[]any{object{"subnet": netip.PrefixFrom(cidr.Addr(), 24).String()}}},
					"routes": []any{object{"dst": "0.0.0.0/0"}},
				},
			},
			object{"type": "portmap", "backend": "nftables", "capabilities": object{"portMappings": true}},
		},
	})
}

func kubeletConfig(p plan.Plan) string {
	return filepath.Join(p.Server.Paths.Data, "agent", "kubelet.json")
}

func (b baseline) kubelet(p plan.Plan) ([]byte, error) {
	k, where := p.Node.Kubelet, p.Server.Paths
	serving := where.AgentLeaf("kubelet-serving")
	driver := "cgroupfs"
	if k.SystemdCgroup {
		driver = "systemd"
	}
	return json.Marshal(object{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"authentication": object{
			"anonymous": object{"enabled": false}, "webhook": object{"enabled": true},
			"x509": object{"clientCAFile": where.AgentCA(pki.ClientCA)},
		},
		"authorization":            object{"mode": "Webhook"},
		"cgroupDriver":             driver,
		"clusterDNS":               k.ClusterDNS,
		"clusterDomain":            k.ClusterDomain,
		"containerRuntimeEndpoint": "unix://" + where.Socket("containerd"),
		"failCgroupV1":             !k.CgroupV1,
		"failSwapOn":               false,
		"makeIPTablesUtilChains":   false,
		"maxPods":                  maxPods,
		"resolvConf":               k.ResolvConf,
		"tlsCertFile":              serving.Cert,
		"tlsPrivateKeyFile":        serving.Key,
		"volumePluginDir":          "/var/lib/kubelet/volumeplugins",
	})
}

// graph starts everything at once, but for the kubelet, which gives up without a
// container engine. Whatever ends before its time is started again a second later, as
// a service manager would.
func (b baseline) graph(p plan.Plan, admin, logs string) (lifecycle.Component, error) {
	out, err := logFile(logs, "bench")
	if err != nil {
		return nil, err
	}
	log := slog.New(slog.NewTextHandler(out, nil))
	g := lifecycle.NewGroup(log)
	var errs []error
	child := func(name string, probe func(context.Context) error, args ...string) lifecycle.Component {
		out, err := logFile(logs, name)
		errs = append(errs, err)
		return lifecycle.Restart(log, time.Second, process.New(process.Command{
			Name: name, Path: filepath.Join(b.programs, name), Args: args, Env: p.Node.Containerd.Env,
			Output: out, Probe: probe, Grace: grace,
		}, log))
	}
	where, addr := p.Server.Paths, p.Server.APIServer.Advertise.String()
	services := p.Server.APIServer.ServiceCIDR[0].String()
	client, server, front := where.CA(pki.ClientCA), where.CA(pki.ServerCA), where.CA(pki.RequestHeaderCA)
	serving, toKubelet, proxy := where.ServerLeaf("kube-apiserver"), where.ServerLeaf("kube-apiserver-kubelet"), where.ServerLeaf("front-proxy")

	store := g.Add(child("etcd", nil,
		"--data-dir="+filepath.Join(where.DB(), "etcd"),
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=default=http://127.0.0.1:2380"))
	api := g.Add(child("kube-apiserver", func(ctx context.Context) error { return answers(ctx, admin) },
		"--etcd-servers=http://127.0.0.1:2379",
		"--advertise-address="+addr,
		"--secure-port="+strconv.Itoa(p.Server.APIServer.Port),
		"--service-cluster-ip-range="+services,
		"--allow-privileged=true",
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--client-ca-file="+client.Cert,
		"--tls-cert-file="+serving.Cert, "--tls-private-key-file="+serving.Key,
		"--kubelet-certificate-authority="+where.CA(pki.KubeletCA).Cert,
		"--kubelet-client-certificate="+toKubelet.Cert, "--kubelet-client-key="+toKubelet.Key,
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer="+p.Server.APIServer.Issuer,
		"--service-account-key-file="+where.ServiceAccountKey(), "--service-account-signing-key-file="+where.ServiceAccountKey(),
		"--proxy-client-cert-file="+proxy.Cert, "--proxy-client-key-file="+proxy.Key,
		"--requestheader-client-ca-file="+front.Cert, "--requestheader-allowed-names="+pki.FrontProxy,
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-"), store.Begun())
	g.Add(child("kube-controller-manager", nil,
		"--kubeconfig="+where.ServerKubeconfig("kube-controller-manager"),
		"--use-service-account-credentials=true",
		"--service-account-private-key-file="+where.ServiceAccountKey(),
		"--root-ca-file="+server.Cert,
		"--cluster-signing-cert-file="+client.Cert, "--cluster-signing-key-file="+client.Key,
		"--allocate-node-cidrs=true",
		"--cluster-cidr="+p.Server.ControllerManager.PodCIDR[0].String(),
		"--service-cluster-ip-range="+services), api.Begun())
	g.Add(child("kube-scheduler", nil, "--kubeconfig="+where.ServerKubeconfig("kube-scheduler")), api.Begun())

	engine := g.Add(containerd.New(p.Node.Containerd, log))
	g.Add(images.Import(images.Store{Socket: where.Socket("containerd"), Root: where.ContainerdRoot()}, p.Node.Containerd.Snapshotter,
		images.Sources{Folder: where.PayloadImages(), Note: where.ImportedImages(), Node: p.Node.Name, Client: func() (kubernetes.Interface, error) {
			return kubeconfig.Clientset(admin, nil)
		}}, log), engine)
	g.Add(child("kubelet", nil,
		"--config="+kubeletConfig(p),
		"--kubeconfig="+where.AgentKubeconfig("kubelet"),
		"--hostname-override="+p.Node.Name,
		"--node-ip="+addr), engine, api.Begun())
	g.Add(child("kube-proxy", nil,
		"--kubeconfig="+where.AgentKubeconfig("kube-proxy"),
		"--hostname-override="+p.Node.Name,
		"--proxy-mode=nftables",
		"--cluster-cidr="+p.Server.ControllerManager.PodCIDR[0].String(),
		"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0"), api.Begun())

	g.Add(deploy.New(deploy.Options{
		Addons: p.Server.Addons, Files: manifests.FS, Values: b.imageValues,
		Client: func() (*rest.Config, error) { return kubeconfig.Client(admin, nil) }, Log: log,
	}), api)
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return lifecycle.Func("baseline", func(ctx context.Context, ready func()) error {
		ready()
		return g.Run(ctx)
	}), nil
}

func (b baseline) imageValues() (map[string]string, error) {
	parts, err := payload.Components(b.exe)
	if err != nil {
		return nil, err
	}
	for _, c := range parts {
		if c.Name == "images/coredns.tar" {
			return map[string]string{"COREDNS_IMAGE": "podo.local/coredns:" + c.Version, "TRAEFIK_IMAGE": "unused"}, nil
		}
	}
	return nil, fmt.Errorf("%s: the payload holds no CoreDNS image", b.exe)
}
