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
	if why, ok := foreign()[kebab(name)]; ok {
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
	if _, ok := foreign()[name]; ok {
		return ""
	}
	best, least := "", len(name)/4+2
	all := Default()
	for _, f := range Fields(&all) {
		if f.Hidden || len(f.Name) < 2 {
			continue
		}
		for _, s := range f.Spellings() {
			if d := distance(name, s); d < least {
				best, least = f.Name, d
			}
		}
	}
	return best
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
	}
}

// foreign are settings of k3s that have no place here, and why.
func foreign() map[string]string {
	const (
		embedded = "the datastore is SQLite on this server; embedded etcd is not part of it"
		absent   = "podo has no such part"
	)
	return map[string]string{
		"docker":                     "containerd is the only runtime",
		"container-runtime-endpoint": "containerd is the only runtime",
		"default-runtime":            "runc is the only runtime",
		"rootless":                   "podo needs root",
		"cluster-init":               embedded,
		"cluster-reset":              embedded,
		"datastore-endpoint":         embedded,
		"etcd-expose-metrics":        embedded,
		"etcd-disable-snapshots":     embedded,
		"disable-etcd":               embedded,
		"disable-network-policy":     absent,
		"disable-helm-controller":    absent,
		"embedded-registry":          absent,
		"egress-selector-mode":       absent,
		"servicelb-namespace":        absent,
		"prefer-bundled-bin":         "podo always uses the programs it brings",
		"server":                     "this is a server of its own, which joins no other",
		"url":                        "this is a server of its own, which joins no other",
		"secrets-encryption":         "podo has no such switch",
		"selinux":                    "SELinux labels are not managed",
		"node-external-ip":           "nodes have the addresses of --node-ip only",
		"advertise-port":             "the API is advertised on its listening port",
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
