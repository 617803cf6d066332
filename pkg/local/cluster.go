// Package local makes clusters of several machines on this one, from the files that kind
// reads.
//
// Each node is a machine made of namespaces (pkg/machine) that runs podo as any machine
// would: a server or an agent, with containers of its own. The nodes of a cluster hang on
// one bridge. A cluster is a folder: what was decided about it (cluster.json), the files of
// its nodes, and locks that tell who runs. Nothing has to run for the package to know its
// clusters, so they outlive a reboot.
//
// The package works on nodes from outside, by their files, processes and API, and never by
// what a server or an agent is made of.
package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/config"
)

// DefaultDir is where the clusters of a machine are kept.
const DefaultDir = "/var/lib/podo-clusters"

// A Site is the clusters of this machine.
type Site struct {
	Dir string // with a folder for each
	Exe string // the podo that nodes run, if nothing else is said
	// Step is told what begins, and calls what it returns when that is done or has failed.
	Step func(words string) (done func(error))
	// Judge says what Kubernetes would not take of a node's settings and its
	// KubeletConfiguration. It is asked before anything is made; not at all if nil.
	Judge func(cfg config.Server, kubelet string) error
}

// A Cluster is what was decided about one.
type Cluster struct {
	Name   string         `json:"name"`
	Index  int            `json:"index"`  // of its network
	Ranges []netip.Prefix `json:"ranges"` // of the nodes' addresses, one per IP family
	API    netip.AddrPort `json:"api"`    // where the host listens for it
	Nodes  []Node         `json:"nodes"`
	Gone   []string       `json:"gone,omitempty"`  // nodes that were removed: a cluster gives their names to no other machine
	Search []string       `json:"search,omitzero"` // domains of the nodes' resolver; the host's if nil, none if empty

	// Shared are the settings of all servers, Common those of all nodes.
	Shared Settings `json:"shared"`
	Common Settings `json:"common"`
	// Patches are kubeadm's for all nodes, which those that are added later have as well.
	Patches []string `json:"patches,omitempty"`

	// Proxy has what leads to others through proxies, by name. There may be passwords in it.
	Proxy map[string]string `json:"proxy,omitempty"`

	Registry   uint16     `json:"registry,omitempty"` // port of its own one, if it has one
	Registries []Registry `json:"registries,omitempty"`
	Hosts      string     `json:"hosts,omitempty"` // folder of nodes where others may describe registries to containerd
}

// A Node is one machine of a cluster.
type Node struct {
	Name     string   `json:"name"`
	Role     Role     `json:"role"`
	Number   int      `json:"number"` // the last part of its addresses
	Podo     string   `json:"podo"`   // the binary that it was made with
	Settings Settings `json:"settings"`
	Kubelet  string   `json:"kubelet,omitempty"` // a KubeletConfiguration
	Mounts   []Mount  `json:"mounts,omitempty"`
	Ports    []Port   `json:"ports,omitempty"`
}

// A Mount shows a file or a folder of the host on a node.
type Mount struct {
	From     string  `json:"from"`
	To       string  `json:"to"`
	ReadOnly bool    `json:"readOnly,omitempty"`
	Follow   uintptr `json:"follow,omitempty"` // as in machine.Mount
}

// A Port is one that the host listens on for a node.
type Port struct {
	Listen   netip.AddrPort `json:"listen"`
	Port     uint16         `json:"port"` // of the node
	Protocol string         `json:"protocol"`
}

// Settings are podo's own, by name.
type Settings map[string]any

// UnmarshalJSON gives lists and mappings the types that they were made with. A null is
// what earlier versions wrote for a list without values.
func (s *Settings) UnmarshalJSON(text []byte) error {
	*s = Settings{}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(text, &all); err != nil {
		return err
	}
	for name, value := range all {
		var list []string
		var pairs map[string]string
		var one any
		switch {
		case string(value) == "null":
			(*s)[name] = []string{}
		case json.Unmarshal(value, &list) == nil:
			(*s)[name] = list
		case json.Unmarshal(value, &pairs) == nil:
			(*s)[name] = pairs
		default:
			if err := json.Unmarshal(value, &one); err != nil {
				return err
			}
			(*s)[name] = one
		}
	}
	return nil
}

// add adds values to a list. Without any the list is there, if empty: a nil one would be
// null in JSON, which is no list.
func (s Settings) add(name string, values ...string) {
	list, _ := s[name].([]string)
	if list == nil {
		list = []string{}
	}
	s[name] = append(list, values...)
}

// CheckName says why a name is none for a cluster. Control groups, links, folders and host
// names are called by it.
func CheckName(name string) error {
	if len(name) > 40 || !regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`).MatchString(name) {
		return fmt.Errorf("%q is not a name for a cluster; use up to 40 of a-z, 0-9, dots and dashes, and begin and end with a letter or digit", name)
	}
	return nil
}

func (s Site) dir(name string) string { return filepath.Join(s.Dir, name) }

// file is where a part of a cluster's state is kept.
func (s Site) file(c, part string) string { return filepath.Join(s.dir(c), part) }

// node is where a part of a node is kept; its files are in root.
func (s Site) node(c, node, part string) string {
	return filepath.Join(s.dir(c), "nodes", node, part)
}

// on is where this machine finds a file of a node that is on a disk.
func (s Site) on(c, node, path string) string { return filepath.Join(s.node(c, node, "root"), path) }

// Names lists the clusters there are, also those of which only parts are left.
func (s Site) Names() ([]string, error) {
	entries, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() && CheckName(e.Name()) == nil { // not what clusters share, nor a disk's lost+found
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// Load reads what was decided about a cluster.
func (s Site) Load(name string) (Cluster, error) {
	var c Cluster
	text, err := os.ReadFile(s.file(name, "cluster.json"))
	if errors.Is(err, fs.ErrNotExist) {
		names, _ := s.Names()
		switch {
		case slices.Contains(names, name):
			return c, unfinished(name)
		case len(names) == 0:
			return c, fmt.Errorf("there is no cluster %q, nor any other; make it with: podo cluster create --name %[1]s", name)
		}
		return c, fmt.Errorf("there is no cluster %q; there are: %s", name, strings.Join(names, ", "))
	}
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return c, fmt.Errorf("read %s: %w", s.file(name, "cluster.json"), err)
	}
	return c, nil
}

func unfinished(cluster string) error {
	return fmt.Errorf("cluster %s was never finished; remove it with: podo cluster delete --name %[1]s", cluster)
}

func (s Site) save(c Cluster) error { return c.write(s.dir(c.Name)) }

// write notes down in a folder what was decided about a cluster.
func (c Cluster) write(dir string) error {
	text, err := c.text()
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(dir, "cluster.json"), text, 0o600)
}

func (c Cluster) text() ([]byte, error) {
	text, err := json.MarshalIndent(c, "", "  ")
	return append(text, '\n'), err
}

// find returns a node by name.
func (c Cluster) find(name string) (Node, error) {
	for _, n := range c.Nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return Node{}, fmt.Errorf("cluster %s has no node %q; it has: %s", c.Name, name, strings.Join(c.names(), ", "))
}

func (c Cluster) names() []string {
	var out []string
	for _, n := range c.Nodes {
		out = append(out, n.Name)
	}
	return out
}

// etcd reports whether the control planes keep their state in etcd, which others can join.
func (c Cluster) etcd() bool { return c.servers()[0].Settings["cluster-init"] != nil }

// servers are the nodes that are control planes, the first one first.
func (c Cluster) servers() []Node {
	return slices.DeleteFunc(slices.Clone(c.Nodes), func(n Node) bool { return n.Role != ControlPlane })
}
