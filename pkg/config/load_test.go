package config_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/podo-dev/podo/pkg/config"
)

func setting(origin, name string, values ...string) config.Setting {
	return config.Setting{Name: name, Values: values, Origin: origin}
}

func field(t *testing.T, cfg any, name string) config.Field {
	t.Helper()
	for _, f := range config.Fields(cfg) {
		if f.Name == name {
			return f
		}
	}
	t.Fatalf("no field %s", name)
	return config.Field{}
}

func TestApply(t *testing.T) {
	tests := map[string]struct {
		settings []config.Setting
		field    string
		want     string
		origin   string
	}{
		"later wins": {
			settings: []config.Setting{setting("f:1", "cluster-cidr", "10.1.0.0/16"), setting("--cluster-cidr", "cluster-cidr", "10.2.0.0/16")},
			field:    "cluster-cidr", want: "10.2.0.0/16", origin: "--cluster-cidr",
		},
		"a list is replaced": {
			settings: []config.Setting{setting("f:1", "node-label", "a=1", "b=2"), setting("$X", "node-label", "c=3")},
			field:    "node-label", want: "c=3", origin: "$X",
		},
		"a plus adds": {
			settings: []config.Setting{setting("f:1", "node-label", "a=1"), setting("g:1", "node-label+", "b=2")},
			field:    "node-label", want: "a=1,b=2", origin: "f:1, g:1",
		},
		"a plus adds to the default":       {settings: []config.Setting{setting("f:1", "cluster-cidr+", "fd00::/56")}, field: "cluster-cidr", want: "10.42.0.0/16,fd00::/56", origin: "f:1"},
		"addresses are cut at commas":      {settings: []config.Setting{setting("f:1", "node-ip", "10.0.0.1, fd00::1")}, field: "node-ip", want: "10.0.0.1,fd00::1", origin: "f:1"},
		"component flags are not":          {settings: []config.Setting{setting("f:1", "kubelet-arg", "eviction-hard=a<1,b<2")}, field: "kubelet-arg", want: "eviction-hard=a<1,b<2", origin: "f:1"},
		"a map is cut at commas":           {settings: []config.Setting{setting("f:1", "feature-gates", "A=true,B=false", "C=true")}, field: "feature-gates", want: "A=true,B=false,C=true", origin: "f:1"},
		"a map is replaced":                {settings: []config.Setting{setting("f:1", "feature-gates", "A=true"), setting("g:1", "feature-gates", "B=true")}, field: "feature-gates", want: "B=true", origin: "g:1"},
		"a plus adds to a map":             {settings: []config.Setting{setting("f:1", "feature-gates", "A=true"), setting("g:1", "feature-gates+", "B=true")}, field: "feature-gates", want: "A=true,B=true", origin: "f:1, g:1"},
		"a long alias is a name":           {settings: []config.Setting{setting("f:1", "kube-controller-arg", "v=4")}, field: "kube-controller-manager-arg", want: "v=4", origin: "f:1"},
		"an empty list empties":            {settings: []config.Setting{setting("f:1", "disable", "coredns"), setting("g:1", "disable")}, field: "disable", want: "", origin: "g:1"},
		"a secret is hidden":               {settings: []config.Setting{setting("f:1", "token", "hunter2")}, field: "token", want: "[redacted]", origin: "f:1"},
		"an address that is not given":     {field: "bind-address", want: ""},
		"switches understand what Go does": {settings: []config.Setting{setting("f:1", "debug", "1")}, field: "debug", want: "true", origin: "f:1"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := config.Default()
			origins, err := config.Apply(&cfg, tt.settings)
			if err != nil {
				t.Fatal(err)
			}
			if got := field(t, &cfg, tt.field).String(); got != tt.want || origins[tt.field] != tt.origin {
				t.Errorf("%s = %q from %q, want %q from %q", tt.field, got, origins[tt.field], tt.want, tt.origin)
			}
		})
	}
}

func TestApplyLeavesDefaultsAlone(t *testing.T) {
	one := config.Default()
	two := one
	config.Apply(&two, []config.Setting{setting("f:1", "cluster-cidr+", "fd00::/56"), setting("f:2", "feature-gates+", "A=true")})
	if !reflect.DeepEqual(one, config.Default()) {
		t.Errorf("a copy shares its lists with the original: %+v", one)
	}
}

func TestApplyReportsEveryMistake(t *testing.T) {
	tests := map[string]struct {
		setting config.Setting
		want    string
	}{
		"bits below the mask":   {setting("f:1", "cluster-cidr", "10.1.2.3/16"), `f:1: cluster-cidr: "10.1.2.3/16" names an address inside the range; the range itself is 10.1.0.0/16`},
		"no mask":               {setting("f:2", "cluster-cidr", "10.1.0.0"), "is one address, not a range"},
		"no range":              {setting("f:3", "cluster-cidr", "ten"), `"ten" is not a range such as 10.42.0.0/16`},
		"mapped range":          {setting("f:4", "cluster-cidr", "::ffff:10.0.0.0/112"), "write it as IPv4"},
		"no address":            {setting("f:5", "node-ip", "host"), `"host" is not an IP address`},
		"a zone":                {setting("f:6", "node-ip", "fe80::1%eth0"), "without %eth0"},
		"mapped address":        {setting("f:7", "node-ip", "::ffff:10.0.0.1"), "write it as 10.0.0.1"},
		"no number":             {setting("f:8", "https-listen-port", "https"), `"https" is not a whole number`},
		"no boolean":            {setting("f:9", "debug", "yes"), `"yes" is neither true nor false`},
		"a list for one":        {setting("f:10", "data-dir", "/a", "/b"), "takes one value, not a list of 2"},
		"adding to one":         {setting("f:11", "data-dir+", "/a"), "without the +"},
		"no pair":               {setting("f:12", "feature-gates", "All"), `"All" is not NAME=VALUE`},
		"the flag is blamed":    {setting("--node-ip", "node-ip", "x"), `--node-ip: "x" is not`},
		"the variable is too":   {setting("$PODO_NODE_IP", "node-ip", "y"), `$PODO_NODE_IP: "y" is not`},
		"short flags by name":   {setting("-i", "node-ip", "z"), `-i: node-ip: "z" is not`},
		"unknown":               {setting("f:13", "clutser-cidr", "x"), `f:13: unknown setting "clutser-cidr"; did you mean cluster-cidr?`},
		"unknown and far away":  {setting("f:14", "zzzzzzzzzzzz", "x"), `podo server --help lists them all`},
		"every value of a list": {setting("f:15", "node-ip", "p", "q"), `"q" is not an IP address`},
	}
	var all []config.Setting
	for _, name := range slices.Sorted(maps.Keys(tests)) {
		all = append(all, tests[name].setting)
	}
	cfg := config.Default()
	_, err := config.Apply(&cfg, all)
	if !errors.Is(err, config.ErrUnknown) {
		t.Errorf("err = %v, want ErrUnknown in it", err)
	}
	for name, tt := range tests {
		if !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %q is missing in\n%v", name, tt.want, err)
		}
	}
	if !reflect.DeepEqual(cfg, config.Default()) {
		t.Errorf("mistakes changed something: %+v", cfg)
	}
}

func TestApplyPassesOverSettingsOfOtherVerbs(t *testing.T) {
	node := config.Default().Node
	if _, err := config.Apply(&node, []config.Setting{setting("f:1", "cluster-cidr", "10.1.0.0/16"), setting("f:2", "node-name", "a")}); err != nil || node.Name != "a" {
		t.Errorf("name %q, err %v", node.Name, err)
	}
	if _, err := config.Apply(&node, []config.Setting{setting("f:1", "clutser-cidr", "10.1.0.0/16")}); !errors.Is(err, config.ErrUnknown) {
		t.Errorf("err %v, want ErrUnknown", err)
	}
}

func TestNearest(t *testing.T) {
	for name, want := range map[string]string{
		"cluster_cidr":             "cluster-cidr",
		"clusterCidr":              "cluster-cidr",
		"ClusterCIDR":              "cluster-cidr",
		"clusterCIDR":              "cluster-cidr",
		"TLSSan":                   "tls-san",
		"tls-sans":                 "tls-san",
		"pod-cidr":                 "cluster-cidr",
		"service-cluster-ip-range": "service-cidr",
		"kubelet-args":             "kubelet-arg",
		"node-labels":              "node-label",
		"dissable":                 "disable",
		"datadir":                  "data-dir",
		"write-kubeconfig-mod":     "write-kubeconfig-mode",
		"vpn-auth":                 "",
		"xyzzy":                    "",
		"":                         "",
		"docker":                   "",
	} {
		if got := config.Nearest(name); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", name, got, want)
		}
	}
}

func TestSettingsOfK3sAreExplained(t *testing.T) {
	for name, why := range map[string]string{
		"docker": "containerd is the only runtime", "etcd-snapshot-dir": "no snapshots of etcd",
		"etcd-s3": "no snapshots", "etcd-s3-bucket": "no snapshots", "node_external_ip": "--node-ip", "vpn-auth": "no such part",
	} {
		if err := config.Unknown(name); !strings.Contains(err.Error(), why) || strings.Contains(err.Error(), "did you mean") {
			t.Error(err)
		}
		variable := "PODO_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		if _, err := config.FromEnv([]string{variable + "=x"}); err == nil || !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), "$"+variable) {
			t.Errorf("%s: %v, want %q in it", variable, err, why)
		}
	}
	cfg := config.Default()
	for _, f := range config.Fields(&cfg) {
		for _, name := range f.Spellings() {
			if why := config.Foreign(name); why != "" {
				t.Errorf("%s is a setting, and said not to be: %s", name, why)
			}
		}
	}
}

func TestEmptyValuesOfLists(t *testing.T) {
	for _, tt := range []struct {
		name   string
		values []string
		wrong  bool
	}{
		{"tls-san", []string{",,"}, true},
		{"tls-san", []string{""}, true},
		{"tls-san", []string{"a,"}, true},
		{"tls-san", []string{"a, b"}, false},
		{"tls-san", nil, false}, // tls-san: []
		{"node-label", []string{"a=1", " "}, true},
		{"node-ip", []string{"10.0.0.1,,fd00::1"}, true},
		{"feature-gates", []string{"A=true,"}, true},
		{"kubelet-arg", []string{""}, true},
		{"kubelet-arg", []string{"eviction-hard=a<1,,b<2"}, false},
	} {
		cfg := config.Default()
		_, err := config.Apply(&cfg, []config.Setting{setting("f:1", tt.name, tt.values...)})
		if (err != nil) != tt.wrong || tt.wrong && !strings.Contains(err.Error(), "f:1: "+tt.name+": ") {
			t.Errorf("%s: %q: %v", tt.name, tt.values, err)
		}
	}
	out, _ := config.FromEnv([]string{"PODO_TLS_SAN=,,", "PODO_NODE_LABEL=a=1,,b=2"})
	cfg := config.Default()
	if _, err := config.Apply(&cfg, out); len(config.Mistakes(err)) != 2 {
		t.Errorf("in the environment: %v", err)
	}
}

func TestEnvironment(t *testing.T) {
	out, err := config.FromEnv([]string{
		"HOME=/root", "K3S_TOKEN=weak", "PODO_TOKEN=strong", "PODO_DEBUG=",
		"PODO_NODE_LABEL=a=1,b=2", "PODO_KUBELET_ARG=eviction-hard=a<1,b<2 v=4", "PODO_FEATURE_GATES=A=true,B=false",
		"PODO_KUBECONFIG_MODE=644", "PODO_CONFIG_FILE=/x", "PODO_CLUSTR_CIDR=1", "PODO_XYZZY=2", "PODO_EMPTY=", "PODO_V=3",
	})
	got := map[string]string{}
	for _, s := range out {
		got[s.Name] = fmt.Sprintf("%q %s", s.Values, s.Origin)
	}
	want := map[string]string{
		"token":                 `["strong"] $PODO_TOKEN`,
		"node-label":            `["a=1" "b=2"] $PODO_NODE_LABEL`,
		"kubelet-arg":           `["eviction-hard=a<1,b<2" "v=4"] $PODO_KUBELET_ARG`,
		"feature-gates":         `["A=true" "B=false"] $PODO_FEATURE_GATES`,
		"write-kubeconfig-mode": `["644"] $PODO_KUBECONFIG_MODE`,
		"config":                `["/x"] $PODO_CONFIG_FILE`,
		"v":                     `["3"] $PODO_V`,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if n := len(config.Mistakes(err)); n != 2 {
		t.Errorf("%d mistakes, want 2: an empty variable is not given: %v", n, err)
	}
	for _, want := range []string{"$PODO_CLUSTR_CIDR: unknown variable; did you mean PODO_CLUSTER_CIDR?", "$PODO_XYZZY: unknown variable; unset it"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in %v", want, err)
		}
	}
}

func TestK3sEnvironment(t *testing.T) {
	want := map[string]string{
		"K3S_TOKEN": "token", "K3S_TOKEN_FILE": "token-file", "K3S_DATA_DIR": "data-dir", "K3S_NODE_NAME": "node-name",
		"K3S_KUBECONFIG_OUTPUT": "write-kubeconfig", "K3S_KUBECONFIG_MODE": "write-kubeconfig-mode", "K3S_KUBECONFIG_GROUP": "write-kubeconfig-group",
		"K3S_CONFIG_FILE": "config", "K3S_RESOLV_CONF": "resolv-conf", "K3S_DEBUG": "debug", "K3S_NODE_IP": "node-ip", "K3S_URL": "server",
	}
	environ := []string{"K3S_SOMETHING=else"}
	for k := range want {
		environ = append(environ, k+"=x")
	}
	got := map[string]string{}
	for _, s := range config.FromK3sEnv(environ) {
		got[strings.TrimPrefix(s.Origin, "$")] = s.Name
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestPreferredSpellingWins(t *testing.T) {
	out, _ := config.FromEnv([]string{"PODO_WRITE_KUBECONFIG=/a", "PODO_KUBECONFIG_OUTPUT=/b"})
	cfg := config.Default()
	config.Apply(&cfg, out)
	if cfg.Kubeconfig.Path != "/a" {
		t.Errorf("path %q, want /a", cfg.Kubeconfig.Path)
	}
}

func TestFieldsAreUniqueAndDocumented(t *testing.T) {
	seen := map[string]string{}
	cfg := config.Default()
	for _, f := range config.Fields(&cfg) {
		names := append(append([]string{}, f.Aliases...), f.Spellings()...)
		slices.Sort(names)
		for _, name := range append(slices.Compact(names), f.Envs()...) {
			if seen[name] != "" {
				t.Errorf("%s and %s are both called %s", f.Name, seen[name], name)
			}
			seen[name] = f.Name
		}
		if f.Help == "" || strings.HasSuffix(f.Help, ".") || f.Name != strings.ToLower(f.Name) {
			t.Errorf("%s: help %q must be a phrase without a full stop", f.Name, f.Help)
		}
		if f.Section == "" {
			t.Errorf("%s: is under no heading", f.Name)
		}
		if (f.Placeholder == "") != f.IsBool() {
			t.Errorf("%s: has placeholder %q; all but switches have one", f.Name, f.Placeholder)
		}
	}
}

// TestSettingsOfANodeHaveHeadings: an agent's help shows them without a server's beside them.
func TestSettingsOfANodeHaveHeadings(t *testing.T) {
	cfg := config.Default()
	of := map[string]string{}
	for _, f := range config.Fields(&cfg) {
		of[f.Name] = f.Section
	}
	for _, f := range config.Fields(&cfg.Node) {
		if f.Section == "" || f.Section != of[f.Name] {
			t.Errorf("%s: is under %q, and of a server under %q", f.Name, f.Section, of[f.Name])
		}
	}
}

// TestSharedSettingsThatMeanTheSame: what is left out is the same in any order, and said
// twice. The first range is the cluster's first family.
func TestSharedSettingsThatMeanTheSame(t *testing.T) {
	shared := func(name string, values ...string) string {
		cfg := config.Default()
		if _, err := config.Apply(&cfg, []config.Setting{setting("f:1", name, values...)}); err != nil {
			t.Fatal(err)
		}
		return config.Shared(cfg)[name]
	}
	for _, values := range [][]string{{"servicelb,traefik"}, {"traefik,servicelb"}, {"traefik", "servicelb", "traefik"}} {
		if got := shared("disable", values...); got != "servicelb,traefik" {
			t.Errorf("disable %q is shared as %q", values, got)
		}
	}
	if got := shared("cluster-cidr", "fd00:42::/56,10.42.0.0/16"); got != "fd00:42::/56,10.42.0.0/16" {
		t.Errorf("the order of ranges is lost: %q", got)
	}
}

func TestSecretDoesNotPrint(t *testing.T) {
	cfg := config.Default()
	config.Apply(&cfg, []config.Setting{setting("f:1", "token", "hunter2")})
	if cfg.Token != "hunter2" {
		t.Fatalf("token not read")
	}
	text, _ := json.Marshal(cfg)
	for _, out := range []string{fmt.Sprint(cfg.Token), fmt.Sprintf("%v %+v %#v", cfg, cfg.Node, cfg), string(text)} {
		if strings.Contains(out, "hunter2") {
			t.Errorf("secret leaked: %s", out)
		}
	}
}

func TestValuesForEncoders(t *testing.T) {
	cfg := config.Default()
	config.Apply(&cfg, []config.Setting{setting("f:1", "feature-gates", "A=true")})
	for name, want := range map[string]any{
		"debug": false, "https-listen-port": 6443, "data-dir": "/var/lib/podo", "disable": []string{},
		"cluster-cidr": []string{"10.42.0.0/16"}, "feature-gates": map[string]string{"A": "true"}, "bind-address": "",
	} {
		if got := field(t, &cfg, name).Value(); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %#v, want %#v", name, got, want)
		}
	}
	if cfg.Network.ClusterCIDR[0] != netip.MustParsePrefix("10.42.0.0/16") {
		t.Error(cfg.Network.ClusterCIDR)
	}
}
