package config_test

import (
	"strings"
	"testing"

	"github.com/podo-dev/podo/pkg/config"
)

// resolve applies lines of "name value" with the origin "f:<line>".
func resolve(t *testing.T, lines string) (config.Server, error) {
	t.Helper()
	var list []config.Setting
	seen := map[string]bool{}
	for line := range strings.SplitSeq(strings.TrimSpace(lines), ";") {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if name == "" {
			continue
		}
		key := name
		if seen[name] {
			key += "+"
		}
		seen[name] = true
		list = append(list, config.Setting{Name: key, Values: []string{value}, Origin: "f"})
	}
	cfg := config.Default()
	_, err := config.Resolve(&cfg, list)
	return cfg, err
}

func TestDefaultIsValid(t *testing.T) {
	if _, err := resolve(t, ""); err != nil {
		t.Error(err)
	}
}

func TestValidateAccepts(t *testing.T) {
	for name, in := range map[string]string{
		"dual stack":                     "cluster-cidr 10.1.0.0/16,fd01::/56; service-cidr 10.2.0.0/16,fd02::/112; node-ip 10.0.0.1,fd00::1; cluster-dns 10.2.0.10,fd02::a",
		"IPv6 alone":                     "cluster-cidr fd01::/56; service-cidr fd02::/112",
		"dual stack pods alone":          "cluster-cidr 10.1.0.0/16,fd01::/56",
		"one node":                       "cluster-cidr 10.1.0.0/24",
		"a wider range for each node":    "cluster-cidr 10.1.0.0/23; kube-controller-manager-arg node-cidr-mask-size=23",
		"smallest services":              "service-cidr 10.2.0.0/28",
		"labels":                         "node-label a=; node-label example.com/role=big.Box_1; node-label node.kubernetes.io/x=y; node-label topology.kubernetes.io/zone=z",
		"taints":                         "node-taint a=b:NoSchedule; node-taint a=b:NoExecute; node-taint example.com/c:PreferNoSchedule",
		"kubeconfig":                     "write-kubeconfig-mode 644; write-kubeconfig /tmp/k",
		"mode in Go's octal":             "write-kubeconfig-mode 0o640",
		"names":                          "node-name a.b-c.d1; tls-san example.com,*.example.com,10.0.0.1,fd00::1,Upper.Example.COM",
		"args":                           "kubelet-arg --v=4; kubelet-arg -v=4; kubelet-arg v=4; kubelet-arg fail-swap-on; kubelet-arg a=b=c,d; kubelet-arg empty=",
		"flannel":                        "flannel-backend wireguard-native; flannel-iface eth0",
		"disable":                        "disable coredns; disable my-app",
		"gates":                          "feature-gates A=true,B=false",
		"a datastore elsewhere":          "datastore-endpoint postgres://u:p@db/podo; datastore-cafile /ca; datastore-certfile /c; datastore-keyfile /k",
		"vmodule":                        "vmodule a*=3,b=4; v 10",
		"a token":                        "token K10abc::server:def",
		"an image by name alone":         "pause-image pause",
		"an image":                       "pause-image Reg.example:5000/a/b_c/d--e:3.10@sha256:" + strings.Repeat("0a", 32),
		"an image at an address":         "pause-image [fd00::1]:5000/pause:3.10",
		"an image on this host":          "pause-image localhost/pause",
		"registries":                     "private-registry /r.yaml; image-credential-provider-bin-dir /b; image-credential-provider-config /c.yaml; system-default-registry reg.example:5000/a/b",
		"class E, which clouds hand out": "cluster-cidr 240.0.0.0/8",
	} {
		if _, err := resolve(t, in); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestValidateRefuses(t *testing.T) {
	for in, want := range map[string]string{
		// CIDRs
		"cluster-cidr 10.43.0.0/24": "f: cluster-cidr: cluster-cidr 10.43.0.0/24 overlaps service-cidr 10.43.0.0/16",
		"service-cidr 10.42.7.0/24": "f: service-cidr: cluster-cidr 10.42.0.0/16 overlaps service-cidr 10.42.7.0/24",
		"cluster-cidr 10.1.0.0/25":  "each node takes a /24",
		"cluster-cidr 10.1.0.0/24; kube-controller-manager-arg node-cidr-mask-size=23": "each node takes a /23",
		"cluster-cidr fd00::/65; service-cidr fd01::/112":                              "each node takes a /64",
		"cluster-cidr fd00::/40; service-cidr fd01::/112":                              "too large to be cut",
		"cluster-cidr 10.1.0.0/16,10.2.0.0/16":                                         "more than one IPv4 range",
		"cluster-cidr 0.0.0.0/0":                                                       "is for",
		"cluster-cidr 127.1.0.0/16":                                                    "loopback",
		"cluster-cidr fd00::/56":                                                       "differ in their IP families",
		"service-cidr 10.2.0.0/16,fd02::/112":                                          "give pods a range of each family",
		"service-cidr 10.2.0.0/29":                                                     "too small: it has 8 addresses",
		"service-cidr fd02::/48; cluster-cidr fd01::/56":                               "/64 or smaller",
		"cluster-cidr ":                                                                "one of the values is empty",
		"node-ip 10.42.0.9":                                                            "node-ip 10.42.0.9 lies inside cluster-cidr 10.42.0.0/16",
		"advertise-address 10.43.0.9":                                                  "lies inside service-cidr",
		"bind-address 10.42.0.9":                                                       "lies inside cluster-cidr",
		"node-ip 127.0.0.1":                                                            "a loopback address",
		"node-ip 10.0.0.1,10.0.0.2":                                                    "more than one IPv4 address",
		"node-ip fd00::1":                                                              "has no IPv4 address",
		"advertise-address ::1":                                                        "a loopback address",
		"advertise-address fd00::1":                                                    "different IP families",
		"bind-address 224.0.0.1":                                                       "multicast",
		"cluster-dns 10.1.0.10":                                                        "outside service-cidr 10.43.0.0/16",
		"cluster-dns 10.43.0.0":                                                        "the range 10.43.0.0/16 itself",
		"cluster-dns 10.43.0.1":                                                        "first address",
		"cluster-dns 10.43.255.255":                                                    "broadcast",
		"cluster-dns 10.43.0.10,10.43.0.11":                                            "one for each IP family",
		"cluster-domain cluster..local":                                                "not a DNS domain",
		"cluster-domain Cluster.local":                                                 "not a DNS domain",
		"flannel-backend wireguard":                                                    "wireguard-native",
		"flannel-backend calico":                                                       "not one of vxlan, host-gw",
		// ports
		"https-listen-port 0":                 "is not a port",
		"https-listen-port 70000":             "is not a port",
		"https-listen-port 10250":             "kubelet",
		"https-listen-port 30001":             "contains https-listen-port 30001",
		"service-node-port-range 1-65535":     "contains",
		"service-node-port-range 30000":       "is not FIRST-LAST",
		"service-node-port-range 32767-30000": "write 30000-32767",
		"service-node-port-range 30000-70000": "beyond",
		// names
		"node-name Node":                                   "write node",
		"node-name a_b":                                    "is not a name such as node-1",
		"node-name -a":                                     "is not a name such as node-1",
		"node-name " + strings.Repeat("a", 64):             "64 letters",
		"tls-san https://x:6443":                           "without scheme and port",
		"tls-san a:6443":                                   "without scheme and port",
		"node-label a":                                     "is not KEY=VALUE",
		"node-label =b":                                    "key must be",
		"node-label a=b,c=d":                               "several labels",
		"node-label a=b c":                                 "value must be",
		"node-label a/b/c=d":                               "key must be",
		"node-label kubernetes.io/role=x":                  "kubectl label node",
		"node-label node-role.kubernetes.io/x=":            "kubectl label node",
		"node-label a=b; node-label a=c":                   `a is both "b" and "c"`,
		"node-taint a":                                     "is not KEY=VALUE:EFFECT",
		"node-taint a=b:Never":                             `effect "Never"`,
		"node-taint :NoSchedule":                           "key must be",
		"node-taint a=b c:NoSchedule":                      "value must be",
		"node-taint a:NoExecute; node-taint a=b:NoExecute": "given twice",
		// paths and the rest
		"data-dir podo":                            "depends on where podo is started",
		"data-dir ":                                "is empty",
		"data-dir /":                               "root folder",
		"data-dir /a:b":                            "not all of podo's parts",
		"data-dir /a?b":                            "question mark",
		"write-kubeconfig x":                       "depends on where",
		"write-kubeconfig /etc/":                   "is a folder",
		"write-kubeconfig-mode 9":                  "octal",
		"write-kubeconfig-mode 01777":              "octal",
		"write-kubeconfig-mode rw":                 "octal",
		"write-kubeconfig-mode 044":                "owner",
		"write-kubeconfig-name ":                   "is not a name",
		"token ":                                   "is empty",
		"token a b":                                "one word",
		"token a; token-file /b":                   "the token is given twice, by token (f) and by token-file (f)",
		"snapshotter zfs":                          "not one of overlayfs, native",
		"flannel-iface averyverylongname":          "15 letters",
		"pause-image ":                             "not the name of an image",
		"pause-image a b":                          "not the name of an image",
		"pause-image Pause:1":                      "capital letters",
		"pause-image a:b:c":                        `"a:b" is no path`,
		"pause-image a:":                           `"" is no tag`,
		"pause-image a:-b":                         `"-b" is no tag`,
		"pause-image https://x.io/a:1":             "is no host",
		"pause-image x.io:99999/a":                 `"x.io:99999" is no host`,
		"pause-image x.io/":                        "is no path",
		"pause-image x.io//a":                      "is no path",
		"pause-image a@sha256:12":                  "is no digest",
		"pause-image a@":                           "is no digest",
		"private-registry r.yaml":                  "write the whole path",
		"system-default-registry reg":              `"reg" is no registry`,
		"system-default-registry https://reg.io":   `"https://reg.io" is no registry`,
		"system-default-registry reg.io/":          `"reg.io/" is no registry`,
		"image-credential-provider-bin-dir /b":     "one is nothing without the other",
		"image-credential-provider-config /c.yaml": "one is nothing without the other",
		"kubelet-arg help":                         "reference/kubelet/",
		"kube-apiserver-arg --help=true":           "reference/kube-apiserver/",
		"resolv-conf x":                            "depends on where",
		"feature-gates A=maybe":                    "neither true nor false",
		"disable runtimes":                         "nothing to leave out",
		"disable kube-proxy":                       "disable-kube-proxy",
		"disable core-dns":                         "did you mean coredns",
		"disable apps/web":                         "without folder and ending",
		"disable podo-node":                        "podo itself needs",
		"disable web.yaml":                         "without folder and ending",
		"datastore-endpoint db:5432":               "has no scheme",
		"datastore-endpoint ":                      "is empty",
		"datastore-cafile /ca":                     "give datastore-endpoint too",
		"datastore-endpoint nats://db; datastore-certfile /c":   "go together",
		"datastore-endpoint nats://db; datastore-cafile ca":     "write the whole path",
		"datastore-endpoint nats://db; cluster-init true":       "leave one of the two out",
		"datastore-endpoint nats://db; etcd-arg a=b":            "no etcd runs on this server",
		"datastore-endpoint nats://db; server https://10.0.0.1": "leave server out",
		"disable etcd":                     "disable-etcd",
		"default-local-storage-path /":     "the folder of all files",
		"default-local-storage-path disks": "depends on where podo is started",
		"disable-etcd true":                "--server",
		"disable-etcd true; server https://a:6443; disable-apiserver true":     "podo agent",
		"disable-etcd true; datastore-endpoint nats://db":                      "leave disable-etcd out",
		"disable-apiserver true; datastore-endpoint nats://db":                 "podo agent",
		"disable-etcd true; cluster-init true":                                 "on a server that runs etcd",
		"disable-etcd true; cluster-reset true":                                "on a server that runs etcd",
		"disable-etcd true; server https://a:6443; etcd-arg a=b":               "remove it",
		"disable-etcd true; server https://a:6443; etcd-expose-metrics true":   "remove it",
		"disable-apiserver true; cluster-init true; disable-apiserver-lb true": "leave disable-apiserver-lb out",
		"kubelet-arg =x":    "is not NAME=VALUE",
		"kubelet-arg --":    "is not NAME=VALUE",
		"kubelet-arg a b=c": "is not NAME=VALUE",
		"v 11":              "between 0 and 10",
		"vmodule a":         "is not FILE=N",
		"log ":              "is empty",
		"config ":           "is empty",
	} {
		_, err := resolve(t, in)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q in it", in, err, want)
		}
	}
}

func TestEveryMistakeAtOnce(t *testing.T) {
	_, err := resolve(t, "node-name A; https-listen-port x; cluster-cidr 10.43.0.0/16; nonsensical 1; snapshotter zfs")
	if n := len(config.Mistakes(err)); n != 5 {
		t.Errorf("%d mistakes, want 5:\n%v", n, err)
	}
}

func TestUnreadSettingsAreNotJudged(t *testing.T) {
	_, err := resolve(t, "service-cidr ten; cluster-dns 10.9.0.10")
	if n := len(config.Mistakes(err)); n != 1 {
		t.Errorf("cluster-dns is judged by a default that nobody asked for:\n%v", err)
	}
}

func TestSplitArg(t *testing.T) {
	for in, want := range map[string][2]string{
		"--v=4": {"v", "4"}, "-v=4": {"v", "4"}, "v=4": {"v", "4"}, "fail-swap-on": {"fail-swap-on", "true"}, "a=": {"a", ""}, "a=b=c": {"a", "b=c"},
	} {
		if name, value, err := config.SplitArg(in); err != nil || name != want[0] || value != want[1] {
			t.Errorf("SplitArg(%q) = %q, %q, %v; want %q", in, name, value, err, want)
		}
	}
}
