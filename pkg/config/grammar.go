package config

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

const (
	small   = "abcdefghijklmnopqrstuvwxyz"
	letters = small + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits  = "0123456789"

	keyRule   = "must be letters, digits, -, _ and . with a letter or digit at both ends, 63 at most, after an optional domain and slash"
	valueRule = "must be letters, digits, -, _ and . with a letter or digit at both ends, 63 at most, or empty"
)

// word reports whether s consists of ends and inner characters, begins and ends
// with one of ends, and has 1 to most characters.
func word(s, ends, inner string, most int) bool {
	if s == "" || len(s) > most {
		return false
	}
	return strings.Trim(s, ends+inner) == "" &&
		strings.ContainsRune(ends, rune(s[0])) && strings.ContainsRune(ends, rune(s[len(s)-1]))
}

// subdomain is RFC 1123's, as Kubernetes names objects.
func subdomain(s string) bool {
	if len(s) > 253 {
		return false
	}
	for part := range strings.SplitSeq(s, ".") {
		if !word(part, small+digits, "-", 63) {
			return false
		}
	}
	return true
}

// qualified is a key of a label or taint: NAME or DOMAIN/NAME.
func qualified(key string) bool {
	domain, name, ok := strings.Cut(key, "/")
	if !ok {
		domain, name = "example", key
	}
	return subdomain(domain) && word(name, letters+digits, "-_.", 63)
}

func labelValue(s string) bool { return s == "" || word(s, letters+digits, "-_.", 63) }

// selfSet reports whether a node may give itself a label. Of those in Kubernetes'
// own domains the kubelet accepts few, and refuses to start with another.
func selfSet(key string) bool {
	domain, _, ok := strings.Cut(key, "/")
	within := func(of string) bool { return domain == of || strings.HasSuffix(domain, "."+of) }
	if !ok || !within("kubernetes.io") && !within("k8s.io") {
		return true
	}
	switch key {
	case "kubernetes.io/hostname", "kubernetes.io/os", "kubernetes.io/arch",
		"topology.kubernetes.io/zone", "topology.kubernetes.io/region",
		"failure-domain.beta.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/region",
		"beta.kubernetes.io/instance-type", "beta.kubernetes.io/os", "beta.kubernetes.io/arch":
		return true
	}
	return within("kubelet.kubernetes.io") || within("node.kubernetes.io")
}

// imageProblem says what keeps text from being [HOST[:PORT]/]PATH[:TAG][@DIGEST], the
// way the OCI distribution specification has it.
func imageProblem(text string) string {
	name, digest, hasDigest := strings.Cut(text, "@")
	tag, hasTag := "", false
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name, tag, hasTag = name[:i], name[i+1:], true
	}
	path := name
	// What comes before the first slash is a host only if it looks like one.
	if host, rest, ok := strings.Cut(name, "/"); ok && (host == "localhost" || strings.ContainsAny(host, ".:") || host != strings.ToLower(host)) {
		if !isHostPort(host) {
			return fmt.Sprintf("%q is no host", host)
		}
		path = rest
	}
	algorithm, sum, _ := strings.Cut(digest, ":")
	switch {
	case text == "":
		return "it is empty"
	case len(name) > 255:
		return "it is longer than 255 letters"
	case !regexp.MustCompile(`^[a-z0-9]+((\.|__?|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|__?|-+)[a-z0-9]+)*)*$`).MatchString(path):
		if path != strings.ToLower(path) {
			return "it has capital letters"
		}
		return fmt.Sprintf("%q is no path of small letters, digits, dots, dashes and underscores", path)
	case hasTag && !regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}$`).MatchString(tag):
		return fmt.Sprintf("%q is no tag", tag)
	case hasDigest && (!map[string]bool{"sha256:64": true, "sha384:96": true, "sha512:128": true}[fmt.Sprintf("%s:%d", algorithm, len(sum))] || strings.Trim(sum, "0123456789abcdef") != ""):
		return fmt.Sprintf("%q is no digest", digest)
	}
	return ""
}

// isHostPort reports whether text is a host name or address, with or without a port.
func isHostPort(text string) bool {
	host, port := text, "1"
	if i := strings.LastIndexByte(text, ':'); i > strings.LastIndexByte(text, ']') {
		host, port = text[:i], text[i+1:]
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if literal, ok := strings.CutPrefix(host, "["); ok {
		a, bad := netip.ParseAddr(strings.TrimSuffix(literal, "]"))
		return err == nil && n > 0 && bad == nil && a.Is6() && strings.HasSuffix(host, "]")
	}
	return err == nil && n > 0 && subdomain(strings.ToLower(host))
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// twiceOfOneFamily names the IP family that list has more than one of.
func twiceOfOneFamily[T any](list []T, addr func(T) netip.Addr) string {
	seen := map[string]bool{}
	for _, x := range list {
		f := family(addr(x))
		if seen[f] {
			return f
		}
		seen[f] = true
	}
	return ""
}

func self(a netip.Addr) netip.Addr { return a }

// unreachable says what kind of address a is if others cannot reach it.
func unreachable(a netip.Addr) string {
	switch {
	case a.IsUnspecified():
		return "the unspecified address"
	case a.IsLoopback():
		return "a loopback address"
	case a.IsMulticast():
		return "a multicast address"
	case a.IsLinkLocalUnicast():
		return "a link-local address"
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "the broadcast address"
	}
	return ""
}

type use struct {
	prefix netip.Prefix
	use    string
}

// reserved are ranges that no cluster can use.
func reserved() []use {
	return []use{
		{netip.MustParsePrefix("0.0.0.0/8"), "unspecified addresses"},
		{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
		{netip.MustParsePrefix("169.254.0.0/16"), "link-local addresses"},
		{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
		{netip.MustParsePrefix("255.255.255.255/32"), "broadcast"},
		{netip.MustParsePrefix("::/127"), "loopback"},
		{netip.MustParsePrefix("fe80::/10"), "link-local addresses"},
		{netip.MustParsePrefix("ff00::/8"), "multicast"},
	}
}

// last is the highest address of p.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func join[T fmt.Stringer](list []T) string {
	var out []string
	for _, x := range list {
		out = append(out, x.String())
	}
	return strings.Join(out, ",")
}
