package host

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// Options say what to look at.
type Options struct {
	// DataDir is where state will be kept. It need not exist.
	DataDir string
	// Ports are the ones to ask about.
	Ports []Port
	// Root is put before every path that is read, for tests with recorded machines.
	// With a root, nothing is asked of the running kernel.
	Root string
}

// Discover looks at the machine. It changes nothing, apart from probing the kernel
// in a network namespace of its own that is gone when it returns. What cannot be
// found out is left empty; an error means even the essentials are missing.
func Discover(ctx context.Context, o Options) (Facts, error) {
	r := root(o.Root)
	table, err := r.mounts()
	if err != nil {
		return Facts{}, fmt.Errorf("host: %w; /proc must be mounted", err)
	}
	f := Facts{
		Hostname:   r.line("/proc/sys/kernel/hostname"),
		MachineID:  r.line("/etc/machine-id"),
		Time:       time.Now(),
		CPUs:       runtime.NumCPU(),
		Systemd:    r.isDir("/run/systemd/system"),
		Logind:     r.isDir("/run/systemd/system") && r.isDir("/run/systemd/inhibit") && r.exists("/run/dbus/system_bus_socket"),
		NoHosts:    !r.exists("/etc/hosts"),
		SharedRoot: table.shared("/"),
		Sysctls:    r.sysctls(),
		Resolver:   r.resolver(),
	}
	f.Privilege = r.privilege(table)
	f.Tunable = tunable(table)
	f.Cgroup = r.cgroup(table, f.Systemd)
	f.Memory = r.memory()
	f.Security = r.security()
	f.Storage = r.storage(table, o.DataDir)
	f.Kernel = r.kernel()
	f.Rivals = r.rivals()
	f.Taken = r.listeners(o.Ports)
	if o.Root != "" {
		return f, nil
	}
	if f.Network, err = network(); err != nil {
		return Facts{}, fmt.Errorf("host: %w", err)
	}
	f.Kernel.probe(ctx)
	return f, nil
}

// root reads the files of a machine, live or recorded.
type root string

func (r root) path(p string) string { return filepath.Join("/", string(r), p) }

func (r root) read(p string) string {
	text, err := os.ReadFile(r.path(p))
	if err != nil {
		return ""
	}
	return string(text)
}

// line reads a file of one line.
func (r root) line(p string) string {
	first, _, _ := strings.Cut(r.read(p), "\n")
	return strings.TrimSpace(first)
}

func (r root) exists(p string) bool {
	_, err := os.Stat(r.path(p))
	return err == nil
}

func (r root) isDir(p string) bool {
	info, err := os.Stat(r.path(p))
	return err == nil && info.IsDir()
}

func (r root) memory() Memory {
	var m Memory
	for line := range strings.Lines(r.read("/proc/meminfo")) {
		key, rest, _ := strings.Cut(line, ":")
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			continue
		}
		kib, _ := strconv.ParseUint(fields[0], 10, 64)
		switch key {
		case "MemTotal":
			m.Total = kib << 10
		case "SwapTotal":
			m.Swap = kib << 10
		}
	}
	// The root of a container's own cgroup namespace; on a plain machine the files
	// are missing (v2) or hold a number beyond all memory (v1).
	for _, limit := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		if n, err := strconv.ParseUint(r.line(limit), 10, 64); err == nil && n < m.Total {
			m.Total = n
		}
	}
	return m
}

func (r root) security() Security {
	s := Security{AppArmor: r.line("/sys/module/apparmor/parameters/enabled") == "Y"}
	switch r.line("/sys/fs/selinux/enforce") {
	case "1":
		s.SELinux = "enforcing"
	case "0":
		s.SELinux = "permissive"
	}
	for line := range strings.Lines(r.read("/etc/ufw/ufw.conf")) {
		if strings.EqualFold(strings.TrimSpace(line), "ENABLED=yes") {
			s.UFW = true
		}
	}
	return s
}
