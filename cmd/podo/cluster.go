package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/local"
	"github.com/podo-dev/podo/pkg/machine"
	"github.com/podo-dev/podo/pkg/process"
)

// defaultCluster is the name of a cluster that was given none.
const defaultCluster = "podo"

func clusterCommand() *cli.Command {
	return &cli.Command{
		Name:  "cluster",
		Usage: "make clusters of many nodes on this machine",
		Description: `What kind does with Docker, with podo alone: each node is a machine made of
namespaces that runs this very podo. The files that kind reads are read as they are.

Examples:
  sudo podo cluster create                           one node
  sudo podo cluster create --name ci --config kind.yaml
  kubectl --context podo-ci get nodes
  sudo podo cluster load archive --name ci image.tar
  sudo podo cluster node exec --name ci ci-worker -- crictl ps
  sudo podo cluster delete --name ci`,
		Subcommands: []*cli.Command{
			clusterCreate(), clusterDelete(), clusterList("list"), clusterStart(), clusterStop(),
			clusterGet(), clusterLoad(), clusterExport(), clusterNode(), clusterPublish(),
		},
		Action:       chooseOne,
		OnUsageError: flagProblem,
	}
}

func clusterName() *cli.StringFlag {
	return &cli.StringFlag{Name: "name", Usage: "`NAME` of the cluster", DefaultText: defaultCluster}
}

// userKubeconfig names the user's own file; does says what is done with it.
func userKubeconfig(does string) cli.Flag {
	return &cli.StringFlag{Name: "kubeconfig", TakesFile: true, Usage: "`FILE` that the cluster is " + does, DefaultText: "$KUBECONFIG, else .kube/config in your home, also with sudo"}
}

func waitFlag(ready string) cli.Flag {
	return &cli.DurationFlag{Name: "wait", Value: 5 * time.Minute, Usage: "wait at most `DURATION` until " + ready + " Ready; 0s only until registered"}
}

// notNegative complains of a time that is before now.
func notNegative(c *cli.Context, flag string) error {
	if d := c.Duration(flag); d < 0 {
		return usagef("--%s: %s is no time to come; give one such as 5m, or 0s", flag, d)
	}
	return nil
}

// nameOf is the cluster that is meant.
func nameOf(c *cli.Context, file string) string {
	for _, name := range []string{c.String("name"), file} {
		if name != "" {
			return name
		}
	}
	return defaultCluster
}

// site is where clusters are, for a root that may change them. A name that is empty, as an
// unset variable leaves one, means no cluster: not the usual one.
func site(c *cli.Context) (local.Site, error) {
	s := local.Site{Dir: local.DefaultDir, Step: newTicks(c.App.ErrWriter).step, Judge: judgeNode}
	if c.IsSet("name") && c.String("name") == "" {
		return s, usagef("--name: is empty; give a name, or leave it out for %s", defaultCluster)
	}
	if err := local.CheckName(nameOf(c, "")); err != nil {
		return s, usagef("--name: %w", err)
	}
	if os.Geteuid() != 0 {
		return s, fmt.Errorf("podo %[1]s needs root; try: sudo podo %[1]s", strings.TrimPrefix(c.Command.HelpName, "podo "))
	}
	err := process.KeepFiles()
	if err != nil {
		return s, err
	}
	if s.Exe, err = os.Executable(); err != nil {
		return s, err
	}
	return s, os.Setenv("PATH", s.Programs()+":"+os.Getenv("PATH")) // nft is in the payload
}

// clusterError gives what can never be its exit code. What breaks because somebody does
// not wait for it is no news to him.
func clusterError(c *cli.Context, err error) error {
	if err != nil && c.Context.Err() != nil && !errors.Is(err, local.ErrInterrupted) {
		return local.ErrInterrupted
	}
	if _, ok := errors.AsType[local.Unfit](err); ok {
		return usageError{err}
	}
	return err
}

// verbOf is a command without arguments of its own, for root.
func verbOf(name, usage, description string, flags []cli.Flag, do func(*cli.Context, local.Site) error) *cli.Command {
	return &cli.Command{
		Name: name, Usage: usage, Description: description, Flags: flags, OnUsageError: flagProblem,
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			s, err := site(c)
			if err != nil {
				return err
			}
			return clusterError(c, do(c, s))
		},
	}
}

// withArgs is what a command with arguments does, for root.
func withArgs(do func(*cli.Context, local.Site) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		s, err := site(c)
		if err != nil {
			return err
		}
		return clusterError(c, do(c, s))
	}
}

func clusterCreate() *cli.Command {
	named := clusterName()
	named.DefaultText = "that of the file, else " + defaultCluster
	flags := []cli.Flag{
		named,
		&cli.StringFlag{Name: "config", Aliases: []string{"c"}, TakesFile: true, Usage: "`FILE` in kind's format; - is the standard input"},
		waitFlag("all nodes are"),
		&cli.BoolFlag{Name: "retain", Usage: "leave what was made if it fails, to look at it"},
		&cli.BoolFlag{Name: "registry", Usage: "give the cluster a registry of images at localhost, which its nodes pull from"},
		&cli.IntFlag{Name: "registry-port", Value: local.RegistryPort, Usage: "`PORT` of that registry; 0 for one that is free"},
		userKubeconfig("merged into"), outputFlag(),
	}
	return verbOf("create", "make a cluster and start it", "", flags, func(c *cli.Context, s local.Site) error {
		usualMask()
		asJSON, err := wantsJSON(c)
		if err != nil {
			return err
		}
		f, err := local.ReadFile(c.String("config"), os.Stdin)
		if err != nil {
			return err
		}
		if port := c.Int("registry-port"); port < 0 || port > 65535 {
			return usagef("--registry-port: %d is no port", port)
		}
		if c.IsSet("registry-port") && !c.Bool("registry") {
			return usagef("--registry-port: there is none without --registry; give that too")
		}
		if err := notNegative(c, "wait"); err != nil {
			return err
		}
		p, err := kubeconfigOwner(c.String("kubeconfig"))
		if err == nil {
			err = kubeconfig.Check(p.file)
		}
		if err != nil {
			return err
		}
		name := nameOf(c, f.Name)
		fmt.Fprintf(c.App.ErrWriter, "Creating cluster %q ...\n", name)
		made, err := s.Create(c.Context, name, f, local.Options{
			Wait: c.Duration("wait"), Retain: c.Bool("retain"), Registry: c.Bool("registry"), RegistryPort: c.Int("registry-port"),
			Environ: os.Environ(),
			Then:    func(made local.Cluster) error { return mergeCluster(c, s, made) },
		})
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(c.App.Writer, s.Nodes(made))
		}
		if made.Registry != 0 {
			fmt.Fprintf(c.App.Writer, "Its registry is localhost:%d; push images there, and name them so in pods.\n", made.Registry)
		}
		_, err = fmt.Fprintf(c.App.Writer, "kubectl's context is now %q. Look at it with:\n\n  kubectl get nodes --context %[1]s\n", made.Context())
		return err
	})
}

// mergeCluster puts a cluster into the kubeconfig of whoever asks for it. That comes last:
// nothing would take it out again if something after it failed.
func mergeCluster(c *cli.Context, s local.Site, made local.Cluster) error {
	admin, err := s.Kubeconfig(made)
	if err != nil {
		return err
	}
	p, err := kubeconfigOwner(c.String("kubeconfig"))
	if err != nil {
		return err
	}
	return p.merge(admin)
}

func clusterDelete() *cli.Command {
	flags := []cli.Flag{clusterName(), &cli.BoolFlag{Name: "all", Usage: "delete every cluster of this machine"}, userKubeconfig("taken out of"), outputFlag()}
	return verbOf("delete", "end a cluster and remove all of it", "", flags, func(c *cli.Context, s local.Site) error {
		asJSON, err := wantsJSON(c)
		if err != nil {
			return err
		}
		if c.Bool("all") && c.IsSet("name") {
			return usagef("--all: means every cluster, and --name one of them; give one of the two")
		}
		names, err := clustersThere(s)
		if err != nil {
			return err
		}
		if !c.Bool("all") {
			names = []string{nameOf(c, "")}
		}
		files, err := kubeconfigsOf(c.String("kubeconfig"))
		if err != nil {
			return err
		}
		deleted, errs := []string{}, []error(nil)
		for _, name := range names {
			err := s.Delete(c.Context, name)
			switch {
			case errors.Is(err, local.ErrNoCluster):
				fmt.Fprintf(c.App.ErrWriter, "There is no cluster %q.\n", name)
			case err == nil:
				fmt.Fprintf(c.App.ErrWriter, "Deleted cluster %q.\n", name)
				deleted = append(deleted, name)
			default:
				errs = append(errs, fmt.Errorf("delete cluster %s: %w", name, err))
				continue
			}
			_, err = removeContext(files, local.ContextOf(name))
			errs = append(errs, err)
		}
		if c.Bool("all") {
			errs = append(errs, s.Clear(c.Context))
		}
		if asJSON {
			errs = append(errs, printJSON(c.App.Writer, deleted))
		}
		return errors.Join(errs...)
	})
}

// clustersThere are the clusters of this machine, and those that only parts are left of.
func clustersThere(s local.Site) ([]string, error) {
	names, err := s.Names()
	if err != nil {
		return nil, err
	}
	stray, err := s.Strays()
	return append(names, stray...), err
}

// A clusterState is a cluster as list shows it.
type clusterState struct {
	Name    string         `json:"name"`
	Running int            `json:"running"`
	Nodes   []local.Status `json:"nodes"`
	API     string         `json:"api"`
	Error   string         `json:"error,omitempty"`
}

func clusterList(verb string) *cli.Command {
	return verbOf(verb, "list the clusters of this machine", "", []cli.Flag{outputFlag()}, func(c *cli.Context, s local.Site) error {
		asJSON, err := wantsJSON(c)
		if err != nil {
			return err
		}
		names, err := s.Names()
		if err != nil {
			return err
		}
		stray, err := s.Strays()
		if err != nil {
			return err
		}
		list := []clusterState{}
		for _, name := range append(names, stray...) {
			st := clusterState{Name: name}
			if slices.Contains(stray, name) {
				st.Error = fmt.Sprintf("its files are gone; remove what is left with: podo cluster delete --name %s", name)
			} else if cl, err := s.Load(name); err != nil {
				st.Error = err.Error()
			} else {
				st.Nodes, st.API = s.Nodes(cl), cl.URL()
				if !s.Published(cl) && slices.ContainsFunc(st.Nodes, func(n local.Status) bool { return n.Running }) {
					st.Error = fmt.Sprintf("this host does not listen for it; try: podo cluster start --name %s", name)
				}
			}
			for _, n := range st.Nodes {
				if n.Running {
					st.Running++
				}
			}
			list = append(list, st)
		}
		switch {
		case asJSON:
			return printJSON(c.App.Writer, list)
		case verb == "clusters": // one name a line, as kind prints them for scripts
			for _, st := range list {
				fmt.Fprintln(c.App.Writer, st.Name)
			}
			return nil
		case len(list) == 0:
			_, err := fmt.Fprintln(c.App.ErrWriter, "There are no clusters; make one with: podo cluster create")
			return err
		}
		var rows [][]string
		for _, st := range list {
			rows = append(rows, []string{st.Name, fmt.Sprintf("%d of %d run", st.Running, len(st.Nodes)), st.API, st.Error})
		}
		return table(c.App.Writer, []string{"NAME", "NODES", "API", ""}, rows)
	})
}

func clusterStart() *cli.Command {
	return verbOf("start", "start a cluster again that was stopped, or that a reboot ended", "", []cli.Flag{clusterName(), waitFlag("all nodes are"), outputFlag()}, func(c *cli.Context, s local.Site) error {
		usualMask()
		asJSON, err := wantsJSON(c)
		if err != nil {
			return err
		}
		if err := notNegative(c, "wait"); err != nil {
			return err
		}
		if _, err := s.Load(nameOf(c, "")); err != nil {
			return err
		}
		fmt.Fprintf(c.App.ErrWriter, "Starting cluster %q ...\n", nameOf(c, ""))
		started, err := s.Start(c.Context, nameOf(c, ""), c.Duration("wait"))
		if err == nil && asJSON {
			return printJSON(c.App.Writer, s.Nodes(started))
		}
		return err
	})
}

func clusterStop() *cli.Command {
	return verbOf("stop", "end all processes of a cluster, and keep what is on its disks", "", []cli.Flag{clusterName(), outputFlag()}, func(c *cli.Context, s local.Site) error {
		asJSON, err := wantsJSON(c)
		if err != nil {
			return err
		}
		if _, err := s.Load(nameOf(c, "")); err != nil {
			return err
		}
		fmt.Fprintf(c.App.ErrWriter, "Stopping cluster %q ...\n", nameOf(c, ""))
		stopped, err := s.Stop(c.Context, nameOf(c, ""))
		if err == nil && asJSON {
			return printJSON(c.App.Writer, s.Nodes(stopped))
		}
		return err
	})
}

func clusterGet() *cli.Command {
	return &cli.Command{
		Name: "get", Usage: "print nodes, clusters or a kubeconfig", Action: chooseOne, OnUsageError: flagProblem,
		Subcommands: []*cli.Command{
			clusterList("clusters"),
			verbOf("nodes", "list the nodes of a cluster", "", []cli.Flag{
				clusterName(),
				&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "text", Usage: "`FORMAT` of the answer: text, json or name"},
			}, func(c *cli.Context, s local.Site) error {
				format := c.String("output")
				if format != "name" {
					if _, err := wantsJSON(c); err != nil {
						return err
					}
				}
				cl, err := s.Load(nameOf(c, ""))
				if err != nil {
					return err
				}
				switch format {
				case "json":
					return printJSON(c.App.Writer, s.Nodes(cl))
				case "name": // one a line, as kind prints them for scripts
					for _, n := range s.Nodes(cl) {
						fmt.Fprintln(c.App.Writer, n.Name)
					}
					return nil
				}
				var rows [][]string
				for _, n := range s.Nodes(cl) {
					rows = append(rows, []string{n.Name, string(n.Role), strings.Join(n.IPs, ","), choose(n.Running, "runs", "is off")})
				}
				return table(c.App.Writer, []string{"NAME", "ROLE", "IP", "MACHINE"}, rows)
			}),
			verbOf("kubeconfig", "print a kubeconfig for a cluster", "", []cli.Flag{clusterName()}, func(c *cli.Context, s local.Site) error {
				cl, err := s.Load(nameOf(c, ""))
				if err != nil {
					return err
				}
				admin, err := s.Kubeconfig(cl)
				if err != nil {
					return err
				}
				text, err := kubeconfig.Render(admin)
				if err != nil {
					return err
				}
				_, err = c.App.Writer.Write(text)
				return err
			}),
		},
	}
}

func clusterExport() *cli.Command {
	return &cli.Command{
		Name: "export", Usage: "write logs or a kubeconfig to files", Action: chooseOne, OnUsageError: flagProblem,
		Subcommands: []*cli.Command{
			verbOf("kubeconfig", "merge a cluster into your kubeconfig and make it current", "", []cli.Flag{clusterName(), userKubeconfig("merged into")}, func(c *cli.Context, s local.Site) error {
				cl, err := s.Load(nameOf(c, ""))
				if err != nil {
					return err
				}
				return mergeCluster(c, s, cl)
			}),
			{
				Name: "logs", Usage: "copy the logs of all nodes into a folder", ArgsUsage: "[DIR]", Flags: []cli.Flag{clusterName()}, OnUsageError: flagProblem,
				Action: withArgs(func(c *cli.Context, s local.Site) (err error) {
					if c.NArg() > 1 {
						return usagef("%s takes one folder", c.Command.FullName())
					}
					cl, err := s.Load(nameOf(c, ""))
					if err != nil {
						return err
					}
					dir := c.Args().First()
					if dir == "" {
						if dir, err = os.MkdirTemp("", "podo-logs-"); err != nil {
							return err
						}
					}
					if err := s.ExportLogs(c.Context, cl, dir); err != nil {
						return err
					}
					_, err = fmt.Fprintln(c.App.Writer, dir)
					return err
				}),
			},
		},
	}
}

func clusterLoad() *cli.Command {
	load := func(name, usage, args string, do func(*cli.Context, local.Site, local.Cluster) error) *cli.Command {
		return &cli.Command{
			Name: name, Usage: usage, ArgsUsage: args, OnUsageError: flagProblem,
			Flags: []cli.Flag{clusterName(), &cli.StringSliceFlag{Name: "nodes", Usage: "`NAME` of a node to load into, instead of all; may be given more than once"}},
			Action: withArgs(func(c *cli.Context, s local.Site) error {
				if !c.Args().Present() {
					return usagef("%s: name what to load: %s", c.Command.FullName(), args)
				}
				cl, err := s.Load(nameOf(c, ""))
				if err != nil {
					return err
				}
				return do(c, s, cl)
			}),
		}
	}
	return &cli.Command{
		Name: "load", Usage: "bring images into the nodes of a cluster", Action: chooseOne, OnUsageError: flagProblem,
		Subcommands: []*cli.Command{
			load("archive", "from archives of docker's or OCI's layout, plain, gzip or zstd", "FILE...", func(c *cli.Context, s local.Site, cl local.Cluster) error {
				return s.LoadArchives(c.Context, cl.Name, c.StringSlice("nodes"), c.Args().Slice())
			}),
			load("image", "from the docker or podman of this machine", "IMAGE...", func(c *cli.Context, s local.Site, cl local.Cluster) error {
				files, remove, err := saveImages(c.Context, c.Args().Slice())
				if err != nil {
					return err
				}
				defer remove()
				return s.LoadArchives(c.Context, cl.Name, c.StringSlice("nodes"), files)
			}),
		},
	}
}

// saveImages has the container engine that people build images with write archives. A
// machine may have the client of one and run the other.
func saveImages(ctx context.Context, images []string) (files []string, remove func(), err error) {
	dir, err := os.MkdirTemp("/var/tmp", "podo-load-")
	if err != nil {
		return nil, nil, err
	}
	remove = func() { os.RemoveAll(dir) }
	var errs []error
	// podman writes layers as they are in OCI's layout alone, which holds one image.
	for _, save := range [][]string{{"docker", "save"}, {"podman", "save", "--format=oci-archive"}} {
		program, err := exec.LookPath(save[0])
		if err != nil {
			continue
		}
		files = nil
		for i, image := range images {
			file := filepath.Join(dir, fmt.Sprintf("%s-%d.tar", save[0], i))
			args := slices.Concat(save[1:], []string{"--output", file, image})
			if out, failed := exec.CommandContext(ctx, program, args...).CombinedOutput(); failed != nil {
				err = fmt.Errorf("%s save: %w: %s", save[0], failed, strings.TrimSpace(string(out)))
				break
			}
			files = append(files, file)
		}
		if err == nil {
			return files, remove, nil
		}
		errs = append(errs, err)
	}
	remove()
	if len(errs) == 0 {
		errs = append(errs, errors.New("load image: this machine has neither docker nor podman; write an archive where the image is, and use: podo cluster load archive FILE"))
	}
	return nil, nil, errors.Join(errs...)
}

func clusterNode() *cli.Command {
	return &cli.Command{
		Name: "node", Usage: "add, remove or enter nodes", Action: chooseOne, OnUsageError: flagProblem,
		Subcommands: []*cli.Command{
			verbOf("add", "add a node to a running cluster", "", []cli.Flag{
				clusterName(), waitFlag("the node is"), outputFlag(),
				&cli.StringFlag{Name: "role", Value: string(local.Worker), Usage: "`ROLE` of the node: worker or control-plane"},
				&cli.StringFlag{Name: "image", TakesFile: true, Usage: "`PODO` that it runs: the path of a binary", DefaultText: "this one"},
			}, func(c *cli.Context, s local.Site) error {
				usualMask()
				asJSON, err := wantsJSON(c)
				if err != nil {
					return err
				}
				if err := notNegative(c, "wait"); err != nil {
					return err
				}
				cl, n, err := s.AddNode(c.Context, nameOf(c, ""), local.NodeFile{Role: local.Role(c.String("role")), Image: c.String("image")}, c.Duration("wait"))
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(c.App.Writer, s.Nodes(cl))
				}
				_, err = fmt.Fprintln(c.App.Writer, n.Name)
				return err
			}),
			{
				Name: "remove", Usage: "move a node's pods elsewhere, and remove it", ArgsUsage: "NODE", OnUsageError: flagProblem,
				Flags: []cli.Flag{clusterName(), &cli.BoolFlag{Name: "force", Usage: "remove it at once, without moving its pods"}, outputFlag()},
				Action: withArgs(func(c *cli.Context, s local.Site) error {
					if c.NArg() != 1 {
						return usagef("%s: name one node", c.Command.FullName())
					}
					asJSON, err := wantsJSON(c)
					if err != nil {
						return err
					}
					left, err := s.RemoveNode(c.Context, nameOf(c, ""), c.Args().First(), c.Bool("force"))
					if err == nil && asJSON {
						return printJSON(c.App.Writer, s.Nodes(left))
					}
					return err
				}),
			},
			{
				Name: "exec", Usage: "run a program on a node", ArgsUsage: "NODE [--] " + programArgs, OnUsageError: flagProblem,
				Flags: []cli.Flag{clusterName()},
				Action: func(c *cli.Context) error {
					s, err := site(c)
					if err != nil {
						return err
					}
					args := c.Args().Slice()
					if len(args) > 1 && args[1] == "--" {
						args = append(args[:1], args[2:]...)
					}
					if len(args) < 2 {
						return usagef("%s: name a node and a program", c.Command.FullName())
					}
					cl, err := s.Load(nameOf(c, ""))
					if err != nil {
						return err
					}
					usualMask() // the node's, not that of the shell out here
					err = s.Exec(cl, args[0], args[1:])
					return asShell(err)
				},
			},
		},
	}
}

// asShell gives a program's end the exit code that a shell gives it.
func asShell(err error) error {
	if its, ok := errors.AsType[*exec.ExitError](err); ok {
		if status, ok := its.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return passedOn(128 + int(status.Signal()))
		}
		return passedOn(its.ExitCode())
	}
	switch {
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		return cli.Exit(err, 127)
	case errors.Is(err, fs.ErrPermission):
		return cli.Exit(err, 126)
	}
	return err
}

// passedOn is the exit code of a program that spoke for itself.
type passedOn int

func (p passedOn) Error() string { return "" }
func (p passedOn) ExitCode() int { return int(p) }

// clusterPublish is what podo runs for each cluster, beside its nodes.
func clusterPublish() *cli.Command {
	return &cli.Command{
		Name: "publish", Hidden: true, Flags: []cli.Flag{clusterName()},
		Action: func(c *cli.Context) error {
			s, err := site(c)
			if err != nil {
				return err
			}
			tell, held := os.NewFile(3, "ready"), os.NewFile(4, "ports")
			log := slog.New(slog.NewTextHandler(os.Stderr, nil))
			changed := make(chan os.Signal, 1)
			signal.Notify(changed, local.Refers)
			return s.Publish(c.Context, c.String("name"), held, changed, func() {
				_, _ = tell.WriteString("y")
				tell.Close()
			}, log)
		},
	}
}

// isInit reports whether this process is the first of a node.
func isInit() bool {
	return os.Getpid() == 1 && (os.Args[0] == local.MachineName || os.Args[0] == local.InitName)
}

// beInit is the life of a node's first process.
func beInit(ctx context.Context) error {
	usualMask()
	if os.Args[0] == local.MachineName {
		return machine.Become()
	}
	return local.Init(ctx, local.Role(os.Args[1]), os.Environ())
}
