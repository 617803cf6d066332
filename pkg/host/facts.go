// Package host finds out what machine this is, judges whether a node can run on
// it, and makes the few changes that one needs.
//
// Discover only reads. Checks is a pure function of what was found, so every
// machine that was ever met can be kept as a test. Prepare is the one function that
// changes anything, and reports each change with its old value.
package host

import (
	"net/netip"
	"slices"
	"time"
)

// Facts is what was found out about a machine.
type Facts struct {
	Hostname  string
	MachineID string // empty if the machine has none
	Time      time.Time
	CPUs      int
	Memory    Memory
	Systemd   bool // is process 1
	Logind    bool // systemd's: delays a shutdown for who asks it to

	Kernel    Kernel
	Cgroup    Cgroup
	Privilege Privilege
	Network   Network
	Resolver  Resolver
	Storage   Storage
	Security  Security

	// NoHosts means there is no /etc/hosts, of which every pod gets a copy.
	NoHosts bool
	// SharedRoot means mounts below / are seen by other mount namespaces.
	SharedRoot bool
	// Sysctls holds the parameters that a node cares about, by dotted name. One
	// that the kernel lacks is missing.
	Sysctls map[string]string
	// Tunable means root may set kernel parameters from here.
	Tunable bool
	// Rivals are other Kubernetes and firewall programs that run here.
	Rivals []Running
	// Taken are those of the ports asked about that something listens on.
	Taken []Listener
}

// Memory is in bytes. Total is the smaller of what the machine has and what our
// own control group may use.
type Memory struct{ Total, Swap uint64 }

// A Running is a program found by name.
type Running struct {
	Name string
	PID  int
}

// A Port is one that a node wants to listen on, and what for.
type Port struct {
	Number int
	UDP    bool
	Use    string
}

// A Listener is what holds a port. PID is 0 if that could not be found out, as for
// the kernel's own sockets.
type Listener struct {
	Port
	Program string
	PID     int
}

// Mode is how control groups are mounted.
type Mode string

// The modes of control groups.
const (
	CgroupNone   Mode = "none"
	CgroupV1     Mode = "v1"
	CgroupHybrid Mode = "hybrid" // v1 controllers with a v2 tree beside them
	CgroupV2     Mode = "v2"
)

// Cgroup is the state of control groups.
type Cgroup struct {
	Mode Mode
	// Unified is where the v2 tree is mounted, empty for v1.
	Unified     string
	Controllers []string // usable for limits, sorted
	Writable    bool
	// Driver is who should make pods' groups: "systemd" or "cgroupfs".
	Driver string
}

// Has reports whether a controller is usable.
func (c Cgroup) Has(controller string) bool { return slices.Contains(c.Controllers, controller) }

// Privilege is what this process may do.
type Privilege struct {
	Root          bool
	UserNamespace bool
	// Container is what kind of container this is, empty outside one.
	Container string
	Caps      Capabilities
}

// Resolver is how this machine resolves names.
type Resolver struct {
	// File is a resolver file whose servers pods can reach too; empty if none is.
	File string
	// Servers are those that pods can reach, from all files looked at.
	Servers []netip.Addr
	// Loopback means /etc/resolv.conf names a server on this machine's loopback,
	// which a pod would look for on its own.
	Loopback bool
}

// Storage is about the file system of the data directory, or of where it will be.
type Storage struct {
	DataDir    string
	Mount      string
	FSType     string
	ReadOnly   bool
	NoExec     bool
	Total      uint64 // bytes
	Free       uint64 // bytes, for us
	FreeInodes uint64
	NoInodes   bool // the file system does not count them
	Begun      bool // podo has run in it
	// Overlay says why overlayfs cannot work on it, empty if it can.
	Overlay string
}

// Snapshotter is the containerd snapshotter that works here.
func (s Storage) Snapshotter() string {
	if s.Overlay != "" {
		return "native"
	}
	return "overlayfs"
}

// Security is the state of mandatory access control and firewalls.
type Security struct {
	AppArmor bool
	SELinux  string // "", "permissive" or "enforcing"
	UFW      bool
}

// Network is the machine's own, not the cluster's.
type Network struct {
	// V4 and V6 are how the world is reached; Interface is empty where it is not.
	V4, V6 Route
	Links  []Link
}

// Route is a default route and the address that goes with it. Without a default
// route it is the first interface that has an address, and Default is false.
type Route struct {
	Interface string
	Addr      netip.Addr
	Default   bool
}

// Link is a network interface that is up.
type Link struct {
	Name  string
	Index int
	MTU   int
	Addrs []netip.Prefix // global ones; not link-local, not temporary
}

// Primary is the route that names the node: that of IPv4 if there is one.
func (n Network) Primary() Route {
	if n.V4.Addr.IsValid() {
		return n.V4
	}
	return n.V6
}

// Link finds an interface by name.
func (n Network) Link(name string) (Link, bool) {
	for _, l := range n.Links {
		if l.Name == name {
			return l, true
		}
	}
	return Link{}, false
}

// LinkOf finds the interface that carries an address.
func (n Network) LinkOf(addr netip.Addr) (Link, bool) {
	for _, l := range n.Links {
		for _, p := range l.Addrs {
			if p.Addr() == addr {
				return l, true
			}
		}
	}
	return Link{}, false
}
