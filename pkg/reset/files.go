package reset

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/datadir"
	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/tree"
)

// Context is the name under which podo merges itself into people's kubeconfigs.
const Context = "podo"

// Folders outside podo's own that parts of it write to because upstream offers no
// other place. They are shared with other users of the same software.
const (
	shimSockets  = "/run/containerd/s"
	flannelState = "/run/flannel"
	cniResults   = "/var/lib/cni/results"

	// shutdownDelay is how the kubelet has logind wait for pods.
	shutdownDelay = "/etc/systemd/logind.conf.d/99-kubelet.conf"
)

// mayLeaveEmpty are folders that a part of podo makes and puts nothing in. They are
// removed if empty, children first.
func mayLeaveEmpty() []string {
	return append(engineFolders(),
		flannelState, filepath.Dir(shutdownDelay),
		paths.UserCNIConfig, filepath.Dir(paths.UserCNIConfig),
		cniResults, "/var/lib/cni/cache", "/var/lib/cni/networks", "/var/lib/cni",
		"/opt/containerd/bin", "/opt/containerd/lib", "/opt/containerd",
		"/usr/libexec/kubernetes/kubelet-plugins/volume/exec", "/usr/libexec/kubernetes/kubelet-plugins/volume",
		"/usr/libexec/kubernetes/kubelet-plugins", "/usr/libexec/kubernetes",
		paths.ContainerLogs, paths.PodLogs,
	)
}

// engineFolders are made by containerd's clients and shims whatever they are told.
func engineFolders() []string {
	return []string{
		shimSockets, "/run/containerd/fifo",
		"/run/containerd/runc/k8s.io", "/run/containerd/runc/default", "/run/containerd/runc",
		"/run/containerd",
	}
}

// removeRuntimeFiles clears what only running pods need: sockets, leases, links.
func (m *machine) removeRuntimeFiles() error {
	var errs []error
	leases, err := tree.Empty(m.real.CNIData())
	errs = append(errs, err)

	stale := 0
	for _, path := range append(staleSockets(), m.ourResults()...) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
			continue
		}
		stale++
	}
	if m.otherKubelet(sameHost) == "" {
		errs = append(errs, removeTree(flannelState))
		for _, link := range danglingLinks(paths.ContainerLogs) {
			if os.Remove(link) == nil {
				stale++
			}
		}
	}
	n, err := tree.Empty(m.Paths.Run)
	errs = append(errs, err)
	if err := remove(m.Paths.Run); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EBUSY) {
		errs = append(errs, err)
	}
	for _, dir := range engineFolders() {
		_ = remove(dir)
	}
	if n+leases+stale > 0 {
		m.tell("cleared %s, address leases and sockets", m.Paths.Run)
	}
	return errors.Join(errs...)
}

// staleSockets are shim sockets that nobody listens on any more, whoever did.
func staleSockets() []string {
	found, _ := filepath.Glob(filepath.Join(shimSockets, "*"))
	return slices.DeleteFunc(found, func(path string) bool {
		info, err := os.Lstat(path)
		if err != nil || info.Mode()&fs.ModeSocket == 0 {
			return true
		}
		c, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			_ = c.Close()
		}
		return !errors.Is(err, unix.ECONNREFUSED)
	})
}

// ourResults are the CNI results of our containers.
func (m *machine) ourResults() []string {
	found, _ := filepath.Glob(filepath.Join(cniResults, "*"))
	return slices.DeleteFunc(found, func(path string) bool {
		for id := range m.ids {
			if strings.Contains(filepath.Base(path), id) {
				return false
			}
		}
		text, err := os.ReadFile(path)
		return err != nil || !bytes.Contains(text, []byte(m.Paths.Run+"/"))
	})
}

func danglingLinks(dir string) []string {
	found, _ := filepath.Glob(filepath.Join(dir, "*"))
	return slices.DeleteFunc(found, func(path string) bool {
		if info, err := os.Lstat(path); err != nil || info.Mode()&fs.ModeSymlink == 0 {
			return true
		}
		_, err := os.Stat(path)
		return !errors.Is(err, fs.ErrNotExist)
	})
}

// ownFolders are the folders that uninstalling removes with all they hold.
func (m *machine) ownFolders() []string {
	var out []string
	if !m.KeepData && !m.Others {
		out = append(out, m.Paths.Etc)
	}
	out = append(out, m.Paths.Run)
	if m.otherKubelet(sameHost) == "" {
		out = append(out, paths.KubeletRoot, flannelState, shutdownDelay)
		logs, _ := filepath.Glob(filepath.Join(paths.PodLogs, "*_*_*"))
		out = append(out, logs...)
	}
	return out
}

// logLinks are the links that the kubelet makes to pods' logs.
func (m *machine) logLinks() []string {
	if m.otherKubelet(sameHost) != "" {
		return nil
	}
	found, _ := filepath.Glob(filepath.Join(paths.ContainerLogs, "*.log"))
	return slices.DeleteFunc(found, func(path string) bool {
		to, err := os.Readlink(path)
		return err != nil || !within(to, paths.PodLogs)
	})
}

// binFolders are where people install programs, and where the installer put this one.
func (m *machine) binFolders() []string {
	out := []string{"/usr/local/bin", "/usr/local/sbin", "/usr/bin", "/usr/sbin", "/opt/bin"}
	if m.Executable == "" {
		return out
	}
	dir := filepath.Dir(resolved(m.Executable))
	if !slices.Contains(out, dir) && installed(filepath.Join(dir, "podo-uninstall.sh")) {
		out = append(out, dir)
	}
	return out
}

// programs are the installed podo, the links to it that carry other names, and the
// scripts that call it by the names of old habits.
func (m *machine) programs() []string {
	if m.Others {
		return nil
	}
	exe := resolved(m.Executable)
	var out []string
	for _, dir := range m.binFolders() {
		if info, err := os.Lstat(dir); err != nil || !info.IsDir() {
			continue // a link to another of them
		}
		for _, name := range []string{"kubectl", "crictl", "ctr", "podo"} {
			path := filepath.Join(dir, name)
			if to, err := os.Readlink(path); err == nil && filepath.Base(to) == "podo" {
				out = append(out, path)
			}
		}
		scripts, _ := filepath.Glob(filepath.Join(dir, "podo*.sh"))
		out = append(out, slices.DeleteFunc(scripts, func(path string) bool { return !installed(path) })...)
		if exe != "" && filepath.Dir(exe) == dir {
			if _, err := os.Lstat(exe); err == nil {
				out = append(out, exe)
			}
		}
	}
	return out
}

// removeFiles removes every file podo made, itself last.
func (m *machine) removeFiles(ctx context.Context) error {
	var errs []error
	errs = append(errs, m.removeService(ctx))
	for _, path := range m.Kubeconfigs {
		removed, err := kubeconfig.Remove(path, Context)
		if err != nil {
			errs = append(errs, err)
		} else if removed {
			m.tell("removed the context %s from %s", Context, path)
			_ = os.Remove(filepath.Dir(path)) // if nothing else is there
		}
	}
	for _, link := range m.logLinks() {
		errs = append(errs, os.Remove(link))
	}
	var stuck error
	if !m.KeepData {
		stuck = m.removeOutside()
		errs = append(errs, stuck)
	}
	folders := m.ownFolders()
	if err := m.putParametersBack(); err != nil {
		errs = append(errs, err)
		folders = slices.DeleteFunc(folders, func(dir string) bool { return dir == m.Paths.Etc }) // what they were is there
	}
	if !m.KeepData {
		errs = append(errs, m.removeData(stuck == nil))
	}
	folders = append(folders, m.caches()...)
	for _, dir := range folders {
		if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := removeTree(dir); err != nil {
			errs = append(errs, err)
			continue
		}
		if !within(dir, paths.PodLogs) {
			m.tell("removed %s", dir)
		}
	}
	for _, dir := range m.caches() {
		_ = os.Remove(filepath.Dir(dir)) // if nothing else is there
	}
	for _, dir := range mayLeaveEmpty() {
		_ = remove(dir)
	}
	for _, path := range m.programs() {
		if err := os.Remove(path); err != nil {
			errs = append(errs, err)
			continue
		}
		m.tell("removed %s", path)
	}
	return errors.Join(errs...)
}

// removeOutside removes what podo was told to write elsewhere, and podo's part of a
// kubeconfig that has become others' too.
func (m *machine) removeOutside() error {
	files, err := datadir.Outside(m.real)
	errs := []error{err}
	for path, name := range files {
		removed := name == ""
		switch info, lerr := os.Lstat(path); {
		case name != "":
			removed, err = kubeconfig.Remove(path, name)
		case lerr != nil || !info.Mode().IsRegular() || !filepath.IsAbs(path): // it may have been /dev/null
			continue
		default:
			err = os.Remove(path)
		}
		errs = append(errs, err)
		if removed && err == nil {
			m.tell("removed what is podo's in %s", path)
		}
	}
	return errors.Join(errs...)
}

// caches are where podo unpacked its tools for the users whose kubeconfigs we know, and
// where its kubectl remembers what it asked.
func (m *machine) caches() []string {
	var out []string
	for _, path := range m.Kubeconfigs {
		home := filepath.Dir(filepath.Dir(path))
		if dir := filepath.Join(home, ".cache", "podo"); filepath.Base(filepath.Dir(path)) == ".kube" {
			out = append(out, dir)
		}
	}
	return out
}

// removeData empties the data directory of what is podo's, and then removes it and
// the link that leads to it, if nothing of anybody else's is left there. The file that
// marks it as podo's goes last, so that what could not be removed can be next time. Unless
// it is all, that and the list of what is elsewhere stay for then.
func (m *machine) removeData(all bool) error {
	entries, err := os.ReadDir(m.data)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 && m.Paths.Data != paths.DefaultData {
		return nil // whoever made it
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(m.data, e.Name())
		if datadir.Owns(e.Name()) && path != m.real.Layout() && (all || path != m.real.Outside()) && !m.keeps(path) {
			errs = append(errs, removeTree(path))
		}
	}
	if err := errors.Join(errs...); err != nil || !all {
		return err
	}
	if err := removeTree(m.real.Layout()); err != nil {
		return err
	}
	switch err := remove(m.data); {
	case err == nil:
		if link := filepath.Clean(m.Paths.Data); link != m.data {
			if err := os.Remove(link); err != nil {
				return err
			}
		}
	case errors.Is(err, unix.EBUSY): // a mount point stays as such
	case errors.Is(err, unix.ENOTEMPTY) && m.keeps(m.real.Storage()):
		m.tell("removed what is in %s, but the volumes in %s", m.Paths.Data, m.Paths.Storage())
		return nil
	case errors.Is(err, unix.ENOTEMPTY):
		m.tell("removed what is podo's in %s, and left the rest", m.Paths.Data)
		return nil
	default:
		return err
	}
	m.tell("removed %s", m.Paths.Data)
	return nil
}

// HoldsVolumes reports whether there is anything in the folder of claims' volumes.
func HoldsVolumes(p paths.Paths) bool {
	entries, err := os.ReadDir(p.Storage())
	return err == nil && len(entries) > 0
}

// keeps reports whether path is that folder, and is to stay.
func (m *machine) keeps(path string) bool {
	return path == m.real.Storage() && !m.Purge && HoldsVolumes(m.real)
}

// removeTree removes a file or a folder with all it holds. It follows no symbolic
// link and enters no mounted file system, bind mounts of the same one included.
func removeTree(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.IsDir() {
		if _, err := tree.Empty(path); err != nil {
			return err
		}
	}
	if err := remove(path); err != nil && !errors.Is(err, unix.EBUSY) {
		return err
	}
	return nil
}

// remove removes a file or an empty folder that nothing is mounted on, neither here
// nor in another mount namespace.
func remove(path string) error {
	if covered(path) {
		return &fs.PathError{Op: "remove", Path: path, Err: unix.EBUSY}
	}
	return os.Remove(path)
}
