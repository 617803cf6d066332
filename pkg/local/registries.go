package local

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/podo-dev/podo/pkg/paths"
)

// A Registry is where nodes find the images of a host.
type Registry struct {
	Host      string   `json:"host"`
	Endpoints []string `json:"endpoints"`
}

// folder is what containerd calls the folder of a registry. The one about all is asked if a
// registry has none of its own.
func (r Registry) folder() string {
	if r.Host == "*" {
		return "_default"
	}
	return r.Host
}

// usualHosts is where nodes look for descriptions of registries if no patch says another
// place, as those of kind do.
const usualHosts = "/etc/containerd/certs.d"

// trust reads what containerd patches say of registries: their mirrors, and the folder in
// which nodes look for more. Nothing else in them has a meaning here: podo's containerd is
// configured by podo alone.
func (c *Cluster) trust(patches []string) error {
	var errs []error
	for i, text := range patches {
		var doc map[string]any
		if err := toml.Unmarshal([]byte(text), &doc); err != nil {
			errs = append(errs, fmt.Errorf("containerdConfigPatches[%d]: %w", i, err))
			continue
		}
		for _, leaf := range leaves(doc, nil) {
			if !c.heed(leaf) {
				errs = append(errs, fmt.Errorf("containerdConfigPatches[%d]: %s: podo reads what concerns registries alone: [plugins.\"io.containerd.grpc.v1.cri\".registry] config_path = \"/etc/containerd/certs.d\", "+
					"and [plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"HOST\"] endpoint = [...]", i, strings.Join(leaf.path, ".")))
			}
		}
	}
	return errors.Join(errs...)
}

// heed takes a value of containerd's configuration, if it is one that podo reads.
func (c *Cluster) heed(l leaf) bool {
	if len(l.path) < 4 || l.path[0] != "plugins" || l.path[2] != "registry" ||
		!slices.Contains([]string{"io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"}, l.path[1]) {
		return false
	}
	if dir, ok := l.value.(string); ok && len(l.path) == 4 && l.path[3] == "config_path" && filepath.IsAbs(dir) {
		c.Hosts = filepath.Clean(dir)
		return true
	}
	list, _ := l.value.([]any)
	if len(l.path) != 6 || l.path[3] != "mirrors" || l.path[5] != "endpoint" || len(list) == 0 {
		return false
	}
	r := Registry{Host: l.path[4]}
	for _, e := range list {
		r.Endpoints = append(r.Endpoints, fmt.Sprint(e))
	}
	c.Registries = append(c.Registries, r)
	return true
}

type leaf struct {
	path  []string
	value any
}

// leaves lists the values of a document, with the keys that lead to each.
func leaves(doc map[string]any, path []string) []leaf {
	var out []leaf
	for _, k := range slices.Sorted(maps.Keys(doc)) {
		at := append(slices.Clone(path), k)
		if below, ok := doc[k].(map[string]any); ok {
			out = append(out, leaves(below, at)...)
		} else if k != "version" || len(path) > 0 {
			out = append(out, leaf{at, doc[k]})
		}
	}
	return out
}

// trustRegistries tells the containerd of a node where to find images.
func (s Site) trustRegistries(c Cluster, n Node) error {
	if c.Hosts != "" { // where scripts for kind write, and podo's containerd reads
		if err := s.link(c, n, c.Hosts, paths.New(paths.DefaultData).RegistryHosts()); err != nil {
			return err
		}
	}
	for _, r := range c.mirrors() {
		dir := filepath.Join(s.on(c.Name, n.Name, paths.New(paths.DefaultData).RegistryHosts()), r.folder())
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		text := "# Written by podo cluster.\n"
		for _, e := range r.Endpoints {
			text += fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", e)
		}
		if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// hostsAt is where a mount is to be made that describes a registry: the folder of those
// leads elsewhere.
func (c Cluster) hostsAt(path string) string {
	if below, ok := strings.CutPrefix(path, c.Hosts+"/"); ok && c.Hosts != "" {
		return filepath.Join(paths.New(paths.DefaultData).RegistryHosts(), below)
	}
	return path
}

// link has a path of a node lead to another.
func (s Site) link(c Cluster, n Node, path, to string) error {
	at := s.on(c.Name, n.Name, path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.MkdirAll(s.on(c.Name, n.Name, to), 0o755)); err != nil {
		return err
	}
	if err := os.Symlink(to, at); !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}
