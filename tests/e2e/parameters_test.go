package e2e

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// parameters are all that the kernel lets one set, and read. A link's come and go with it.
func parameters(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	add := func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil // it went meanwhile
		case path == "/proc/sys/fs/binfmt_misc":
			return fs.SkipDir
		case d.IsDir() || slices.Contains([]string{"hung_task_detect_count", "ns_last_pid", "perf_event_max_sample_rate"}, d.Name()): // these change by themselves
			return nil
		}
		if info, err := d.Info(); err != nil || info.Mode()&0o222 == 0 {
			return nil
		}
		if text, err := os.ReadFile(path); err == nil {
			out[path] = strings.TrimSpace(string(text))
		}
		return nil
	}
	for _, top := range []string{"/proc/sys/kernel", "/proc/sys/vm", "/proc/sys/fs", "/proc/sys/net", "/proc/sys/user", "/sys/module/nf_conntrack/parameters/hashsize"} {
		if err := filepath.WalkDir(top, add); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// putsParametersBack has podo find kernel parameters that will not do.
func putsParametersBack(t *testing.T) {
	const (
		ofNetwork = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait" // kube-proxy sets it
		ofKernel  = "/proc/sys/kernel/panic"
		theirs    = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established"
	)
	set := func(path, to string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(to), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{ofNetwork, ofKernel, theirs} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { set(path, strings.TrimSpace(string(text))) })
	}
	set(ofNetwork, "61")
	set(ofKernel, "5")
	set(theirs, "4321")
	before := parameters(t)
	if len(before) < 500 {
		t.Fatalf("the kernel has %d parameters", len(before))
	}

	s := boot(t).ready(t)
	s.stop(t)
	boot(t).ready(t) // and a second time, where all is set
	during := parameters(t)
	for path, want := range map[string]string{ofNetwork: "3600", ofKernel: "10", theirs: "86400"} {
		if during[path] != want {
			t.Fatalf("%s is %s, want %s", path, during[path], want)
		}
	}
	must(t, "kill")
	r := podo("uninstall", "--verify")
	if err := contains(r.out, "parameter "+ofNetwork+" is 3600, and was 61"); r.code != 1 || err != nil {
		t.Errorf("exit code %d, %v", r.code, err)
	}
	set(theirs, "7777") // whoever did, it is none of podo's any more
	before[theirs] = "7777"

	// The kernel's own stay where another podo relies on it, as in a test that runs beside this.
	others := slices.ContainsFunc(processes(), func(p process) bool {
		return !p.near && filepath.Base(strings.TrimSuffix(p.exe, " (deleted)")) == "podo"
	})
	if err := contains(must(t, "uninstall", "--yes", "--purge"), "put", "kernel parameter"); err != nil {
		t.Error(err)
	}
	after := parameters(t)
	for _, path := range slices.Sorted(maps.Keys(before)) {
		now, there := after[path]
		if !there || now == before[path] || others && !strings.HasPrefix(path, "/proc/sys/net/") {
			continue
		}
		t.Errorf("%s was %s and is %s", path, before[path], now)
	}
	if others {
		t.Log("another podo runs, so those of the kernel were not compared")
	}
}
