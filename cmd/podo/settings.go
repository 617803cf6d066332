package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/configfile"
	"github.com/podo-dev/podo/pkg/datadir"
	"github.com/podo-dev/podo/pkg/host"
	"github.com/podo-dev/podo/pkg/logging"
	"github.com/podo-dev/podo/pkg/paths"
)

// loadServer works out what a server was asked for. Weakest first: defaults, the
// configuration file, its drop-ins, K3S_ variables, PODO_ variables, flags. Every
// mistake in any of them is in the error, with the place it was made.
func loadServer(c *cli.Context, typed []config.Setting) (config.Server, config.Origins, error) {
	if c.Args().Present() {
		return config.Server{}, nil, usagef("unexpected argument %q; a switch takes its value as --name=false, and everything else is a flag", c.Args().First())
	}
	return resolveServer(os.Environ(), typed)
}

// loadHere is loadServer for this machine: what cannot work on it is a mistake too.
func loadHere(c *cli.Context, typed []config.Setting) (config.Server, config.Origins, error) {
	cfg, origins, err := loadServer(c, typed)
	if err := errors.Join(err, judgePassed(cfg, origins)); err != nil {
		return cfg, origins, usageError{err}
	}
	wrote, _ := datadir.Outside(paths.New(cfg.DataDir)) // the start tells the error
	if err := host.Fit(cfg, origins, wrote); err != nil {
		return cfg, origins, usageError{err}
	}
	return cfg, origins, nil
}

func resolveServer(environ []string, typed []config.Setting) (config.Server, config.Origins, error) {
	cfg := config.Default()
	settings, errSources := gather(environ, typed)
	origins, errSettings := config.Resolve(&cfg, settings)
	if err := errors.Join(errSources, errSettings, readTokens(&cfg, origins)); err != nil {
		return cfg, origins, usageError{err}
	}
	return cfg, origins, nil
}

// loadAgent works out what an agent was asked for, from the same sources as a server.
func loadAgent(c *cli.Context, typed []config.Setting) (config.Node, error) {
	if c.Args().Present() {
		return config.Node{}, usagef("unexpected argument %q; a switch takes its value as --name=false, and everything else is a flag", c.Args().First())
	}
	cfg := config.Default()
	settings, errSources := gather(os.Environ(), typed)
	origins, errSettings := config.ResolveAgent(&cfg.Node, settings)
	errTokens, known := readTokens(&cfg, origins), cfg
	known.Components.NoAPIServer = true // an agent has none, and what only it would refuse matters to nobody
	known.Components.NoKubeProxy = true // unless the cluster says that there is one, whose flags are judged then
	if err := errors.Join(errSources, errSettings, errTokens, judgePassed(known, origins)); err != nil {
		return cfg.Node, usageError{err}
	}
	if err := host.Fit(cfg, origins, nil); err != nil {
		return cfg.Node, usageError{err}
	}
	return cfg.Node, nil
}

// gather collects settings from all sources, weakest first.
func gather(environ []string, typed []config.Setting) ([]config.Setting, error) {
	strong, errEnv := config.FromEnv(environ)
	weak := config.FromK3sEnv(environ)
	file, named := config.Default().Logging.Config, ""
	for _, s := range slices.Concat(weak, strong, typed) {
		if s.Name == "config" {
			file, named = s.Values[0], s.Origin
		}
	}
	fromFile, errFile := configfile.Read(file, named)
	return slices.Concat(fromFile, weak, strong, typed), errors.Join(errFile, errEnv)
}

// readTokens puts the tokens that files hold where the settings would have put them.
func readTokens(cfg *config.Server, origins config.Origins) error {
	return errors.Join(
		readToken(&cfg.Token, cfg.TokenFile, "token-file", origins),
		readToken(&cfg.Agents.Token, cfg.Agents.TokenFile, "agent-token-file", origins))
}

func readToken(to *config.Secret, file, setting string, origins config.Origins) error {
	if file == "" || *to != "" {
		return nil
	}
	text, err := atomicfile.Read(file, 64<<10)
	if err != nil {
		return config.Mistake{Setting: setting, Origin: origins[setting], Err: err}
	}
	token := strings.TrimSpace(string(text))
	if len(strings.Fields(token)) != 1 {
		return config.Mistake{Setting: setting, Origin: origins[setting],
			Err: fmt.Errorf("%s does not hold one token; write the token into it, and nothing else", file)}
	}
	*to = config.Secret(token)
	return nil
}

// openLog makes the logger that the settings ask for, and sends to it what Kubernetes
// and the libraries in this process write. fatal is called when one of those would end
// the process. The folder of a log file is made, as k3s does.
func openLog(ctx context.Context, l config.Logging, fatal func(reason string)) (*slog.Logger, io.Closer, error) {
	if l.File != "" {
		if err := os.MkdirAll(filepath.Dir(l.File), 0o755); err != nil {
			return nil, nil, fmt.Errorf("log: %w", err)
		}
	}
	log, closer, err := logging.Open(os.Stderr, logging.Options{
		Debug:    l.Debug,
		Terminal: isTerminal(os.Stderr),
		Colour:   wantsColour(os.Stderr),
		Journal:  isJournal(os.Stderr, os.Getenv("JOURNAL_STREAM")),
		File:     l.File,
		Also:     l.AlsoLogToStderr,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("log: %w", err)
	}
	if err := logging.Adopt(ctx, log, l.Verbosity, l.VModule, fatal); err != nil {
		closer.Close()
		return nil, nil, usageError{err}
	}
	return log, closer, nil
}

// isJournal reports whether f is the stream that systemd announced in JOURNAL_STREAM.
// The variable is inherited further than the stream, so its numbers are compared.
func isJournal(f *os.File, announced string) bool {
	info, err := f.Stat()
	if announced == "" || err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && announced == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}
