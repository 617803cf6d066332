package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/machine"
	"github.com/podo-dev/podo/pkg/paths"
)

// AddNode adds a node to a running cluster.
func (s Site) AddNode(ctx context.Context, name string, f NodeFile, wait time.Duration) (Cluster, Node, error) {
	c, release, err := s.running(ctx, name)
	if err != nil {
		return c, Node{}, err
	}
	defer release()
	switch {
	case f.Role != Worker && f.Role != ControlPlane:
		return c, Node{}, Unfit{fmt.Errorf("--role: %q, want worker or control-plane", f.Role)}
	case f.Role == ControlPlane && len(s.away(c)) > 0:
		return c, Node{}, incomplete(c, s.away(c)[0], "takes no other")
	case f.Role == ControlPlane && !c.etcd():
		return c, Node{}, Unfit{fmt.Errorf("cluster %s was made with one control plane, which keeps its state in SQLite; a cluster that is made with two or more can have others added", name)}
	}
	n, err := s.newNode(c, f.Role)
	if err != nil {
		return c, n, err
	}
	if f.Role == ControlPlane && slices.ContainsFunc(c.Nodes, func(o Node) bool { return o.Role == Worker }) {
		n.Settings.add("node-taint", serverTaint)
	}
	if _, err := s.binary(f.Image); err != nil { // before equip, which would speak of a file
		return c, n, Unfit{fmt.Errorf("--image: %w", err)}
	}
	if err := s.equip(&n, f, c.Addr(n).Is6(), "node"); err != nil {
		return c, n, err
	}
	if err := (patches{cluster: &c, node: &n, whole: true}).lay(c.Patches, "kubeadmConfigPatches"); err != nil {
		return c, n, err
	}
	if slices.Contains(append(c.names(), c.Gone...), n.Name) {
		return c, n, Unfit{fmt.Errorf("the file that cluster %s was made of calls this node %s, as another is called or was; nodes can only be added where that does not name them", c.Name, n.Name)}
	}
	c.Nodes = append(c.Nodes, n)
	if err := errors.Join(s.verify(c, []Node{n}), c.cramped()); err != nil {
		return c, n, err
	}
	done := s.Step("Adding " + n.Name)
	err = s.add(ctx, c, n)
	if err == nil {
		err = s.stock(ctx, c, n)
	}
	done(err)
	if err == nil {
		err = s.settle(ctx, c, []Node{n}, nil, wait)
	}
	if err == nil {
		return c, n, nil
	}
	if ctx.Err() != nil {
		err = ErrInterrupted
	}
	_, e := s.drop(context.WithoutCancel(ctx), c, n)
	return c, n, errors.Join(err, e)
}

func (s Site) add(ctx context.Context, c Cluster, n Node) error {
	if err := s.save(c); err != nil {
		return err
	}
	if err := s.prepare(ctx, c, n); err != nil {
		return err
	}
	if err := s.acquaint(c); err != nil {
		return err
	}
	if err := s.enlist(ctx, c, n); err != nil || n.Role != ControlPlane {
		return err
	}
	return s.refer(ctx, c)
}

// acquaint tells the nodes that run of those there are.
func (s Site) acquaint(c Cluster) error {
	return s.each(c.Nodes, func(n Node) error {
		if s.seat(c.Name, n.Name).pid() == 0 {
			return nil
		}
		return s.introduce(c, n)
	})
}

// gate is the control plane that others join by, and that is asked for the cluster: the
// first one that runs.
func (s Site) gate(c Cluster) Node {
	servers := c.servers()
	for _, n := range servers {
		if s.seat(c.Name, n.Name).pid() != 0 {
			return n
		}
	}
	return servers[0]
}

// running loads and locks a cluster one of whose servers runs.
func (s Site) running(ctx context.Context, name string) (Cluster, func(), error) {
	c, err := s.Load(name)
	if err != nil {
		return c, nil, err
	}
	release, err := s.holdOf(ctx, name)
	if err != nil {
		return c, nil, err
	}
	if c, err = s.Load(name); err == nil {
		err = s.attentive(ctx, c)
	}
	if err != nil {
		release()
	}
	return c, release, err
}

// attentive says why a cluster does nothing that it is asked for now. The process that
// listens for it is started if it has ended.
func (s Site) attentive(ctx context.Context, c Cluster) error {
	gate := s.gate(c)
	if s.lives(c, gate) != nil {
		return fmt.Errorf("cluster %s does not run; start it with: podo cluster start --name %[1]s", c.Name)
	}
	if !s.Published(c) {
		if err := s.open(ctx, c); err != nil {
			return err
		}
	}
	err := s.answers(ctx, c, gate, attention)
	if err == nil {
		err = s.agrees(ctx, c)
	}
	if off := s.away(c); err != nil && len(off) > 0 {
		return fmt.Errorf("the control plane of cluster %s does not answer, and of its nodes these are off: %s; start them with: podo cluster start --name %[1]s", c.Name, strings.Join(off, ", "))
	}
	return err
}

// away are the control planes that do not run.
func (s Site) away(c Cluster) []string {
	var out []string
	for _, n := range c.servers() {
		if s.seat(c.Name, n.Name).pid() == 0 {
			out = append(out, n.Name)
		}
	}
	return out
}

// RemoveNode takes a node out of a cluster, and returns what is left of it. Unless forced,
// the node is drained first.
func (s Site) RemoveNode(ctx context.Context, name, node string, force bool) (Cluster, error) {
	c, release, err := s.running(ctx, name)
	if err != nil {
		return c, err
	}
	defer release()
	n, err := c.find(node)
	if err != nil {
		return c, err
	}
	if n.Role == ControlPlane && len(c.servers()) == 1 {
		return c, Unfit{fmt.Errorf("%s is the only control plane; remove the cluster with: podo cluster delete --name %s", node, name)}
	}
	if err := s.tools(ctx); err != nil {
		return c, err
	}
	others := slices.DeleteFunc(s.away(c), func(name string) bool { return name == node })
	if n.Role == ControlPlane && len(others) > 0 {
		return c, incomplete(c, others[0], "lets no other go")
	}
	cordoned := false
	if !force && s.seat(name, node).pid() != 0 { // of one that is off, the cluster lets go with its node
		done := s.Step("Moving the pods of " + node)
		cordoned, err = s.drain(ctx, c, n)
		if ctx.Err() != nil {
			err = ErrInterrupted
		}
		done(err)
	}
	if err == nil {
		done := s.Step("Removing " + node)
		c, err = s.drop(context.WithoutCancel(ctx), c, n) // half of it is nobody's wish
		done(err)
	}
	if err != nil && cordoned {
		err = errors.Join(err, s.uncordon(context.WithoutCancel(ctx), c, n))
	}
	return c, err
}

// incomplete says why etcd does not change its members now.
func incomplete(c Cluster, away, what string) error {
	return fmt.Errorf("control plane %s is off, and etcd %s until it is back or gone: podo cluster start --name %s, or podo cluster node remove --name %[3]s %[1]s", away, what, c.Name)
}

// drain has kubectl move a node's pods, which respects disruption budgets, and reports
// whether the node took pods until then.
func (s Site) drain(ctx context.Context, c Cluster, n Node) (cordoned bool, err error) {
	client, err := s.client(c)
	if err != nil {
		return false, err
	}
	before, err := client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil // somebody has removed it there already
	}
	if err != nil {
		return false, err
	}
	return !before.Spec.Unschedulable, s.evict(ctx, c, n)
}

// uncordon lets a node take pods again.
func (s Site) uncordon(ctx context.Context, c Cluster, n Node) error {
	client, err := s.client(c)
	if err != nil {
		return err
	}
	ctx, end := context.WithTimeout(ctx, 10*time.Second)
	defer end()
	_, err = client.CoreV1().Nodes().Patch(ctx, n.Name, types.MergePatchType, []byte(`{"spec":{"unschedulable":null}}`), metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func (s Site) evict(ctx context.Context, c Cluster, n Node) error {
	admin, err := s.Kubeconfig(c)
	if err != nil {
		return err
	}
	file := s.file(c.Name, "kubeconfig")
	if err := kubeconfig.Write(file, admin, kubeconfig.DefaultMode); err != nil {
		return err
	}
	drain := exec.CommandContext(ctx, filepath.Join(s.Programs(), "kubectl"), "--kubeconfig", file, "--cache-dir", s.file(c.Name, "cache"),
		"drain", n.Name, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=5m")
	drain.Env = environment() // so without proxies
	out, err := drain.CombinedOutput()
	if err != nil {
		return fmt.Errorf("drain %s: %w%s", n.Name, err, tail(string(out), 5))
	}
	return nil
}

// resign has etcd forget a control plane that is about to go: a member that never answers
// again would count as one that is away. One that stays is asked for that, for a while:
// others may just be starting.
func (s Site) resign(ctx context.Context, c Cluster, n Node) error {
	c.Nodes = slices.DeleteFunc(slices.Clone(c.Nodes), func(o Node) bool { return o.Name == n.Name })
	for end := time.Now().Add(30 * time.Second); ; {
		out, err := exec.CommandContext(ctx, s.Exe, "cluster", "node", "exec", "--name", c.Name, s.gate(c).Name, "--",
			filepath.Join(programs, "podo"), "etcd", "member-remove", n.Name).CombinedOutput()
		if err == nil || strings.Contains(string(out), "has no member") {
			return nil
		}
		if ctx.Err() != nil || time.Now().After(end) {
			return fmt.Errorf("remove %s from etcd: %w%s", n.Name, err, tail(string(out), 1))
		}
		time.Sleep(time.Second)
	}
}

// drop turns a node off and removes all of it.
func (s Site) drop(ctx context.Context, c Cluster, n Node) (Cluster, error) {
	if n.Role == ControlPlane {
		if err := s.resign(ctx, c, n); err != nil {
			return c, err
		}
	}
	if err := s.halt(ctx, c.Name, n.Name, unix.SIGKILL); err != nil {
		return c, err
	}
	client, err := s.client(c)
	if err == nil {
		err = client.CoreV1().Nodes().Delete(ctx, n.Name, metav1.DeleteOptions{})
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return c, fmt.Errorf("remove node %s from the cluster: %w", n.Name, err)
	}
	c.Nodes = slices.DeleteFunc(slices.Clone(c.Nodes), func(o Node) bool { return o.Name == n.Name })
	c.Gone = append(c.Gone, n.Name)
	if n.Settings["cluster-init"] != nil {
		c.servers()[0].Settings["cluster-init"] = true
	}
	if err := s.save(c); err != nil { // before its files go: without them it is no node that could be started
		return c, err
	}
	if err := os.RemoveAll(s.node(c.Name, n.Name, "")); err != nil {
		return c, err
	}
	if err := s.acquaint(c); err != nil {
		return c, err
	}
	switch {
	case len(n.Ports) > 0:
		return c, s.open(ctx, c)
	case n.Role == ControlPlane:
		return c, s.refer(ctx, c)
	}
	return c, nil
}

// Exec runs a program on a node, with the terminal, the input and the output of this
// process, and returns its *exec.ExitError.
func (s Site) Exec(c Cluster, node string, args []string) error {
	n, err := c.find(node)
	if err != nil {
		return err
	}
	pid := s.seat(c.Name, n.Name).pid()
	if pid == 0 {
		return off(c, node)
	}
	groups, err := machine.FindGroups()
	if err != nil {
		return err
	}
	var cmd *exec.Cmd
	err = groups.Enter(groupOf(c.Name)+"/"+n.Name, pid, func() error {
		path, err := lookPath(args[0])
		if err != nil {
			return err
		}
		cmd = &exec.Cmd{Path: path, Args: args, Env: append(slices.Concat(environment(), c.proxies()), "TERM=xterm"), Dir: "/root", Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
		return cmd.Start()
	})
	if err != nil {
		return fmt.Errorf("run %s on %s: %w", args[0], node, err)
	}
	return cmd.Wait()
}

// lookPath finds a program by the PATH of nodes.
func lookPath(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for dir := range strings.SplitSeq(strings.TrimPrefix(environment()[0], "PATH="), ":") {
		if path := filepath.Join(dir, name); unix.Access(path, unix.X_OK) == nil {
			return path, nil
		}
	}
	return "", exec.ErrNotFound
}

// ExportLogs copies what was logged on all nodes to a folder: a folder for each node, with
// what podo wrote and the logs of pods.
func (s Site) ExportLogs(ctx context.Context, c Cluster, dir string) error {
	shown := c
	shown.Proxy = nil // logs are shown to others, and there may be passwords in it
	text, err := shown.text()
	if err == nil {
		err = errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "cluster.json"), text, 0o644))
	}
	if err != nil {
		return err
	}
	if err := copyTo(filepath.Join(dir, "ports.log"), s.file(c.Name, "ports.log")); err != nil {
		return err
	}
	for _, n := range c.Nodes {
		to := filepath.Join(dir, n.Name)
		if err := copyTo(filepath.Join(to, "console.log"), s.node(c.Name, n.Name, "console")); err != nil {
			return err
		}
		if err := copyTo(filepath.Join(to, "podo.log"), s.on(c.Name, n.Name, podoLog)); err != nil {
			return err
		}
		pods := s.on(c.Name, n.Name, paths.PodLogs)
		err := filepath.WalkDir(pods, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // its pod went meanwhile, or there were none yet
			}
			if err != nil || !d.Type().IsRegular() || ctx.Err() != nil {
				return errors.Join(err, ctx.Err())
			}
			return copyTo(filepath.Join(to, "pods", strings.TrimPrefix(path, pods)), path)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// copyTo copies a file, if there is one.
func copyTo(to, from string) error {
	in, err := os.Open(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
