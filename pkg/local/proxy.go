package local

import (
	"maps"
	"slices"
	"strings"
)

// proxiesOf are the proxies that an environment names, by the variables' names in capitals.
// Of two spellings that one counts, as it does for Go's programs.
func proxiesOf(environ []string) map[string]string {
	out := map[string]string{}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		switch upper := strings.ToUpper(name); upper {
		case "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY":
			if value != "" && (name == upper || out[upper] == "") {
				out[upper] = value
			}
		}
	}
	if out["HTTP_PROXY"]+out["HTTPS_PROXY"] == "" {
		return nil
	}
	return out
}

// proxies are the variables that have the programs of nodes use these proxies, in both
// spellings, since some know only one. What is the cluster's own is reached without.
func (c Cluster) proxies() []string {
	if len(c.Proxy) == 0 {
		return nil
	}
	all := maps.Clone(c.Proxy)
	pods, _ := c.Shared["cluster-cidr"].([]string)
	services, _ := c.Shared["service-cidr"].([]string)
	domain, _ := c.Shared["cluster-domain"].(string)
	if domain == "" {
		domain = "cluster.local"
	}
	direct := slices.Concat([]string{"localhost", "127.0.0.1", "::1"}, texts(c.Ranges), pods, services, []string{".svc", "." + domain}, c.names())
	if a := c.API.Addr(); a.IsValid() && !a.IsLoopback() && !a.IsUnspecified() {
		direct = append(direct, a.String())
	}
	if own := all["NO_PROXY"]; own != "" {
		direct = append([]string{own}, direct...)
	}
	all["NO_PROXY"] = strings.Join(direct, ",")
	var out []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out = append(out, name+"="+all[name], strings.ToLower(name)+"="+all[name])
	}
	return out
}
