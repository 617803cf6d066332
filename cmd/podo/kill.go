package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/reset"
	"github.com/podo-dev/podo/pkg/status"
)

func killCommand() *cli.Command {
	return &cli.Command{
		Name:  "kill",
		Usage: "stop podo and all of its pods",
		Description: `Stopping podo as such leaves its pods running, so that it can be restarted or
upgraded without disturbing them. This command stops the pods as well, and takes
their mounts, network links, packet filter tables and cgroups out of the kernel.
Everything on disk stays: start podo again and the pods come back.

With --grace, the running podo ends its pods as at a shutdown of the machine: preStop
hooks run, and a pod that no Deployment or the like looks after does not come back. What still runs
5 seconds before the time is over, or when a third of it is left if that is less, is told
to end without hooks. Where systemd-logind runs, or podo does not, all are told so.

Kernel parameters (sysctl) that podo set stay, for its next start; podo uninstall puts
back those that others neither set nor need, and so does a boot.

Examples:
  podo kill                  at once, as in a power cut
  podo kill --grace=30s      give pods time to end, and cut off those that take longer
  podo uninstall             also remove what is on disk`,
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "grace", Usage: "let pods end first, for at most `DURATION`", DefaultText: "no time at all"},
			dataDirFlag(),
		},
		OnUsageError: flagProblem,
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			if err := needsRoot(c); err != nil {
				return err
			}
			if d := c.Duration("grace"); d < 0 {
				return usagef("--grace: %s is no time to come; give one such as 30s", d)
			}
			if err := dataDirIsMeant(c); err != nil {
				return err
			}
			told := newSteps(c.App.Writer, time.Now(), wantsColour(c.App.Writer))
			o := reset.Options{
				Paths:   paths.New(dataDir(c)),
				Grace:   c.Duration("grace"),
				EndPods: endPods,
				Tell:    func(words string) { told.Done(words, words) },
			}
			if err := reset.Kill(c.Context, o); err != nil {
				return fmt.Errorf("kill: %w", err)
			}
			told.Done("end", "podo and its pods are stopped")
			return nil
		},
	}
}

// endPods has the running podo end its pods. That none runs is no mistake here, and one that
// does not answer at all has taken nothing from the time that they have.
func endPods(ctx context.Context, within time.Duration) (began bool, err error) {
	err = status.EndPods(ctx, paths.New(paths.DefaultData).Socket("podo"), within)
	if errors.Is(err, status.ErrNotRunning) {
		err = status.ErrNotRunning
	}
	return !errors.Is(err, status.ErrSilent), err
}

func needsRoot(c *cli.Context) error {
	if os.Geteuid() == 0 {
		return nil
	}
	return fmt.Errorf("podo %s needs root; try: sudo podo %[1]s", c.Command.Name)
}

func dataDirFlag() cli.Flag {
	return &cli.StringFlag{
		Name: "data-dir", Aliases: []string{"d"}, TakesFile: true,
		Usage: "`DIR` that podo keeps its state in", DefaultText: "that of the running podo, else the configured one",
	}
}

// dataDirIsMeant refuses a --data-dir that is not there beside one that is: it was
// mistyped, and what would be cleaned is somebody else's.
func dataDirIsMeant(c *cli.Context) error {
	given := dataDir(c)
	if _, err := os.Lstat(given); !c.IsSet("data-dir") || !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if other := usualDataDir(c); other != given {
		if _, err := os.Stat(paths.New(other).Layout()); err == nil {
			return usagef("--data-dir: there is no %s, and podo's data is in %s; leave the flag out to mean that", given, other)
		}
	}
	return nil
}

// dataDir is where podo's state is: where the user says, where the running podo says,
// or where the next one would put it.
func dataDir(c *cli.Context) string {
	if d := c.String("data-dir"); d != "" {
		if abs, err := filepath.Abs(d); err == nil {
			return abs
		}
		return d
	}
	return usualDataDir(c)
}

func usualDataDir(c *cli.Context) string {
	ctx, end := context.WithTimeout(c.Context, 3*time.Second) // one that hangs is not waited for
	defer end()
	if r, err := status.Fetch(ctx, paths.New(paths.DefaultData).Socket("podo")); err == nil && r.DataDir != "" {
		return r.DataDir
	}
	// A mistake in another setting must not keep anybody from stopping podo.
	cfg, _, _ := resolveServer(os.Environ(), nil)
	if filepath.IsAbs(cfg.DataDir) {
		return cfg.DataDir
	}
	return paths.DefaultData
}
