package local

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// patches are parts of kubeadm's objects that are to be laid over the defaults: for all
// nodes, or for one. podo has no kubeadm: what they say is turned into its own settings.
type patches struct {
	cluster *Cluster
	node    *Node
	first   bool // the node begins the cluster, where others join it
	whole   bool // they are said of all nodes
}

// extraArgs are flags of a component: a mapping, or a list of names and values, in which a
// name may be given more than once.
type extraArgs map[string][]string

func (e *extraArgs) UnmarshalYAML(n *yaml.Node) error {
	*e = extraArgs{}
	if n.Kind == yaml.MappingNode {
		var flags map[string]string
		err := n.Decode(&flags)
		for name, value := range flags {
			(*e)[name] = []string{value}
		}
		return err
	}
	var list []map[string]string
	if err := n.Decode(&list); err != nil {
		return err
	}
	for i, a := range list {
		name, value := a["name"], a["value"]
		if delete(a, "name"); name == "" {
			return fmt.Errorf("line %d: a flag without a name", n.Content[i].Line)
		}
		if delete(a, "value"); len(a) > 0 {
			return fmt.Errorf("line %d: a flag has name and value, and nothing else", n.Content[i].Line)
		}
		(*e)[name] = append((*e)[name], value)
	}
	return nil
}

type component struct {
	Args    extraArgs `yaml:"extraArgs"`
	Volumes volumes   `yaml:"extraVolumes"`
}

// volumes are files of the node that a component is shown. Here it runs on the node
// itself, and sees all of them where they are.
type volumes []struct {
	Name     string `yaml:"name"`
	Host     string `yaml:"hostPath"`
	Mount    string `yaml:"mountPath"`
	ReadOnly bool   `yaml:"readOnly"`
	Type     string `yaml:"pathType"`
}

func (v volumes) mistakes(at string) []error {
	var errs []error
	for i, one := range v {
		if one.Host != one.Mount {
			errs = append(errs, fmt.Errorf("%s.extraVolumes[%d].mountPath: %s: the component runs on the node itself, and sees %s there alone; write that in its extraArgs too", at, i, one.Mount, one.Host))
		}
	}
	return errs
}

type clusterConfiguration struct {
	Kind       string         `yaml:"kind"`
	APIVersion string         `yaml:"apiVersion"`
	Metadata   map[string]any `yaml:"metadata"`
	API        struct {
		Args    extraArgs `yaml:"extraArgs"`
		Volumes volumes   `yaml:"extraVolumes"`
		SANs    []string  `yaml:"certSANs"`
	} `yaml:"apiServer"`
	Controllers component `yaml:"controllerManager"`
	Scheduler   component `yaml:"scheduler"`
	Etcd        struct {
		Local struct {
			Args extraArgs `yaml:"extraArgs"`
		} `yaml:"local"`
	} `yaml:"etcd"`
	Networking struct {
		Domain string `yaml:"dnsDomain"`
	} `yaml:"networking"`
}

type nodeConfiguration struct {
	Kind         string         `yaml:"kind"`
	APIVersion   string         `yaml:"apiVersion"`
	Metadata     map[string]any `yaml:"metadata"`
	Registration struct {
		Name   string    `yaml:"name"`
		Args   extraArgs `yaml:"kubeletExtraArgs"`
		Taints *[]struct {
			Key    string `yaml:"key"`
			Value  string `yaml:"value"`
			Effect string `yaml:"effect"`
		} `yaml:"taints"`
	} `yaml:"nodeRegistration"`
}

type proxyConfiguration struct {
	Kind       string         `yaml:"kind"`
	APIVersion string         `yaml:"apiVersion"`
	Metadata   map[string]any `yaml:"metadata"`
	Mode       string         `yaml:"mode"`
	Metrics    string         `yaml:"metricsBindAddress"`
	Health     string         `yaml:"healthzBindAddress"`
	NodePorts  []string       `yaml:"nodePortAddresses"`
	Conntrack  struct {
		PerCore *int32 `yaml:"maxPerCore"`
		Min     *int32 `yaml:"min"`
	} `yaml:"conntrack"`
	Gates map[string]bool `yaml:"featureGates"`
}

// lay turns patches into settings. Every mistake is in the error, with its place.
func (p patches) lay(texts []string, at string) error {
	var errs []error
	for i, text := range texts {
		if err := p.one(text); err != nil {
			errs = append(errs, prefixed(err, fmt.Sprintf("%s[%d]", at, i))...)
		}
	}
	return unfit(errors.Join(errs...))
}

// prefixed puts a place before each of the errors that are joined in err.
func prefixed(err error, at string) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{fmt.Errorf("%s: %w", at, err)}
	}
	var list []error
	for _, e := range joined.Unwrap() {
		list = append(list, prefixed(e, at)...)
	}
	return list
}

// one lays the documents of a patch, one after the other.
func (p patches) one(text string) error {
	var errs []error
	read := yaml.NewDecoder(strings.NewReader(text))
	for some := false; ; {
		var doc yaml.Node
		switch err := read.Decode(&doc); {
		case errors.Is(err, io.EOF) && !some:
			return errors.New("is empty; leave it out")
		case errors.Is(err, io.EOF):
			return errors.Join(errs...)
		case err != nil:
			return errors.Join(append(errs, err)...)
		case doc.Content[0].Tag == "!!null": // nothing between two lines of dashes
			continue
		}
		some = true
		errs = append(errs, p.document(doc))
	}
}

func (p patches) document(doc yaml.Node) error {
	if doc.Content[0].Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: is none of kubeadm's objects, which begin with kind: and apiVersion:", doc.Content[0].Line)
	}
	var head struct {
		Kind       string `yaml:"kind"`
		APIVersion string `yaml:"apiVersion"`
	}
	if err := doc.Decode(&head); err != nil {
		return err
	}
	const kubeadm = "kubeadm.k8s.io"
	group, known := map[string]string{
		"ClusterConfiguration": kubeadm, "InitConfiguration": kubeadm, "JoinConfiguration": kubeadm,
		"KubeletConfiguration": "kubelet.config.k8s.io", "KubeProxyConfiguration": "kubeproxy.config.k8s.io",
	}[head.Kind]
	if known && head.APIVersion != "" && !strings.HasPrefix(head.APIVersion, group+"/") {
		return fmt.Errorf("apiVersion: %q is not of %s, which a %s is of; correct it, or leave it out", head.APIVersion, group, head.Kind)
	}
	switch head.Kind {
	case "ClusterConfiguration":
		var c clusterConfiguration
		return errors.Join(strictly(&doc, &c), p.components(c))
	case "InitConfiguration", "JoinConfiguration":
		var n nodeConfiguration
		err := strictly(&doc, &n)
		if p.first == (head.Kind == "InitConfiguration") {
			return errors.Join(err, p.register(n))
		}
		if !p.whole {
			err = errors.Join(err, fmt.Errorf("kind: %s: means nothing to this node: the first control plane has an InitConfiguration, all others a JoinConfiguration", head.Kind))
		}
		return err
	case "KubeletConfiguration":
		return p.kubelet(&doc)
	case "KubeProxyConfiguration":
		var c proxyConfiguration
		return errors.Join(strictly(&doc, &c), p.proxy(c))
	}
	return fmt.Errorf("kind: %q is none that podo knows: ClusterConfiguration, InitConfiguration, JoinConfiguration, KubeletConfiguration, KubeProxyConfiguration", head.Kind)
}

// strictly reads a document and refuses what it has beside the fields of into, which are
// not all that kubeadm has.
func strictly(doc *yaml.Node, into any) error {
	errs, _ := strict(doc, into, func(names []string) string {
		names = slices.DeleteFunc(slices.Clone(names), func(n string) bool {
			return slices.Contains([]string{"kind", "apiVersion", "metadata"}, n)
		})
		return "podo has no kubeadm, and cannot do what this says; of this object it reads " + strings.Join(names, ", ")
	})
	return errors.Join(errs...)
}

// components are flags of a control plane. They are the same on all servers, so that no
// patch of a single node may give them.
func (p patches) components(c clusterConfiguration) error {
	if !p.whole && !p.first {
		return errors.New("kind: ClusterConfiguration: belongs to the cluster, and not to one of its nodes; write it in the kubeadmConfigPatches at the top")
	}
	if !p.first {
		return nil // read once
	}
	if errs := slices.Concat(c.API.Volumes.mistakes("apiServer"), c.Controllers.Volumes.mistakes("controllerManager"), c.Scheduler.Volumes.mistakes("scheduler")); len(errs) > 0 {
		return errors.Join(errs...)
	}
	shared := p.cluster.Shared
	for _, part := range []struct {
		setting string
		args    extraArgs
	}{
		{"kube-apiserver-arg", c.API.Args}, {"kube-controller-manager-arg", c.Controllers.Args},
		{"kube-scheduler-arg", c.Scheduler.Args}, {"etcd-arg", c.Etcd.Local.Args},
	} {
		if err := p.flags(shared, part.setting, part.args); err != nil {
			return err
		}
	}
	if len(c.API.SANs) > 0 {
		shared.add("tls-san", c.API.SANs...)
	}
	if c.Networking.Domain != "" {
		shared["cluster-domain"] = c.Networking.Domain
	}
	return nil
}

// flags adds a component's flags to s. Those that speak for a whole process have settings
// of their own.
func (p patches) flags(s Settings, setting string, args extraArgs) error {
	for _, name := range slices.Sorted(maps.Keys(args)) {
		for _, value := range args[name] {
			if err := p.flag(s, setting, name, value); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p patches) flag(s Settings, setting, name, value string) error {
	switch name {
	case "feature-gates":
		for gate := range strings.SplitSeq(value, ",") {
			name, on, _ := strings.Cut(gate, "=")
			of := p.cluster.Common
			if setting == "kubelet-arg" {
				of = p.node.Settings
			}
			of.gate(strings.TrimSpace(name), strings.TrimSpace(on))
		}
	case "v":
		n, err := strconv.Atoi(value)
		if err != nil {
			return fmt.Errorf("extraArgs: v: %q is not a number", value)
		}
		if most, ok := s["v"].(int); !ok || n > most { // one process speaks for them all
			s["v"] = n
		}
	case "bind-address", "service-node-port-range":
		if setting == "kube-apiserver-arg" {
			s[name] = value // a setting of podo's by the same name
			return nil
		}
		s.add(setting, name+"="+value)
	case "vmodule":
		if others, _ := s[name].(string); others != "" {
			value = others + "," + value
		}
		s[name] = value
	case "resolv-conf", "protect-kernel-defaults", "image-credential-provider-bin-dir", "image-credential-provider-config":
		if setting == "kubelet-arg" {
			s[name] = value
			return nil
		}
		s.add(setting, name+"="+value)
	case "listen-metrics-urls":
		if setting != "etcd-arg" || !strings.Contains(value, "0.0.0.0") {
			s.add(setting, name+"="+value)
			return nil
		}
		s["etcd-expose-metrics"] = true
		s.add(setting) // asks for etcd all the same
	default:
		s.add(setting, name+"="+value)
	}
	return nil
}

// register is what a node registers itself with.
func (p patches) register(n nodeConfiguration) error {
	r, s := n.Registration, p.node.Settings
	if r.Name != "" {
		p.node.Name = r.Name
	}
	if r.Taints != nil {
		s["node-taint"] = []string{}
		for _, t := range *r.Taints {
			s.add("node-taint", fmt.Sprintf("%s=%s:%s", t.Key, t.Value, t.Effect))
		}
	}
	args := maps.Clone(r.Args)
	for flag, setting := range map[string]string{"node-labels": "node-label", "register-with-taints": "node-taint"} {
		for _, value := range args[flag] {
			if value != "" {
				s.add(setting, strings.Split(value, ",")...)
			}
		}
		delete(args, flag)
	}
	return p.flags(s, "kubelet-arg", args)
}

// kubelet keeps the object, over which the kubelet's own defaults are laid.
func (p patches) kubelet(doc *yaml.Node) error {
	own, more := map[string]any{}, map[string]any{}
	if err := yaml.Unmarshal([]byte(p.node.Kubelet), &own); err != nil {
		return err
	}
	if err := doc.Decode(&more); err != nil {
		return err
	}
	if gates, ok := more["featureGates"].(map[string]any); ok { // what is none is told with the rest
		for name, on := range gates {
			p.node.Settings.gate(name, fmt.Sprint(on))
		}
		delete(more, "featureGates")
	}
	delete(more, "metadata")
	overlay(own, more)
	own["apiVersion"] = "kubelet.config.k8s.io/v1beta1"
	text, err := yaml.Marshal(own)
	p.node.Kubelet = string(text)
	return err
}

// overlay lays one object over another. Lists are replaced.
func overlay(under, over map[string]any) {
	for name, value := range over {
		below, ok := under[name].(map[string]any)
		if more, is := value.(map[string]any); ok && is {
			overlay(below, more)
			continue
		}
		under[name] = value
	}
}

func (p patches) proxy(c proxyConfiguration) error {
	if !p.whole && !p.first {
		return errors.New("kind: KubeProxyConfiguration: belongs to the cluster, and not to one of its nodes; write it in the kubeadmConfigPatches at the top")
	}
	if !p.first {
		return nil // read once
	}
	if c.Mode == "none" {
		return errors.New("mode: none: is none of kube-proxy's; write kubeProxyMode: none below networking")
	}
	if err := hasProxy(c.Mode); err != nil {
		return fmt.Errorf("mode: %w", err)
	}
	s := p.cluster.Common
	number := func(n *int32) string {
		if n == nil {
			return ""
		}
		return strconv.Itoa(int(*n))
	}
	for _, f := range []struct{ name, value string }{
		{"proxy-mode", c.Mode}, {"metrics-bind-address", hostPort(c.Metrics, "10249")},
		{"healthz-bind-address", hostPort(c.Health, "10256")}, {"nodeport-addresses", strings.Join(c.NodePorts, ",")},
		{"conntrack-max-per-core", number(c.Conntrack.PerCore)}, {"conntrack-min", number(c.Conntrack.Min)},
	} {
		if f.value != "" {
			s.add("kube-proxy-arg", f.name+"="+f.value)
		}
	}
	for name, on := range c.Gates {
		s.gate(name, strconv.FormatBool(on))
	}
	return nil
}

// hostPort adds the usual port to an address that has none.
func hostPort(address, port string) string {
	if address == "" || strings.Count(address, ":") == 1 || strings.Contains(address, "]:") {
		return address
	}
	if strings.Contains(address, ":") {
		address = "[" + strings.Trim(address, "[]") + "]"
	}
	return address + ":" + port
}
