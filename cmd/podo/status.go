package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/status"
)

func statusCommand() *cli.Command {
	wait := &patience{ifBare: 5 * time.Minute}
	return &cli.Command{
		Name:  "status",
		Usage: "show how the podo on this machine stands",
		Description: `Prints every part of the running podo, the state it is in and since when, and
what it waits for, died of or was restarted for; then this machine's node, the API and the datastore.
Exits with 0 if all of them are well, and with 1 if not or if podo does not run.

Examples:
  podo status                 how does it stand now?
  podo status --wait          return once everything is ready, within 5 minutes
  podo status --wait=30s && podo kubectl apply -f app.yaml
  podo status -o json         for programs`,
		Flags: []cli.Flag{
			&cli.GenericFlag{
				Name: "wait", Value: wait, DefaultText: "5m if no duration is given",
				Usage: "wait until everything is ready, at most `DURATION`",
			},
			outputFlag(),
			dataDirFlag(),
		},
		OnUsageError: flagProblem,
		Action: func(c *cli.Context) error {
			if err := wait.detached(c); err != nil {
				return err
			}
			asJSON, err := wantsJSON(c)
			if err != nil {
				return err
			}
			socket := paths.New(dataDir(c)).Socket("podo")
			r, err := fetchStatus(c.Context, socket, wait.d, c.App.ErrWriter)
			if r.Since.IsZero() && err != nil {
				if asJSON {
					return errors.Join(printJSON(c.App.Writer, map[string]any{"ready": false, "missing": []string{err.Error()}}), err)
				}
				return err
			}
			if asJSON {
				type answer struct {
					status.Report
					Ready   bool     `json:"ready"`
					Missing []string `json:"missing,omitempty"`
				}
				err = errors.Join(printJSON(c.App.Writer, answer{r, r.Ready(), r.Missing()}), err)
			} else {
				err = errors.Join(printStatus(c.App.Writer, r, time.Now(), wantsColour(c.App.Writer)), err)
			}
			if err == nil && !r.Ready() {
				return errors.New("not ready: " + strings.Join(r.Missing(), "; "))
			}
			return err
		},
	}
}

// fetchStatus asks once, or with patience until all is ready, telling progress to w.
func fetchStatus(ctx context.Context, socket string, patience time.Duration, w io.Writer) (status.Report, error) {
	if patience == 0 {
		return status.Fetch(ctx, socket)
	}
	limit, stop := context.WithTimeoutCause(ctx, patience, fmt.Errorf("not ready after %s", patience))
	defer stop()
	told := newSteps(w, time.Now(), wantsColour(w))
	return status.Wait(limit, socket, func(r status.Report) {
		for _, p := range r.Components {
			if p.State == lifecycle.Ready {
				told.Done(p.Name, p.Name+" ready")
			}
		}
		if r.Node != nil && r.Node.Ready {
			told.Done("node "+r.Node.Name, "node "+r.Node.Name+" Ready")
		}
	})
}

func printStatus(w io.Writer, r status.Report, now time.Time, colour bool) error {
	fmt.Fprintf(w, "podo %s with Kubernetes %s, pid %d, up %s\n\n", r.Version, r.Kubernetes, r.PID, roughly(now.Sub(r.Since)))
	var rows [][]string
	for _, p := range r.Components {
		detail := p.Error
		switch {
		case len(p.WaitOn) > 0:
			detail = "waits for " + strings.Join(p.WaitOn, ", ")
		case p.Restarts > 0:
			detail = fmt.Sprintf("restarted %s, the last time after: %s", choose(p.Restarts == 1, "once", fmt.Sprintf("%d times", p.Restarts)), p.Error)
		}
		since := "-"
		if !p.Since.IsZero() {
			since = roughly(now.Sub(p.Since))
		}
		first, _, _ := strings.Cut(detail, "\n")
		rows = append(rows, []string{p.Name, string(p.State), since, first})
	}
	if err := table(w, []string{"PART", "STATE", "SINCE", ""}, rows); err != nil {
		return err
	}
	fmt.Fprintln(w)
	line := func(what string, good bool, words ...string) {
		p := green
		if !good {
			p = red
		}
		fmt.Fprintf(w, "%-10s %s", what, p.on(words[0], colour))
		for _, s := range words[1:] {
			if s != "" {
				fmt.Fprintf(w, ", %s", s)
			}
		}
		fmt.Fprintln(w)
	}
	if n := r.Node; n != nil {
		line("node", n.Ready, choose(n.Ready, "Ready", "NotReady"), n.Name, n.Reason)
	}
	if a := r.API; a != nil {
		line("api", a.Healthy, choose(a.Healthy, "healthy", "unhealthy"), a.Address, a.Error)
	}
	for _, s := range r.Servers {
		line("server", s.Healthy, choose(s.Healthy, "healthy", "unhealthy"), s.Addr, s.Err)
	}
	if d := r.Datastore; d != nil {
		var bytes, latency string
		if d.Bytes > 0 {
			bytes = size(d.Bytes)
		}
		if d.LatencySeconds > 0 {
			latency = fmt.Sprintf("answers in %.1f ms", d.LatencySeconds*1000)
		}
		line("datastore", d.Healthy, choose(d.Healthy, "healthy", "unhealthy"), d.Kind, bytes, latency, d.Error)
	}
	return nil
}

func choose(yes bool, a, b string) string {
	if yes {
		return a
	}
	return b
}

// patience is a flag that may stand alone (--wait) or carry a duration (--wait=30s).
type patience struct {
	d, ifBare time.Duration
	wrong     string // what was given, if it makes no sense
}

func (p *patience) IsBoolFlag() bool { return true }

func (p *patience) String() string {
	if p == nil || p.d == 0 {
		return ""
	}
	return p.d.String()
}

func (p *patience) Set(text string) error {
	switch text {
	case "true":
		p.d = p.ifBare
		return nil
	case "false":
		p.d = 0
		return nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		// The flag library would call it a wrong boolean: detached tells it better.
		p.wrong = text
		return nil
	}
	p.d, p.wrong = d, ""
	return nil
}

// detached refuses what is no duration, and accepts "--wait 30s" too, where the
// duration arrives as an argument.
func (p *patience) detached(c *cli.Context) error {
	if c.NArg() == 1 && p.d == p.ifBare {
		if d, err := time.ParseDuration(c.Args().First()); err == nil {
			return p.check(d.String())
		}
	}
	if err := p.check(""); err != nil {
		return err
	}
	if _, err := time.ParseDuration(c.Args().First()); err == nil {
		return usagef("--wait: write it as --wait=%s", c.Args().First())
	}
	return noArgs(c)
}

func (p *patience) check(text string) error {
	if text != "" {
		_ = p.Set(text)
	}
	if p.wrong != "" {
		return usagef("--wait: %q is no duration; want one such as 30s or 5m", p.wrong)
	}
	return nil
}

func outputFlag() cli.Flag {
	return &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "text", Usage: "`FORMAT` of the answer: text or json"}
}

// wantsJSON reads the flag that outputFlag made.
func wantsJSON(c *cli.Context) (bool, error) {
	switch f := c.String("output"); f {
	case "text", "json":
		return f == "json", nil
	default:
		return false, usagef("--output: %q is no format; use text or json", f)
	}
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// noArgs refuses arguments, which are most often a flag without its dashes.
func noArgs(c *cli.Context) error {
	if c.NArg() > 0 {
		return usagef("%s takes no argument %q; see %[1]s --help", c.Command.HelpName, c.Args().First())
	}
	return nil
}
