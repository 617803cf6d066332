package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// Groups are the hierarchies of control groups that are mounted here. Each machine has
// a group in every one, which it sees as the root.
type Groups struct {
	Trees []tree
	Links map[string]string // those beside the mounts, as cpu -> cpu,cpuacct
}

// A tree is one hierarchy: the only one of version 2, or one of several.
type tree struct {
	Dir     string
	Kind    string // cgroup or cgroup2
	Options string // that tell hierarchies of version 1 apart
}

// FindGroups reads which hierarchies there are.
func FindGroups() (Groups, error) {
	g := Groups{Links: map[string]string{}}
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return g, err
	}
	for line := range strings.Lines(string(text)) {
		front, back, _ := strings.Cut(line, " - ")
		at, what := strings.Fields(front), strings.Fields(back)
		if len(at) < 5 || len(what) < 3 || !strings.HasPrefix(what[0], "cgroup") {
			continue
		}
		dir := at[4]
		if dir != cgroupRoot && filepath.Dir(dir) != cgroupRoot {
			continue
		}
		t := tree{Dir: dir, Kind: what[0]}
		if t.Kind == "cgroup" {
			var options []string
			for o := range strings.SplitSeq(what[2], ",") {
				switch {
				case strings.HasPrefix(o, "name="):
					options = append(options, "none", o)
				case strings.Contains(o, "=") || slices.Contains([]string{"rw", "ro", "xattr", "clone_children", "noprefix", "cpuset_v2_mode"}, o):
				default:
					options = append(options, o)
				}
			}
			t.Options = strings.Join(options, ",")
		}
		g.Trees = append(g.Trees, t)
	}
	if len(g.Trees) == 0 {
		return g, fmt.Errorf("%s: no control groups are mounted", cgroupRoot)
	}
	entries, err := os.ReadDir(cgroupRoot)
	if err != nil {
		return g, err
	}
	for _, e := range entries {
		if e.Type()&fs.ModeSymlink == 0 {
			continue
		}
		from := filepath.Join(cgroupRoot, e.Name())
		if g.Links[from], err = os.Readlink(from); err != nil {
			return g, err
		}
	}
	return g, nil
}

// unified reports whether version 2 is all there is.
func (g Groups) unified() bool { return g.Trees[0].Dir == cgroupRoot && g.Trees[0].Kind == "cgroup2" }

// mounts shows a machine its own part of every hierarchy.
func (g Groups) mounts() []Mount {
	var out []Mount
	if !g.unified() {
		out = append(out, Mount{From: "tmpfs", Kind: "tmpfs", To: cgroupRoot, Data: "mode=755"})
	}
	for _, t := range g.Trees {
		out = append(out, Mount{From: "cgroup", Kind: t.Kind, To: t.Dir, Data: t.Options})
	}
	return out
}

// Join puts a process into the group called name, whose parts are separated by slashes,
// and makes what is missing of it.
func (g Groups) Join(name string, pid int) error {
	for _, t := range g.Trees {
		dir := t.Dir
		for name := range strings.SplitSeq(name, "/") {
			if t.Dir == cgroupRoot {
				delegate(dir)
			}
			above := dir
			dir = filepath.Join(dir, name)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return fmt.Errorf("make a control group: %w", err)
			}
			// A new one may use no processor and no memory at all.
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				text, err := os.ReadFile(filepath.Join(above, file))
				if t.Kind != "cgroup" || err != nil {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, file), text, 0o644); err != nil {
					return err
				}
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// innermost is the group, below its machine's, of a machine's first process where version
// 2 is all there is.
const innermost = "init.scope"

// settle leaves the root of a machine's hierarchy without processes of its own, as
// version 2 wants where groups below have limits.
func (g Groups) settle() error {
	if !g.unified() {
		return nil
	}
	own := filepath.Join(cgroupRoot, innermost)
	if err := os.Mkdir(own, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(own, "cgroup.procs"), []byte("0"), 0o644); err != nil {
		return err
	}
	delegate(cgroupRoot)
	return nil
}

// delegate lets groups below dir use every controller that dir has.
func delegate(dir string) {
	text, _ := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	for _, c := range strings.Fields(string(text)) {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0o644)
	}
}

// List names the groups that begin with prefix.
func (g Groups) List(prefix string) []string {
	var out []string
	for _, t := range g.Trees {
		found, _ := filepath.Glob(filepath.Join(t.Dir, prefix+"*"))
		for _, dir := range found {
			if name := filepath.Base(dir); !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	return out
}

// Processes are those in a group and in those below it.
func (g Groups) Processes(name string) []int {
	var out []int
	for _, t := range g.Trees {
		_ = filepath.WalkDir(filepath.Join(t.Dir, name), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.Name() != "cgroup.procs" {
				return nil
			}
			text, _ := os.ReadFile(path)
			for _, word := range strings.Fields(string(text)) {
				if pid, err := strconv.Atoi(word); err == nil && pid > 0 && !slices.Contains(out, pid) {
					out = append(out, pid)
				}
			}
			return nil
		})
	}
	return out
}

// End kills what runs in a group and in those below it, and removes them.
func (g Groups) End(name string) error {
	var errs []error
	for _, pid := range g.Processes(name) {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("kill process %d: %w", pid, err))
		}
	}
	return errors.Join(append(errs, g.Remove(name))...)
}

// Remove takes away a group and those in it, from every hierarchy. The kernel may
// hold one for a moment after its last process has ended.
func (g Groups) Remove(name string) error {
	var err error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		err = nil
		for _, t := range g.Trees {
			var dirs []string
			_ = filepath.WalkDir(filepath.Join(t.Dir, name), func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
			for _, dir := range slices.Backward(dirs) {
				if e := os.Remove(dir); e != nil && !os.IsNotExist(e) {
					err = errors.Join(err, e)
				}
			}
		}
		if err == nil {
			return nil
		}
	}
	return err
}
