package host

import (
	"path/filepath"
	"slices"
	"syscall"

	"github.com/podo-dev/podo/pkg/paths"
)

// storage looks at the file system of dir, or of its nearest existing parent.
func (r root) storage(table mountTable, dir string) Storage {
	s := Storage{DataDir: dir}
	if dir == "" {
		return s
	}
	s.Begun = r.exists(paths.New(dir).Layout())
	there := filepath.Clean(dir)
	for !r.exists(there) && there != filepath.Dir(there) {
		there = filepath.Dir(there)
	}
	if real, err := filepath.EvalSymlinks(r.path(there)); err == nil && r == "" {
		there = real
	}
	if m, ok := table.of(there); ok {
		s.Mount, s.FSType = m.point, m.fstype
		s.ReadOnly = m.readOnly()
		s.NoExec = slices.Contains(m.options, "noexec")
		s.Overlay = overlayRefuses(m)
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(r.path(there), &st); err == nil {
		block := uint64(st.Frsize)
		s.Total, s.Free = st.Blocks*block, st.Bavail*block
		s.FreeInodes = st.Ffree
		s.NoInodes = st.Files == 0 // btrfs makes them as it goes
	}
	return s
}

// overlayRefuses says why a file system cannot hold overlayfs' upper folder: it
// must do extended attributes, d_type and whiteouts (kernel docs, overlayfs.rst).
func overlayRefuses(m mount) string {
	switch m.fstype {
	case "overlay":
		return "overlayfs cannot be stacked on overlayfs"
	case "aufs", "ecryptfs", "nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "vfat", "exfat", "ntfs", "ntfs3", "ceph", "hostfs", "fuseblk":
		return "overlayfs cannot write to " + m.fstype
	}
	if len(m.fstype) > 5 && m.fstype[:5] == "fuse." && m.fstype != "fuse.fuse-overlayfs" {
		return "overlayfs cannot write to " + m.fstype
	}
	return ""
}
