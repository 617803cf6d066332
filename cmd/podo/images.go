package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"
	"google.golang.org/grpc/grpclog"

	"github.com/podo-dev/podo/pkg/images"
	"github.com/podo-dev/podo/pkg/paths"
)

func imagesCommand() *cli.Command {
	return &cli.Command{
		Name: "images", Aliases: []string{"image"},
		Usage: "list, fetch, import, export and push images of containers",
		Description: `The images are those that pods of this node run from. Archives have docker's layout or
OCI's, plain or compressed with gzip, zstd or lz4. Those in /var/lib/podo/agent/images are
imported by themselves, and are again if they are removed here while the archive stays.

Examples:
  sudo podo images list
  sudo podo images import app.tar.zst
  sudo podo images export --file usb.tar app:1.2 db:15
  sudo podo images pull --pin registry.example.com/app:1.2
  sudo podo images push registry.example.com/app:1.2
  podo images push --from app.tar localhost:5000/app:dev      needs no node, and no root`,
		Subcommands: []*cli.Command{imagesList(), imagesImport(), imagesExport(), imagesPull(), imagesPush(), imagesRemove(), imagesPrune()},
		Action:      chooseOne, OnUsageError: flagProblem,
	}
}

// nodeVerb is a command on the images of this machine's node.
func nodeVerb(cmd cli.Command, do func(*cli.Context, images.Store) error) *cli.Command {
	cmd.OnUsageError = flagProblem
	cmd.Flags = append(cmd.Flags, dataDirFlag())
	cmd.Action = func(c *cli.Context) error {
		if cmd.ArgsUsage == "" {
			if err := noArgs(c); err != nil {
				return err
			}
		} else if !c.Args().Present() {
			return usagef("%s: name at least one: %s", c.Command.FullName(), cmd.ArgsUsage)
		}
		s, err := nodeImages(c)
		if err != nil {
			return err
		}
		return do(c, s)
	}
	return &cmd
}

// nodeImages is what this machine's node has.
func nodeImages(c *cli.Context) (images.Store, error) {
	if os.Geteuid() != 0 {
		return images.Store{}, fmt.Errorf("podo images %[1]s needs root; try: sudo podo images %[1]s", c.Command.Name)
	}
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard)) // errors are told once
	where := paths.New(dataDir(c))
	return images.Store{Socket: where.Socket("containerd"), Root: where.ContainerdRoot()}, nil
}

func imagesList() *cli.Command {
	return nodeVerb(cli.Command{Name: "list", Aliases: []string{"ls"}, Usage: "list the images of this node", Flags: []cli.Flag{outputFlag()}}, func(c *cli.Context, s images.Store) error {
		asJSON, err := wantsJSON(c)
		if err != nil {
			return err
		}
		list, err := s.List(c.Context)
		if err != nil {
			return err
		}
		if asJSON {
			if list == nil {
				list = []images.Image{}
			}
			return printJSON(c.App.Writer, list)
		}
		var rows [][]string
		for _, i := range list {
			for _, name := range append(i.Names, i.ID)[:max(1, len(i.Names))] {
				rows = append(rows, []string{name, shortID(i.ID), humanize.Bytes(i.Size), choose(i.Used, "used", ""), choose(i.Pinned, "kept", "")})
			}
		}
		return table(c.App.Writer, []string{"IMAGE", "ID", "SIZE", "", ""}, rows)
	})
}

// shortID is as much of an image's ID as people tell images apart by.
func shortID(id string) string {
	_, hex, _ := strings.Cut(id, ":")
	return hex[:min(12, len(hex))]
}

func imagesImport() *cli.Command {
	return nodeVerb(cli.Command{
		Name: "import", Usage: "import archives into this node; they are never collected as garbage", ArgsUsage: "FILE...",
		Flags: []cli.Flag{outputFlag()},
	}, func(c *cli.Context, s images.Store) error {
		asJSON, err := wantsJSON(c)
		if err != nil {
			return err
		}
		all := []string{}
		for _, file := range c.Args().Slice() {
			names, err := images.Load(c.Context, file, "", s)
			if err != nil {
				return err
			}
			if all = append(all, names...); asJSON {
				continue
			}
			for _, name := range names {
				fmt.Fprintln(c.App.Writer, name)
			}
		}
		if asJSON {
			return printJSON(c.App.Writer, all)
		}
		return nil
	})
}

func imagesExport() *cli.Command {
	return nodeVerb(cli.Command{
		Name: "export", Usage: "write images of this node to an archive of OCI's layout, which docker reads too", ArgsUsage: "IMAGE...",
		Flags: []cli.Flag{&cli.StringFlag{Name: "file", Aliases: []string{"f"}, TakesFile: true, Required: true, Usage: "`FILE` to write; - is the standard output"}},
	}, func(c *cli.Context, s images.Store) error {
		file := c.String("file")
		if file == "-" {
			return s.Export(c.Context, c.App.Writer, c.Args().Slice()...)
		}
		return export(c.Context, s, file, c.Args().Slice())
	})
}

// export writes an archive whole, or not at all.
func export(ctx context.Context, s images.Store, file string, names []string) error {
	part, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(part.Name())
	err = errors.Join(s.Export(ctx, part, names...), part.Chmod(0o644), part.Sync(), part.Close())
	if err != nil {
		return err
	}
	return os.Rename(part.Name(), file)
}

// A pulled image is one that was asked for, and what it is known by.
type pulled struct {
	Name string `json:"name"`
	ID   string `json:"id"`
}

func imagesPull() *cli.Command {
	return nodeVerb(cli.Command{
		Name: "pull", Usage: "fetch images from registries, as pods would have them fetched", ArgsUsage: "IMAGE...",
		Flags: []cli.Flag{outputFlag(), &cli.BoolFlag{Name: "pin", Usage: "never collect them as garbage"}},
	}, func(c *cli.Context, s images.Store) error {
		asJSON, err := wantsJSON(c)
		if err != nil {
			return err
		}
		all := []pulled{}
		for _, name := range c.Args().Slice() {
			done := newTicks(c.App.ErrWriter).step("Pulling " + name)
			id, err := s.Pull(c.Context, name)
			if err == nil && c.Bool("pin") {
				err = s.Pin(c.Context, name)
			}
			done(err)
			if err != nil {
				return fmt.Errorf("pull %s: %w", name, err)
			}
			if all = append(all, pulled{name, id}); !asJSON {
				fmt.Fprintln(c.App.Writer, id)
			}
		}
		if asJSON {
			return printJSON(c.App.Writer, all)
		}
		return nil
	})
}

func imagesPush() *cli.Command {
	return &cli.Command{
		Name: "push", Usage: "send an image of this node, or of an archive, to a registry", ArgsUsage: "IMAGE [NAME-THERE]", OnUsageError: flagProblem,
		Description: `Without NAME-THERE the image goes to the registry that its own name says. What docker
login or podman login have kept is used, unless --username is given. A registry of this
machine (localhost) is spoken to without TLS.

Examples:
  sudo podo images push registry.example.com/app:1.2
  sudo podo images push app:1.2 localhost:5000/app:1.2
  podo images push --from app.tar localhost:5000/app:1.2`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "from", TakesFile: true, Usage: "`FILE` of an archive to take the image from, instead of this node"},
			&cli.StringFlag{Name: "image", Usage: "`NAME` of the image in the archive", DefaultText: "the only one"},
			&cli.StringFlag{Name: "username", Aliases: []string{"u"}, Usage: "`USER` at the registry"},
			&cli.BoolFlag{Name: "password-stdin", Usage: "read the password from the standard input"},
			&cli.StringFlag{Name: "ca-file", TakesFile: true, Usage: "`FILE` of certificates that the registry may have, besides those the system trusts"},
			&cli.BoolFlag{Name: "plain-http", Usage: "speak to the registry without TLS"},
			dataDirFlag(),
		},
		Action: pushImage,
	}
}

func pushImage(c *cli.Context) error {
	from, image, to := c.String("from"), c.Args().First(), c.Args().Get(max(c.NArg()-1, 0))
	switch {
	case c.NArg() == 0:
		return usagef("images push: name the image: IMAGE [NAME-THERE]")
	case c.NArg() > 2:
		return usagef("images push: %d names given, at most two make sense: IMAGE [NAME-THERE]", c.NArg())
	case from != "" && c.NArg() == 2:
		return usagef("images push --from: give the name there alone, and with --image that in the archive")
	case from == "" && c.String("image") != "":
		return usagef("images push --image: names an image of an archive; give that with --from")
	case c.Bool("password-stdin") != (c.String("username") != ""):
		return usagef("images push: --username and --password-stdin go together")
	}
	target := images.Target{Name: to, PlainHTTP: c.Bool("plain-http"), CAFile: c.String("ca-file"), Username: c.String("username")}
	if target.Username != "" {
		text, err := io.ReadAll(io.LimitReader(os.Stdin, 1<<16))
		if err != nil {
			return err
		}
		target.Password = strings.TrimRight(string(text), "\r\n")
	}
	in := c.String("image")
	if from == "" {
		s, err := nodeImages(c)
		if err != nil {
			return err
		}
		dir, err := os.MkdirTemp("/var/tmp", "podo-push-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		from, in = filepath.Join(dir, "image.tar"), ""
		if err := export(c.Context, s, from, []string{image}); err != nil {
			return err
		}
	}
	if _, err := os.Stat(from); errors.Is(err, fs.ErrNotExist) {
		return usagef("images push --from: there is no file %s", from)
	}
	done := newTicks(c.App.ErrWriter).step("Pushing to " + to)
	digest, err := images.Push(c.Context, from, in, target)
	done(err)
	if err != nil {
		return fmt.Errorf("push %s: %w", to, err)
	}
	_, err = fmt.Fprintln(c.App.Writer, digest)
	return err
}

func imagesRemove() *cli.Command {
	return nodeVerb(cli.Command{Name: "remove", Aliases: []string{"rm"}, Usage: "remove images from this node", ArgsUsage: "IMAGE..."}, func(c *cli.Context, s images.Store) error {
		return s.Remove(c.Context, c.Args().Slice()...)
	})
}

// A pruning is what was removed, or would be.
type pruning struct {
	Removed []string `json:"removed"`
	Freed   uint64   `json:"freed"` // in bytes
	DryRun  bool     `json:"dryRun"`
}

func imagesPrune() *cli.Command {
	return nodeVerb(cli.Command{
		Name: "prune", Usage: "remove images that no container uses and that were neither imported nor pinned",
		Flags: []cli.Flag{outputFlag(), &cli.BoolFlag{Name: "dry-run", Usage: "say what would be removed, and remove nothing"}},
	}, func(c *cli.Context, s images.Store) error {
		asJSON, err := wantsJSON(c)
		if err != nil {
			return err
		}
		list, err := s.List(c.Context)
		if err != nil {
			return err
		}
		p := pruning{Removed: []string{}, DryRun: c.Bool("dry-run")}
		for _, i := range list {
			if i.Used || i.Pinned {
				continue
			}
			if !p.DryRun {
				if err := s.Remove(c.Context, i.ID); err != nil {
					return fmt.Errorf("remove %s: %w", i, err)
				}
			}
			p.Freed += i.Size
			if p.Removed = append(p.Removed, i.String()); !asJSON {
				fmt.Fprintln(c.App.Writer, i)
			}
		}
		if asJSON {
			return printJSON(c.App.Writer, p)
		}
		_, err = fmt.Fprintf(c.App.ErrWriter, "%s %s\n", humanize.Bytes(p.Freed), choose(p.DryRun, "would be freed", "freed"))
		return err
	})
}
