package reset

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/paths"
)

// A mount is one line of /proc/self/mountinfo.
type mount struct {
	id, parent int
	device     string // major:minor
	root       string // what of the file system is mounted
	point      string // and where
	fstype     string
	super      string // options of the file system, such as cgroup controllers
}

func mounts() ([]mount, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMounts(string(text)), nil
}

func parseMounts(text string) []mount {
	var out []mount
	for line := range strings.Lines(text) {
		left, right, ok := strings.Cut(strings.TrimSpace(line), " - ")
		f, g := strings.Fields(left), strings.Fields(right)
		if !ok || len(f) < 6 || len(g) < 3 {
			continue
		}
		m := mount{device: f[2], root: unescape(f[3]), point: unescape(f[4]), fstype: g[0], super: g[2]}
		m.id, _ = strconv.Atoi(f[0])
		m.parent, _ = strconv.Atoi(f[1])
		out = append(out, m)
	}
	return out
}

// unescape turns the kernel's \040 and the like back into characters.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// ourMounts picks what podo, its kubelet and its containerd mounted, in mounting
// order; if the kubelet's folder is shared with another, nothing in it.
//
// A disk that somebody mounted for podo stays, be it the data directory itself or a
// folder in it: of the data directory, only what is inside containerd's root counts.
func (m *machine) ourMounts(all []mount, shared bool) []mount {
	device := map[int]string{}
	for _, t := range all {
		device[t.id] = t.device
	}
	run := resolved(m.Paths.Run)
	engine := m.real.ContainerdRoot()
	kubelet := resolved(paths.KubeletRoot)
	var out []mount
	for _, t := range all {
		switch {
		case strings.HasSuffix(t.point, "//deleted"):
		case within(t.point, run), within(t.point, engine):
			out = append(out, t)
		case shared:
		case within(t.point, kubelet):
			out = append(out, t)
		case t.point == kubelet && t.device == device[t.parent]:
			// The kubelet mounts its root onto itself. A disk of its own mounted
			// there comes from another device than the folder it covers.
			out = append(out, t)
		}
	}
	return out
}

// place is the file system that a folder of ours is on, and the folder's path in it:
// the same in every mount namespace, unlike the path that leads there.
func place(all []mount, dir string) (device, root string) {
	best := mount{}
	for _, t := range all {
		// Of two at one point, the later covers the earlier.
		if (t.point == "/" || dir == t.point || within(dir, t.point)) && len(t.point) >= len(best.point) {
			best = t
		}
	}
	return best.device, filepath.Join(best.root, strings.TrimPrefix(dir, best.point))
}

// covered reports whether something is mounted on the folder in another mount
// namespace, as by a node that has its own at the same path. The kernel would let us
// remove the folder, and take the mount away with it.
func covered(dir string) bool {
	ours, err := mounts()
	if err != nil {
		return false
	}
	device, root := place(ours, resolved(dir))
	seen := map[string]bool{namespacesOf(os.Getpid()).mnt: true}
	for _, p := range processes() {
		ns := namespacesOf(p.pid).mnt
		if seen[ns] {
			continue
		}
		seen[ns] = true
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", p.pid))
		if err != nil {
			continue
		}
		theirs := parseMounts(string(text))
		for _, t := range theirs {
			if t.device == device && t.root == root {
				continue // the folder itself, which is mounted once more
			}
			i := slices.IndexFunc(theirs, func(u mount) bool { return u.id == t.parent })
			if i < 0 {
				continue
			}
			if d, r := place(theirs[i:i+1], t.point); d == device && r == root {
				return true
			}
		}
	}
	return false
}

// reachable lists our mounts that a path leads to. A mount below another one cannot be
// taken away until that has been, and one in a folder that is mounted over, never.
func (m *machine) reachable() ([]mount, error) {
	all, err := mounts()
	if err != nil {
		return nil, err
	}
	ours := m.ourMounts(all, m.otherKubelet(sameHost) != "")
	return slices.DeleteFunc(ours, func(t mount) bool {
		var st unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, t.point, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st)
		// A mount whose server is gone cannot be looked at, but it can be taken away.
		gone := errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)
		return gone || err == nil && st.Mask&unix.STATX_MNT_ID != 0 && st.Mnt_id != uint64(t.id)
	}), nil
}

// resolved is path without symbolic links, as mountinfo has it.
func resolved(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}

// unmount takes away our mounts, the last first. What is busy gets a moment, since
// the kernel ends killed processes in its own time, and is then detached: it vanishes
// from view at once and from the kernel when its last user ends.
func (m *machine) unmount(ctx context.Context) error {
	count := 0
	for try := 0; ; try++ {
		left, err := m.reachable()
		if err != nil {
			return fmt.Errorf("unmount: %w", err)
		}
		if len(left) == 0 {
			if count > 0 {
				m.tell("unmounted %s", plural(count, "mount", "mounts"))
			}
			return nil
		}
		flags := unix.UMOUNT_NOFOLLOW
		if try >= 5 {
			flags |= unix.MNT_DETACH
		}
		var errs []error
		for _, t := range slices.Backward(left) {
			switch err := unix.Unmount(t.point, flags); {
			case err == nil:
				count++
			case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // gone with another
			default:
				errs = append(errs, fmt.Errorf("unmount %s: %w", t.point, err))
			}
		}
		if try >= 7 && len(errs) > 0 || try >= 20 {
			return errors.Join(append(errs, fmt.Errorf("%s could not be unmounted", plural(len(left), "mount", "mounts")))...)
		}
		if len(errs) > 0 {
			pause(ctx, 100*time.Millisecond)
		}
	}
}

// netnsFolder is where tools that use no folder of their own keep named network
// namespaces.
const netnsFolder = "/run/netns"

// podNetns lists the network namespaces in the shared folder that CNI made, that no
// process uses and that no other kubelet may still want. Those in podo's own run
// directory are mounts like all others there.
func (m *machine) podNetns() []string {
	entries, err := os.ReadDir(netnsFolder)
	if err != nil || m.otherKubelet(sameHost) != "" {
		return nil
	}
	used := map[uint64]bool{}
	for _, p := range processes() {
		var st unix.Stat_t
		if unix.Stat(fmt.Sprintf("/proc/%d/ns/net", p.pid), &st) == nil {
			used[st.Ino] = true
		}
	}
	var out []string
	for _, e := range entries {
		path := filepath.Join(netnsFolder, e.Name())
		var st unix.Stat_t
		if strings.HasPrefix(e.Name(), "cni-") && unix.Stat(path, &st) == nil && !used[st.Ino] {
			out = append(out, path)
		}
	}
	return out
}

func (m *machine) removeNetns() error {
	found := m.podNetns()
	var errs []error
	for _, path := range found {
		_ = unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err := os.Remove(path); err != nil {
			errs = append(errs, err)
		}
	}
	if n := len(found) - len(errs); n > 0 {
		m.tell("removed %s", plural(n, "network namespace", "network namespaces"))
	}
	return errors.Join(errs...)
}
