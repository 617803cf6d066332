package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/machine"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/payload"
)

// Where a node has its podo, and what podo writes.
const (
	programs = "/opt/podo/bin"
	podoLog  = "/var/log/podo.log"

	tokenFile   = paths.DefaultEtc + "/token"
	kubeletFile = paths.DefaultEtc + "/kubelet.yaml"
)

// KubeletArg is the flag by which the kubelet of a node has the KubeletConfiguration that
// Site.Judge is given.
const KubeletArg = "config=" + kubeletFile

// groupOf is the name of a cluster's control groups; those of nodes are below it.
func groupOf(cluster string) string { return "podo-cluster-" + cluster }

// prepare lays out the files of a new node: folders of its own, and what it can share with
// others because nobody changes it.
func (s Site) prepare(ctx context.Context, c Cluster, n Node) error {
	root := s.node(c.Name, n.Name, "root")
	for path, mode := range map[string]fs.FileMode{
		"etc/podo": 0o755, programs: 0o755, "var/log": 0o755, "var/lib": 0o755, "var/tmp": 0o777 | os.ModeSticky,
		"root": 0o700, "proc": 0o555, "sys": 0o555, "run": 0o755, "tmp": 0o777 | os.ModeSticky, "dev": 0o755,
		strings.TrimPrefix(paths.DefaultData, "/"): 0o755,
	} {
		dir := filepath.Join(root, path)
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.Chmod(dir, mode)); err != nil {
			return err
		}
	}
	id := sha256.Sum256(fmt.Append(nil, c.Name, n.Name, time.Now()))
	for path, text := range map[string]string{
		"etc/hostname":      n.Name + "\n",
		"etc/machine-id":    hex.EncodeToString(id[:16]) + "\n",
		"etc/passwd":        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
		"etc/group":         "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
		"etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
	} {
		if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := s.install(n.Podo, filepath.Join(root, programs)); err != nil {
		return err
	}
	// Unpacked once for all nodes that run this podo.
	return payload.Share(ctx, n.Podo, s.programs(), filepath.Join(root, paths.New(paths.DefaultData).Payload()))
}

// install gives a node its podo: a link, so that all nodes share its pages.
func (s Site) install(podo, dir string) error {
	at := filepath.Join(dir, "podo")
	err := os.Link(podo, at)
	if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EPERM) {
		var common string
		if common, err = s.copied(podo); err == nil {
			err = os.Link(common, at)
		}
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, name := range []string{"kubectl", "crictl", "ctr"} {
		if err := os.Symlink("podo", filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// copied is a copy of a podo that lies on the disk of the clusters.
func (s Site) copied(podo string) (string, error) {
	info, err := os.Stat(podo)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(s.Dir, ".podo")
	to := filepath.Join(dir, fmt.Sprintf("%d-%d", info.Size(), info.ModTime().UnixNano()))
	if _, err := os.Stat(to); err == nil {
		return to, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	text, err := os.ReadFile(podo)
	if err != nil {
		return "", err
	}
	return to, atomicfile.Write(to, text, 0o755, atomicfile.Unsynced())
}

// settings are what podo reads at its start on a node, which joins the others by gate.
func (c Cluster) settings(n, gate Node) Settings {
	all := Settings{"node-name": n.Name, "node-ip": texts(c.addrs(n))}
	maps.Copy(all, c.Common)
	if n.Role == ControlPlane {
		maps.Copy(all, c.Shared)
	}
	maps.Copy(all, n.Settings)
	if gates := c.gates(n); len(gates) > 0 {
		all["feature-gates"] = gates
	}
	if n.Name != c.servers()[0].Name {
		all["server"], all["token-file"] = "https://"+c.endpoint(gate), tokenFile
	}
	own, _ := all["kubelet-arg"].([]string)
	all["kubelet-arg"] = append([]string{KubeletArg}, own...)
	return all
}

// gates are those of a node: the cluster's, and over them its own.
func (c Cluster) gates(n Node) map[string]string {
	all := map[string]string{}
	for _, s := range []Settings{c.Common, n.Settings} {
		gates, _ := s["feature-gates"].(map[string]string)
		maps.Copy(all, gates)
	}
	return all
}

// kubelet is the KubeletConfiguration of a node. Unless the user says otherwise, an image
// that was loaded runs also after one of the same content was pulled from a registry,
// where Kubernetes 1.35 and later would ask that registry whether this pod may have it.
func (n Node) kubelet(gates map[string]string) (string, error) {
	all := map[string]any{"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration"}
	if on, err := strconv.ParseBool(gates["KubeletEnsureSecretPulledImages"]); on || err != nil { // else nobody asks
		all["imagePullCredentialsVerificationPolicy"] = "NeverVerify"
	}
	if err := yaml.Unmarshal([]byte(n.Kubelet), &all); err != nil {
		return "", err
	}
	text, err := yaml.Marshal(all)
	return string(text), err
}

// configure writes the settings of a node, and the token if it is to join others. That is
// beside them, so that they can be shown to anybody. A node that has settings has the rest.
func (s Site) configure(c Cluster, n Node, token string) error {
	text, err := yaml.Marshal(map[string]any(c.settings(n, s.gate(c))))
	if err != nil {
		return err
	}
	kubelet, err := n.kubelet(c.gates(n))
	if err != nil {
		return err
	}
	if err := s.trustRegistries(c, n); err != nil {
		return err
	}
	for _, f := range []struct {
		path, text string
		mode       fs.FileMode
	}{
		{kubeletFile, kubelet, 0o644}, {tokenFile, token, 0o600}, {paths.New(paths.DefaultData).ConfigFile(), string(text), 0o644},
	} {
		if f.text == "" {
			continue
		}
		if err := atomicfile.Write(s.on(c.Name, n.Name, f.path), []byte(f.text), f.mode); err != nil {
			return err
		}
	}
	return nil
}

// endpoint is where a server has its API.
func (c Cluster) endpoint(n Node) string { return fmt.Sprintf("%s:6443", bracketed(c.Addr(n))) }

// endpoints are where the API servers of a cluster are.
func (c Cluster) endpoints() []string {
	var out []string
	for _, n := range c.servers() {
		out = append(out, c.endpoint(n))
	}
	return out
}

// introduce tells a node the names of all, and who resolves others.
func (s Site) introduce(c Cluster, n Node) error {
	hosts := "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
	for _, other := range c.Nodes {
		for _, a := range c.addrs(other) {
			hosts += a.String() + " " + other.Name + "\n"
		}
	}
	resolver, err := resolver(c.Search, "/etc/resolv.conf", "/run/systemd/resolve/resolv.conf", "/run/NetworkManager/no-stub-resolv.conf")
	if err != nil {
		return err
	}
	for path, text := range map[string]string{"/etc/hosts": hosts, "/etc/resolv.conf": resolver} {
		if err := os.WriteFile(s.on(c.Name, n.Name, path), []byte(text), 0o644); err != nil { // in place: it may be mounted
			return err
		}
	}
	return nil
}

// resolver is the host's, without servers on loopback, which would mean the node's own.
// Forwarders there keep those that they ask in a file of their own: the first that names any
// counts. A list of domains to search takes the place of the host's, also an empty one.
func resolver(search []string, files ...string) (string, error) {
	var out, own string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		for line := range strings.Lines(string(text)) {
			words := strings.Fields(line)
			switch {
			case len(words) < 2:
			case words[0] == "nameserver" && !strings.HasPrefix(words[1], "127.") && words[1] != "::1":
				out += "nameserver " + words[1] + "\n"
			case words[0] == "options" || words[0] == "search" && search == nil:
				own += strings.Join(words, " ") + "\n"
			}
		}
		if out != "" {
			break
		}
		own = ""
	}
	if len(search) > 0 {
		own += "search " + strings.Join(search, " ") + "\n"
	}
	return out + own, nil
}

// spec is what a node's machine is like: the host's programs, read-only, and all else of
// its own.
func (s Site) spec(c Cluster, n Node, groups machine.Groups) (machine.Spec, error) {
	spec := machine.Spec{
		Name: n.Name, Root: s.node(c.Name, n.Name, "root"), Groups: groups, Links: map[string]string{},
		Args: []string{InitName, string(n.Role)}, Env: slices.Concat(environment(), c.proxies()),
	}
	bind := func(path string, flags uintptr) {
		spec.Mounts = append(spec.Mounts, machine.Mount{From: path, To: path, Flags: unix.MS_BIND | flags})
	}
	fresh := func(kind, to, data string, flags uintptr) {
		spec.Mounts = append(spec.Mounts, machine.Mount{From: kind, To: to, Kind: kind, Data: data, Flags: flags})
	}
	for _, path := range ofTheHost() {
		switch info, err := os.Lstat(path); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return spec, err
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return spec, err
			}
			spec.Links[path] = to
		default:
			bind(path, unix.MS_RDONLY)
		}
	}
	fresh("proc", "/proc", "", 0)
	fresh("sysfs", "/sys", "", 0)
	fresh("tmpfs", "/dev", "mode=755", unix.MS_NOSUID)
	fresh("devpts", "/dev/pts", "newinstance,ptmxmode=0666,mode=620,gid=5", unix.MS_NOSUID)
	fresh("tmpfs", "/dev/shm", "mode=1777", 0)
	fresh("mqueue", "/dev/mqueue", "", 0)
	fresh("tmpfs", "/run", "mode=755", 0)
	fresh("tmpfs", "/tmp", "mode=1777", 0)
	devices := []string{"null", "zero", "full", "random", "urandom", "tty", "kmsg", "fuse", "net/tun", "loop-control"}
	loops, _ := filepath.Glob("/dev/loop[0-9]*")
	for _, loop := range loops {
		devices = append(devices, filepath.Base(loop))
	}
	for _, device := range devices {
		if _, err := os.Stat("/dev/" + device); err == nil {
			bind("/dev/"+device, 0)
		}
	}
	maps.Copy(spec.Links, map[string]string{
		"/dev/ptmx": "pts/ptmx", "/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	})
	mounts := slices.Clone(n.Mounts)
	for _, m := range mounts {
		delete(spec.Links, m.To)
	}
	for i, m := range mounts {
		mounts[i].To = behind(spec.Links, c.hostsAt(m.To))
	}
	slices.SortStableFunc(mounts, func(a, b Mount) int { // one below another is seen in it
		return strings.Count(a.To, "/") - strings.Count(b.To, "/")
	})
	for _, m := range mounts {
		mount := machine.Mount{From: m.From, To: m.To, Flags: unix.MS_BIND, Follow: m.Follow}
		if m.ReadOnly {
			mount.Flags |= unix.MS_RDONLY
		}
		if m.Follow == 0 {
			mount.Flags |= unix.MS_REC
		}
		if _, err := os.Stat(m.From); errors.Is(err, fs.ErrNotExist) {
			if err := os.MkdirAll(m.From, 0o755); err != nil { // as docker does, and so kind
				return spec, err
			}
		}
		spec.Mounts = append(spec.Mounts, mount)
	}
	return spec, nil
}

// behind is where a path leads by links of a node, which are made when all is mounted.
func behind(links map[string]string, path string) string {
	for from, to := range links {
		if below, ok := strings.CutPrefix(path, from+"/"); ok {
			if !filepath.IsAbs(to) {
				to = filepath.Join(filepath.Dir(from), to)
			}
			return behind(links, filepath.Join(to, below))
		}
	}
	return path
}

// ofTheHost is what nodes have of this machine, read-only: its programs, and what these
// cannot do without.
func ofTheHost() []string {
	return []string{
		"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix", "/etc/ssl", "/etc/pki", "/etc/ca-certificates",
		"/etc/alternatives", "/etc/ld.so.cache", "/etc/localtime", "/etc/os-release", "/etc/protocols", "/etc/services",
	}
}

// readOnly is the folder of this machine's that a path of a node lies in, if nothing can be
// mounted there because it does not exist.
func readOnly(path string) string {
	path = filepath.Clean(path)
	if _, err := os.Stat(path); err == nil {
		return ""
	}
	for _, dir := range ofTheHost() {
		if _, err := os.Stat(dir); err == nil && strings.HasPrefix(path, dir+"/") {
			return dir
		}
	}
	return ""
}

// environment is that of the processes of a node, but for proxies.
func environment() []string {
	return []string{"PATH=" + programs + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
}

func (s Site) seat(c, node string) seat { return seat(s.node(c, node, "pid")) }

// boot turns a node on, and returns when its machine stands.
func (s Site) boot(c Cluster, n Node) error {
	if err := s.introduce(c, n); err != nil {
		return err
	}
	held, err := s.seat(c.Name, n.Name).take()
	if err != nil {
		return fmt.Errorf("it runs already: %w", err)
	}
	defer held.Close()
	groups, err := machine.FindGroups()
	if err != nil {
		return err
	}
	// The others of a machine that was killed end a moment after its first process.
	for end := time.Now().Add(5 * time.Second); len(groups.Processes(groupOf(c.Name)+"/"+n.Name)) > 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("%s runs, and the file that says so is gone (%s); end it with: podo cluster stop --name %s", n.Name, s.seat(c.Name, n.Name), c.Name)
		}
	}
	spec, err := s.spec(c, n, groups)
	if err != nil {
		return err
	}
	console, err := os.OpenFile(s.node(c.Name, n.Name, "console"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer console.Close()
	ours, theirs, err := machine.Line()
	if err != nil {
		return err
	}
	defer ours.Close()
	defer theirs.Close()
	init := machine.First([]string{MachineName}, theirs, held)
	init.Stdout, init.Stderr, init.Env = console, console, environment()
	if err := init.Start(); err != nil {
		return fmt.Errorf("start its machine: %w", err)
	}
	theirs.Close()
	err = errors.Join(note(held, init.Process.Pid), groups.Join(groupOf(c.Name)+"/"+n.Name, init.Process.Pid))
	if err == nil {
		err = c.connect(n, init.Process.Pid)
	}
	if err == nil {
		err = spec.Tell(ours)
	}
	if err == nil {
		err = stands(ours)
	}
	if err != nil {
		_ = init.Process.Kill()
		_ = init.Wait()
		said, _ := os.ReadFile(s.node(c.Name, n.Name, "console"))
		return fmt.Errorf("start its machine: %w%s", err, tail(string(said), 5))
	}
	return init.Process.Release()
}

// stands waits until the first process of a machine says that it is one.
func stands(line *os.File) error {
	if err := unix.SetsockoptTimeval(int(line.Fd()), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30}); err != nil {
		return err
	}
	if n, err := line.Read(make([]byte, 16)); err != nil || n == 0 {
		return errors.Join(errors.New("its first process ended"), err)
	}
	return nil
}

// halt turns a node off, with some time for its pods to end if it has one, and takes what
// is left of its control groups.
func (s Site) halt(ctx context.Context, c, node string, signal unix.Signal) error {
	patience := 10 * time.Second
	if signal != unix.SIGKILL {
		patience = time.Minute
	}
	if err := s.seat(c, node).end(ctx, signal, patience); err != nil {
		return fmt.Errorf("stop its machine: %w", err)
	}
	groups, err := machine.FindGroups()
	if err != nil {
		return err
	}
	return groups.End(groupOf(c) + "/" + node)
}

// tail is the last lines of a text, each on a line of its own.
func tail(text string, most int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	out := ""
	for _, l := range lines[max(0, len(lines)-most):] {
		if l != "" {
			out += "\n  " + l
		}
	}
	return out
}
