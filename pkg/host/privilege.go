package host

import (
	"os"
	"strconv"
	"strings"
)

// Capabilities is a set of Linux capabilities, by bit.
type Capabilities uint64

// The capabilities that a node asks about, by their number (capability.h).
const (
	CapNetBindService = 10
	CapNetAdmin       = 12
	CapNetRaw         = 13
	CapSysModule      = 16
	CapSysChroot      = 18
	CapSysPtrace      = 19
	CapSysAdmin       = 21
	CapSysResource    = 24
	CapMknod          = 27
)

// Has reports whether a capability is in the set.
func (c Capabilities) Has(number int) bool { return c&(1<<number) != 0 }

func (r root) privilege(table mountTable) Privilege {
	p := Privilege{Root: os.Geteuid() == 0, Container: r.container(table)}
	for line := range strings.Lines(r.read("/proc/self/status")) {
		key, rest, _ := strings.Cut(line, ":")
		fields := strings.Fields(rest)
		switch {
		case key == "CapEff" && len(fields) > 0:
			bits, _ := strconv.ParseUint(fields[0], 16, 64)
			p.Caps = Capabilities(bits)
		case key == "Uid" && len(fields) > 1:
			p.Root = fields[1] == "0"
		}
	}
	// The whole range mapped onto itself is the initial namespace.
	if ids := strings.Fields(r.read("/proc/self/uid_map")); len(ids) > 0 {
		p.UserNamespace = strings.Join(ids, " ") != "0 0 4294967295"
	}
	return p
}

// container names the kind of container we are in, as its maker announces it.
func (r root) container(table mountTable) string {
	if kind := r.line("/run/systemd/container"); kind != "" {
		return kind
	}
	for variable := range strings.SplitSeq(r.read("/proc/1/environ"), "\x00") {
		if kind, ok := strings.CutPrefix(variable, "container="); ok && kind != "" {
			return kind
		}
	}
	m, _ := table.at("/")
	overlaid := m.fstype == "overlay"
	switch {
	case r.exists("/.dockerenv") && overlaid: // machine images made with Docker have the file too
		return "docker"
	case r.exists("/run/.containerenv"):
		return "podman"
	case r.exists("/var/run/secrets/kubernetes.io"):
		return "kubernetes"
	}
	return ""
}
