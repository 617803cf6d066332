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
	"strings"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/paths"
)

var (
	// ErrShape means that a cluster was asked to become another one.
	ErrShape = errors.New("this cluster was made with another value")

	// ErrRole means that an agent was asked to become a server, or a server an agent.
	ErrRole = errors.New("belongs to another cluster")
)

// pin remembers the settings that a cluster keeps for life, by name, when it is
// called for the first time.
func pin(p paths.Paths, shape map[string]string) error {
	if _, err := os.Stat(p.Shape()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	text, err := json.MarshalIndent(shape, "", "  ")
	if err != nil {
		return err
	}
	if err := atomicfile.EnsureDir(filepath.Dir(p.Shape()), 0o700); err != nil {
		return err
	}
	return atomicfile.Write(p.Shape(), append(text, '\n'), 0o600)
}

// Datastore is the kind of datastore that a server has: sqlite or etcd in the
// directory, remote for the etcd of other servers, external for a datastore that is none
// of podo's, or nothing if it has none yet. One that was lost counts: it is to be put
// back, not to be begun anew beside keys and tokens of the cluster that it held.
func Datastore(p paths.Paths) (string, error) {
	kind, err := kindIn(p.DatastoreKind())
	if kind == "" && err == nil {
		kind, err = kindIn(p.DatastoreNote())
	}
	return kind, err
}

// KeepDatastore has the kind of the server's datastore noted in two places, if it has
// one: what removes the datastore may take the note beside it along.
func (c *Claim) KeepDatastore() error {
	kind, err := Datastore(c.paths)
	if err != nil || kind == "" {
		return err
	}
	for _, file := range []string{c.paths.DatastoreKind(), c.paths.DatastoreNote()} {
		if err := atomicfile.EnsureDir(filepath.Dir(file), 0o700); err != nil { // it may have been lost with the rest
			return err
		}
		if _, err := atomicfile.WriteIfChanged(file, []byte(kind+"\n"), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func kindIn(file string) (string, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	kind := strings.TrimSpace(string(text))
	known := []string{"sqlite", "etcd", "remote", "external"}
	if err == nil && !slices.Contains(known, kind) {
		err = fmt.Errorf("%s: %q is no datastore; restore the file from a backup, or write one of %s into it", file, kind, strings.Join(known, ", "))
	}
	return kind, err
}

// checkRole refuses to make a server of an agent, or the other way round: its pods
// and keys belong to another cluster than the one that would come to be.
func checkRole(p paths.Paths, server bool) error {
	if server {
		if _, err := os.Stat(p.Membership()); err == nil {
			return fmt.Errorf("%s: %w: it is an agent's; start podo agent here, or run podo uninstall to begin a cluster of its own", p.Data, ErrRole)
		}
		return nil
	}
	if _, err := os.Stat(p.Shape()); err == nil {
		return fmt.Errorf("%s: %w: it holds one of its own; start podo server here, or run podo uninstall to give that cluster up and join another", p.Data, ErrRole)
	}
	return nil
}

// checkShape refuses settings that differ from the pinned ones, all at once.
func checkShape(p paths.Paths, shape map[string]string) error {
	text, err := os.ReadFile(p.Shape())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
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
