package host

import (
	"slices"
	"strings"
)

// cgroup reads how control groups are mounted. In hybrid mode the limits are v1's:
// a v2 tree beside them holds no controllers.
func (r root) cgroup(table mountTable, systemd bool) Cgroup {
	const top = "/sys/fs/cgroup"
	known := []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "net_cls", "blkio", "perf_event", "net_prio", "hugetlb", "pids", "rdma", "misc"}
	c := Cgroup{Mode: CgroupNone, Driver: "cgroupfs"}
	if m, ok := table.at(top); ok && m.fstype == "cgroup2" {
		c.Mode, c.Unified = CgroupV2, top
		c.Controllers = strings.Fields(r.read(top + "/cgroup.controllers"))
		c.Writable = !m.readOnly()
	} else {
		c.Writable = true
		for _, m := range table {
			switch {
			case m.fstype == "cgroup2":
				c.Unified = m.point
			case m.fstype == "cgroup":
				// The options name the controllers, among other things.
				controllers := slices.DeleteFunc(slices.Clone(m.super), func(s string) bool { return !slices.Contains(known, s) })
				if len(controllers) > 0 && m.readOnly() {
					c.Writable = false
				}
				c.Controllers = append(c.Controllers, controllers...)
			}
		}
		switch {
		case len(c.Controllers) > 0 && c.Unified != "":
			c.Mode = CgroupHybrid
		case len(c.Controllers) > 0:
			c.Mode = CgroupV1
		default:
			c.Unified, c.Writable = "", false
		}
	}
	slices.Sort(c.Controllers)
	c.Controllers = slices.Compact(c.Controllers)
	if systemd && c.Mode != CgroupNone {
		c.Driver = "systemd"
	}
	return c
}
