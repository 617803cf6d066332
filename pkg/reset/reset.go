package reset

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/datadir"
	"github.com/podo-dev/podo/pkg/paths"
)

// Options says what to undo, and how.
type Options struct {
	Paths paths.Paths

	// Grace is how long pods may take to end by themselves. Without any, they are
	// cut off.
	Grace time.Duration

	// EndPods has the running podo end its pods, with their hooks, within a time, and says
	// whether that began, so that what it took is theirs no more. Without it, or if it fails,
	// their processes are told to end.
	EndPods func(ctx context.Context, within time.Duration) (began bool, err error)

	// Tell is called after each step with what it did, in a few words.
	Tell func(words string)

	// Uninstall alone reads the rest.

	// KeepData leaves the data directory and the configuration where they are.
	KeepData bool
	// Others means that there is data of podo elsewhere on this machine, with which it is
	// to be removed later: what both share stays until then.
	Others bool
	// Purge removes the volumes of claims as well, which are people's.
	Purge bool
	// Executable is the running podo. It is removed if it was installed, that is if
	// it lies in one of the usual folders for programs.
	Executable string
	// Kubeconfigs are files that podo's context may have been merged into.
	Kubeconfigs []string
}

// ErrHeld means that podo started again while it was being removed. Something
// restarts it, and that has to be stopped first.
var ErrHeld = errors.New("podo was started again")

// Kill stops podo and all of its pods, and removes their mounts, links, network
// namespaces, packet filter tables, cgroups and sockets. Kernel parameters that podo
// set stay as they are, for its next start.
//
// Kill goes on past what it cannot remove, and returns every such trouble at the end.
func Kill(ctx context.Context, o Options) error {
	m, err := look(o)
	if err != nil {
		return err
	}
	return m.stopped(ctx, func() error { return nil })
}

// Uninstall does what Kill does, puts kernel parameters back and then removes every file
// podo made.
func Uninstall(ctx context.Context, o Options) error {
	m, err := look(o)
	if err != nil {
		return err
	}
	if !o.KeepData {
		if err := datadir.Foreign(m.real); err != nil {
			return fmt.Errorf("uninstall: %w", err) // before anything is stopped
		}
	}
	return m.stopped(ctx, func() error { return m.removeFiles(ctx) })
}

// machine is one machine as a reset sees it.
type machine struct {
	Options
	data string      // Paths.Data without symbolic links
	real paths.Paths // Paths with that
	self map[int]bool
	ns   namespaces
	ids  map[string]bool // containers of ours
}

func look(o Options) (*machine, error) {
	if !filepath.IsAbs(o.Paths.Data) || !filepath.IsAbs(o.Paths.Run) {
		return nil, fmt.Errorf("reset %s: the data directory must be an absolute path", o.Paths.Data)
	}
	if o.Tell == nil {
		o.Tell = func(string) {}
	}
	m := &machine{Options: o, data: filepath.Clean(o.Paths.Data), ids: map[string]bool{}}
	if real, err := filepath.EvalSymlinks(m.data); err == nil {
		m.data = real
	}
	m.real = o.Paths
	m.real.Data = m.data
	m.self = ancestors()
	m.ns = namespacesOf(os.Getpid())
	return m, nil
}

func (m *machine) tell(format string, args ...any) { m.Tell(fmt.Sprintf(format, args...)) }

// stopped stops podo and its pods, takes them out of the kernel, and then calls and,
// while podo still cannot start. Files are out of reach as long as a pod may use them:
// if one does not end, and is not called.
func (m *machine) stopped(ctx context.Context, and func() error) error {
	if err := m.endPods(ctx); err != nil {
		return err
	}
	if err := m.stopPodo(ctx); err != nil {
		return err
	}
	release, err := m.hold(ctx)
	if err != nil {
		return err
	}
	defer release()

	// The list of containers vanishes with the run directory, so it comes first.
	m.findContainers()
	groups := m.podCgroups()
	if err := m.stopPods(ctx); err != nil {
		return err
	}
	// From here on every step is worth trying, whatever the one before met.
	errs := []error{m.unmount(ctx), m.removeNetns()}
	if who := m.otherKubelet(sameHost); who != "" {
		m.tell("left links, packet filter tables and /var/lib/kubelet alone: %s uses them", who)
	} else {
		errs = append(errs, m.removeLinks(), m.removeTables(), m.removeIPTables(ctx))
	}
	errs = append(errs, m.removeCgroups(ctx, groups), m.removeRuntimeFiles(), and())
	return errors.Join(errs...)
}

// hold keeps podo from starting until release is called, by taking the locks that
// it would take.
func (m *machine) hold(ctx context.Context) (release func(), err error) {
	var held []*os.File
	release = func() {
		for _, f := range held {
			_ = f.Close()
		}
	}
	for _, path := range []string{m.Paths.Lock(), m.Paths.RunLock()} {
		f, err := os.Open(path)
		if err != nil {
			continue // never locked, so nobody holds it
		}
		deadline := time.Now().Add(2 * time.Second)
		for {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
			if err == nil || time.Now().After(deadline) || ctx.Err() != nil {
				break
			}
			pause(ctx, 50*time.Millisecond)
		}
		if err != nil {
			_ = f.Close()
			release()
			return nil, fmt.Errorf("%w: %s is locked; stop what restarts it, such as a service manager, and try again", ErrHeld, path)
		}
		held = append(held, f)
	}
	return release, nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
