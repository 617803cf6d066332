package local

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A ledger is what of this machine a cluster may change: processes, mounts, links, packet
// filter tables, control groups and files.
type ledger map[string]bool

func look(t *testing.T) ledger {
	t.Helper()
	out := ledger{}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		out["mount "+strings.Fields(line)[4]] = true
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		out["link "+l.Name] = true
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*/podo-cluster*", "/sys/fs/cgroup/podo-cluster*", "/var/lib/podo-cluster*", "/run/podo*", "/var/tmp/podo-load-*", "/run/netns/*", "/etc/podo*", "/var/lib/podo", "/var/lib/kubelet", "/var/log/pods"} {
		files, _ := filepath.Glob(pattern)
		for _, f := range files {
			out["file "+f] = true
		}
	}
	tables, err := exec.Command("../../dist/payload/nft", "list", "tables").Output()
	if err != nil {
		t.Fatalf("list tables: %v", err)
	}
	for line := range strings.Lines(string(tables)) {
		out[strings.TrimSpace(line)] = true
	}
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range processes {
		args, _ := os.ReadFile(p + "/cmdline")
		groups, _ := os.ReadFile(p + "/cgroup")
		if len(args) > 0 && strings.Contains(string(groups), "/podo-cluster-") { // the dead, whom init has yet to bury, have none
			out[fmt.Sprintf("process %s %s", filepath.Base(p), strings.ReplaceAll(string(args), "\x00", " "))] = true
		}
	}
	return out
}

// beside lists what was not there before.
func (l ledger) beside(before ledger) []string {
	var out []string
	for what := range l {
		if !before[what] {
			out = append(out, what)
		}
	}
	slices.Sort(out)
	return out
}
