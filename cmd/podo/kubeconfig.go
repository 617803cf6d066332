package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/reset"
	"github.com/podo-dev/podo/pkg/status"
)

func kubeconfigCommand() *cli.Command {
	file := func(name string) cli.Flag {
		return &cli.StringFlag{Name: name, TakesFile: true, Usage: "`FILE` to change", DefaultText: "$KUBECONFIG, else .kube/config in your home, also with sudo"}
	}
	name := &cli.StringFlag{Name: "name", Value: reset.Context, Usage: "`NAME` of the context, the cluster and the user in it"}
	return &cli.Command{
		Name:  "kubeconfig",
		Usage: "let kubectl and other tools find this cluster",
		Description: `podo writes the administrator's kubeconfig to one file of its own. Tools look in
.kube/config in your home: these commands put the cluster there, or take it out.
Other entries in that file stay as they are.

Examples:
  sudo podo kubeconfig merge                       add the cluster and make it current
  kubectl --context podo get nodes                 use it
  podo kubeconfig remove                           take it out again
  export KUBECONFIG=$(podo kubeconfig path)        or use podo's own file`,
		Subcommands: []*cli.Command{
			{
				Name: "merge", Usage: "add this cluster to your kubeconfig and make it current",
				Flags: []cli.Flag{file("into"), name}, OnUsageError: flagProblem,
				Action: func(c *cli.Context) error {
					if err := noArgs(c); err != nil {
						return err
					}
					return mergeKubeconfig(c)
				},
			},
			{
				Name: "remove", Usage: "take this cluster out of your kubeconfig",
				Flags: []cli.Flag{file("from"), name}, OnUsageError: flagProblem,
				Action: func(c *cli.Context) error {
					if err := noArgs(c); err != nil {
						return err
					}
					files, err := kubeconfigsOf(c.String("from"))
					if err != nil {
						return err
					}
					removed, err := removeContext(files, c.String("name"))
					if len(removed) == 0 && err == nil {
						fmt.Fprintf(c.App.Writer, "no context %s in %s\n", c.String("name"), strings.Join(files, ", "))
					}
					for _, file := range removed {
						fmt.Fprintf(c.App.Writer, "removed context %s from %s\n", c.String("name"), file)
					}
					return err
				},
			},
			{
				Name: "path", Usage: "print where the administrator's kubeconfig is",
				OnUsageError: flagProblem,
				Action: func(c *cli.Context) error {
					if err := noArgs(c); err != nil {
						return err
					}
					_, err := fmt.Fprintln(c.App.Writer, adminKubeconfig(c.Context, podoSocket()))
					return err
				},
			},
		},
		Action:       chooseOne,
		OnUsageError: flagProblem,
	}
}

// podoSocket is where a running podo answers, whatever its data directory.
func podoSocket() string { return paths.New(paths.DefaultData).Socket("podo") }

// adminKubeconfig is where the server behind socket says it wrote the administrator's,
// or else where the next one would.
func adminKubeconfig(ctx context.Context, socket string) string {
	if r, err := status.Fetch(ctx, socket); err == nil && r.Kubeconfig != "" {
		return r.Kubeconfig
	}
	// A mistake in another setting must not keep anybody from finding the cluster.
	cfg, _, _ := resolveServer(os.Environ(), nil)
	return cfg.Kubeconfig.Path
}

func mergeKubeconfig(c *cli.Context) error {
	from := adminKubeconfig(c.Context, podoSocket())
	switch f, err := os.Open(from); {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("kubeconfig: %w", noCluster(from))
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("kubeconfig: %w; try: sudo podo kubeconfig merge", err)
	case err == nil:
		f.Close()
	}
	admin, err := kubeconfig.Client(from, nil)
	if err != nil {
		return fmt.Errorf("kubeconfig: read %s: %w", from, err)
	}
	p, err := kubeconfigOwner(c.String("into"))
	if err != nil {
		return err
	}
	err = p.merge(kubeconfig.Config{
		Name:     c.String("name"),
		Server:   admin.Host,
		CA:       admin.CAData,
		CAFile:   admin.CAFile,
		Cert:     admin.CertData,
		CertFile: admin.CertFile,
		Key:      admin.KeyData,
		KeyFile:  admin.KeyFile,
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.App.Writer, "merged %s into %s as context %s, which is now current\n", from, p.file, c.String("name"))
	return err
}

// personal is a person's kubeconfig, and the person if that is not who we run as.
type personal struct {
	file     string
	uid, gid int
}

// merge puts a cluster into the file, which is the person's if it is new, and so is its folder.
func (p personal) merge(c kubeconfig.Config) error {
	dir := filepath.Dir(p.file)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) && p.uid >= 0 {
		err := atomicfile.EnsureDir(dir, 0o755)
		if err == nil {
			err = os.Chown(dir, p.uid, p.gid)
		}
		if err != nil {
			return fmt.Errorf("kubeconfig: %w", err)
		}
	}
	return kubeconfig.Merge(p.file, c, atomicfile.Owner(p.uid), atomicfile.Group(p.gid))
}

// homeDir is $HOME, or where that is not set, as for a service, what the machine's list of
// users has.
func homeDir() (string, error) {
	home, err := os.UserHomeDir()
	if err == nil {
		return home, nil
	}
	u, e := user.LookupId(strconv.Itoa(os.Geteuid()))
	if e != nil {
		return "", errors.Join(err, e)
	}
	return u.HomeDir, nil
}

// listedKubeconfigs are the files of $KUBECONFIG.
func listedKubeconfigs() []string {
	return slices.DeleteFunc(filepath.SplitList(os.Getenv("KUBECONFIG")), func(file string) bool { return file == "" })
}

// removeContext takes a context out of each of some files that has it, and returns those.
// Of several, those that cannot be read are nobody's business here.
func removeContext(files []string, name string) (removed []string, err error) {
	var errs []error
	for _, file := range files {
		if has, err := kubeconfig.Has(file, name); len(files) > 1 && (err != nil || !has) {
			continue
		}
		found, err := kubeconfig.Remove(file, name)
		if found {
			removed = append(removed, file)
		}
		errs = append(errs, err)
	}
	return removed, errors.Join(errs...)
}

// toWrite is the one of several kubeconfigs that kubectl writes to: the first that is there,
// or else the last.
func toWrite(files []string) string {
	last := ""
	for _, last = range files {
		if _, err := os.Stat(last); err == nil {
			break
		}
	}
	return last
}

// kubeconfigsOf are all files that a cluster may have been merged into, if file names none.
func kubeconfigsOf(file string) ([]string, error) {
	if listed := listedKubeconfigs(); file == "" && len(listed) > 0 {
		return listed, nil
	}
	p, err := kubeconfigOwner(file)
	return []string{p.file}, err
}

// kubeconfigOwner finds the file that is meant if file names none: with sudo, that of
// the user who called it. A file in that user's home becomes that user's.
func kubeconfigOwner(file string) (personal, error) {
	p := personal{file: file, uid: -1, gid: -1}
	if p.file == "" {
		p.file = toWrite(listedKubeconfigs())
	}
	if name := os.Getenv("SUDO_USER"); name != "" && os.Geteuid() == 0 {
		u, err := user.Lookup(name)
		switch {
		case err != nil && p.file == "":
			return p, fmt.Errorf("kubeconfig: find the home of %s, who called sudo: %w; name the file", name, err)
		case err != nil:
			return p, nil
		case p.file == "":
			p.file = filepath.Join(u.HomeDir, ".kube", "config")
		}
		at, err := filepath.Abs(p.file)
		if err != nil {
			return p, fmt.Errorf("kubeconfig: %w", err)
		}
		if strings.HasPrefix(at, u.HomeDir+"/") {
			p.uid, _ = strconv.Atoi(u.Uid)
			p.gid, _ = strconv.Atoi(u.Gid)
		}
		return p, nil
	}
	if p.file == "" {
		home, err := homeDir()
		if err != nil {
			return p, fmt.Errorf("kubeconfig: find your home: %w; set HOME or KUBECONFIG, or name the file", err)
		}
		p.file = filepath.Join(home, ".kube", "config")
	}
	return p, nil
}
