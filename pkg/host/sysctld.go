package host

import (
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// stays tells which kernel parameters are not podo's to put back: those that are as a file of
// this machine says, and with forwarding, if that is so, all that goes with it.
func (r root) stays() func(file, now string) bool {
	configured := r.configured()
	routes := func(forwarding string) bool { return configured(forwarding, r.line(forwarding)) }
	v4, v6 := routes("/proc/sys/net/ipv4/ip_forward"), routes("/proc/sys/net/ipv6/conf/all/forwarding")
	return func(file, now string) bool {
		routed := v4
		if strings.HasPrefix(file, "/proc/sys/net/ipv6/") {
			routed = v6
		}
		return configured(file, now) || routed && OfRouting(file)
	}
}

// configured tells which kernel parameters have a value that a file of this machine gives
// them at each boot, by the parameters' own files (sysctl.d(5); ufw has a file of its own).
func (r root) configured() func(file, value string) bool {
	type setting struct{ pattern, value string }
	var all []setting
	for _, pattern := range []string{
		"/etc/sysctl.conf", "/etc/sysctl.d/*.conf", "/run/sysctl.d/*.conf", "/usr/local/lib/sysctl.d/*.conf",
		"/usr/lib/sysctl.d/*.conf", "/lib/sysctl.d/*.conf", "/etc/ufw/sysctl.conf",
	} {
		files, _ := filepath.Glob(r.path(pattern))
		for _, f := range files {
			text, _ := os.ReadFile(f)
			for line := range strings.Lines(string(text)) {
				name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
				if name != "" && !strings.ContainsAny(name[:1], "#;") {
					name = strings.TrimPrefix(strings.TrimSpace(name), "-") // which only means that it may fail
					all = append(all, setting{sysctlPath(name), strings.Join(strings.Fields(value), " ")})
				}
			}
		}
	}
	return func(file, value string) bool {
		return slices.ContainsFunc(all, func(s setting) bool {
			matches, err := path.Match(s.pattern, file)
			return err == nil && matches && s.value == strings.Join(strings.Fields(value), " ")
		})
	}
}
