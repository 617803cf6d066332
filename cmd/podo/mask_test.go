package main

import (
	"context"
	"errors"
	"flag"
	"os"
	"testing"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/config"
)

// TestUsualMask: what runs nodes has the usual umask, whatever the shell's is, and what
// writes files for a person has that person's.
func TestUsualMask(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	t.Setenv("PATH", os.Getenv("PATH")) // is changed
	t.Setenv("NOTIFY_SOCKET", "")
	old := unix.Umask(0o077)
	defer unix.Umask(old)

	seen := errors.New("seen")
	for name, tt := range map[string]struct {
		do   func() error
		want int
	}{
		"server": {func() error {
			c := cli.NewContext(newApp(), flag.NewFlagSet("server", flag.ContinueOnError), nil)
			c.Command = serverCommand()
			return launch(c, config.Default().Node, func(context.Context, start) error { return seen })
		}, 0o022},
		"cluster create": {func() error {
			_, _, err := run(t, "cluster", "create", "--config", "/nonexistent")
			return err
		}, 0o022},
		"cluster start": {func() error {
			_, _, err := run(t, "cluster", "start", "--name", "none-such")
			return err
		}, 0o022},
		"cluster export logs": {func() error {
			_, _, err := run(t, "cluster", "export", "logs", "--name", "none-such")
			return err
		}, 0o077},
	} {
		unix.Umask(0o077)
		if err := tt.do(); err == nil {
			t.Errorf("%s: done, want an error", name)
		}
		if got := unix.Umask(0o077); got != tt.want {
			t.Errorf("%s: umask %03o, want %03o", name, got, tt.want)
		}
	}
}
