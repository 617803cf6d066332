package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const head = "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\n"

// TestMistakes: each is told with its place, and all of them at once.
func TestMistakes(t *testing.T) {
	tests := map[string]struct {
		in   string
		want []string
	}{
		"another version": {
			in:   "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha3\n",
			want: []string{`apiVersion: "kind.x-k8s.io/v1alpha3", want kind.x-k8s.io/v1alpha4`},
		},
		"nothing but mistakes": {in: "nods: []\nnodes: [{role: master}]\n", want: []string{"line 1: nods", `kind: "", want Cluster`, `nodes[0].role: "master"`}},
		"nothing said":         {in: "{}\n", want: []string{`kind: "", want Cluster`, `apiVersion: ""`}},
		"a list":               {in: "- a\n", want: []string{"it is not a mapping"}},
		"no YAML":              {in: head + "nodes: [", want: []string{"line 3"}},
		"unknown fields, everywhere": {
			in:   head + "node: []\nnodes:\n- role: worker\n  extraPortMapping: []\n- rol: control-plane\nnetworking:\n  podsubnet: x\n",
			want: []string{"line 3: node: there is no such field; did you mean nodes?", "line 6: nodes[0].extraPortMapping: there is no such field; did you mean extraPortMappings?", "line 7: nodes[1].rol: there is no such field; did you mean role?", "line 9: networking.podsubnet: there is no such field; did you mean podSubnet?"},
		},
		"a role":       {in: head + "nodes:\n- role: master\n", want: []string{`nodes[0].role: "master", want control-plane or worker`}},
		"no server":    {in: head + "nodes:\n- role: worker\n", want: []string{"none has the role control-plane"}},
		"a wrong type": {in: head + "nodes: 3\n", want: []string{`line 3: want a list; "3" is none`}},
		"wrong values": {
			in:   head + "featureGates: {A: maybe}\nnetworking: {apiServerPort: many, disableDefaultCNI: 2}\n",
			want: []string{`line 3: want true or false; "maybe" is none`, `line 4: want a number; "many" is none`, "line 4: want true or false"},
		},
		"two documents": {in: head + "---\n" + head, want: []string{"another document begins; a file holds one cluster"}},
		"bits of a host": {
			in:   head + "networking: {podSubnet: 10.10.0.5/16}\n",
			want: []string{"networking.podSubnet: 10.10.0.5/16 is an address and no range; 10.10.0.0/16 has it"},
		},
		"mounts over the machine": {
			in:   head + "nodes:\n- extraMounts: [{hostPath: /a, containerPath: /proc/sys}, {hostPath: /a, containerPath: /etc/}]\n",
			want: []string{"extraMounts[0].containerPath: /proc/sys is what makes the node a machine", "extraMounts[1].containerPath: /etc/ is"},
		},
		"two of a name": {in: head + "name: a\nname: b\n", want: []string{`"name" already defined`}},
		"overlap": {
			in:   head + "networking:\n  podSubnet: 10.0.0.0/8\n  serviceSubnet: 10.1.0.0/16\n",
			want: []string{"networking.serviceSubnet: 10.1.0.0/16 overlaps with podSubnet 10.0.0.0/8"},
		},
		"what podo has not": {
			in: head + "kubeadmConfigPatchesJSON6902: [{group: x, version: y, kind: z, patch: a}]\nnetworking: {kubeProxyMode: ipvs}\n" +
				"nodes:\n- extraMounts: [{hostPath: a, containerPath: /b, selinuxRelabel: true}]\n  extraPortMappings: [{containerPort: 1, protocol: SCTP}]\n",
			want: []string{"kubeadmConfigPatchesJSON6902: podo has no kubeadm", "kubeProxyMode: ipvs:", "selinuxRelabel: podo does not label", "protocol: SCTP: podo passes on TCP and UDP"},
		},
		"ports": {
			in:   head + "nodes:\n- extraPortMappings:\n  - hostPort: 70000\n  - containerPort: 1\n    listenAddress: here\n    protocol: ICMP\n",
			want: []string{"extraPortMappings[0].containerPort: is missing", "extraPortMappings[0].hostPort: 70000 is no port", `listenAddress: "here" is not an IP address`, `protocol: "ICMP"`},
		},
		"mounts": {
			in:   head + "nodes:\n- extraMounts:\n  - containerPath: here\n    propagation: Both\n",
			want: []string{`containerPath: "here" is not an absolute path`, "hostPath: is missing", `propagation: "Both"`},
		},
		"what is taken over from another": {
			in:   head + "nodes:\n- &w {role: worker, rol: x}\n- <<: *w\n- <<: [*w, {labls: {}}]\n- *w\n",
			want: []string{"line 4: nodes[0].rol: there", "line 4: nodes[1].rol: there", "line 6: nodes[2].labls: there", "line 4: nodes[3].rol: there"},
		},
		"what contains itself": {in: head + "nodes: [&a {role: worker, <<: *a}]\n", want: []string{"contains itself"}},
		"mounts over programs": {
			in:   head + "nodes:\n- extraMounts: [{hostPath: /a, containerPath: /usr}, {hostPath: /a, containerPath: /lib/}]\n",
			want: []string{"/usr is what makes the node a machine", "/lib/ is what makes"},
		},
		"a name": {in: head + "name: A_b\n", want: []string{`name: "A_b" is not a name for a cluster`}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("c.yaml", []byte(tt.in))
			var unfit Unfit
			if !errors.As(err, &unfit) {
				t.Fatalf("Parse: %v, want an error that can never be mended by another try", err)
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("nothing of %q in:\n%v", w, err)
				}
			}
			for line := range strings.Lines(err.Error()) {
				if !strings.HasPrefix(line, "c.yaml: ") {
					t.Errorf("a line without its file: %s", line)
				}
			}
		})
	}
}

// settled is a cluster as it would be made of a file, on the first network.
func settled(t *testing.T, f File) (Cluster, error) {
	t.Helper()
	s := Site{Dir: t.TempDir(), Exe: "/usr/local/bin/podo"}
	return s.decide("c", f)
}

// TestSettings: what is said in a file reaches podo's settings on each node.
func TestSettings(t *testing.T) {
	tests := map[string]struct {
		file string
		want map[string]map[string]any // by node and setting
	}{
		"one.yaml": {want: map[string]map[string]any{
			"c-control-plane": {"node-taint": []string{serverTaint}, "cluster-cidr": []string{"10.42.0.0/16"}, "cluster-init": nil, "server": nil},
			"c-worker":        {"node-taint": nil, "cluster-cidr": nil, "token-file": tokenFile},
		}},
		"ingress.yaml": {want: map[string]map[string]any{
			"c-control-plane": {"node-label": []string{"ingress-ready=true"}, "node-taint": nil},
		}},
		"zones.yaml": {want: map[string]map[string]any{
			"c-control-plane": {
				"node-label": []string{"tier=control"}, "cluster-cidr": []string{"10.10.0.0/16"}, "service-cidr": []string{"10.200.1.0/24"},
				"kube-apiserver-arg": []string{"runtime-config=api/all=true"}, "bind-address": "0.0.0.0",
				"kube-controller-manager-arg": []string{"bind-address=0.0.0.0"}, "kube-scheduler-arg": []string{"bind-address=0.0.0.0"},
				"etcd-expose-metrics": true, "cluster-init": true, "kube-proxy-arg": []string{"metrics-bind-address=0.0.0.0:10249"},
				"feature-gates": map[string]string{"InPlacePodVerticalScaling": "true", "MultiCIDRServiceAllocator": "true"},
			},
			"c-worker2": {
				"node-label": []string{"topology.kubernetes.io/zone=zone-b"}, "kube-scheduler-arg": nil,
				"feature-gates": map[string]string{"InPlacePodVerticalScaling": "true", "MultiCIDRServiceAllocator": "true"},
			},
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join("testdata", name))
			if err != nil {
				t.Fatal(err)
			}
			f, err := Parse(name, text)
			if err != nil {
				t.Fatal(err)
			}
			for i := range f.Nodes {
				for j := range f.Nodes[i].Ports {
					f.Nodes[i].Ports[j].Host = 0 // those of the file may be taken here
				}
			}
			c, err := settled(t, f)
			if err != nil {
				t.Fatal(err)
			}
			for node, want := range tt.want {
				n, err := c.find(node)
				if err != nil {
					t.Fatal(err)
				}
				got := c.settings(n, c.servers()[0])
				for setting, w := range want {
					if show(got[setting]) != show(w) {
						t.Errorf("%s: %s is %v, want %v", node, setting, got[setting], w)
					}
				}
			}
		})
	}
}

func show(v any) string { return fmt.Sprint(v) }

// TestPatches: what kubeadm's objects say is podo's setting, or refused by name.
func TestPatches(t *testing.T) {
	tests := map[string]struct {
		patch string
		node  bool // said of the second node, a worker, rather than of all
		of    string
		want  map[string]any
		err   string
	}{
		"flags as a list": {
			patch: "kind: ClusterConfiguration\napiVersion: kubeadm.k8s.io/v1beta4\napiServer:\n  certSANs: [me.example]\n  extraArgs:\n  - {name: audit-log-maxage, value: '3'}\n",
			of:    "c-control-plane", want: map[string]any{"kube-apiserver-arg": []string{"audit-log-maxage=3"}, "tls-san": []string{"me.example"}},
		},
		"gates and verbosity are one for all": {
			patch: "kind: ClusterConfiguration\napiServer: {extraArgs: {v: '4', vmodule: a=1}}\nscheduler: {extraArgs: {feature-gates: 'A=true,B=false', v: '2', vmodule: b=2}}\n",
			of:    "c-control-plane", want: map[string]any{"feature-gates": map[string]string{"A": "true", "B": "false"}, "v": 4, "vmodule": "a=1,b=2", "kube-scheduler-arg": nil},
		},
		"gates of a kubelet are its node's": {
			patch: "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\nfeatureGates: {G: true}\n",
			node:  true, of: "c-control-plane", want: map[string]any{"feature-gates": nil},
		},
		"a resolver of a node": {
			patch: "kind: JoinConfiguration\nnodeRegistration: {kubeletExtraArgs: {resolv-conf: /etc/pods.conf}}\n",
			of:    "c-worker", want: map[string]any{"resolv-conf": "/etc/pods.conf", "kubelet-arg": []string{"config=" + kubeletFile}},
		},
		"a worker": {
			patch: "kind: JoinConfiguration\nnodeRegistration:\n  name: edge\n  kubeletExtraArgs: {node-labels: 'a=b,c=d', max-pods: '9'}\n  taints: [{key: k, value: v, effect: NoExecute}]\n",
			node:  true, of: "edge", want: map[string]any{"node-label": []string{"a=b", "c=d"}, "kubelet-arg": []string{"config=" + kubeletFile, "max-pods=9"}, "node-taint": []string{"k=v:NoExecute"}},
		},
		"no taints": {
			patch: "kind: InitConfiguration\nnodeRegistration: {taints: []}\n",
			of:    "c-control-plane", want: map[string]any{"node-taint": []string{}},
		},
		"kubelet": {
			patch: "kind: KubeletConfiguration\nmaxPods: 9\nfeatureGates: {G: true}\n",
			of:    "c-worker", want: map[string]any{"kubelet-arg": []string{"config=" + kubeletFile}, "feature-gates": map[string]string{"G": "true"}},
		},
		"proxy": {
			patch: "kind: KubeProxyConfiguration\nmode: nftables\nconntrack: {maxPerCore: 0}\n",
			of:    "c-worker", want: map[string]any{"kube-proxy-arg": []string{"proxy-mode=nftables", "conntrack-max-per-core=0"}},
		},
		"a flag that is given twice": {
			patch: "kind: ClusterConfiguration\napiServer: {extraArgs: [{name: tls-sni-cert-key, value: a}, {name: tls-sni-cert-key, value: b}]}\n",
			of:    "c-control-plane", want: map[string]any{"kube-apiserver-arg": []string{"tls-sni-cert-key=a", "tls-sni-cert-key=b"}},
		},
		"several documents": {
			patch: "---\nkind: ClusterConfiguration\napiServer: {certSANs: [me.example]}\n---\n---\nkind: KubeProxyConfiguration\nmode: nftables\n",
			of:    "c-control-plane", want: map[string]any{"tls-san": []string{"me.example"}, "kube-proxy-arg": []string{"proxy-mode=nftables"}},
		},
		"files of the node": {
			patch: "kind: ClusterConfiguration\napiServer:\n  extraArgs: {audit-policy-file: /etc/audit/policy.yaml}\n  extraVolumes: [{name: audit, hostPath: /etc/audit/policy.yaml, mountPath: /etc/audit/policy.yaml, readOnly: true, pathType: File}]\n",
			of:    "c-control-plane", want: map[string]any{"kube-apiserver-arg": []string{"audit-policy-file=/etc/audit/policy.yaml"}},
		},
		"files elsewhere":       {patch: "kind: ClusterConfiguration\napiServer: {extraVolumes: [{name: audit, hostPath: /a, mountPath: /b}]}\n", err: "kubeadmConfigPatches[0]: apiServer.extraVolumes[0].mountPath: /b: the component runs on the node itself, and sees /a there alone"},
		"a list":                {patch: "- kind: ClusterConfiguration\n", err: "kubeadmConfigPatches[0]: line 1: is none of kubeadm's objects"},
		"a proxy of ipvs":       {patch: "kind: KubeProxyConfiguration\nmode: ipvs\n", err: "kubeadmConfigPatches[0]: mode: ipvs: podo does not have it"},
		"a flag without a name": {patch: "kind: ClusterConfiguration\nscheduler:\n  extraArgs:\n  - {nme: a, value: b}\n", err: "line 4: a flag without a name"},
		"a flag with more":      {patch: "kind: ClusterConfiguration\nscheduler: {extraArgs: [{name: a, value: b, valeu: c}]}\n", err: "a flag has name and value, and nothing else"},
		"gates of two minds":    {patch: "kind: ClusterConfiguration\nscheduler: {extraArgs: {feature-gates: G=true}}\n---\nkind: InitConfiguration\nnodeRegistration: {kubeletExtraArgs: {feature-gates: G=false}}\n", err: "node c-control-plane: featureGates: G is true for the cluster and false for the kubelet"},
		"a group of another":    {patch: "kind: KubeletConfiguration\napiVersion: kubeadm.k8s.io/v1beta3\n", err: `kubeadmConfigPatches[0]: apiVersion: "kubeadm.k8s.io/v1beta3" is not of kubelet.config.k8s.io`},
		"the second of two":     {patch: "kind: KubeletConfiguration\n---\nkind: Pod\n", err: `kubeadmConfigPatches[0]: kind: "Pod" is none that podo knows`},
		"nothing":               {patch: "", err: "kubeadmConfigPatches[0]: is empty"},
		"of those that join":    {patch: "kind: JoinConfiguration\nnodeRegistration: {kubeletExtraArgs: {v: high}}\n", err: `v: "high" is not a number`},
		"another kind":          {patch: "kind: Pod\n", err: `kubeadmConfigPatches[0]: kind: "Pod" is none that podo knows`},
		"what is not read":      {patch: "kind: ClusterConfiguration\napiServer: {timeoutForControlPlane: 1m}\n", err: "kubeadmConfigPatches[0]: line 2: apiServer.timeoutForControlPlane: podo has no kubeadm"},
		"init of a worker":      {patch: "kind: InitConfiguration\n", node: true, err: "nodes[1].kubeadmConfigPatches[0]: kind: InitConfiguration: means nothing to this node"},
		"a cluster's, of one":   {patch: "kind: ClusterConfiguration\n", node: true, err: "belongs to the cluster"},
		"two nodes of a name":   {patch: "kind: JoinConfiguration\nnodeRegistration: {name: c-control-plane}\n", node: true, err: "nodes[1]: another node is called c-control-plane too"},
		"verbosity, no number":  {patch: "kind: ClusterConfiguration\nscheduler: {extraArgs: {v: high}}\n", err: `v: "high" is not a number`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := File{Nodes: []NodeFile{{Role: ControlPlane}, {Role: Worker}}}
			if tt.node {
				f.Nodes[1].KubeadmPatches = []string{tt.patch}
			} else {
				f.KubeadmPatches = []string{tt.patch}
			}
			c, err := settled(t, f)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got %v, want an error with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			n, err := c.find(tt.of)
			if err != nil {
				t.Fatal(err)
			}
			for setting, w := range tt.want {
				if got := c.settings(n, c.servers()[0])[setting]; show(got) != show(w) {
					t.Errorf("%s is %v, want %v", setting, got, w)
				}
			}
		})
	}
}

// TestRefusals: a decision fails before anything is made.
func TestRefusals(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	tests := map[string]struct {
		file File
		err  string
	}{
		"a port that is taken":   {File{Nodes: []NodeFile{{Ports: []PortFile{{Container: 80, Host: int32(port), Address: "127.0.0.1"}}}}}, "nodes[0].extraPortMappings[0].hostPort: TCP port"},
		"the API's":              {File{Networking: Networking{APIPort: int32(port)}}, "networking.apiServerPort: TCP port"},
		"an image of kind's":     {File{Nodes: []NodeFile{{Image: "kindest/node:v1.30.0"}}}, "nodes are no images here"},
		"a file that is no podo": {File{Nodes: []NodeFile{{Image: "/bin/sh"}}}, `"/bin/sh" is not the path of a podo`},
		"a file that is missing": {File{Nodes: []NodeFile{{Image: "/nowhere/podo"}}}, "no such file"},
		"one family of two":      {File{Networking: Networking{Family: "dual", PodSubnet: "10.1.0.0/16"}}, "networking.podSubnet: 10.1.0.0/16 does not fit ipFamily dual:"},
		"overlaps a default":     {File{Networking: Networking{PodSubnet: "10.43.0.0/20"}}, "overlap"},
		"a port of two":          {File{Nodes: []NodeFile{{Ports: []PortFile{{Container: 80, Host: 28099}, {Container: 81, Host: 28099, Address: "127.0.0.1"}}}}}, "nodes[0].extraPortMappings[1].hostPort: TCP port 127.0.0.1:28099 is that of nodes[0].extraPortMappings[0].hostPort too"},
		"one that is the API's":  {File{Networking: Networking{APIPort: 28098}, Nodes: []NodeFile{{Ports: []PortFile{{Container: 80, Host: 28098}}}}}, "is that of networking.apiServerPort too"},
		"a label":                {File{Nodes: []NodeFile{{Labels: map[string]string{"bad label": "x"}}}}, `node c-control-plane: labels (podo's node-label): "bad label=x": key must be`},
		"a taint":                {File{KubeadmPatches: []string{"kind: InitConfiguration\nnodeRegistration: {taints: [{key: a, effect: Foo}]}"}}, `nodeRegistration.taints (podo's node-taint): "a=:Foo"`},
		"the nodes' own range":   {File{Networking: Networking{PodSubnet: "10.111.0.0/16"}}, "leave nothing of 10.111.0.0/16"},
		"more of kubeadm's":      {File{KubeadmPatches: []string{"kind: ClusterConfiguration\nimageRepository: x"}}, "imageRepository: podo has no kubeadm, and cannot do what this says; of this object it reads apiServer, controllerManager, scheduler, etcd, networking"},
		"a mount of all registries": {File{Nodes: []NodeFile{{Mounts: []MountFile{{Host: "/tmp", Container: "/etc/containerd/certs.d"}}}}},
			"nodes[0].extraMounts[0].containerPath: /etc/containerd/certs.d is where nodes have all registries described"},
		"a mount over mirrors": {File{
			ContainerdPatches: []string{"[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"a.example\"]\nendpoint = [\"http://10.0.0.9\"]\n"},
			Nodes:             []NodeFile{{Mounts: []MountFile{{Host: "/tmp", Container: "/etc/containerd/certs.d/a.example"}}}},
		}, "/etc/containerd/certs.d/a.example: would hide where nodes have this registry"},
		"too few ranges of a family":    {File{Networking: Networking{Family: "dual", PodSubnet: "10.10.0.0/16,fd00:1::/63"}, Nodes: make([]NodeFile, 3)}, "fd00:1::/63 has room for 2 nodes, and there are to be 3: each takes a /64 of it; make the cluster with a /62 or larger, or have nodes take less of it, with node-cidr-mask-size-ipv6 in"},
		"too few ranges for nodes":      {File{Networking: Networking{PodSubnet: "10.10.0.0/23"}, Nodes: make([]NodeFile, 3)}, "networking.podSubnet: 10.10.0.0/23 has room for 2 nodes, and there are to be 3: each takes a /24 of it; make the cluster with a /22 or larger"},
		"a mount in what is the host's": {File{Nodes: []NodeFile{{Mounts: []MountFile{{Host: "/tmp", Container: "/usr/no-such/x"}}}}}, "there is no /usr/no-such/x on this machine, and nodes have its /usr as it is"},
		"too many nodes":                {File{Nodes: make([]NodeFile, 245)}, "room for 244 nodes"},
		"containerd's settings":         {File{ContainerdPatches: []string{"[plugins.x]\na = 1\n"}}, "containerdConfigPatches[0]: plugins.x.a: podo reads what concerns registries alone"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := settled(t, tt.file); err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("got %v, want an error with %q", err, tt.err)
			}
		})
	}
}

// TestRefusedAtOnce: mistakes of several kinds are told together.
func TestRefusedAtOnce(t *testing.T) {
	_, err := settled(t, File{
		Networking:        Networking{Family: "dual", PodSubnet: "10.1.0.0/16"},
		ContainerdPatches: []string{"x ["},
		Nodes:             []NodeFile{{Image: "/nowhere/podo"}},
	})
	told := func(words ...string) {
		t.Helper()
		for _, want := range words {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("nothing of %q in: %v", want, err)
			}
		}
	}
	told("networking.podSubnet", "containerdConfigPatches[0]", "nodes[0].image")
	_, err = settled(t, File{Nodes: []NodeFile{{Image: "/nowhere/podo", Labels: map[string]string{"bad label": "x"}}}})
	told("nodes[0].image", "labels (podo's node-label)")
}

// TestApart: a port of all addresses is also that of each of its family, and not of the other.
func TestApart(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		fits bool
	}{
		{"0.0.0.0:80", "127.0.0.1:80", false}, {"0.0.0.0:80", "[::ffff:127.0.0.1]:80", false}, {"[::]:80", "[::1]:80", false},
		{"0.0.0.0:80", "[::]:80", true}, {"0.0.0.0:80", "[::1]:80", true}, {"127.0.0.1:80", "127.0.0.2:80", true},
	} {
		port := func(at string) Port { return Port{Listen: netip.MustParseAddrPort(at), Protocol: "tcp"} }
		c := Cluster{API: netip.MustParseAddrPort("127.0.0.1:7000"), Nodes: []Node{{Ports: []Port{port(tt.a), port(tt.b)}}}}
		if err := c.apart(); (err == nil) != tt.fits {
			t.Errorf("%s and %s: %v", tt.a, tt.b, err)
		}
	}
}

// TestNumbers: addresses of nodes that are gone are given away when there are no others.
func TestNumbers(t *testing.T) {
	s, c := Site{Dir: t.TempDir()}, Cluster{Name: "c"}
	for _, want := range []int{11, 12, 13} {
		n, err := s.newNode(c, Worker)
		if err != nil || n.Number != want {
			t.Fatalf("number %d, %v, want %d", n.Number, err, want)
		}
		c.Nodes = append(c.Nodes, n)
	}
	c.Nodes = append(c.Nodes[:1], c.Nodes[2], Node{Name: "c-worker9", Number: 254})
	if n, err := s.newNode(c, Worker); err != nil || n.Number != 12 {
		t.Errorf("number %d, %v, want 12", n.Number, err)
	}
}

// TestPromised: what belongs to a cluster that is off belongs to no other.
func TestPromised(t *testing.T) {
	s := Site{Dir: t.TempDir()}
	at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port) }
	off := Cluster{Name: "off", API: at(7001), Registry: 7002, Ranges: []netip.Prefix{netip.MustParsePrefix("fd00::/64")},
		Nodes: []Node{{Ports: []Port{{Listen: at(7003), Protocol: "udp"}}}}}
	if err := os.Mkdir(s.dir("off"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.save(off); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		c    Cluster
		fits bool
	}{
		"its API's":                        {Cluster{API: at(7001)}, false},
		"its registry's":                   {Cluster{API: at(7002)}, false},
		"of its registry":                  {Cluster{API: at(8001), Registry: 7001}, false},
		"of its node":                      {Cluster{API: at(8001), Nodes: []Node{{Ports: []Port{{Listen: at(7003), Protocol: "udp"}}}}}, false},
		"all of IPv6, with its registry's": {Cluster{API: at(8001), Nodes: []Node{{Ports: []Port{{Listen: netip.MustParseAddrPort("[::]:7002"), Protocol: "tcp"}}}}}, false},
		"another protocol":                 {Cluster{API: at(7003)}, true},
		"others":                           {Cluster{API: at(8001), Registry: 8002}, true},
	} {
		if err := s.promised(tt.c); (err == nil) != tt.fits {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSettingsAreKept: a cluster that was saved is what it was, so that nodes which are
// added later are like those before.
func TestSettingsAreKept(t *testing.T) {
	s := Site{Dir: t.TempDir()}
	if err := os.Mkdir(s.dir("c"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := Cluster{Name: "c", Shared: Settings{}, Common: Settings{"feature-gates": map[string]string{"A": "true"}, "disable-kube-proxy": true}, Nodes: []Node{
		{Name: "c-control-plane", Role: ControlPlane, Settings: Settings{"kubelet-arg": []string{"max-pods=9"}, "node-taint": []string{}, "bind-address": "0.0.0.0"}},
	}}
	if err := s.save(c); err != nil {
		t.Fatal(err)
	}
	kept, err := s.Load("c")
	if err != nil || !reflect.DeepEqual(kept, c) {
		t.Errorf("got %#v, %v; want %#v", kept, err, c)
	}
}

// TestListsStayLists: a list that a patch asks for, and has no values for, is one on nodes
// that are added later, also to clusters whose file has null for it.
func TestListsStayLists(t *testing.T) {
	c, err := settled(t, File{KubeadmPatches: []string{"kind: ClusterConfiguration\netcd: {local: {extraArgs: {listen-metrics-urls: 'http://0.0.0.0:2381'}}}\n"}})
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(c.Shared)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{string(text), `{"etcd-arg": null}`} {
		var kept Settings
		if err := json.Unmarshal([]byte(text), &kept); err != nil || !reflect.DeepEqual(kept["etcd-arg"], []string{}) {
			t.Errorf("of %s: etcd-arg is %#v, %v", text, kept["etcd-arg"], err)
		}
	}
	if !strings.Contains(string(text), `"etcd-arg":[]`) {
		t.Errorf("no list: %s", text)
	}
}

// TestOverlay: a patch changes what it names and leaves the rest.
func TestOverlay(t *testing.T) {
	f := File{KubeadmPatches: []string{
		"kind: KubeletConfiguration\nevictionHard: {memory.available: 1Gi, nodefs.available: 5%}\n",
		"kind: KubeletConfiguration\nevictionHard: {nodefs.available: 6%}\nmaxPods: 9\n",
	}}
	c, err := settled(t, f)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"memory.available: 1Gi", "nodefs.available: 6%", "maxPods: 9"} {
		if !strings.Contains(c.Nodes[0].Kubelet, want) {
			t.Errorf("nothing of %q in\n%s", want, c.Nodes[0].Kubelet)
		}
	}
}

// TestTrust: what kind's users write of registries, in both forms that it has had.
func TestTrust(t *testing.T) {
	var c Cluster
	err := c.trust([]string{
		"[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"/etc/containerd/certs.d\"\n",
		"version = 2\n[plugins.\"io.containerd.cri.v1.images\".registry.mirrors.\"docker.io\"]\n  endpoint = [\"http://10.0.0.9:5000\", \"http://10.0.0.8\"]\n",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := Cluster{Hosts: "/etc/containerd/certs.d", Registries: []Registry{{Host: "docker.io", Endpoints: []string{"http://10.0.0.9:5000", "http://10.0.0.8"}}}}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got %+v, want %+v", c, want)
	}
	for _, bad := range []string{"config_path = \"certs.d\"", "config_path = 3", "other = \"/x\""} {
		if err := c.trust([]string{"[plugins.\"io.containerd.grpc.v1.cri\".registry]\n" + bad}); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
}

// TestKubelet: what podo chooses for the kubelet gives way to what the user says.
func TestKubelet(t *testing.T) {
	for own, want := range map[string]string{
		"": "NeverVerify", "imagePullCredentialsVerificationPolicy: AlwaysVerify\nmaxPods: 9\n": "AlwaysVerify",
	} {
		text, err := Node{Kubelet: own}.kubelet(nil)
		if err != nil || !strings.Contains(text, "imagePullCredentialsVerificationPolicy: "+want) || !strings.Contains(text, "kind: KubeletConfiguration") {
			t.Errorf("%q becomes %q, %v", own, text, err)
		}
	}
}
