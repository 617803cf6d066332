package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/podo-dev/podo/pkg/datadir"
	"github.com/podo-dev/podo/pkg/local"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/reset"
)

func uninstallCommand() *cli.Command {
	return &cli.Command{
		Name:  "uninstall",
		Usage: "remove podo, its pods and its data from this machine",
		Description: `Stops podo and its pods as "podo kill" does, puts kernel parameters back to what they
were, but for those that others set or need, then removes every file podo made: its
data in each folder that it had for it, /etc/podo, the kubelet's folder, pods' logs,
the services, its context in your kubeconfig, what --write-kubeconfig and --log had it
write elsewhere, and podo itself if it was installed in a folder for programs. Then it
looks for anything that is left, lists it, and exits with 1 if there is something.
With --data-dir, data of podo in other folders is left alone and named, and programs
and /etc/podo stay with it.
Volumes of claims (storage in the data directory) stay, unless --purge is given, and
disks that you mounted into podo's folders are left alone.
While there are clusters of "podo cluster" on the machine it refuses; delete them first.

Examples:
  podo uninstall                 asks before it begins
  podo uninstall --yes           for scripts
  podo uninstall --purge         remove volumes too
  podo uninstall --keep-data     keep the data directory and /etc/podo
  podo uninstall --verify        remove nothing, list what is there`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"},
			&cli.BoolFlag{Name: "purge", Usage: "remove the volumes of claims, too"},
			&cli.BoolFlag{Name: "keep-data", Usage: "keep the data directory and /etc/podo"},
			&cli.BoolFlag{Name: "verify", Usage: "only list what there is of podo on this machine"},
			&cli.StringFlag{
				Name: "data-dir", Aliases: []string{"d"}, TakesFile: true,
				Usage: "`DIR` that podo keeps its state in", DefaultText: "every one that podo had on this machine",
			},
		},
		OnUsageError: flagProblem,
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			if c.Bool("purge") && c.Bool("keep-data") {
				return usagef("podo uninstall: --purge removes volumes, and --keep-data keeps them; give one of the two")
			}
			if err := needsRoot(c); err != nil {
				return err
			}
			told := newSteps(c.App.Writer, time.Now(), wantsColour(c.App.Writer))
			o := reset.Options{
				Paths:       paths.New(dataDir(c)),
				KeepData:    c.Bool("keep-data"),
				Purge:       c.Bool("purge"),
				Kubeconfigs: userKubeconfigs(),
				Tell:        func(words string) { told.Done(words, words) },
			}
			o.Executable, _ = os.Executable()
			all, err := everywhere(c, o)
			if err != nil {
				return err
			}
			if c.Bool("verify") {
				return verifyGone(c, all)
			}
			if err := dataDirIsMeant(c); err != nil {
				return err
			}
			names, err := clustersThere(local.Site{Dir: local.DefaultDir})
			if err != nil {
				return err
			}
			if len(names) > 0 {
				return usagef("podo uninstall: there are clusters on this machine (%s), which nobody could remove without podo; first: podo cluster delete --all", strings.Join(names, ", "))
			}
			if err := confirm(c, all); err != nil {
				return err
			}
			if err := (local.Site{Dir: local.DefaultDir}).Clear(c.Context); err != nil {
				return fmt.Errorf("uninstall: %w", err)
			}
			for _, o := range all {
				err = reset.Uninstall(c.Context, o)
				if errors.Is(err, datadir.ErrForeign) {
					return usageError{err} // nothing was done: it is the first of them, or was marked
				}
				if err != nil {
					fmt.Fprintf(c.App.ErrWriter, "podo: uninstall: %v\n", err)
					break // what they share is needed to try again
				}
			}
			return verifyGone(c, all)
		},
	}
}

// everywhere is o for each data directory that podo has had on this machine, or for the
// one that was asked for, with a word about the others.
func everywhere(c *cli.Context, o reset.Options) ([]reset.Options, error) {
	known, err := datadir.Known(o.Paths)
	if err != nil {
		return nil, err
	}
	all := []reset.Options{o}
	for _, dir := range known {
		if dir == filepath.Clean(o.Paths.Data) {
			continue
		}
		if c.IsSet("data-dir") {
			fmt.Fprintf(c.App.ErrWriter, "podo: there is data of podo in %[1]s, too, which is left alone, with programs and settings; to remove it: podo uninstall --data-dir %[1]s\n", dir)
			all[0].Others = true
			continue
		}
		o.Paths = paths.New(dir)
		all[len(all)-1].Others = true
		all = append(all, o)
	}
	return all, nil
}

// verifyGone fails with a list if there is any trace of podo.
func verifyGone(c *cli.Context, all []reset.Options) error {
	var left []reset.Leftover
	for _, o := range all {
		more, err := reset.Verify(o)
		if err != nil {
			return fmt.Errorf("verify: %w", err)
		}
		left = append(left, slices.DeleteFunc(more, func(l reset.Leftover) bool { return slices.Contains(left, l) })...)
	}
	names, err := clustersThere(local.Site{Dir: local.DefaultDir})
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	for _, name := range names {
		left = append(left, reset.Leftover{Kind: "cluster", What: fmt.Sprintf("%s; remove it with: podo cluster delete --name %[1]s", name)})
	}
	if len(names) == 0 {
		for _, dir := range (local.Site{Dir: local.DefaultDir}).Remains() {
			left = append(left, reset.Leftover{Kind: "file", What: dir + "; remove it with: podo cluster delete --all"})
		}
	}
	if len(left) == 0 {
		but := ""
		if all[0].KeepData {
			but = " but its data"
		} else if all[len(all)-1].Others {
			but = " but what was left alone"
		} else if volumes := keptVolumes(all); len(volumes) > 0 {
			but = " but the volumes in " + strings.Join(volumes, " and ")
		}
		_, err := fmt.Fprintf(c.App.Writer, "nothing%s is left of podo\n", but)
		return err
	}
	for _, l := range left {
		fmt.Fprintf(c.App.Writer, "  left: %s\n", l)
	}
	return fmt.Errorf("podo is not gone: %d things are left", len(left))
}

// keptVolumes are the folders of claims' volumes that an uninstall leaves.
func keptVolumes(all []reset.Options) []string {
	var out []string
	for _, o := range all {
		if !o.KeepData && !o.Purge && reset.HoldsVolumes(o.Paths) {
			out = append(out, o.Paths.Storage())
		}
	}
	return out
}

func confirm(c *cli.Context, all []reset.Options) error {
	switch {
	case c.Bool("yes"):
		return nil
	case !isTerminal(os.Stdin):
		return usagef("podo uninstall: nobody is there to confirm; add --yes to remove podo and its data")
	}
	var what string
	for _, o := range all {
		what += o.Paths.Data + " and "
	}
	what += all[0].Paths.Etc
	if volumes := keptVolumes(all); len(volumes) > 0 {
		what += " but the volumes in " + strings.Join(volumes, " and ")
	}
	fmt.Fprintf(c.App.Writer, "This stops podo and all of its pods, and removes them from this machine%s.\nGo on? [y/N] ",
		choose(all[0].KeepData, "; "+what+" are kept", " with all data in "+what))
	answer, _ := bufio.NewReader(os.Stdin).ReadString('\n')
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return fmt.Errorf("uninstall: not confirmed, nothing was done")
	}
	return nil
}

// userKubeconfigs are the kubeconfigs of whoever may have run podo here: this user,
// and the one that called sudo.
func userKubeconfigs() []string {
	var homes []string
	if h, err := homeDir(); err == nil {
		homes = append(homes, h)
	}
	if u, err := user.Current(); err == nil {
		homes = append(homes, u.HomeDir)
	}
	if name := os.Getenv("SUDO_USER"); name != "" {
		if u, err := user.Lookup(name); err == nil {
			homes = append(homes, u.HomeDir)
		}
	}
	slices.Sort(homes)
	var out []string
	for _, h := range slices.Compact(homes) {
		if filepath.IsAbs(h) {
			out = append(out, filepath.Join(h, ".kube", "config"))
		}
	}
	return out
}
