package datadir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/paths"
)

// Known are the data directories that podo has marked on this machine: those that it was
// given by any start, and the usual one.
func Known(p paths.Paths) ([]string, error) {
	noted, err := noted(p)
	if err != nil {
		return nil, err
	}
	all := append([]string{paths.DefaultData}, noted...)
	return slices.DeleteFunc(all, func(dir string) bool {
		p.Data = dir
		return !marked(p)
	}), nil
}

// Remember notes a data directory that is not the usual one, for whoever removes podo and
// does not know with which flags it ran.
func (c *Claim) Remember() error {
	dir, err := filepath.Abs(c.paths.Data)
	if err != nil || dir == paths.DefaultData {
		return err
	}
	all, err := noted(c.paths)
	if err != nil || slices.Contains(all, dir) {
		return err
	}
	if err := os.MkdirAll(c.paths.Etc, 0o755); err != nil {
		return err
	}
	return atomicfile.Write(c.paths.DataDirs(), []byte(strings.Join(append(all, dir), "\n")+"\n"), 0o644)
}

func noted(p paths.Paths) ([]string, error) {
	text, err := os.ReadFile(p.DataDirs())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return slices.DeleteFunc(strings.Split(string(text), "\n"), func(line string) bool { return !filepath.IsAbs(line) }), nil
}

// marked reports whether a podo has taken the directory.
func marked(p paths.Paths) bool {
	text, err := os.ReadFile(p.Layout())
	if err != nil {
		return false
	}
	_, err = strconv.Atoi(strings.TrimSpace(string(text)))
	return err == nil
}
