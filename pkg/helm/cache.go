package helm

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"

	"github.com/podo-dev/podo/pkg/atomicfile"
)

// A cache keeps, for each HelmChart, the chart that was fetched last.
type cache struct{ dir string }

// file is where the chart of a spec is kept. Another version is another file.
func (c cache) file(key string, s spec) string {
	sum := sha256.Sum256([]byte(strings.Join([]string{s.Repo, s.Chart, s.Version}, "\n")))
	return filepath.Join(c.dir, key, hex.EncodeToString(sum[:8])+".tgz")
}

func (c cache) load(key string, s spec) ([]byte, error) { return os.ReadFile(c.file(key, s)) }

// keep stores a chart, and drops what was there of another version.
func (c cache) keep(key string, s spec, text []byte) error {
	file := c.file(key, s)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	if _, err := atomicfile.WriteIfChanged(file, text, 0o600); err != nil {
		return err
	}
	all, err := os.ReadDir(filepath.Dir(file))
	if err != nil {
		return err
	}
	for _, e := range all {
		if e.Name() != filepath.Base(file) {
			os.Remove(filepath.Join(filepath.Dir(file), e.Name()))
		}
	}
	return nil
}

// drop forgets a HelmChart.
func (c cache) drop(key string) error { return os.RemoveAll(filepath.Join(c.dir, key)) }
