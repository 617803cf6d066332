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

// A view is what there is in the folder, by path.
type view struct {
	files map[string]file
	busy  map[string]bool  // still being written
	away  map[string]error // links that cannot be followed, and why
}

// blocked is why it is not known what is at a path: because of a link there, or above it.
func (v view) blocked(path string) error {
	for ; path != "."; path = filepath.Dir(path) {
		if err := v.away[path]; err != nil {
			return err
		}
	}
	return nil
}

// scan reads every file that is whole.
func (d folder) scan() (view, error) {
	v := view{map[string]file{}, map[string]bool{}, map[string]error{}}
	before, err := os.Stat(string(d))
	if err != nil {
		return view{}, err
	}
	// The folder itself may be a link.
	err = filepath.WalkDir(string(d)+"/.", func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			err = d.see(v, path, e.Type()&fs.ModeSymlink != 0)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went meanwhile, which is an event of its own
		}
		return err
	})
	if err != nil {
		return view{}, err
	}
	// What went with the folder itself was not deleted.
	if after, err := os.Stat(string(d)); err != nil || !os.SameFile(before, after) {
		return view{}, fmt.Errorf("%s was moved or deleted while podo read it", d)
	}
	return v, nil
}

// see adds one entry of the folder to a view.
func (d folder) see(v view, path string, link bool) error {
	name, err := filepath.Rel(string(d), path)
	if err != nil || !link && !accepted(name) {
		return err
	}
	info, err := os.Stat(path) // of what a link leads to
	if link && (err != nil || !info.Mode().IsRegular()) {
		if _, err := os.Lstat(path); err != nil {
			return err
		}
		if err == nil {
			err = fmt.Errorf("%s is a link to something other than a file, which is not followed", path)
		}
		v.away[name] = err
		return nil
	}
	if err != nil || !info.Mode().IsRegular() || !accepted(name) {
		return err
	}
	if inbox.Unsettled(info) {
		v.busy[name] = true
		return nil
	}
	from, err := os.Open(path)
	if err != nil {
		return err
	}
	defer from.Close()
	if inbox.Written(from) {
		v.busy[name] = true
		return nil
	}
	v.files[name], err = load(from, name, info.Size())
	return err
}

func load(from *os.File, name string, size int64) (f file, err error) {
	f.path = name
	if size > maxContent {
		f.problem = fmt.Sprintf("it has %d bytes, and a manifest may have %d; split it", size, maxContent)
		return f, nil
	}
	if f.content, err = io.ReadAll(io.LimitReader(from, maxContent)); err != nil {
		return file{}, fmt.Errorf("read %s: %w", from.Name(), err)
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
