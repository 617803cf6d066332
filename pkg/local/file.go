package local

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/podo-dev/podo/pkg/config"
)

// kind's name for its files, which ours are.
const (
	fileKind    = "Cluster"
	fileVersion = "kind.x-k8s.io/v1alpha4"
)

// A File is what a person says a cluster is to be: kind's own format.
type File struct {
	Kind       string `yaml:"kind"`
	APIVersion string `yaml:"apiVersion"`
	Name       string `yaml:"name"`

	Nodes         []NodeFile        `yaml:"nodes"`
	Networking    Networking        `yaml:"networking"`
	FeatureGates  map[string]bool   `yaml:"featureGates"`
	RuntimeConfig map[string]string `yaml:"runtimeConfig"`

	KubeadmPatches    []string    `yaml:"kubeadmConfigPatches"`
	KubeadmJSON       []JSONPatch `yaml:"kubeadmConfigPatchesJSON6902"`
	ContainerdPatches []string    `yaml:"containerdConfigPatches"`
	ContainerdJSON    []string    `yaml:"containerdConfigPatchesJSON6902"`
}

// A NodeFile is one node of a File.
type NodeFile struct {
	Role   Role              `yaml:"role"`
	Image  string            `yaml:"image"`
	Labels map[string]string `yaml:"labels"`
	Mounts []MountFile       `yaml:"extraMounts"`
	Ports  []PortFile        `yaml:"extraPortMappings"`

	KubeadmPatches []string    `yaml:"kubeadmConfigPatches"`
	KubeadmJSON    []JSONPatch `yaml:"kubeadmConfigPatchesJSON6902"`
}

// A Role is what a node does.
type Role string

// The roles there are.
const (
	ControlPlane Role = "control-plane"
	Worker       Role = "worker"
)

// A MountFile shows a file or a folder of the host on a node.
type MountFile struct {
	Container   string `yaml:"containerPath"`
	Host        string `yaml:"hostPath"`
	ReadOnly    bool   `yaml:"readOnly"`
	Relabel     bool   `yaml:"selinuxRelabel"`
	Propagation string `yaml:"propagation"`
}

// A PortFile has the host listen for a port of a node.
type PortFile struct {
	Container int32  `yaml:"containerPort"`
	Host      int32  `yaml:"hostPort"`
	Address   string `yaml:"listenAddress"`
	Protocol  string `yaml:"protocol"`
}

// Networking is the shape of the cluster's network.
type Networking struct {
	Family        string   `yaml:"ipFamily"`
	APIPort       int32    `yaml:"apiServerPort"`
	APIAddress    string   `yaml:"apiServerAddress"`
	PodSubnet     string   `yaml:"podSubnet"`
	ServiceSubnet string   `yaml:"serviceSubnet"`
	NoCNI         bool     `yaml:"disableDefaultCNI"`
	ProxyMode     string   `yaml:"kubeProxyMode"`
	DNSSearch     []string `yaml:"dnsSearch"`
}

// A JSONPatch is a change to one of kubeadm's objects, by RFC 6902.
type JSONPatch struct {
	Group   string `yaml:"group"`
	Version string `yaml:"version"`
	Kind    string `yaml:"kind"`
	Patch   string `yaml:"patch"`
}

// Unfit is what was asked for and can never be.
type Unfit struct{ Err error }

func (u Unfit) Error() string { return u.Err.Error() }
func (u Unfit) Unwrap() error { return u.Err }

// unfit makes an error one that can never be otherwise.
func unfit(err error) error {
	if err == nil {
		return nil
	}
	return Unfit{err}
}

// ReadFile reads a cluster's file; "-" is in. No name is a cluster of one node.
func ReadFile(path string, in io.Reader) (File, error) {
	var text []byte
	var err error
	switch path {
	case "":
		return File{Kind: fileKind, APIVersion: fileVersion}, nil
	case "-":
		text, err = io.ReadAll(in)
	default:
		text, err = os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			err = Unfit{fmt.Errorf("--config: there is no file %s", path)}
		}
	}
	if err != nil {
		return File{}, err
	}
	return Parse(path, text)
}

// Parse reads a file strictly. All that is no part of the format is in the error.
func Parse(path string, text []byte) (File, error) {
	var f File
	var doc, more yaml.Node
	docs := yaml.NewDecoder(bytes.NewReader(text))
	if err := docs.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return f, Unfit{fmt.Errorf("%s: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))}
	}
	if err := docs.Decode(&more); !errors.Is(err, io.EOF) {
		return f, Unfit{fmt.Errorf("%s: line %d: another document begins; a file holds one cluster", path, max(more.Line-1, 1))}
	}
	if len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return f, Unfit{fmt.Errorf("%s: it is not a mapping; it begins with kind: %s and apiVersion: %s", path, fileKind, fileVersion)}
	}
	errs, read := strict(&doc, &f, noSuchField)
	if read {
		if f.Kind != fileKind {
			errs = append(errs, fmt.Errorf("kind: %q, want %s", f.Kind, fileKind))
		}
		if f.APIVersion != fileVersion {
			errs = append(errs, fmt.Errorf("apiVersion: %q, want %s", f.APIVersion, fileVersion))
		}
		errs = append(errs, f.mistakes()...)
	}
	for i, e := range errs {
		errs[i] = fmt.Errorf("%s: %w", path, e)
	}
	return f, unfit(errors.Join(errs...))
}

// strict decodes a document, and lists its keys that into has no field for, as why tells,
// and the values that are of another type, in words for people: yaml's speak of Go's types.
// Read is whether anything was.
func strict(doc *yaml.Node, into any, why func(names []string) string) (errs []error, read bool) {
	var types *yaml.TypeError
	err := doc.Decode(into)
	if err != nil && !errors.As(err, &types) {
		return []error{err}, false // as of a mapping that contains itself
	}
	errs = unknown(doc.Content[0], reflect.TypeOf(into).Elem(), "", why)
	if err == nil {
		return errs, true
	}
	odd := regexp.MustCompile("^(line \\d+): cannot unmarshal !!\\w+ (`[^`]*` )?into (.*)$")
	for _, text := range types.Errors {
		if m := odd.FindStringSubmatch(text); m != nil {
			value := strings.Trim(strings.TrimSpace(m[2]), "`")
			if value != "" {
				value = fmt.Sprintf(" %q is none", value)
			}
			text = fmt.Sprintf("%s: want %s;%s", m[1], wordFor(m[3]), value)
		}
		errs = append(errs, errors.New(strings.TrimSuffix(text, ";")))
	}
	return errs, true
}

// wordFor is what people call a type.
func wordFor(t string) string {
	switch {
	case t == "bool":
		return "true or false"
	case strings.HasPrefix(t, "int"), strings.HasPrefix(t, "uint"):
		return "a number"
	case strings.HasPrefix(t, "[]"):
		return "a list"
	case t == "string", t == "local.Role":
		return "a text"
	}
	return "a mapping"
}

// noSuchField is what unknown says of a key of a cluster's file.
func noSuchField([]string) string { return "there is no such field" }

// unknown lists the keys of a document that a type has no field for. Why says so, and is
// told which fields there are.
func unknown(n *yaml.Node, t reflect.Type, path string, why func(names []string) string) []error {
	var errs []error
	switch {
	case n.Kind == yaml.AliasNode:
		return unknown(n.Alias, t, path, why)
	case n.Kind == yaml.SequenceNode && t.Kind() == reflect.Slice:
		for i, below := range n.Content {
			errs = append(errs, unknown(below, t.Elem(), fmt.Sprintf("%s[%d]", path, i), why)...)
		}
	case n.Kind == yaml.MappingNode && t.Kind() == reflect.Struct:
		fields := map[string]reflect.Type{}
		var names []string
		for i := range t.NumField() {
			name := t.Field(i).Tag.Get("yaml")
			fields[name], names = t.Field(i).Type, append(names, name)
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			if key.Tag == "!!merge" {
				errs = append(errs, merged(n.Content[i+1], t, path, why)...)
				continue
			}
			at := strings.TrimPrefix(path+"."+key.Value, ".")
			below, ok := fields[key.Value]
			if ok {
				errs = append(errs, unknown(n.Content[i+1], below, at, why)...)
				continue
			}
			text := fmt.Sprintf("line %d: %s: %s", key.Line, at, why(names))
			if near := config.Closest(key.Value, names); near != "" {
				text += "; did you mean " + near + "?"
			}
			errs = append(errs, errors.New(text))
		}
	}
	return errs
}

// merged is unknown for what a mapping takes over from others.
func merged(n *yaml.Node, t reflect.Type, path string, why func(names []string) string) []error {
	if n.Kind != yaml.SequenceNode {
		return unknown(n, t, path, why)
	}
	var errs []error
	for _, one := range n.Content {
		errs = append(errs, unknown(one, t, path, why)...)
	}
	return errs
}

// mistakes are those that the file shows by itself, and what podo has no way to do.
func (f File) mistakes() []error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if f.Name != "" {
		if err := CheckName(f.Name); err != nil {
			bad("name: %w", err)
		}
	}
	if len(f.KubeadmJSON) > 0 {
		bad("kubeadmConfigPatchesJSON6902: podo has no kubeadm, and only reads patches that are parts of its objects; write them as kubeadmConfigPatches")
	}
	if len(f.ContainerdJSON) > 0 {
		bad("containerdConfigPatchesJSON6902: podo reads registries from containerdConfigPatches alone")
	}
	if len(f.Networking.DNSSearch) > 0 {
		for _, s := range f.Networking.DNSSearch {
			if s == "" || strings.ContainsAny(s, " \t\n") {
				bad("networking.dnsSearch: %q is not a domain", s)
			}
		}
	}
	servers := 0
	for i, n := range f.Nodes {
		at := fmt.Sprintf("nodes[%d]", i)
		switch n.Role {
		case ControlPlane, "":
			servers++
		case Worker:
		default:
			bad("%s.role: %q, want control-plane or worker", at, n.Role)
		}
		if len(n.KubeadmJSON) > 0 {
			bad("%s.kubeadmConfigPatchesJSON6902: podo has no kubeadm; write them as kubeadmConfigPatches", at)
		}
		for j, m := range n.Mounts {
			at := fmt.Sprintf("%s.extraMounts[%d]", at, j)
			if !strings.HasPrefix(m.Container, "/") {
				bad("%s.containerPath: %q is not an absolute path", at, m.Container)
			} else if isNodesOwn(m.Container) {
				bad("%s.containerPath: %s is what makes the node a machine, and cannot be covered; choose another path", at, m.Container)
			}
			if m.Host == "" {
				bad("%s.hostPath: is missing", at)
			}
			if m.Relabel {
				bad("%s.selinuxRelabel: podo does not label files; leave it out", at)
			}
			if _, ok := propagation(m.Propagation); !ok {
				bad("%s.propagation: %q, want None, HostToContainer or Bidirectional", at, m.Propagation)
			}
		}
		for j, p := range n.Ports {
			errs = append(errs, p.mistakes(fmt.Sprintf("%s.extraPortMappings[%d]", at, j))...)
		}
	}
	if len(f.Nodes) > 0 && servers == 0 {
		bad("nodes: none has the role control-plane")
	}
	return append(errs, f.Networking.mistakes()...)
}

// isNodesOwn reports whether a path is one that podo needs as it is.
func isNodesOwn(path string) bool {
	path = filepath.Clean(path)
	return slices.Contains([]string{"/", "/dev", "/etc", "/etc/podo", "/opt", "/opt/podo", "/opt/podo/bin", "/proc", "/run", "/sys", "/var", "/var/lib", "/var/lib/podo"}, path) ||
		strings.HasPrefix(path, "/proc/") || !strings.HasPrefix(path, "/etc/") && slices.Contains(ofTheHost(), path)
}

func (p PortFile) mistakes(at string) []error {
	var errs []error
	if p.Container == 0 {
		errs = append(errs, fmt.Errorf("%s.containerPort: is missing", at))
	} else if p.Container < 0 || p.Container > 65535 {
		errs = append(errs, fmt.Errorf("%s.containerPort: %d is no port", at, p.Container))
	}
	if p.Host < -1 || p.Host > 65535 {
		errs = append(errs, fmt.Errorf("%s.hostPort: %d is no port", at, p.Host))
	}
	if p.Address != "" {
		if _, err := parseAddr(p.Address); err != nil {
			errs = append(errs, fmt.Errorf("%s.listenAddress: %w", at, err))
		}
	}
	switch strings.ToUpper(p.Protocol) {
	case "", "TCP", "UDP":
	case "SCTP":
		errs = append(errs, fmt.Errorf("%s.protocol: SCTP: podo passes on TCP and UDP; reach the port at the node's own address", at))
	default:
		errs = append(errs, fmt.Errorf("%s.protocol: %q, want TCP or UDP", at, p.Protocol))
	}
	return errs
}

func (n Networking) mistakes() []error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("networking."+format, args...)) }
	if !slices.Contains([]string{"", "ipv4", "ipv6", "dual"}, n.Family) {
		bad("ipFamily: %q, want ipv4, ipv6 or dual", n.Family)
	}
	if n.APIPort < -1 || n.APIPort > 65535 {
		bad("apiServerPort: %d is no port", n.APIPort)
	}
	if n.APIAddress != "" {
		if _, err := parseAddr(n.APIAddress); err != nil {
			bad("apiServerAddress: %w", err)
		}
	}
	if err := hasProxy(n.ProxyMode); err != nil {
		bad("kubeProxyMode: %w", err)
	}
	pods, err := subnets(n.PodSubnet)
	if err != nil {
		bad("podSubnet: %w", err)
	}
	services, err := subnets(n.ServiceSubnet)
	if err != nil {
		bad("serviceSubnet: %w", err)
	}
	for _, p := range pods {
		for _, s := range services {
			if p.Overlaps(s) {
				bad("serviceSubnet: %s overlaps with podSubnet %s", s, p)
			}
		}
	}
	return errs
}
