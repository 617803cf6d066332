package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/paths"
)

// NodeName is the name that this machine's node had when podo last ran here, or nothing
// if it never did.
func NodeName(p paths.Paths) (string, error) {
	text, err := os.ReadFile(p.NodeName())
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	name := strings.TrimSpace(string(text))
	if err == nil && name == "" {
		err = fmt.Errorf("%s: it is empty; write the node's name into it (podo kubectl get nodes shows it)", p.NodeName())
	}
	return name, err
}

// Name remembers what this machine's node is called.
func (c *Claim) Name(node string) error {
	if err := atomicfile.EnsureDir(filepath.Dir(c.paths.NodeName()), 0o755); err != nil {
		return err
	}
	_, err := atomicfile.WriteIfChanged(c.paths.NodeName(), []byte(node+"\n"), 0o644)
	return err
}
