package netpol

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/paths"
)

// memory keeps what was known last, for a start before a server answers. Policies are
// written down when they change; for the sake of the disk, pods that come and go are
// not, but now and then.
type memory struct {
	file string
	kept *cluster
	at   time.Time
}

const rest = 10 * time.Minute

func memoryFile(p paths.Paths) string { return filepath.Join(p.Offline(), "network-policies.json") }

// recall reads what was known, or nil if nothing was.
func (m *memory) recall() (*cluster, error) {
	text, err := os.ReadFile(m.file)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return nil, err
	}
	c := &cluster{}
	if err := json.Unmarshal(text, c); err != nil {
		return nil, fmt.Errorf("%s: %w", m.file, err)
	}
	m.kept, m.at = c, time.Now()
	return c, nil
}

// note writes down what is new and must not be lost.
func (m *memory) note(c *cluster) error {
	if m.kept != nil && time.Since(m.at) < rest &&
		reflect.DeepEqual(m.kept.Policies, c.Policies) && reflect.DeepEqual(m.kept.Namespaces, c.Namespaces) {
		return nil
	}
	return m.keep(c)
}

// keep writes down what is new.
func (m *memory) keep(c *cluster) error {
	if c == nil || m.kept != nil && reflect.DeepEqual(m.kept, c) {
		return nil
	}
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if err := atomicfile.EnsureDir(filepath.Dir(m.file), 0o700); err != nil {
		return err
	}
	if _, err := atomicfile.WriteIfChanged(m.file, text, 0o600); err != nil {
		return err
	}
	m.kept, m.at = c, time.Now()
	return nil
}
