package reset

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// origin is in every text file that install.sh writes outside podo's own folders.
const origin = "written by podo's install.sh"

// installed reports whether install.sh wrote a file.
func installed(path string) bool {
	text, err := os.ReadFile(path)
	return err == nil && bytes.Contains(text, []byte(origin))
}

// A service is podo as one of the machine's service managers knows it.
type service struct {
	name, file            string
	openrc                bool
	stop, disable, forget []string
}

// services are those that run podo or look after it, by their files. Two names are
// podo's own; others were given to the installer, and are told by what it wrote.
func services() []service {
	var out []service
	ours := func(pattern string) []string {
		found, _ := filepath.Glob(pattern)
		return slices.DeleteFunc(found, func(path string) bool {
			name := strings.TrimSuffix(filepath.Base(path), ".service")
			return name != "podo" && name != "podo-agent" && !installed(path)
		})
	}
	for _, dir := range unitFolders() {
		for _, file := range ours(filepath.Join(dir, "podo*.service")) {
			unit := filepath.Base(file)
			s := service{
				name: strings.TrimSuffix(unit, ".service"), file: file,
				stop:    []string{"systemctl", "stop", unit},
				disable: []string{"systemctl", "disable", unit},
				forget:  []string{"systemctl", "daemon-reload"},
			}
			if unit == shutdownUnit { // it may be what calls us, as the machine goes down
				s.stop, s.disable = nil, []string{"systemctl", "disable", "--now", unit}
			}
			out = append(out, s)
		}
	}
	for _, file := range ours("/run/systemd/transient/podo*.service") { // systemd-run made it
		unit := filepath.Base(file)
		out = append(out, service{name: strings.TrimSuffix(unit, ".service"), file: file, stop: []string{"systemctl", "stop", unit}})
	}
	for _, file := range ours("/etc/init.d/podo*") {
		name := filepath.Base(file)
		out = append(out, service{
			name: name, file: file, openrc: true,
			stop:    []string{"rc-service", "--ifstarted", name, "stop"},
			disable: []string{"rc-update", "--all", "delete", name},
		})
	}
	return out
}

// shutdownUnit ends pods before the network does, when the machine is shut down.
const shutdownUnit = "podo-shutdown.service"

// unitFolders are where install.sh puts units, and systemd finds them.
func unitFolders() []string {
	return []string{"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system"}
}

// stopService keeps the service manager from starting podo again.
func (m *machine) stopService(ctx context.Context) error {
	for _, s := range services() {
		if s.stop == nil || !m.managed(s) {
			continue
		}
		if err := run(ctx, s.stop); err != nil {
			return err
		}
		m.tell("stopped the service %s", s.name)
	}
	return nil
}

// managed reports whether the manager of s is in charge of this machine.
func (m *machine) managed(s service) bool {
	if !s.openrc {
		return m.systemd()
	}
	_, err := exec.LookPath("rc-service")
	return err == nil && m.near(1)
}

// serviceFiles are the files by which service managers know podo, and what they keep
// of it.
func serviceFiles() []string {
	var out []string
	add := func(pattern string) {
		found, _ := filepath.Glob(pattern)
		for _, path := range found {
			if !slices.Contains(out, path) {
				out = append(out, path)
			}
		}
	}
	for _, s := range services() {
		out = append(out, s.file)
		add(s.file + ".env")
		add("/etc/systemd/system/*.wants/" + filepath.Base(s.file))
		add("/etc/runlevels/*/" + filepath.Base(s.file))
		if s.openrc {
			add("/var/log/" + s.name + ".log*")
		}
	}
	rotated, _ := filepath.Glob("/etc/logrotate.d/podo*")
	for _, path := range rotated {
		if installed(path) {
			out = append(out, path)
		}
	}
	return out
}

func (m *machine) removeService(ctx context.Context) error {
	var errs []error
	all, files := services(), serviceFiles()
	for _, s := range all {
		if m.managed(s) {
			errs = append(errs, run(ctx, s.disable))
		}
	}
	for _, path := range files {
		err := os.Remove(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		m.tell("removed %s", path)
	}
	for _, s := range all {
		if m.managed(s) {
			errs = append(errs, run(ctx, s.forget))
		}
	}
	return errors.Join(errs...)
}
