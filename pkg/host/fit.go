package host

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/config"
)

// Fit reports every setting that cannot work on this machine, as config.Validate does
// those that cannot work anywhere. It looks and changes nothing; what it may not look
// at, it does not judge. Wrote has the kubeconfigs that podo wrote earlier, with its name in
// each.
func Fit(cfg config.Server, origins config.Origins, wrote map[string]string) error {
	f := fit{from: origins, wrote: wrote}
	f.folder("data-dir", cfg.DataDir)
	f.kubeconfig(cfg.Kubeconfig)
	if cfg.Logging.File != "" {
		f.file("log", cfg.Logging.File)
	}
	if cfg.ResolvConf != "" && !cfg.Components.NoAgent {
		f.resolver(cfg.ResolvConf)
	}
	if n, err := network(); err == nil { // Discover tells the error
		f.addresses(cfg, n)
	}
	return errors.Join(f.errs...)
}

type fit struct {
	from  config.Origins
	wrote map[string]string
	errs  []error
}

func (f *fit) wrong(setting, format string, args ...any) {
	f.errs = append(f.errs, config.Mistake{Setting: setting, Origin: f.from[setting], Err: fmt.Errorf(format, args...)})
}

// folder refuses a place where no folder can be.
func (f *fit) folder(setting, path string) {
	if info, err := os.Stat(path); err == nil && !info.IsDir() {
		f.wrong(setting, "%s is a file; name a folder", path)
		return
	}
	f.parents(setting, path)
}

// file refuses a place where no file can be. Folders on the way to it are made later.
func (f *fit) file(setting, path string) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		f.wrong(setting, "%s is a folder; name a file in it", path)
		return
	}
	f.parents(setting, path)
}

// parents refuses a path that leads through a file.
func (f *fit) parents(setting, path string) {
	for dir := filepath.Dir(filepath.Clean(path)); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		switch {
		case err == nil && !info.IsDir():
			f.wrong(setting, "%s is a file, so nothing can be in it; name another place", dir)
			return
		case err == nil, errors.Is(err, fs.ErrPermission), dir == filepath.Dir(dir):
			return
		}
	}
}

func (f *fit) kubeconfig(k config.Kubeconfig) {
	const setting = "write-kubeconfig"
	f.file(setting, k.Path)
	if info, err := os.Stat(k.Path); err == nil && !info.IsDir() && !info.Mode().IsRegular() {
		f.wrong(setting, "%s is no ordinary file, and would be replaced by one; name another place", k.Path)
	}
	if name, ok := foreign(k.Path, f.wrote[k.Path]); ok {
		f.wrong(setting, "%s has the context %q of another cluster, which would be lost; name another file, and add it to this one with podo kubeconfig merge, or remove this one", k.Path, name)
	}
	if k.Group == "" {
		return
	}
	if _, err := strconv.ParseUint(k.Group, 10, 31); err == nil {
		return
	}
	if _, err := user.LookupGroup(k.Group); err != nil {
		f.wrong("write-kubeconfig-group", "this machine has no group %q; make it with groupadd, or name one that getent group lists, or its number", k.Group)
	}
}

// foreign returns a context of a kubeconfig that is not the one podo wrote there, by name. The
// default file is podo's own, whatever it is called in it.
func foreign(path, wrote string) (string, bool) {
	if path == config.Default().Kubeconfig.Path {
		return "", false
	}
	text, err := atomicfile.Read(path, 1<<20)
	if err != nil {
		return "", false
	}
	var file struct{ Contexts []struct{ Name string } }
	if yaml.Unmarshal(text, &file) != nil {
		return "", false
	}
	for _, c := range file.Contexts {
		if c.Name != wrote {
			return c.Name, true
		}
	}
	return "", false
}

func (f *fit) resolver(path string) {
	const setting, remedy = "resolv-conf", "name a file with nameserver lines, or leave it out for the machine's own"
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrPermission):
	case err != nil:
		f.wrong(setting, "there is no file %s; %s", path, remedy)
	case !info.Mode().IsRegular():
		f.wrong(setting, "%s is no ordinary file; %s", path, remedy)
	}
}

func (f *fit) addresses(cfg config.Server, n Network) {
	for _, a := range cfg.IP {
		if _, ok := n.LinkOf(a); !ok {
			f.wrong("node-ip", "%s is on no interface of this machine that is up; give one of %s", a, n.addresses())
		}
	}
	if a := cfg.Listener.BindAddress; a.IsValid() {
		if err := bind(a); err != nil {
			f.wrong("bind-address", "this machine cannot listen on %s (%w); give one of %s, or leave it out for all", a, err, n.addresses())
		}
	}
	if name := cfg.FlannelIface; name != "" && !cfg.Components.NoAgent {
		if _, ok := n.Link(name); !ok {
			f.wrong("flannel-iface", "no interface of this machine that is up is called %s; give one of %s", name, n.names())
		}
	}
}

// bind asks the kernel, which knows loopback, virtual and not yet assigned addresses.
func bind(a netip.Addr) error {
	l, err := net.Listen("tcp", netip.AddrPortFrom(a, 0).String())
	if err != nil {
		var sys *os.SyscallError
		if errors.As(err, &sys) {
			return sys.Err
		}
		return err
	}
	return l.Close()
}

// addresses lists those that a node may be known by.
func (n Network) addresses() string {
	var all []string
	for _, l := range n.Links {
		if Virtual(l.Name) {
			continue
		}
		for _, p := range l.Addrs {
			all = append(all, p.Addr().String())
		}
	}
	if len(all) == 0 {
		return "the machine's addresses"
	}
	return strings.Join(all, ", ")
}

func (n Network) names() string {
	var all []string
	for _, l := range n.Links {
		if !Virtual(l.Name) {
			all = append(all, l.Name)
		}
	}
	if len(all) == 0 {
		return "its interfaces (ip link)"
	}
	return strings.Join(all, ", ")
}
