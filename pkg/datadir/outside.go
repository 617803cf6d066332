package datadir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/paths"
)

// Outside are the files that podo was told to write elsewhere, by any of its starts. A
// kubeconfig comes with the name that podo has in it, any other file with none.
func Outside(p paths.Paths) (map[string]string, error) {
	text, err := os.ReadFile(p.Outside())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out map[string]string
	if err := json.Unmarshal(text, &out); err != nil {
		return nil, fmt.Errorf("%s: %w; remove it, and the files that podo was told to write elsewhere", p.Outside(), err)
	}
	return out, nil
}

// Outside remembers more of them, for whoever removes podo. Those that go with podo's own
// folders need not be.
func (c *Claim) Outside(files map[string]string) error {
	known, err := Outside(c.paths)
	if err != nil {
		return err
	}
	all := map[string]string{}
	maps.Copy(all, known)
	for path, name := range files {
		if path == "" {
			continue
		}
		if path, err = filepath.Abs(path); err != nil {
			return err
		}
		if !c.within(path) {
			all[path] = name
		}
	}
	if len(all) == 0 {
		return nil
	}
	text, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	_, err = atomicfile.WriteIfChanged(c.paths.Outside(), append(text, '\n'), 0o644)
	return err
}

func (c *Claim) within(path string) bool {
	if below, ok := strings.CutPrefix(path, c.paths.Data+"/"); ok {
		first, _, deeper := strings.Cut(below, "/")
		return deeper && Owns(first)
	}
	return strings.HasPrefix(path, c.paths.Etc+"/") || strings.HasPrefix(path, c.paths.Run+"/")
}
