// Package registries leads the container engine to image registries, as registries.yaml
// says: to mirrors first, with other names, with credentials and certificates.
//
// The engine's own files know neither rewrites nor credentials. They send it to a proxy
// in podo's process instead, which listens on loopback and answers nobody else: each start
// gives the engine a new secret to show. What no entry of registries.yaml concerns, the
// engine asks for by itself. The file is read again when it changes.
package registries

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/plan"
)

// New returns the component. An error means that the file is wrong; all its mistakes are
// in it. Local answers for the images that podo itself brings.
func New(p plan.Registries, local http.Handler, log *slog.Logger) (lifecycle.Component, error) {
	first, err := read(p)
	if err != nil {
		return nil, err
	}
	secret := rand.Text()
	d := &door{plan: p, proxy: newProxy(secret, local, log), file: first, log: log}
	return lifecycle.Func("registries", d.run), nil
}

// read reads the file. One that nobody named need not be there.
func read(p plan.Registries) (File, error) {
	_, err := os.Lstat(p.File) // what it names may be missing, too
	switch absent := errors.Is(err, fs.ErrNotExist); {
	case absent && !p.Named:
		return File{}, nil
	case absent:
		return File{}, fmt.Errorf("private-registry: there is no file %s", p.File)
	}
	return Read(p.File)
}

// A door is what the engine's requests go through.
type door struct {
	plan  plan.Registries
	proxy *proxy
	file  File // as it was first
	log   *slog.Logger
}

func (d *door) run(ctx context.Context, ready func()) error {
	if err := os.MkdirAll(filepath.Dir(d.plan.File), 0o755); err != nil {
		return err
	}
	files, err := newWatch(d.plan.File)
	if err != nil {
		return err
	}
	defer files.Close()
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(d.plan.Listen.String(), "0"))
	if err != nil {
		return err
	}
	server := &http.Server{Handler: d.proxy, ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelDebug)}
	defer server.Close()
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	address := "http://" + l.Addr().String()
	if err := d.lead(d.file, address); err != nil {
		return err
	}
	ready()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			return fmt.Errorf("serve %s: %w", address, err)
		case e := <-files.Events:
			if !files.concerns(e) {
				continue
			}
		case <-files.Errors: // events were lost
		}
		d.again(ctx, files, address)
	}
}

// again reads the file once it has been still for a moment. One that is wrong changes
// nothing.
func (d *door) again(ctx context.Context, files *watch, address string) {
	for still := time.After(settled); ; {
		select {
		case <-ctx.Done():
			return
		case <-files.Events:
			continue
		case <-files.Errors:
			continue
		case <-still:
		}
		break
	}
	if err := files.follow(); err != nil {
		d.log.Warn("changes of registries may go unseen", "component", "registries", "path", d.plan.File, "err", err)
	}
	f, err := read(d.plan)
	if err == nil {
		err = d.lead(f, address)
	}
	if err != nil {
		d.log.Error("registries stay as they were: their file was refused", "component", "registries", "path", d.plan.File, "err", err)
		return
	}
	d.log.Info("registries were read again", "component", "registries", "path", d.plan.File)
}

const settled = 300 * time.Millisecond

// lead has the engine ask at address for what the file is about.
func (d *door) lead(f File, address string) error {
	r := newRoutes(f, d.plan.NoDefault)
	d.proxy.routes.Store(r)
	return writeHosts(d.plan.Paths, append(r.registries(), plan.OwnRegistry), address, d.proxy.secret)
}

// mark begins the files that are podo's own to replace and to remove.
const mark = "# Written by podo from registries.yaml, and again whenever that changes.\n"

// writeHosts writes the engine's file about each of registries, and removes those about
// others that were written earlier. It reads them at each pull. They are good for this
// start alone, and lie where a full disk is no obstacle.
func writeHosts(p paths.Paths, registries []string, address, secret string) error {
	text := mark + fmt.Sprintf("server = %q\ncapabilities = [\"pull\", \"resolve\", \"referrers\"]\n[header]\n  %s = %q\n", address, secretHeader, secret)
	var wanted []string
	for _, name := range registries {
		dir := folder(p, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		file := filepath.Join(dir, "hosts.toml")
		wanted = append(wanted, file)
		if err := atomicfile.Write(file, []byte(text), 0o600, atomicfile.Unsynced()); err != nil {
			return err
		}
	}
	for _, root := range p.RegistryRoots() {
		if err := removeOthers(root, wanted); err != nil {
			return err
		}
	}
	return nil
}

func removeOthers(root string, wanted []string) error {
	entries, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		file := filepath.Join(root, e.Name(), "hosts.toml")
		if slices.Contains(wanted, file) || !ours(file) {
			continue
		}
		if err := os.Remove(file); err != nil {
			return err
		}
		if err := os.Remove(filepath.Dir(file)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

func ours(file string) bool {
	text, err := os.ReadFile(file)
	return err == nil && bytes.HasPrefix(text, []byte(mark))
}

// folder is where the engine looks for a registry's file. One about all registries comes
// after those that people have put in place.
func folder(p paths.Paths, registry string) string {
	if registry == "*" {
		return filepath.Join(p.RegistryRest(), "_default")
	}
	if i := strings.LastIndexByte(registry, ':'); i > 0 {
		registry = registry[:i] + "_" + registry[i+1:] + "_"
	}
	return filepath.Join(p.RegistryRoutes(), registry)
}
