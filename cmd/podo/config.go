package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"go.yaml.in/yaml/v3"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/configfile"
	"github.com/podo-dev/podo/pkg/host"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/plan"
)

func configCommand() *cli.Command {
	return &cli.Command{
		Name:         "config",
		Usage:        "show and check what a server is asked for",
		Subcommands:  []*cli.Command{configShowCommand(), configValidateCommand()},
		Action:       chooseOne,
		OnUsageError: flagProblem,
	}
}

func configShowCommand() *cli.Command {
	cfg, typed := config.Default(), []config.Setting(nil)
	var origin bool
	var format string
	flags := append([]cli.Flag{
		&cli.BoolFlag{Name: "origin", Usage: "say where each value comes from", Destination: &origin},
		&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "yaml or json (default: yaml)", Value: "yaml", Destination: &format},
	}, withoutAlias(settingFlags(&cfg, &typed), "o")...)
	return &cli.Command{
		Name:      "show",
		Usage:     "print the settings a server would run with",
		UsageText: "podo config show [--origin] [-o yaml|json] [flags of podo server]",
		Description: "Settings from flags, environment and files are laid over the defaults, as podo server\n" +
			"does it. The YAML form can be used as a configuration file. Secrets are not shown.\n\n" +
			"Examples:\n" +
			"  podo config show --origin            # who asked for what\n" +
			"  podo config show -o json | jq .\n" +
			"  podo config show --cluster-cidr 10.1.0.0/16",
		Flags:              flags,
		CustomHelpTemplate: settingsHelp(flags),
		OnUsageError:       flagProblem,
		Action: func(c *cli.Context) error {
			cfg, origins, err := loadServer(c, typed)
			if err != nil {
				return err
			}
			switch format {
			case "yaml":
				return showYAML(c.App.Writer, cfg, origins, origin)
			case "json":
				return showJSON(c.App.Writer, cfg, origins, origin)
			}
			return usagef("--output: %q is neither yaml nor json", format)
		},
	}
}

func configValidateCommand() *cli.Command {
	cfg, typed := config.Default(), []config.Setting(nil)
	flags := settingFlags(&cfg, &typed)
	return &cli.Command{
		Name:      "validate",
		Usage:     "check settings without starting anything",
		UsageText: "podo config validate [FILE] [flags of podo server]",
		Description: "With FILE, that file and its drop-ins are checked by themselves. Without, everything that\n" +
			"podo server would read is, and whether it can work on this machine. Each mistake is printed with its place; the exit code is then 2.\n\n" +
			"Examples:\n" +
			"  podo config validate                     # before podo server is restarted\n" +
			"  podo config validate new.yaml            # before it takes the place of the old one\n" +
			"  podo config validate --cluster-cidr 10.1.0.0/16",
		Flags:              flags,
		CustomHelpTemplate: settingsHelp(flags),
		OnUsageError:       flagProblem,
		Action: func(c *cli.Context) error {
			switch c.NArg() {
			case 0:
				cfg, _, err := loadHere(c, typed)
				if err == nil {
					err = buildable(c.Context, cfg)
				}
				if err != nil {
					return err
				}
				fmt.Fprintln(c.App.Writer, "no mistakes")
				return nil
			case 1:
				return validateFile(c.App.Writer, c.Args().First(), typed)
			}
			return usagef("podo config validate takes one FILE; flags go before it")
		},
	}
}

// buildable has each part of a server judge what is passed on to it. What one that joins
// others is like, those others know.
func buildable(ctx context.Context, cfg config.Server) error {
	if cfg.Join.Server != "" {
		return nil
	}
	s := start{cfg: cfg.Node, where: paths.New(cfg.DataDir), log: slog.New(slog.DiscardHandler)}
	facts, err := host.Discover(ctx, host.Options{DataDir: cfg.DataDir})
	if err != nil {
		return err
	}
	p, err := plan.New(cfg, facts, plan.Known{}, os.Environ())
	if err == nil {
		_, _, err = build(ctx, s, p)
	}
	if err != nil {
		return usageError{err}
	}
	return nil
}

func validateFile(w io.Writer, path string, typed []config.Setting) error {
	fromFile, errFile := configfile.Read(path, "validate")
	cfg := config.Default()
	origins, errSettings := config.Resolve(&cfg, slices.Concat(fromFile, typed))
	if err := errors.Join(errFile, errSettings, readTokens(&cfg, origins), judgePassed(cfg, origins)); err != nil {
		return usageError{err}
	}
	dropins, _ := configfile.Dropins(path)
	fmt.Fprintf(w, "%s: no mistakes in %d settings", path, len(fromFile))
	if len(dropins) > 0 {
		fmt.Fprintf(w, ", drop-in files included (%d)", len(dropins))
	}
	fmt.Fprintln(w)
	return nil
}

// withoutAlias takes a one-letter alias away where a verb needs it for itself.
func withoutAlias(flags []cli.Flag, alias string) []cli.Flag {
	for _, f := range flags {
		if s, ok := f.(*settingFlag); ok {
			s.field.Aliases = slices.DeleteFunc(slices.Clone(s.field.Aliases), func(a string) bool { return a == alias })
		}
	}
	return flags
}

// showYAML writes a configuration file. What is not given, and what such a file
// cannot hold, is written as a comment.
func showYAML(w io.Writer, cfg config.Server, origins config.Origins, origin bool) error {
	var b strings.Builder
	for i, s := range config.Sections(config.Fields(&cfg)) {
		if i > 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "# %s\n", s.Title)
		for _, f := range s.Fields {
			values := f.Values()
			if len(values) == 0 {
				fmt.Fprintf(&b, "# %s:\n", f.Name)
				continue
			}
			text, err := yaml.Marshal(map[string]any{f.Name: f.Value()})
			if err != nil {
				return err
			}
			head, rest, _ := strings.Cut(strings.TrimSuffix(string(text), "\n"), "\n")
			if f.Name == "config" || f.Kind() == "secret" {
				head = "# " + head
			}
			if origin {
				head = fmt.Sprintf("%-44s # %s", head, originOf(f, origins))
			}
			b.WriteString(strings.TrimRight(head, " ") + "\n")
			if rest != "" {
				b.WriteString(rest + "\n")
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func showJSON(w io.Writer, cfg config.Server, origins config.Origins, origin bool) error {
	type blamed struct {
		Value  any    `json:"value"`
		Origin string `json:"origin"`
	}
	out := map[string]any{}
	for _, f := range config.Fields(&cfg) {
		out[f.Name] = f.Value()
		if origin {
			out[f.Name] = blamed{f.Value(), originOf(f, origins)}
		}
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(out)
}

func originOf(f config.Field, origins config.Origins) string {
	if o := origins[f.Name]; o != "" {
		return o
	}
	if file := origins[f.Name+"-file"]; file != "" && f.String() != "" {
		return file
	}
	if f.Name == "config" {
		if _, err := os.Stat(f.String()); err != nil {
			return "default, not there"
		}
	}
	return "default"
}
