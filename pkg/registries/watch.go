package registries

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fsnotify/fsnotify"
)

// A watch hears of changes of a file, and of all symbolic links on the way to it: a folder
// that is replaced as a whole, as those of ConfigMaps and of Nix are, changes no file.
type watch struct {
	*fsnotify.Watcher
	path  string
	trail []string
}

func newWatch(path string) (*watch, error) {
	files, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", path, err)
	}
	w := &watch{Watcher: files, path: path}
	if err := w.follow(); err != nil {
		files.Close()
		return nil, err
	}
	return w, nil
}

// follow watches the way to the file as it is now. What changes meanwhile is seen, or
// followed at once.
func (w *watch) follow() error {
	for range maxLinks {
		now := trail(w.path)
		if slices.Equal(now, w.trail) {
			return nil
		}
		wanted := folders(now)
		for _, dir := range wanted {
			if err := w.Add(dir); err != nil {
				return fmt.Errorf("watch %s: %w", dir, err)
			}
		}
		for _, dir := range w.WatchList() {
			if !slices.Contains(wanted, dir) {
				_ = w.Remove(dir) // it may be gone
			}
		}
		w.trail = now
	}
	return nil
}

// concerns reports whether an event may change what is read.
func (w *watch) concerns(e fsnotify.Event) bool {
	return e.Op != fsnotify.Chmod && slices.Contains(w.trail, e.Name)
}

// folders are those that paths are in.
func folders(paths []string) []string {
	var out []string
	for _, p := range paths {
		if dir := filepath.Dir(p); !slices.Contains(out, dir) {
			out = append(out, dir)
		}
	}
	return out
}

// maxLinks is how many links the kernel follows on one way.
const maxLinks = 40

// trail is where something would have to change for path to lead elsewhere: every link on
// the way, and what is at its end, or the first part of the way that is missing.
func trail(path string) []string {
	var out []string
	for range maxLinks {
		at, target, rest := firstLink(path)
		out = append(out, at)
		if target == "" {
			break
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(at), target)
		}
		path = filepath.Join(target, rest)
	}
	return out
}

// firstLink is the first symbolic link of a path, with what it says and what follows it, or
// else the path itself, as far as it exists and one part further.
func firstLink(path string) (at, target, rest string) {
	parts := strings.Split(strings.TrimPrefix(filepath.Clean(path), "/"), "/")
	for i, part := range parts {
		at += "/" + part
		if target, err := os.Readlink(at); err == nil {
			return at, target, filepath.Join(parts[i+1:]...)
		}
		if _, err := os.Lstat(at); err != nil {
			break
		}
	}
	return at, "", ""
}
