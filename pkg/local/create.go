package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/podo-dev/podo/pkg/datadir"
	"github.com/podo-dev/podo/pkg/paths"
)

// Options say how a cluster is made.
type Options struct {
	Wait   time.Duration // for nodes to be Ready; not at all if zero
	Retain bool          // leave what was made if it fails

	Registry     bool // give the cluster a registry of images
	RegistryPort int  // of the host's loopback; one that is free if zero

	Environ []string // of whoever makes it: nodes have its proxies

	Then func(Cluster) error // what belongs to a cluster that runs; if that fails, having done nothing, so has all of it
}

// ErrInterrupted means that somebody did not want to wait.
var ErrInterrupted = errors.New("interrupted")

// Create makes a cluster and starts it. What was made of one that fails is removed.
func (s Site) Create(ctx context.Context, name string, f File, o Options) (Cluster, error) {
	if err := CheckName(name); err != nil {
		return Cluster{}, Unfit{fmt.Errorf("name: %w", err)}
	}
	if err := hasFamily(f.Networking.Family, "/proc/sys/net/ipv6/conf/default/disable_ipv6"); err != nil {
		return Cluster{}, fmt.Errorf("networking.ipFamily: %w", err)
	}
	c, release, err := s.begin(ctx, name, f, o)
	if err != nil {
		return c, err
	}
	defer release()
	absent := c.absent()
	err = o.finish(ctx, c, s.make(ctx, c, o.Wait))
	if err == nil || o.Retain {
		return c, err
	}
	done := s.Step("Removing what was made")
	gone := s.remove(context.WithoutCancel(ctx), name)
	for _, dir := range absent {
		_ = os.Remove(dir) // unless something was put there
	}
	done(gone)
	return c, errors.Join(err, gone)
}

// finish does what belongs to a cluster that was made. Once that is done it is too late to
// interrupt: nothing takes it back.
func (o Options) finish(ctx context.Context, c Cluster, made error) error {
	if ctx.Err() != nil {
		return ErrInterrupted
	}
	if made != nil || o.Then == nil {
		return made
	}
	return o.Then(c)
}

// absent are the folders that extraMounts lead to and that are not there yet, each before
// the one that it is in.
func (c Cluster) absent() []string {
	var out []string
	for _, n := range c.Nodes {
		for _, m := range n.Mounts {
			for dir := m.From; ; dir = filepath.Dir(dir) {
				if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
					break
				}
				out = append(out, dir)
			}
		}
	}
	slices.SortFunc(out, func(a, b string) int { return len(b) - len(a) })
	return out
}

// begin decides about a cluster and takes its name, its network and its ports, one
// cluster at a time.
func (s Site) begin(ctx context.Context, name string, f File, o Options) (Cluster, func(), error) {
	var c Cluster
	all, err := s.holdAll(ctx)
	if err != nil {
		return c, nil, err
	}
	defer all()
	if _, err := os.Stat(s.dir(name)); !errors.Is(err, fs.ErrNotExist) {
		return c, nil, errors.Join(err, fmt.Errorf("there is a cluster %q already; remove it with: podo cluster delete --name %[1]s", name))
	}
	c, err = s.decide(name, f)
	c.Proxy = proxiesOf(o.Environ)
	if err == nil && o.Registry {
		var at netip.AddrPort
		at, err = listen(netip.AddrFrom4([4]byte{127, 0, 0, 1}), int32(o.RegistryPort), "tcp")
		if err != nil {
			err = fmt.Errorf("--registry-port: %w", err)
		}
		c.Registry = at.Port()
		err = errors.Join(err, c.apart(), c.uncovered())
	}
	if err == nil {
		err = s.promised(c)
	}
	if err == nil {
		err = roomy(s.Dir)
	}
	var release func()
	if err == nil {
		release, err = s.found(ctx, c)
	}
	if err != nil {
		_ = os.Remove(s.Dir) // which is empty if this is the first
	}
	return c, release, err
}

// hasFamily says why nodes could have no addresses of a family here: what a file of the
// kernel's says of new links is what those of a cluster get.
func hasFamily(family, disabled string) error {
	if family != "ipv6" && family != "dual" {
		return nil
	}
	switch text, err := os.ReadFile(disabled); {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: the kernel of this machine runs without IPv6; leave the line out for ipv4, or start it with IPv6", family)
	case err != nil:
		return err
	case strings.TrimSpace(string(text)) != "0":
		return fmt.Errorf("%s: IPv6 is off on this machine; leave the line out for ipv4, or type: sysctl -w net.ipv6.conf.all.disable_ipv6=0", family)
	}
	return nil
}

// found makes the folder of a cluster and locks it. It is given its name last, so that
// nobody finds it in part, and nobody can have its lock: who deletes a cluster has that and
// waits for the one of all.
func (s Site) found(ctx context.Context, c Cluster) (release func(), err error) {
	dir, err := os.MkdirTemp(s.Dir, ".new-")
	if err != nil {
		return nil, err
	}
	release, err = hold(ctx, dir)
	if err == nil {
		err = errors.Join(os.Mkdir(filepath.Join(dir, "nodes"), 0o700), c.write(dir))
		if err == nil {
			err = os.Rename(dir, s.dir(c.Name))
		}
		if err != nil {
			release()
		}
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return release, nil
}

// roomy says why nodes would take no pods on a disk. What a node asks for in its data
// directory is pkg/host's, and when it drives pods away pkg/kube/kubelet's.
func roomy(dir string) error {
	const (
		least = 512 << 20
		share = 20
	)
	free, total, err := datadir.Room(dir)
	if err == nil && free < max(least, total/share) {
		err = fmt.Errorf("%s has %d MiB free of %d, and nodes take no pods with less than 512 MiB or 5 %%: make room", dir, free>>20, total>>20)
	}
	return err
}

// holdOf locks a cluster's folder. One that is gone is no cluster.
func (s Site) holdOf(ctx context.Context, name string) (release func(), err error) {
	release, err = hold(ctx, s.dir(name))
	if errors.Is(err, fs.ErrNotExist) {
		if _, gone := s.Load(name); gone != nil {
			err = gone
		}
	}
	return release, err
}

// holdAll locks the folder of all clusters, and makes it if there is none. It goes with the
// last cluster, also while it is waited for.
func (s Site) holdAll(ctx context.Context) (release func(), err error) {
	for {
		if err := os.MkdirAll(s.Dir, 0o700); err != nil {
			return nil, err
		}
		release, err := hold(ctx, s.Dir)
		if !errors.Is(err, fs.ErrNotExist) || ctx.Err() != nil {
			return release, err
		}
	}
}

// hold locks a folder until release is called. One that somebody else has is waited for. If
// that one removed it, the error is fs.ErrNotExist: another of its name is another folder.
func hold(ctx context.Context, dir string) (release func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			release := func() {
				_ = unix.Flock(int(f.Fd()), unix.LOCK_UN) // a process that is being started may have the file too
				f.Close()
			}
			if err := leads(dir, f); err != nil {
				release()
				return nil, fmt.Errorf("lock %s: %w", dir, err)
			}
			return release, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || ctx.Err() != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, errors.Join(err, ctx.Err()))
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// leads says why a path is not that of an open file.
func leads(path string, f *os.File) error {
	now, err := os.Stat(path)
	if err != nil {
		return err
	}
	opened, err := f.Stat()
	if err == nil && !os.SameFile(now, opened) {
		err = fmt.Errorf("it was removed, and another has its name: %w", fs.ErrNotExist)
	}
	return err
}

// make takes a cluster from its decision to nodes that are Ready.
func (s Site) make(ctx context.Context, c Cluster, wait time.Duration) error {
	done := s.Step(fmt.Sprintf("Preparing %s", plural(len(c.Nodes), "node")))
	err := s.tools(ctx)
	if err == nil {
		err = s.each(c.Nodes, func(n Node) error { return s.prepare(ctx, c, n) })
	}
	done(err)
	if err != nil {
		return err
	}
	return s.up(ctx, c, wait)
}

// up starts a cluster whose files are there.
func (s Site) up(ctx context.Context, c Cluster, wait time.Duration) error {
	done := s.Step(fmt.Sprintf("Starting the control plane (%s)", strings.Join(texts(c.Ranges), ", ")))
	begins := c.servers()[0]
	err := c.raise(ctx)
	if err == nil {
		err = together(
			func() error { return s.open(ctx, c) },
			func() error { return s.each([]Node{begins}, func(n Node) error { return s.launch(ctx, c, n, "") }) })
	}
	if err == nil {
		err = s.answers(ctx, c, begins, patience)
	}
	if err == nil {
		err = s.announce(ctx, c)
	}
	done(err)
	if err != nil {
		return err
	}
	var rest []Node
	for _, n := range c.Nodes {
		if n.Name != begins.Name {
			rest = append(rest, n)
		}
	}
	if len(rest) > 0 {
		done = s.Step(fmt.Sprintf("Joining %s", plural(len(rest), "more node")))
		err = s.each(rest, func(n Node) error { return s.enlist(ctx, c, n) })
		done(err)
	}
	if err != nil {
		return err
	}
	return s.settle(ctx, c, c.Nodes, nil, wait)
}

// settle waits until nodes are Ready, or at least known: without podo's pod network they are
// Ready when somebody installs another. Woken is when nodes that were known before were
// turned on.
func (s Site) settle(ctx context.Context, c Cluster, list []Node, woken map[string]time.Time, wait time.Duration) error {
	who, what := "all nodes are", "Ready"
	if len(list) < len(c.Nodes) {
		who = "it is"
	}
	wanted := func(n *corev1.Node) bool { return isReady(n, woken[n.Name]) }
	if wait == 0 || c.Shared["flannel-backend"] == "none" {
		what, wait = "known to the API", max(wait, patience)
		wanted = func(*corev1.Node) bool { return true }
	}
	done := s.Step("Waiting until " + who + " " + what)
	err := s.await(ctx, c, list, what, wait, wanted)
	done(err)
	return err
}

// enlist starts a node with the token that lets it join.
func (s Site) enlist(ctx context.Context, c Cluster, n Node) error {
	file := paths.New(paths.DefaultData).AgentToken()
	if n.Role == ControlPlane {
		file = paths.New(paths.DefaultData).Token()
	}
	token, err := os.ReadFile(s.on(c.Name, s.gate(c).Name, file))
	if err != nil {
		return err
	}
	return s.launch(ctx, c, n, strings.TrimSpace(string(token)))
}

// launch starts a node for the first time.
func (s Site) launch(ctx context.Context, c Cluster, n Node, token string) error {
	if err := s.configure(c, n, token); err != nil {
		return err
	}
	return s.boot(c, n)
}
