package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/podo-dev/podo/pkg/atomicfile"
)

// A Ledger knows what kernel parameters were before podo changed them, for whoever
// removes podo. It is a file that lasts as long as the kernel: what it says of an earlier
// boot is forgotten.
//
// Whoever sets a parameter later owns it. So a value counts as podo's as long as it is the one that
// podo gave; any other is what was before, if podo sets it again.
type Ledger struct {
	file string
	root root
}

// NewLedger is the ledger in a file, which need not exist.
func NewLedger(file string) Ledger { return Ledger{file: file} }

// ErrUnnoted means that a parameter was changed and nobody will put it back.
var ErrUnnoted = errors.New("podo uninstall will not put kernel parameters back")

// An entry is one parameter, by its file: names of links have dots.
type entry struct {
	File string `json:"file"`
	Was  string `json:"was"`
	Gave string `json:"gave"` // empty from before the change until after it
}

// ours reports whether the parameter is as podo left it.
func (e entry) ours(now string) bool { return e.Gave == "" || e.Gave == now }

type entries struct {
	Boot   string  `json:"boot"`
	Values []entry `json:"values"`
}

// Change calls change, which may set the parameters in files, or have the kernel set them.
// What they were is on the disk by then. The order of files is that in which they are put
// back. An error may be of change, or be ErrUnnoted.
func (l Ledger) Change(files []string, change func() error) error {
	all, err := l.load()
	if err == nil {
		for _, f := range files {
			if now := l.root.line(f); now != "" {
				all.note(f, now)
			}
		}
		err = l.save(all)
	}
	failed := change()
	if err == nil {
		all.settle(files, l.root)
		err = l.save(all)
	}
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrUnnoted, err)
	}
	return errors.Join(failed, err)
}

// note keeps the first value that was not podo's.
func (all *entries) note(file, now string) {
	i := slices.IndexFunc(all.Values, func(e entry) bool { return e.File == file })
	switch {
	case i < 0:
		all.Values = append(all.Values, entry{File: file, Was: now})
	case all.Values[i].ours(now):
		all.Values[i].Gave = ""
	default:
		all.Values[i] = entry{File: file, Was: now}
	}
}

// settle says what became of files. What has not changed stays beside what has: the kernel
// may change the one when the other is put back.
func (all *entries) settle(files []string, r root) {
	among := func(e entry) bool { return slices.Contains(files, e.File) }
	changed := false
	for i, e := range all.Values {
		if among(e) {
			all.Values[i].Gave = r.line(e.File)
			changed = changed || all.Values[i].Gave != e.Was
		}
	}
	if !changed {
		all.Values = slices.DeleteFunc(all.Values, among)
	}
}

// Changed lists, by their files, the parameters that are as podo set them and were not so
// before: those that may be put back. What the machine's own files of parameters say is not
// among them: it would be so again after the next boot.
func (l Ledger) Changed(may func(file string) bool) ([]Change, error) {
	all, err := l.load()
	if err != nil {
		return nil, err
	}
	var out []Change
	stays := l.root.stays()
	for _, e := range all.Values {
		if now := l.root.line(e.File); now != "" && now != e.Was && e.ours(now) && !stays(e.File, now) && may(e.File) {
			out = append(out, Change{e.File, e.Was, now})
		}
	}
	return out, nil
}

// PutBack sets those to what they were, and ends the ledger unless it failed. It returns how
// many it set.
func (l Ledger) PutBack(may func(file string) bool) (int, error) {
	all, err := l.load()
	if err != nil {
		return 0, err
	}
	// All are judged before the first is set: what one sets may set others too, and of those
	// some are to stay.
	all.Values = slices.DeleteFunc(all.Values, func(e entry) bool { return l.root.line(e.File) == "" || !may(e.File) })
	stays, set := l.root.stays(), 0
	for i, e := range all.Values {
		switch now := l.root.line(e.File); {
		case !e.ours(now) || stays(e.File, now):
			all.Values[i].Was = now
		case now != e.Was:
			set++
		}
	}
	var errs []error
	for _, e := range all.Values {
		if l.root.line(e.File) == e.Was {
			continue
		}
		if err := os.WriteFile(l.root.path(e.File), []byte(e.Was), 0o644); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return max(set-len(errs), 0), err
	}
	return set, l.end()
}

// end removes the file, if there is one: a file system that is only read says otherwise
// before it looks.
func (l Ledger) end() error {
	if _, err := os.Lstat(l.file); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return os.Remove(l.file)
}

func (l Ledger) load() (entries, error) {
	all := entries{Boot: l.root.line("/proc/sys/kernel/random/boot_id")}
	text, err := os.ReadFile(l.file)
	if errors.Is(err, fs.ErrNotExist) {
		return all, nil
	}
	if err != nil {
		return all, err
	}
	var found entries
	if err := json.Unmarshal(text, &found); err != nil {
		return all, fmt.Errorf("%s: %w; remove it, and kernel parameters stay as they are until the next boot", l.file, err)
	}
	if found.Boot != all.Boot {
		return all, nil
	}
	return found, nil
}

func (l Ledger) save(all entries) error {
	if len(all.Values) == 0 {
		return l.end()
	}
	text, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(l.file), 0o755); err != nil {
		return err
	}
	_, err = atomicfile.WriteIfChanged(l.file, append(text, '\n'), 0o644)
	return err
}

// OfNetwork reports whether each network namespace has a parameter of its own. Others are
// the whole kernel's.
func OfNetwork(file string) bool { return strings.HasPrefix(file, "/proc/sys/net/") }

// OfRouting reports whether a parameter has the machine pass packets on, or goes with that.
func OfRouting(file string) bool {
	switch filepath.Base(file) {
	case "ip_forward", "forwarding", "accept_redirects", "accept_ra":
		return OfNetwork(file)
	}
	return false
}

// WholeMachine reports whether this process is not in a container, where one sees who
// else relies on the kernel. The number is the kernel's (PROC_PID_INIT_INO).
func WholeMachine() bool {
	ns, err := os.Readlink("/proc/self/ns/pid")
	return err == nil && ns == "pid:[4026531836]"
}

// ProxyParameters are what kube-proxy sets by itself. What the kubelet sets is among
// those that Prepare has set before.
func ProxyParameters() []string {
	return []string{
		sysctlPath("net.netfilter.nf_conntrack_max"), "/sys/module/nf_conntrack/parameters/hashsize",
		sysctlPath("net.netfilter.nf_conntrack_tcp_timeout_established"), sysctlPath("net.netfilter.nf_conntrack_tcp_timeout_close_wait"),
		sysctlPath("net.netfilter.nf_conntrack_tcp_be_liberal"),
		sysctlPath("net.netfilter.nf_conntrack_udp_timeout"), sysctlPath("net.netfilter.nf_conntrack_udp_timeout_stream"),
	}
}

// LocalNodePorts is what kube-proxy sets for node ports on loopback, but not in nftables mode.
func LocalNodePorts() string { return sysctlPath("net.ipv4.conf.all.route_localnet") }

// besides are the parameters that the kernel sets when one is set, which comes first.
// Forwarding is that of every link there is, and a router takes no redirects.
func (r root) besides(name string) []string {
	file := sysctlPath(name)
	var pattern string
	out := []string{file}
	switch name {
	case "net.ipv4.ip_forward":
		out, pattern = append(out, sysctlPath("net.ipv4.conf.all.accept_redirects")), "/proc/sys/net/ipv4/conf/*/forwarding"
	case "net.ipv6.conf.all.forwarding":
		pattern = "/proc/sys/net/ipv6/conf/*/forwarding"
	default:
		return out
	}
	links, _ := filepath.Glob(r.path(pattern))
	for _, path := range links {
		link := filepath.Base(filepath.Dir(path))
		if link != "all" {
			out = append(out, strings.Replace(pattern, "*", link, 1))
		}
	}
	return out
}
