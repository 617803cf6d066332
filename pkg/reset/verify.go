package reset

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/podo-dev/podo/pkg/datadir"
	"github.com/podo-dev/podo/pkg/paths"
)

// A Leftover is one trace of podo on this machine.
type Leftover struct {
	Kind string `json:"kind"` // process, mount, netns, link, table, cgroup, parameter, file or cluster
	What string `json:"what"`
}

func (l Leftover) String() string { return l.Kind + " " + l.What }

// Verify lists every trace of podo that is left on this machine, changing nothing.
// It passes over what KeepData keeps, and over volumes unless they are to be purged.
func Verify(o Options) ([]Leftover, error) {
	m, err := look(o)
	if err != nil {
		return nil, err
	}
	var out []Leftover
	add := func(kind, format string, args ...any) {
		out = append(out, Leftover{kind, fmt.Sprintf(format, args...)})
	}

	m.findContainers()
	for _, p := range append(m.podoProcesses(), m.engineProcesses()...) {
		add("process", "%d %s", p.pid, p.name())
	}
	_, pods := m.podProcesses()
	for _, p := range pods {
		add("process", "%d %s", p.pid, p.name())
	}
	left, err := m.reachable()
	if err != nil {
		return nil, err
	}
	for _, t := range left {
		add("mount", "%s", t.point)
	}
	for _, path := range m.podNetns() {
		add("netns", "%s", path)
	}
	if m.otherKubelet(sameHost) == "" {
		links, err := ourLinks()
		if err != nil {
			return nil, err
		}
		for _, l := range links {
			add("link", "%s", l.Attrs().Name)
		}
		tables, err := ourTables()
		if err != nil {
			return nil, err
		}
		for _, t := range tables {
			add("table", "%s", t)
		}
	}
	if m.otherKubelet(sameCgroups) == "" {
		for _, g := range m.podCgroups() {
			if len(pods) > 0 || !m.strangers(g) {
				add("cgroup", "%s", g)
			}
		}
	}
	ledger, may, _ := m.parameters()
	raised, err := ledger.Changed(may)
	if err != nil {
		add("parameter", "of which nothing is known: %v", err)
	}
	for _, c := range raised {
		add("parameter", "%s is %s, and was %s", c.What, c.New, c.Old)
	}
	for _, path := range m.leftFiles() {
		add("file", "%s", path)
	}
	return out, nil
}

func (m *machine) leftFiles() []string {
	var out []string
	add := func(path string) {
		if _, err := os.Lstat(path); err == nil {
			out = append(out, path)
		}
	}
	for _, dir := range append(m.ownFolders(), m.caches()...) {
		if mountPoint(dir) {
			continue // its content is looked at as a mount or is not ours
		}
		add(dir)
	}
	if !m.KeepData && datadir.Foreign(m.real) == nil {
		entries, err := os.ReadDir(m.data)
		if err == nil && len(entries) == 0 && m.Paths.Data == paths.DefaultData && !mountPoint(m.data) {
			add(m.data)
		}
		for _, e := range entries {
			if path := filepath.Join(m.data, e.Name()); datadir.Owns(e.Name()) && !m.keeps(path) {
				add(path)
			}
		}
	}
	out = append(out, m.logLinks()...)
	out = append(out, m.ourResults()...)
	out = append(out, serviceFiles()...)
	out = append(out, m.programs()...)
	return out
}

// mountPoint reports whether an empty folder is one that a file system is mounted on,
// here or in another mount namespace. It stays when all in it is gone.
func mountPoint(dir string) bool {
	entries, err := os.ReadDir(dir)
	if err != nil || strings.HasPrefix(dir, paths.PodLogs) {
		return false
	}
	for _, e := range entries {
		if e.Name() != "lost+found" {
			return false
		}
	}
	all, err := mounts()
	if err != nil {
		return false
	}
	here := func(t mount) bool { return t.point == resolved(dir) }
	return slices.ContainsFunc(all, here) || covered(dir)
}
