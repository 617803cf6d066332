package datadir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/paths"
)

// ErrShape means that a cluster was asked to become another one.
var ErrShape = errors.New("this cluster was made with another value")

// Pin remembers the settings that a cluster keeps for life, by name, when it is
// called for the first time. Later calls refuse any that differ, all at once.
func Pin(p paths.Paths, shape map[string]string) error {
	text, err := os.ReadFile(p.Shape())
	if errors.Is(err, fs.ErrNotExist) {
		if text, err = json.MarshalIndent(shape, "", "  "); err != nil {
			return err
		}
		if err := atomicfile.EnsureDir(filepath.Dir(p.Shape()), 0o700); err != nil {
			return err
		}
		return atomicfile.Write(p.Shape(), append(text, '\n'), 0o600)
	}
	if err != nil {
		return err
	}
	kept := map[string]string{}
	if err := json.Unmarshal(text, &kept); err != nil {
		return fmt.Errorf("%s: %w; restore the file from a backup, or remove it to have it written anew from the settings of this start", p.Shape(), err)
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(kept)) {
		if now, asked := shape[name]; asked && now != kept[name] {
			errs = append(errs, fmt.Errorf("%s: %w: it has %q, this start asks for %q; give the old value, or podo uninstall to begin a new cluster", name, ErrShape, kept[name], now))
		}
	}
	return errors.Join(errs...)
}
