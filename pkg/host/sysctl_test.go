package host

import "testing"

// TestSysctlPath: a dot in the name of a link is no separator (sysctl.d(5)).
func TestSysctlPath(t *testing.T) {
	for name, want := range map[string]string{
		"net.ipv4.ip_forward":                "/proc/sys/net/ipv4/ip_forward",
		"net.ipv4.conf.eth0/100.forwarding":  "/proc/sys/net/ipv4/conf/eth0.100/forwarding",
		"net/ipv4/conf/eth0.100/forwarding":  "/proc/sys/net/ipv4/conf/eth0.100/forwarding",
		"net.ipv6.conf.all.accept_redirects": "/proc/sys/net/ipv6/conf/all/accept_redirects",
	} {
		if got := sysctlPath(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}
