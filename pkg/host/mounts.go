package host

import (
	"errors"
	"os"
	"slices"
	"strings"
)

// A mount is one line of mountinfo (proc(5)).
type mount struct {
	point   string
	options []string // of the mount
	super   []string // of the file system
	shared  bool
	fstype  string
}

// mountTable is in mount order: later lines cover earlier ones.
type mountTable []mount

func (r root) mounts() (mountTable, error) {
	text, err := os.ReadFile(r.path("/proc/self/mountinfo"))
	if err != nil {
		return nil, err
	}
	table := parseMounts(string(text))
	if len(table) == 0 {
		return nil, errors.New("/proc/self/mountinfo lists no mounts")
	}
	return table, nil
}

func parseMounts(text string) mountTable {
	var table mountTable
	for line := range strings.Lines(text) {
		head, tail, ok := strings.Cut(line, " - ")
		left, right := strings.Fields(head), strings.Fields(tail)
		if !ok || len(left) < 6 || len(right) < 3 {
			continue
		}
		table = append(table, mount{
			point:   unescape(left[4]),
			options: strings.Split(left[5], ","),
			shared:  slices.ContainsFunc(left[6:], func(s string) bool { return strings.HasPrefix(s, "shared:") }),
			fstype:  right[0],
			super:   strings.Split(right[2], ","),
		})
	}
	return table
}

// unescape undoes the kernel's octal escapes of white space and backslash.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// at returns the uppermost mount on a path.
func (t mountTable) at(point string) (mount, bool) {
	for _, m := range slices.Backward(t) {
		if m.point == point {
			return m, true
		}
	}
	return mount{}, false
}

// of returns the mount that a path lies on.
func (t mountTable) of(path string) (mount, bool) {
	var best mount
	found := false
	for _, m := range t {
		below := m.point == "/" || path == m.point || strings.HasPrefix(path, m.point+"/")
		if below && len(m.point) >= len(best.point) {
			best, found = m, true
		}
	}
	return best, found
}

func (t mountTable) shared(point string) bool {
	m, ok := t.at(point)
	return ok && m.shared
}

func (m mount) readOnly() bool {
	return slices.Contains(m.options, "ro") || slices.Contains(m.super, "ro")
}
