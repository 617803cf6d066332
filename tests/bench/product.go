package main

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/process"
)

// A product is one of the two that are compared.
type product struct {
	name       string
	paths      paths.Paths
	kubeconfig string   // the administrator's
	programs   []string // its executables, beside those of the payload
	files      []string // what somebody would have to download
	noDNS      bool

	// prepare lays out what is on the machine before anybody starts the product.
	prepare func(context.Context) error
	// component makes the product ready to start; it logs below a folder.
	component func(logs string) (lifecycle.Component, error)
	// remove takes every trace of it from the machine.
	remove func(context.Context) error
}

// owns reports whether a process, by its folder in /proc, runs one of the product's
// executables.
func (p product) owns(dir string) bool {
	exe, err := os.Readlink(dir + "/exe")
	if err != nil {
		return false
	}
	exe = strings.TrimSuffix(exe, " (deleted)")
	for _, program := range p.programs {
		if exe == program {
			return true
		}
	}
	return strings.HasPrefix(exe, p.paths.Payload()+"/")
}

func (p product) size() (int64, error) {
	var total int64
	for _, path := range p.files {
		info, err := os.Stat(path)
		if err != nil {
			return 0, err
		}
		total += info.Size()
	}
	return total, nil
}

// grace is how long a program may take to stop before it is killed. A kube-apiserver
// would wait for a minute while pods, CoreDNS for one, watch it. A lifecycle.Group gives
// up a little later.
const grace = lifecycle.DefaultGrace - 2*time.Second

// newPodo is podo as a user gets it, but for the limit on pods and what it is told.
func newPodo(exe, home string, o options) product {
	where := paths.New(paths.DefaultData)
	env := append(environment(home), o.env...)
	return product{
		name: "podo", paths: where, kubeconfig: where.AdminKubeconfig(), programs: []string{exe}, files: []string{exe},
		prepare: func(context.Context) error { return nil },
		component: func(logs string) (lifecycle.Component, error) {
			out, err := logFile(logs, "podo")
			if err != nil {
				return nil, err
			}
			return process.New(process.Command{
				Name: "podo", Path: exe, Env: env, Output: out, Grace: grace,
				Args: append([]string{"server", "--kubelet-arg=max-pods=" + strconv.Itoa(maxPods)}, o.args...),
			}, slog.New(slog.DiscardHandler)), nil
		},
		remove: uninstall(exe, home, where),
	}
}

// uninstall removes a product by podo's own means: the baseline keeps its files where
// podo would.
func uninstall(exe, home string, where paths.Paths) func(context.Context) error {
	return func(ctx context.Context) error {
		cmd := exec.CommandContext(ctx, exe, "uninstall", "--yes", "--purge", "--data-dir", where.Data)
		cmd.Env = environment(home)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("podo uninstall --data-dir %s: %w\n%s", where.Data, err, out)
		}
		return nil
	}
}

func logFile(dir, name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(dir, name+".log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
}

// warm reads files once, so that neither product pays for a disk that the other had
// read for it.
func warm(files ...string) error {
	for _, root := range files {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteTo(nowhere{})
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

type nowhere struct{}

func (nowhere) Write(b []byte) (int, error) { return len(b), nil }
