package reset

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// findContainers remembers the identifiers of our containers: those that the runtime
// keeps state of. Shims add theirs when the pods are stopped.
func (m *machine) findContainers() {
	for _, pattern := range []string{
		filepath.Join(m.Paths.RuncState(), "*", "*"),
		filepath.Join(m.Paths.ContainerdState(), "io.containerd.runtime.v2.task", "*", "*"),
	} {
		found, _ := filepath.Glob(pattern)
		for _, path := range found {
			if id := filepath.Base(path); len(id) >= 12 {
				m.ids[id] = true
			}
		}
	}
}

// containerOf is the identifier in a cgroup's name: the name itself, or the part
// between the dash and .scope where systemd has made it.
func containerOf(element string) string {
	element = strings.TrimSuffix(element, ".scope")
	return element[strings.LastIndexByte(element, '-')+1:]
}

// inContainer reports whether a process belongs to a container of ours: by the name of
// its cgroup, or, when the runtime has lost track of it, by what it is shown of our
// disk: every container finds files there that its engine wrote for it.
func (m *machine) inContainer(pid int) bool {
	pod := false
	for _, path := range cgroupsOf(pid) {
		for e := range strings.SplitSeq(path, "/") {
			if m.ids[e] || m.ids[containerOf(e)] {
				return true
			}
			pod = pod || strings.HasPrefix(e, "kubepods")
		}
	}
	if !pod {
		return false
	}
	ours, err := mounts()
	if err != nil {
		return false
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return false
	}
	device, root := place(ours, m.real.ContainerdRoot())
	return slices.ContainsFunc(parseMounts(string(text)), func(t mount) bool {
		return t.device == device && within(t.root, root)
	})
}

// cgroupsOf maps a process's hierarchies, by their controllers, to its cgroups.
func cgroupsOf(pid int) map[string]string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil
	}
	out := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 {
			out[f[1]] = f[2]
		}
	}
	return out
}

// A hierarchy is one mounted cgroup tree.
type hierarchy struct {
	point, root string
	v2          bool
	controllers []string // of version 1; name=systemd is one too
}

func hierarchies() []hierarchy {
	all, err := mounts()
	if err != nil {
		return nil
	}
	var out []hierarchy
	for _, t := range all {
		switch t.fstype {
		case "cgroup2":
			out = append(out, hierarchy{point: t.point, root: t.root, v2: true})
		case "cgroup":
			out = append(out, hierarchy{point: t.point, root: t.root, controllers: strings.Split(t.super, ",")})
		}
	}
	return out
}

// folder is where the cgroup that /proc calls path is found, if it is mounted here.
func (h hierarchy) folder(path string) (string, bool) {
	if h.root != "/" {
		rest, ok := strings.CutPrefix(path, h.root)
		if !ok {
			return "", false
		}
		path = rest
	}
	if strings.Contains(path, "/..") {
		return "", false
	}
	return filepath.Join(h.point, path), true
}

func (h hierarchy) holds(controllers string) bool {
	if controllers == "" {
		return h.v2
	}
	for c := range strings.SplitSeq(controllers, ",") {
		if !slices.Contains(h.controllers, c) {
			return false
		}
	}
	return true
}

// podCgroups finds the folders of pods' cgroups: those at the top of each hierarchy,
// and those further down that processes of our pods are in.
func (m *machine) podCgroups() []string {
	var out []string
	add := func(path string) {
		if info, err := os.Stat(path); err == nil && info.IsDir() && !slices.Contains(out, path) {
			out = append(out, path)
		}
	}
	hs := hierarchies()
	for _, h := range hs {
		for _, name := range []string{"kubepods", "kubepods.slice"} {
			add(filepath.Join(h.point, name))
		}
	}
	_, all := m.podProcesses()
	for _, p := range all {
		for controllers, path := range cgroupsOf(p.pid) {
			i := strings.Index(path, "/kubepods")
			if i < 0 {
				continue
			}
			if j := strings.IndexByte(path[i+1:], '/'); j >= 0 {
				path = path[:i+1+j]
			}
			for _, h := range hs {
				if !h.holds(controllers) {
					continue
				}
				if dir, ok := h.folder(path); ok {
					add(dir)
				}
			}
		}
	}
	// Containers that were started by hand with ctr are outside the kubelet's tree.
	for _, h := range hs {
		for id := range m.ids {
			add(filepath.Join(h.point, "k8s.io", id))
		}
	}
	return out
}

// removeCgroups removes the folders and all below them, if no process is in any of
// them. Otherwise they serve another kubelet as well, and only our pods' part goes.
func (m *machine) removeCgroups(ctx context.Context, groups []string) error {
	other := m.otherKubelet(sameCgroups) != ""
	if m.systemd() && !other && slices.ContainsFunc(groups, func(g string) bool { return strings.HasSuffix(g, ".slice") }) {
		// systemd would otherwise go on believing in its slices.
		_ = run(ctx, []string{"systemctl", "stop", "kubepods.slice"})
	}
	deadline := time.Now().Add(3 * time.Second)
	var errs []error
	removed := 0
	for _, g := range groups {
		n, err := m.removeCgroup(ctx, g, other, deadline)
		removed += n
		errs = append(errs, err)
	}
	for _, h := range hierarchies() {
		_ = os.Remove(filepath.Join(h.point, "k8s.io"))
	}
	if removed > 0 {
		m.tell("removed %s", plural(removed, "cgroup", "cgroups"))
	}
	return errors.Join(errs...)
}

func (m *machine) removeCgroup(ctx context.Context, top string, other bool, deadline time.Time) (removed int, err error) {
	for {
		var busy error
		// walk removes dir if it may, and says whether dir is a container of ours.
		var walk func(dir string, inside bool) bool
		walk = func(dir string, inside bool) bool {
			name := filepath.Base(dir)
			container := m.ids[name] || m.ids[containerOf(name)]
			mine := inside || container
			for _, sub := range subfolders(dir) {
				if walk(sub, inside || container) {
					mine = true // a pod is ours if one of its containers is
				}
			}
			if other && !mine {
				return false
			}
			switch err := unix.Rmdir(dir); {
			case err == nil:
				removed++
			case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTEMPTY):
			default:
				busy = &fs.PathError{Op: "remove cgroup", Path: dir, Err: err}
			}
			return container
		}
		walk(top, false)
		if _, err := os.Stat(top); errors.Is(err, fs.ErrNotExist) || busy == nil {
			return removed, nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			if m.strangers(top) {
				return removed, nil // processes that are not ours live here
			}
			return removed, busy
		}
		pause(ctx, 50*time.Millisecond)
	}
}

// strangers reports whether a cgroup holds processes after ours have ended.
func (m *machine) strangers(top string) bool {
	if text, err := os.ReadFile(filepath.Join(top, "cgroup.procs")); err == nil && len(text) > 0 {
		return true
	}
	return slices.ContainsFunc(subfolders(top), m.strangers)
}

func subfolders(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out
}
