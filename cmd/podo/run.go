package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/agent"
	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/datadir"
	"github.com/podo-dev/podo/pkg/gate"
	"github.com/podo-dev/podo/pkg/host"
	"github.com/podo-dev/podo/pkg/join"
	"github.com/podo-dev/podo/pkg/kube"
	"github.com/podo-dev/podo/pkg/kube/kubelet"
	"github.com/podo-dev/podo/pkg/kube/lease"
	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/process"
	"github.com/podo-dev/podo/pkg/server"
	"github.com/podo-dev/podo/pkg/status"
	"github.com/podo-dev/podo/pkg/storage/etcd"
	"github.com/podo-dev/podo/pkg/storage/external"
	"github.com/podo-dev/podo/pkg/version"
)

// A start is one run of podo, as a server or as an agent, from its settings on.
type start struct {
	cfg    config.Node
	where  paths.Paths
	exe    string
	began  time.Time
	log    *slog.Logger
	told   *steps
	notify notifier
	end    func(cause error) // ends ctx: a part has failed
	over   chan struct{}     // closed when the last part that a start waits for is ready
	ending *kubelet.Ending
}

// launch does what every start begins with, and then the rest. The context that it
// passes on ends when podo is told to stop, or when a part of it fails.
func launch(c *cli.Context, cfg config.Node, rest func(context.Context, start) error) error {
	notify := takeNotifier()
	usualMask()
	if os.Geteuid() != 0 {
		return fmt.Errorf("%[1]s: must be run as root, since it mounts, routes and starts containers; try: sudo podo %[1]s", c.Command.Name)
	}
	if err := process.KeepFiles(); err != nil {
		return err
	}
	life, end := context.WithCancelCause(c.Context)
	defer end(nil)
	log, closer, err := openLog(life, cfg.Logging, func(reason string) { end(fatal{reason}) })
	if err != nil {
		return err
	}
	defer closer.Close()
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	where, began := paths.New(cfg.DataDir), time.Now()
	// kube-proxy, the CNI plugins and we ourselves call nft, which is in the payload.
	if err := os.Setenv("PATH", where.Bin()+":"+os.Getenv("PATH")); err != nil {
		return err
	}
	preferMemory()
	return rest(life, start{
		cfg: cfg, where: where, exe: exe, began: began, log: log, notify: notify, end: end, over: make(chan struct{}), ending: &kubelet.Ending{},
		told: teller(os.Stderr, began, cfg.Logging, log),
	})
}

// usualMask is for what runs a node. containerd gives every pod a resolv.conf, and kubelet a
// file of hosts, that are to be readable to whoever the pod runs as: with the umask of a
// shell that keeps files to itself, only root's pods could resolve names.
func usualMask() { unix.Umask(0o022) }

// group is what the parts are added to, and the gate that their clients dial through.
// It sets Kubernetes' globals. An error means that a feature gate is wrong.
func (s start) group(ctx context.Context, gates map[string]bool) (*lifecycle.Group, *gate.Gate, error) {
	g, doors := lifecycle.NewGroup(s.log), gate.New()
	stopping, err := kube.Prepare(gates, os.Exit)
	if err != nil {
		return g, doors, err
	}
	context.AfterFunc(ctx, stopping)
	context.AfterFunc(ctx, doors.Abandon) // a part that waits for the API would wait for ever
	return g, doors, nil
}

// run runs g until it has stopped, and returns why if nobody asked it to. What a new
// start would mend is mended by one, in this very process, as nobody else may be there
// to start podo again.
func (s start) run(ctx context.Context, g *lifecycle.Group, ips []netip.Addr, report func(context.Context) status.Report, t tale) error {
	if len(s.cfg.IP) == 0 { // an address that was asked for is not given up
		g.Add(host.Stays(ips))
	}
	g.Add(status.Serve(s.where.Socket("podo"), report, s.ending.End, s.log))
	var once sync.Once
	tell := t.progress(s.told, s.notify)
	g.Observe = func(st lifecycle.Status) {
		if st.State == lifecycle.Failed {
			s.end(nil) // before the others have stopped
		}
		if st.State == lifecycle.Ready && st.Name == t.last {
			once.Do(func() {
				close(s.over)
				time.AfterFunc(settled, giveBack)
			})
		}
		tell(st)
	}
	err := g.Run(ctx)
	if errors.Is(err, host.ErrMoved) || errors.Is(err, lease.ErrLost) {
		return s.again(err)
	}
	out := errors.Is(err, etcd.ErrRemoved) && s.cfg.Join.Server == "" // with a server, the next start joins anew
	_, refused := errors.AsType[*join.Refusal](err)
	if out || refused || errors.Is(err, server.ErrUnfit) || errors.Is(err, external.ErrRefused) {
		return usageError{err}
	}
	if err != nil {
		return err
	}
	if why, ok := errors.AsType[fatal](context.Cause(ctx)); ok {
		return why
	}
	return nil
}

// again replaces this process by a new one that was started in the same way.
func (s start) again(why error) error {
	fmt.Fprintln(os.Stderr, complaint(why, isJournal(os.Stderr, os.Getenv("JOURNAL_STREAM"))))
	env := os.Environ()
	if s.notify != "" {
		env = append(env, "NOTIFY_SOCKET="+string(s.notify))
	}
	return errors.Join(why, unix.Exec(s.exe, os.Args, env))
}

// report is what podo status tells of any start.
func (s start) report(g *lifecycle.Group) status.Report {
	return status.Report{
		Version: version.Podo(), Kubernetes: version.Kubernetes(), PID: os.Getpid(), Since: s.began,
		DataDir: s.cfg.DataDir, Components: g.Status(),
	}
}

// nodeStatus is a node as the cluster sees it.
func nodeStatus(ctx context.Context, kubeconfigFile, name string) *status.Node {
	client, err := kubeconfig.Clientset(kubeconfigFile, nil)
	if err == nil {
		err = agent.Condition(ctx, client, name)
	}
	if err != nil {
		return &status.Node{Name: name, Reason: err.Error()}
	}
	return &status.Node{Name: name, Ready: true}
}

// remember notes where the data is. It is for a later podo uninstall alone, so a start does
// without where the note cannot be written.
func (s start) remember(claim *datadir.Claim) {
	if err := claim.Remember(); err != nil {
		s.log.Warn("podo uninstall will have to be told the data directory", "path", s.where.Data, "err", err)
	}
}

// settle does, once a start is over, what later ones rely on. The next tries again.
func (s start) settle(ctx context.Context, claim *datadir.Claim) {
	select {
	case <-ctx.Done():
	case <-s.over:
		if err := errors.Join(claim.KeepDatastore(), claim.Reserve()); err != nil {
			s.log.Warn("data directory is not as a later start would like it", "path", s.where.Data, "err", err)
		}
	}
}

// fatal is why a library wanted to end the process.
type fatal struct{ reason string }

func (f fatal) Error() string { return f.reason }

// unfit tells a data directory that can never do from one that cannot at the moment.
func unfit(err error) error {
	for _, never := range []error{datadir.ErrNewer, datadir.ErrShape, datadir.ErrRole, datadir.ErrForeign} {
		if errors.Is(err, never) {
			return usageError{err}
		}
	}
	return err
}

// nodeName is the name that was asked for, or the one that this machine had before: a
// host that is renamed stays the node that it was. It is empty before the first start.
func nodeName(p paths.Paths, cfg config.Node) (string, error) {
	if cfg.Name != "" {
		return cfg.Name, nil
	}
	return datadir.NodeName(p)
}

// look reads the machine and judges it as it is.
func look(ctx context.Context, dataDir string, settings host.Settings) (host.Facts, error) {
	facts, err := host.Discover(ctx, host.Options{DataDir: dataDir, Ports: settings.Ports})
	if err != nil {
		return facts, err
	}
	return facts, host.Err(host.Checks(facts, settings))
}

// prepare makes the machine fit for a node, says what was changed, and returns what
// still stands in the way.
func prepare(ctx context.Context, facts host.Facts, settings host.Settings, where paths.Paths, log *slog.Logger) error {
	_, findings := host.Prepare(ctx, facts, settings, host.NewLedger(where.Parameters()), log)
	for _, f := range findings {
		if f.Level == host.Warn {
			log.Warn(f.Detail, "check", f.Name, "remedy", f.Remedy)
		}
	}
	return host.Err(findings)
}
