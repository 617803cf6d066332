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
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newApp().RunContext(ctx, os.Args)
	stop()
	if err != nil {
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

// exitCode is 0 for done, 1 for failed, and 2 if something was asked for that can
// never be.
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
		return 2
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
  podo status                 what runs, what waits, and for what`,
		Commands: []*cli.Command{
			serverCommand(),
			agentCommand(),
			tokenCommand(),
			nodeCommand(),
			etcdCommand(),
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
		HideVersion:    true,
		OnUsageError:   flagProblem,
		ExitErrHandler: func(*cli.Context, error) {}, // main prints and exits
		Action: func(c *cli.Context) error {
			if !c.Args().Present() {
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
