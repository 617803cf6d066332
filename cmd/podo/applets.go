package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/payload"
	"github.com/podo-dev/podo/pkg/status"
)

// appletNames are the programs of the payload that podo turns into, as a sub-command
// or when it is called by their name.
func appletNames() []string { return []string{"kubectl", "crictl", "ctr"} }

// calledAs is the applet that the name podo was called by stands for.
func calledAs(arg0 string) (name string, ok bool) {
	name = filepath.Base(arg0)
	return name, slices.Contains(appletNames(), name)
}

func kubectlCommand() *cli.Command {
	return appletCommand("kubectl", "control the cluster (Kubernetes' own client)", "ARGUMENTS...")
}

func crictlCommand() *cli.Command {
	return appletCommand("crictl", "look at this node's pods, containers and images", "ARGUMENTS...")
}

func ctrCommand() *cli.Command {
	return appletCommand("ctr", "debug containerd itself", "ARGUMENTS...")
}

// appletCommand hands every argument on untouched, --help included.
func appletCommand(name, usage, args string) *cli.Command {
	return &cli.Command{
		Name:            name,
		Usage:           usage,
		ArgsUsage:       args,
		Category:        "Tools inside (also by these names as links to podo)",
		SkipFlagParsing: true,
		HideHelp:        true,
		Action: func(c *cli.Context) error {
			return runApplet(c.Context, name, c.Args().Slice())
		},
	}
}

// runApplet becomes a program of the payload, so that its signals, terminal and exit
// code are the user's own. It returns only if it cannot.
func runApplet(ctx context.Context, name string, args []string) error {
	admin := ""
	if name == "kubectl" && os.Getenv("KUBECONFIG") == "" {
		admin = adminKubeconfig(ctx, podoSocket())
	}
	env, err := appletEnv(name, args, admin)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	program, err := findApplet(ctx, name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	err = syscall.Exec(program, append([]string{name}, args...), env)
	return fmt.Errorf("run %s: %w", program, err)
}

// appletEnv points a program at this machine's cluster, whose kubeconfig is admin,
// unless the user points it elsewhere.
func appletEnv(name string, args []string, admin string) ([]string, error) {
	env := os.Environ()
	preset := func(key, value string) {
		if os.Getenv(key) == "" {
			env = append(slices.DeleteFunc(env, func(kv string) bool { return strings.HasPrefix(kv, key+"=") }), key+"="+value)
		}
	}
	engine := paths.New(paths.DefaultData).Socket("containerd")
	switch name {
	case "crictl":
		preset("CONTAINER_RUNTIME_ENDPOINT", "unix://"+engine)
		preset("IMAGE_SERVICE_ENDPOINT", "unix://"+engine)
		if _, err := os.Stat("/etc/crictl.yaml"); errors.Is(err, fs.ErrNotExist) {
			preset("CRI_CONFIG_FILE", os.DevNull) // it warns if it finds no file at all
		}
	case "ctr":
		preset("CONTAINERD_ADDRESS", engine)
		preset("CONTAINERD_NAMESPACE", "k8s.io")
	case "kubectl":
		path, err := clusterKubeconfig(args, admin)
		if err != nil {
			return nil, err
		}
		if path != "" {
			preset("KUBECONFIG", path)
			// What it learns about this cluster is kept where podo uninstall looks.
			if cache, err := os.UserCacheDir(); err == nil {
				preset("KUBECACHEDIR", filepath.Join(cache, "podo", "kubectl"))
			}
		}
	}
	return env, nil
}

// clusterKubeconfig is admin, the administrator's, or empty if kubectl should look where
// it always does.
func clusterKubeconfig(args []string, admin string) (string, error) {
	if os.Getenv("KUBECONFIG") != "" {
		return "", nil
	}
	path, own := admin, ""
	if home, err := homeDir(); err == nil {
		own = filepath.Join(home, ".kube", "config")
		if _, err := os.Stat(own); err != nil {
			own = ""
		}
	}
	f, err := os.Open(path)
	if err == nil {
		if own != "" && namesContext(args) {
			path += string(filepath.ListSeparator) + own
		}
		return path, f.Close()
	}
	switch {
	case needsNoCluster(args), own != "" && (!errors.Is(err, fs.ErrPermission) || namesContext(args) || isOfPodo(own)):
		return "", nil
	case errors.Is(err, fs.ErrPermission):
		return "", fmt.Errorf("%w; use sudo, or start podo with --write-kubeconfig-mode=644, or copy it once with: sudo podo kubeconfig merge", err)
	case errors.Is(err, fs.ErrNotExist):
		return "", noCluster(path)
	}
	return "", err
}

// isOfPodo reports whether a kubeconfig leads to a cluster of podo's, by the names that
// podo kubeconfig merge and podo cluster give contexts. Where podo's own file cannot be
// read, any other cluster would be the wrong one.
func isOfPodo(path string) bool {
	text, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	var file struct {
		Current string `yaml:"current-context"`
	}
	return yaml.Unmarshal(text, &file) == nil && (file.Current == "podo" || strings.HasPrefix(file.Current, "podo-"))
}

// noCluster says what to do where the administrator's kubeconfig is missing.
func noCluster(path string) error {
	if _, err := os.Stat(paths.New(config.Default().DataDir).Identity()); err == nil {
		return fmt.Errorf("no %[1]s: this machine is a node of a cluster, whose servers have that file; run this there, or copy it from one and put the server's address into it", path)
	}
	return fmt.Errorf("there is no cluster on this machine yet (no %s); start one with: sudo podo server", path)
}

// namesContext reports whether kubectl is told which of several clusters is meant.
func namesContext(args []string) bool {
	return slices.ContainsFunc(args, func(a string) bool {
		name, _, _ := strings.Cut(a, "=")
		return name == "--context" || name == "--cluster" || name == "--user"
	})
}

// needsNoCluster reports whether kubectl is asked for something that it knows itself,
// or is told where the cluster is.
func needsNoCluster(args []string) bool {
	if len(args) == 0 {
		return true
	}
	switch args[0] {
	case "help", "completion", "config", "options", "plugin", "kustomize":
		return true
	}
	return slices.ContainsFunc(args, func(a string) bool {
		name, _, _ := strings.Cut(a, "=")
		return slices.Contains([]string{"-h", "--help", "--client", "--kubeconfig", "--server", "-s"}, name) || strings.HasPrefix(a, "__complete")
	})
}

// findApplet is the path of a program that podo server unpacked, or else of a copy in
// memory: a tool must not leave anything behind on a machine where no server ran.
func findApplet(ctx context.Context, name string) (string, error) {
	cfg, _, _ := resolveServer(os.Environ(), nil)
	if path := paths.New(cfg.DataDir).Program(name); unix.Access(path, unix.X_OK) == nil {
		return path, nil
	}
	if r, err := status.Fetch(ctx, podoSocket()); err == nil && r.DataDir != "" {
		if path := paths.New(r.DataDir).Program(name); unix.Access(path, unix.X_OK) == nil {
			return path, nil
		}
	}
	exe, err := os.Executable()
	if err != nil {
		return "", err
	}
	p, err := payload.Open(exe)
	if err != nil {
		return "", err
	}
	memory, err := memoryFile(name)
	if err != nil {
		return "", fmt.Errorf("no memory to unpack into: %w", err)
	}
	w, err := os.OpenFile(memory, os.O_WRONLY, 0)
	if err != nil {
		return "", err
	}
	return memory, errors.Join(p.Extract(w, name), w.Close()) // the kernel runs no file that is open for writing
}

// memoryFile is the path of a file that is on no disk, may be executed, and is there
// until this process ends or becomes that program. Kernels before 6.3 do not know the
// flag that allows it, and need none.
func memoryFile(name string) (string, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	}
	return fmt.Sprintf("/proc/self/fd/%d", fd), err
}
