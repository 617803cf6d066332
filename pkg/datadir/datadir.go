// Package datadir claims a data directory for one process.
//
// Two podos on one directory would ruin each other's cluster, so the directory is
// locked for as long as the process lives, and the run directory with it. The
// layout number says which podo wrote it: a newer one is refused, an older one
// would be migrated here.
package datadir

import (
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
)

// Layout is the version of the directory's layout that this podo writes.
const Layout = 1

var (
	// ErrHeld means that another podo runs on the directory.
	ErrHeld = errors.New("in use by another podo")

	// ErrNewer means that a newer podo wrote the directory. Trying again is no use.
	ErrNewer = errors.New("written by a newer podo")
)

// minFree is what a start needs at the least: the unpacked payload, and room for
// the datastore to take a write.
const minFree = 64 << 20

// Claim makes the directories and locks them. The lock is let go by release, or
// when the process ends in whatever way.
func Claim(p paths.Paths) (release func(), err error) {
	if err := makeDir(p.Data); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(p.Run, 0o711); err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	var held []*os.File
	release = func() {
		for _, f := range held {
			f.Close()
		}
	}
	for _, path := range []string{p.Lock(), p.RunLock()} {
		f, err := lock(path)
		if err != nil {
			release()
			return nil, err
		}
		held = append(held, f)
	}
	if err := checkLayout(p.Layout()); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("data directory: %w; choose another with --data-dir", err)
	}
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return fmt.Errorf("data directory %s: %w", dir, err)
	}
	if free := s.Bavail * uint64(s.Bsize); free < minFree {
		return fmt.Errorf("data directory %s: the disk is full (%d MiB free, %d needed to start); free some space and start again", dir, free>>20, minFree>>20)
	}
	return nil
}

func lock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w; it must be writable, or choose another with --data-dir", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("%s: %w; stop that one first (podo status shows it), or give this one another --data-dir in a mount namespace of its own", filepath.Dir(path), ErrHeld)
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}

func checkLayout(path string) error {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return atomicfile.Write(path, []byte(strconv.Itoa(Layout)+"\n"), 0o644)
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
