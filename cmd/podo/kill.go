package main

import (
	"fmt"
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

Kernel parameters (sysctl) that podo raised stay as they are until the next boot.

Examples:
  podo kill                  at once, as in a power cut
  podo kill --grace=30s      give pods time to end by themselves
  podo uninstall             also remove what is on disk`,
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "grace", Usage: "let pods end by themselves first, for at most `DURATION`", DefaultText: "no time at all"},
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
			told := newSteps(c.App.Writer, time.Now(), wantsColour(c.App.Writer))
			o := reset.Options{
				Paths: paths.New(dataDir(c)),
				Grace: c.Duration("grace"),
				Tell:  func(words string) { told.Done(words, words) },
			}
			if err := reset.Kill(c.Context, o); err != nil {
				return fmt.Errorf("kill: %w", err)
			}
			told.Done("end", "podo and its pods are stopped")
			return nil
		},
	}
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

// dataDir is where podo's state is: where the user says, where the running podo says,
// or where the next one would put it.
func dataDir(c *cli.Context) string {
	if d := c.String("data-dir"); d != "" {
		if abs, err := filepath.Abs(d); err == nil {
			return abs
		}
		return d
	}
	if r, err := status.Fetch(c.Context, paths.New(paths.DefaultData).Socket("podo")); err == nil && r.DataDir != "" {
		return r.DataDir
	}
	// A mistake in another setting must not keep anybody from stopping podo.
	cfg, _, _ := resolveServer(os.Environ(), nil)
	if filepath.IsAbs(cfg.DataDir) {
		return cfg.DataDir
	}
	return paths.DefaultData
}
