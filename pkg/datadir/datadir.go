// Package datadir claims a data directory for one process.
//
// Two podos on one directory would ruin each other's cluster, so the directory is
// locked for as long as the process lives, and the run directory with it. The
// layout number says which podo wrote it: a newer one is refused, an older one
// would be migrated here. So is one that ran a newer minor version of Kubernetes, whose
// objects and files an older one cannot read. A folder without one that holds somebody else's files is
// refused as well, since all of podo's folder is podo's to remove.
//
// A start that is refused must leave nothing behind, so a claim takes two steps:
// Judge only reads, and Take writes when nothing stands in the way any more.
package datadir

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/version"
)

// Layout is the version of the directory's layout that this podo writes.
const Layout = 1

var (
	// ErrHeld means that another podo runs on the directory.
	ErrHeld = errors.New("in use by another podo")

	// ErrNewer means that a newer podo wrote the directory. Trying again is no use.
	ErrNewer = errors.New("written by a newer podo")
)

// A Claim is one start's hold on a data directory. It ends with Release, or when
// the process ends in whatever way.
type Claim struct {
	paths paths.Paths
	runs  string // the Kubernetes that asks
	shape map[string]string
	asked []string
	held  map[string]*os.File
}

// Judge reports whether a start that asks for shape, and runs that version of Kubernetes,
// can have the directory, which need not exist. An agent has no shape of its own: nil. It
// writes nothing, but holds the locks that are there already. The settings may have asked
// for files in it that are no part of the layout.
func Judge(p paths.Paths, runs string, shape map[string]string, asked ...string) (*Claim, error) {
	c := &Claim{paths: p, runs: runs, shape: shape, asked: asked, held: map[string]*os.File{}}
	if err := c.judge(0); err != nil {
		c.Release()
		return nil, err
	}
	return c, nil
}

// Take is Hold, and from then on the shape is what the cluster keeps for life, and an
// older Kubernetes is refused.
func (c *Claim) Take() error {
	if err := c.Hold(); err != nil {
		return err
	}
	if err := c.spend(); err != nil {
		return err
	}
	if err := c.note(); err != nil || c.shape == nil {
		return err
	}
	if err := c.KeepDatastore(); err != nil {
		return err
	}
	return pin(c.paths, c.shape)
}

// note remembers the version of Kubernetes, unless it is that of the last time: a full
// disk must not keep what is there from starting.
func (c *Claim) note() error {
	text := []byte(c.runs + "\n")
	if old, err := os.ReadFile(c.paths.Kubernetes()); err == nil && bytes.Equal(old, text) {
		return nil
	}
	return atomicfile.Write(c.paths.Kubernetes(), text, 0o644)
}

// Hold makes the directories and what marks them as podo's. Nobody else can have them
// from then on.
func (c *Claim) Hold() error {
	if err := os.MkdirAll(c.paths.Data, 0o755); err != nil {
		return fmt.Errorf("data directory: %w; choose another with --data-dir", err)
	}
	if err := os.MkdirAll(c.paths.Run, 0o711); err != nil {
		return fmt.Errorf("run directory: %w", err)
	}
	// Once more, under locks that are sure to be there.
	if err := c.judge(os.O_CREATE); err != nil {
		return err
	}
	if _, err := os.Stat(c.paths.Layout()); errors.Is(err, fs.ErrNotExist) {
		if err := atomicfile.Write(c.paths.Layout(), []byte(strconv.Itoa(Layout)+"\n"), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Release lets somebody else have the directory.
func (c *Claim) Release() {
	for _, f := range c.held {
		f.Close()
	}
}

func (c *Claim) judge(flag int) error {
	if err := Foreign(c.paths, c.asked...); err != nil {
		return err
	}
	for _, path := range []string{c.paths.Lock(), c.paths.RunLock()} {
		if err := c.lock(path, flag); err != nil {
			return err
		}
	}
	if err := checkLayout(c.paths.Layout()); err != nil {
		return err
	}
	if err := checkKubernetes(c.paths, c.runs); err != nil {
		return err
	}
	if err := checkRole(c.paths, c.shape != nil); err != nil {
		return err
	}
	return checkShape(c.paths, c.shape)
}

func (c *Claim) lock(path string, flag int) error {
	if c.held[path] != nil {
		return nil
	}
	f, err := os.OpenFile(path, os.O_RDONLY|flag, 0o600)
	if errors.Is(err, fs.ErrNotExist) && flag == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("data directory: %w; it must be writable, or choose another with --data-dir", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		c.held[path] = f
		return nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%s: %w; stop that one first (podo status shows it), or give this one another --data-dir in a mount namespace of its own", filepath.Dir(path), ErrHeld)
	}
	return fmt.Errorf("lock %s: %w", path, err)
}

func checkLayout(path string) error {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	found, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("%s: %q is not a layout number; restore the file from a backup, or write %d into it if no newer podo ever ran here", path, strings.TrimSpace(string(text)), Layout)
	}
	if found > Layout {
		return fmt.Errorf("%s: %w: layout %d, this one knows %d; run that podo again, or restore a backup from before the upgrade", filepath.Dir(path), ErrNewer, found, Layout)
	}
	return nil
}

// checkKubernetes refuses to go back over a minor version. Upstream promises nothing then:
// an older API server does not know what a newer one stored.
func checkKubernetes(p paths.Paths, runs string) error {
	text, err := os.ReadFile(p.Kubernetes())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if ran := strings.TrimSpace(string(text)); version.Minor(ran) > version.Minor(runs) {
		return fmt.Errorf("%s: %w: Kubernetes %s ran here, and this one has %s, which may not know what that stored; install a podo with %[3]s or newer, or go back to before the upgrade with podo uninstall and a backup of %[1]s/server (an agent: podo uninstall, and join again)",
			p.Data, ErrNewer, ran, runs)
	}
	return nil
}
