package deploy

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/inbox"
)

const (
	skipSuffix     = ".skip"
	replacedSuffix = ".replaced"
)

// endings are those of files that are manifests.
func endings() []string { return []string{".yaml", ".yml", ".json"} }

// isManifest and isSkip tell the files that are shared: manifests, and the marks beside
// them that have podo leave alone what they made.
func isManifest(path string) bool { return slices.Contains(endings(), filepath.Ext(path)) }

func isSkip(path string) bool {
	manifest, ok := strings.CutSuffix(path, skipSuffix)
	return ok && isManifest(manifest)
}

// accepted reports whether a path below the folder is one that is shared.
func accepted(path string) bool {
	for _, part := range strings.Split(path, "/") {
		if strings.HasPrefix(part, ".") {
			return false
		}
	}
	return filepath.IsLocal(path) && utf8.ValidString(path) && (isManifest(path) || isSkip(path))
}

// folder is where people put manifests.
type folder string

// scan reads every file. Those that were changed a moment ago are busy: they may be
// half written. It is fs.ErrNotExist if there is no folder.
func (d folder) scan() (found map[string]file, busy map[string]bool, err error) {
	found, busy = map[string]file{}, map[string]bool{}
	if _, err := os.Stat(string(d)); err != nil {
		return nil, nil, err
	}
	err = filepath.WalkDir(string(d), func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went meanwhile, which is an event of its own
		}
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(string(d), path)
		if err != nil || !accepted(name) {
			return err
		}
		info, err := os.Stat(path) // of what a link leads to
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		switch {
		case err != nil:
			return err
		case !info.Mode().IsRegular():
			return nil
		case inbox.Unsettled(info):
			busy[name] = true
			return nil
		}
		found[name], err = load(path, name, info.Size())
		return err
	})
	return found, busy, err
}

func load(path, name string, size int64) (file, error) {
	f := file{path: name}
	if size > maxContent {
		f.problem = fmt.Sprintf("it has %d bytes, and a manifest may have %d; split it", size, maxContent)
		return f, nil
	}
	from, err := os.Open(path)
	if err != nil {
		return file{}, err
	}
	defer from.Close()
	if f.content, err = io.ReadAll(io.LimitReader(from, maxContent)); err != nil {
		return file{}, fmt.Errorf("read %s: %w", path, err)
	}
	if size := len(compress(f.content)); size > maxCompressed {
		f.content, f.problem = nil, fmt.Sprintf("it has %d bytes when compressed, and a manifest may have %d; split it", size, maxCompressed)
	}
	return f, nil
}

// take makes a file of the folder what f is.
func (d folder) take(f file) error {
	path := filepath.Join(string(d), f.path)
	if f.gone {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	if err := atomicfile.EnsureDir(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return atomicfile.Write(path, f.content, 0o600)
}

// setAside keeps a file that another takes the place of.
func (d folder) setAside(path string) error {
	from := filepath.Join(string(d), path)
	err := os.Rename(from, from+replacedSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
