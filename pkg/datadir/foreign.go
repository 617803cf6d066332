package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/paths"
)

// ErrForeign means that a folder holds files that are not podo's.
var ErrForeign = errors.New("is not podo's data directory")

// entries is what podo, or an administrator who prepares its first start, puts in
// a data directory; where a pattern follows, only what it matches.
func entries() map[string]string {
	return map[string]string{
		"layout": "", "lock": "", "datastore": "", "kubernetes": "", "outside": "", "reserve": "", "storage": "",
		"bin":    `^(current|[0-9a-f]{64})(\.partial)?$`,
		"server": `^(agent-token|charts|db|db\.kind|etcd-members\.json|kubeconfig|manifests|manifests\.agreed|shape\.json|static|tls|token|tokens\.agreed)$`,
		"agent":  `^(cni|containerd|identity\.key|images|images\.imported|kubeconfig|membership\.json|node-name|offline|pod-manifests|registry\.d|servers\.json|tls)$`,
	}
}

// Owns reports whether an entry of podo's data directory is podo's. Others were
// put there by somebody else.
func Owns(name string) bool {
	_, ok := entries()[permanent(name)]
	return ok
}

// permanent is the name that a temporary file will have once it is written.
func permanent(name string) string {
	if short, ok := strings.CutSuffix(name, ".tmp"); ok && strings.HasPrefix(name, ".") {
		if i := strings.LastIndexByte(short, '.'); i > 0 {
			return short[1:i]
		}
	}
	return name
}

// Foreign returns an ErrForeign for a folder that podo must not take for its own:
// one that no podo has marked, and that holds something else than what may be put
// there before the first start, or than the files that were asked for in it.
func Foreign(p paths.Paths, asked ...string) error {
	if marked(p) {
		return nil
	}
	stranger := func(path string) bool {
		return !slices.ContainsFunc(asked, func(a string) bool { return a == path || strings.HasPrefix(a, path+"/") })
	}
	found, err := list(p.Data)
	if err != nil {
		return err
	}
	for _, name := range found {
		pattern, ok := entries()[permanent(name)]
		if !ok && name != "lost+found" && stranger(filepath.Join(p.Data, name)) {
			return foreign(p.Data, name)
		}
		if pattern == "" {
			continue
		}
		below, err := list(filepath.Join(p.Data, name))
		if err != nil {
			return err
		}
		known := regexp.MustCompile(pattern)
		for _, sub := range below {
			if !known.MatchString(permanent(sub)) && stranger(filepath.Join(p.Data, name, sub)) {
				return foreign(p.Data, filepath.Join(name, sub))
			}
		}
	}
	return nil
}

func foreign(dir, name string) error {
	return fmt.Errorf("%s %w: it holds %q and no file \"layout\"; give a new or an empty folder with --data-dir", dir, ErrForeign, name)
}

func list(dir string) ([]string, error) {
	found, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, unix.ENOTDIR):
		return nil, fmt.Errorf("%s %w: there is a file where a folder should be; give a new or an empty folder with --data-dir", dir, ErrForeign)
	case err != nil:
		return nil, fmt.Errorf("data directory: %w; choose another with --data-dir", err)
	}
	var out []string
	for _, e := range found {
		out = append(out, e.Name())
	}
	return out, nil
}
