package config

import (
	"fmt"
	"strings"
	"unicode"
)

// longest is the length beyond which a name is not compared with ours.
const longest = 64

// Unknown is the error for a setting that no verb has, with the nearest name
// that one has, or what became of it if k3s has it.
func Unknown(name string) error {
	if len(name) > longest {
		name = name[:longest] + "…"
	}
	if near := Nearest(name); near != "" {
		return fmt.Errorf("%w %q; did you mean %s?", ErrUnknown, name, near)
	}
	if why := Foreign(name); why != "" {
		return fmt.Errorf("%w %q: %s; remove it", ErrUnknown, name, why)
	}
	return fmt.Errorf("%w %q; podo server --help lists them all", ErrUnknown, name)
}

// Nearest returns the setting whose name is most like name, or nothing if none
// is close enough to be what was meant.
func Nearest(name string) string {
	if len(name) > longest {
		return ""
	}
	name = kebab(name)
	if meant, ok := synonyms()[name]; ok {
		return meant
	}
	if Foreign(name) != "" {
		return ""
	}
	var known []string
	all := Default()
	for _, f := range Fields(&all) {
		if !f.Hidden && len(f.Name) > 1 {
			known = append(known, f.Spellings()...)
		}
	}
	f, _ := Lookup(Closest(name, known))
	return f.Name
}

// Closest returns the one of known that name was most likely meant to be, or nothing
// if none is close enough.
func Closest(name string, known []string) string {
	best, least := "", len(name)/4+2
	for _, k := range known {
		if d := distance(name, k); d < least {
			best, least = k, d
		}
	}
	return best
}

// Foreign says why podo has no setting of this name, if k3s has one. A flag, a
// variable and a line of a file are all told the same.
func Foreign(name string) string {
	name = kebab(name)
	if why := foreign()[name]; why != "" {
		return why
	}
	for _, family := range []string{"etcd-snapshot-", "etcd-s3-"} {
		if strings.HasPrefix(name, family) {
			return foreign()[strings.TrimSuffix(family, "-")]
		}
	}
	return ""
}

// synonyms are the names that other distributions and Kubernetes itself use.
func synonyms() map[string]string {
	return map[string]string{
		"pod-cidr":                 "cluster-cidr",
		"pod-network-cidr":         "cluster-cidr",
		"service-cluster-ip-range": "service-cidr",
		"service-cluster-cidr":     "service-cidr",
		"dns-domain":               "cluster-domain",
		"dns":                      "cluster-dns",
		"hostname-override":        "node-name",
		"hostname":                 "node-name",
		"name":                     "node-name",
		"labels":                   "node-label",
		"taints":                   "node-taint",
		"san":                      "tls-san",
		"port":                     "https-listen-port",
		"secure-port":              "https-listen-port",
		"verbosity":                "v",
		"verbose":                  "debug",
		"kubeconfig":               "write-kubeconfig",
		"cni":                      "flannel-backend",
		"root-dir":                 "data-dir",
		"no-deploy":                "disable",
		"cluster-secret":           "token",
	}
}

// foreign are settings of k3s that have no place here, and why.
func foreign() map[string]string {
	const (
		snapshot = "podo takes no snapshots of etcd; stop podo and copy server/ in its data directory"
		absent   = "podo has no such part"
		runtime  = "containerd is the only runtime"
		listener = "the API has one listener, that of --bind-address and --https-listen-port"
		external = "nodes have the addresses of --node-ip only"
	)
	return map[string]string{
		"airgap-extra-registry":             "images of archives keep their names; podo images push brings them into a registry",
		"apiserver-bind-address":            listener,
		"apiserver-port":                    listener,
		"advertise-port":                    "the API is advertised on its listening port",
		"cluster-reset-restore-path":        snapshot,
		"container-runtime-endpoint":        runtime,
		"default-runtime":                   "runc is the only runtime",
		"disable-selinux":                   "SELinux labels are not managed",
		"docker":                            runtime,
		"embedded-registry":                 absent,
		"enable-pprof":                      absent,
		"etcd-disable-snapshots":            snapshot,
		"etcd-s3":                           snapshot,
		"etcd-snapshot":                     snapshot,
		"flannel-cni-conf":                  "podo writes the configuration of its pod network itself",
		"flannel-conf":                      "podo writes the configuration of its pod network itself",
		"flannel-external-ip":               external,
		"helm-controller-arg":               "podo installs charts itself, in no job",
		"helm-job-image":                    "podo installs charts itself, in no job",
		"image-service-endpoint":            runtime,
		"kine-tls":                          "the datastore is reached by a socket that root alone can open",
		"kube-cloud-controller-arg":         absent,
		"kube-cloud-controller-manager-arg": absent,
		"no-flannel":                        "the pod network is left out by --flannel-backend=none",
		"node-external-dns":                 external,
		"node-external-ip":                  external,
		"node-internal-dns":                 external,
		"nonroot-devices":                   "devices belong to root in every container",
		"prefer-bundled-bin":                "podo always uses the programs it brings",
		"rootless":                          "podo needs root",
		"secrets-encryption":                "podo has no such switch",
		"secrets-encryption-provider":       "podo has no such switch",
		"selinux":                           "SELinux labels are not managed",
		"servicelb-namespace":               "Services are published by the server itself, without pods",
		"supervisor-metrics":                absent,
		"supervisor-port":                   listener,
		"tls-san-security":                  "the API's certificate has the names of --tls-san, and never others",
		"vpn-auth":                          absent,
		"vpn-auth-file":                     absent,
		"with-node-id":                      "a node keeps its name; give another with --node-name",
	}
}

// kebab turns the spellings of other languages into ours: ClusterCIDR, clusterCidr
// and cluster_cidr are all cluster-cidr.
func kebab(s string) string {
	var b strings.Builder
	rs := []rune(s)
	for i, r := range rs {
		switch {
		case r == '_' || r == '.' || r == ' ':
			b.WriteByte('-')
		case unicode.IsUpper(r):
			starts := i > 0 && (unicode.IsLower(rs[i-1]) || i+1 < len(rs) && unicode.IsLower(rs[i+1]) && unicode.IsUpper(rs[i-1]))
			if starts {
				b.WriteByte('-')
			}
			b.WriteRune(unicode.ToLower(r))
		default:
			b.WriteRune(r)
		}
	}
	return strings.Trim(b.String(), "-")
}

// distance counts the letters to insert, delete, change or swap with their
// neighbour to get from a to b.
func distance(a, b string) int {
	before, last := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
