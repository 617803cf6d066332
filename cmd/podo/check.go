package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/host"
)

func checkCommand() *cli.Command {
	cfg, typed := config.Default(), []config.Setting(nil)
	return &cli.Command{
		Name:  "check-config",
		Usage: "check whether this machine can run podo",
		Description: `Looks at the kernel, its parameters, control groups, the network, the disk and the
ports, and says of each whether it is as a node needs it, and if not, what to do.
It changes nothing. What podo can put right by itself when it starts is OK.

It reads the same configuration as podo server and takes the same flags, of which
only those that matter here are listed. Exits with 1 if anything is FAIL.

Examples:
  podo check-config
  podo check-config --data-dir /mnt/disk/podo
  podo check-config -o json | jq '.[] | select(.level != "OK")'`,
		Flags:        append([]cli.Flag{outputFlag()}, checkFlags(&cfg, &typed)...),
		OnUsageError: flagProblem,
		Action: func(c *cli.Context) error {
			asJSON, err := wantsJSON(c)
			if err != nil {
				return err
			}
			cfg, _, err := loadHere(c, typed)
			if err != nil {
				return err
			}
			settings := host.SettingsOf(cfg)
			facts, err := host.Discover(c.Context, host.Options{DataDir: cfg.DataDir, Ports: settings.Ports})
			if err != nil {
				return err
			}
			findings := host.Checks(facts, settings)
			if asJSON {
				err = printJSON(c.App.Writer, findings)
			} else {
				err = printFindings(c.App.Writer, findings, wantsColour(c.App.Writer))
			}
			if err != nil {
				return err
			}
			if failed := tally(findings, host.Fail); failed > 0 {
				return fmt.Errorf("%d of %d checks failed", failed, len(findings))
			}
			return nil
		},
	}
}

// checkFlags are a server's flags, listing those that a check depends on. The
// short -o means the output here.
func checkFlags(cfg *config.Server, typed *[]config.Setting) []cli.Flag {
	matters := []string{
		"config", "data-dir", "node-name", "node-ip", "resolv-conf", "snapshotter", "flannel-backend",
		"protect-kernel-defaults", "cluster-cidr", "service-cidr", "https-listen-port", "disable-agent",
	}
	out := settingFlags(cfg, typed)
	for _, f := range out {
		if s, ok := f.(*settingFlag); ok {
			s.field.Hidden = !slices.Contains(matters, s.field.Name)
			s.field.Aliases = slices.DeleteFunc(s.field.Aliases, func(a string) bool { return a == "o" })
		}
	}
	return out
}

// printFindings prints a line a finding, with its remedy on the next.
func printFindings(w io.Writer, findings []host.Finding, colour bool) error {
	paints := map[host.Level]paint{host.OK: green, host.Warn: yellow, host.Fail: red}
	width := 0
	for _, f := range findings {
		width = max(width, len(f.Name))
	}
	for _, f := range findings {
		level := paints[f.Level].on(fmt.Sprintf("%-4s", f.Level), colour)
		if _, err := fmt.Fprintf(w, "%s  %-*s  %s\n", level, width, f.Name, f.Detail); err != nil {
			return err
		}
		if f.Remedy != "" {
			fmt.Fprintf(w, "%s%s %s\n", strings.Repeat(" ", 8+width), dim.on("->", colour), f.Remedy)
		}
	}
	warned, failed := tally(findings, host.Warn), tally(findings, host.Fail)
	verdict := green.on("this machine can run podo", colour)
	if failed > 0 {
		verdict = red.on("this machine cannot run podo yet", colour)
	}
	_, err := fmt.Fprintf(w, "\n%s (%d OK, %d WARN, %d FAIL)\n", verdict, len(findings)-warned-failed, warned, failed)
	return err
}

func tally(findings []host.Finding, level host.Level) int {
	n := 0
	for _, f := range findings {
		if f.Level == level {
			n++
		}
	}
	return n
}
