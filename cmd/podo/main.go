// Command podo is Kubernetes in one file: server, agent and tools.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/podo-dev/podo/pkg/config"
)

func main() {
	if name, ok := calledAs(os.Args[0]); ok {
		err := runApplet(context.Background(), name, os.Args[1:])
		fmt.Fprintln(os.Stderr, "podo:", err)
		os.Exit(exitCode(err))
	}
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as nohup has it; otherwise the terminal was closed
		ends = append(ends, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	if isInit() {
		fmt.Fprintln(os.Stderr, "podo:", beInit(ctx))
		os.Exit(1)
	}
	app := newApp()
	err := app.RunContext(ctx, append(os.Args[:1:1], flagsFirst(app.Commands, os.Args[1:])...))
	stop()
	if err != nil && err.Error() != "" {
		fmt.Fprintln(os.Stderr, complaint(err, isJournal(os.Stderr, os.Getenv("JOURNAL_STREAM"))))
	}
	os.Exit(exitCode(err))
}

// complaint is how an error is shown. The journal takes each line for a mere remark
// unless it begins with a priority, sd-daemon(3).
func complaint(err error, journal bool) string {
	text := "podo: " + err.Error()
	if journal {
		text = "<3>" + strings.ReplaceAll(text, "\n", "\n<3>")
	}
	return text
}

// exitCode is 0 for done, 1 for failed, 2 if something was asked for that can never be,
// and that of a program which was run in podo's place.
func exitCode(err error) int {
	var (
		child *exec.ExitError // has an exit code too, but not ours
		asked cli.ExitCoder
	)
	switch {
	case err == nil:
		return 0
	case errors.As(err, &child):
		return 1
	case errors.As(err, &asked):
		return asked.ExitCode()
	}
	return 1
}

func newApp() *cli.App {
	return &cli.App{
		Name:  "podo",
		Usage: "Kubernetes in one file",
		Description: `podo server is a whole cluster in one process: API server, scheduler, controllers,
datastore, kubelet and proxy, with a container engine beside them.

Start here:
  sudo podo server            run a cluster on this machine
  sudo podo agent             join this machine to a cluster
  sudo podo kubectl get nodes look at it
  sudo podo status            what runs, what waits, and for what
  sudo podo cluster create    a cluster of many nodes on this machine`,
		Commands: []*cli.Command{
			serverCommand(),
			agentCommand(),
			tokenCommand(),
			nodeCommand(),
			etcdCommand(),
			datastoreCommand(),
			clusterCommand(),
			imagesCommand(),
			statusCommand(),
			kubectlCommand(),
			crictlCommand(),
			ctrCommand(),
			checkCommand(),
			configCommand(),
			kubeconfigCommand(),
			killCommand(),
			uninstallCommand(),
			completionCommand(),
			versionCommand(),
		},
		HideVersion:    true, // the library's would have a text of its own
		Flags:          []cli.Flag{&cli.BoolFlag{Name: "version", Aliases: []string{"v"}, Usage: "print the version"}},
		OnUsageError:   flagProblem,
		ExitErrHandler: func(*cli.Context, error) {}, // main prints and exits
		Action: func(c *cli.Context) error {
			switch {
			case c.Args().Present():
			case c.Bool("version"):
				return c.App.Command("version").Run(c, "version")
			default:
				return cli.ShowAppHelp(c)
			}
			name := c.Args().First()
			if near := config.Closest(name, commandNames(c.App.Commands)); near != "" {
				return usagef("unknown command %q; did you mean %s?", name, near)
			}
			return usagef("unknown command %q; podo help lists them", name)
		},
	}
}

// chooseOne is the action of a command that does nothing without one of its own.
func chooseOne(c *cli.Context) error {
	if !c.Args().Present() {
		return cli.ShowSubcommandHelp(c)
	}
	return usagef("%s takes no argument %q; it takes one of: %s", c.Command.FullName(), c.Args().First(),
		strings.Join(commandNames(c.Command.Subcommands), ", "))
}

func commandNames(commands []*cli.Command) []string {
	var out []string
	for _, c := range commands {
		if c.Name != "help" && !c.Hidden {
			out = append(out, c.Name)
		}
	}
	return out
}
