package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/machine"
	"github.com/podo-dev/podo/pkg/payload"
)

// ErrNoCluster means that there is nothing of a cluster, neither files nor nodes.
var ErrNoCluster = errors.New("there is no such cluster")

// Delete removes a cluster, of whatever is left of it.
func (s Site) Delete(ctx context.Context, name string) error {
	if err := CheckName(name); err != nil {
		return Unfit{err}
	}
	release, err := hold(ctx, s.dir(name))
	if errors.Is(err, fs.ErrNotExist) {
		var stray []string
		if stray, err = s.Strays(); err == nil && !slices.Contains(stray, name) {
			// Whoever removed it may have been killed before it came to the end.
			if err = s.Clear(ctx); err == nil {
				err = ErrNoCluster
			}
		}
		release = func() {}
	}
	if err != nil {
		return err
	}
	defer release()
	return s.remove(ctx, name)
}

// Strays are clusters whose files somebody has removed, and whose nodes or network are
// there yet.
func (s Site) Strays() ([]string, error) {
	names, err := s.Names()
	if err != nil {
		return nil, err
	}
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list links: %w", err)
	}
	groups, _ := machine.FindGroups() // without any there are no nodes
	var found []string
	for _, l := range links {
		if name, ok := strings.CutPrefix(l.Attrs().Alias, alias("")); ok {
			found = append(found, name)
		}
	}
	for _, g := range groups.List(groupOf("")) {
		found = append(found, strings.TrimPrefix(g, groupOf("")))
	}
	slices.Sort(found)
	return slices.DeleteFunc(slices.Compact(found), func(name string) bool { return slices.Contains(names, name) }), nil
}

// tools unpacks what this package itself executes. Whoever calls it has them in its PATH.
func (s Site) tools(ctx context.Context) error {
	_, err := payload.Unpack(ctx, s.Exe, s.programs())
	return err
}

// oldTools are enough to remove things with: those of another podo, where a full disk has no
// room for ours.
func (s Site) oldTools(ctx context.Context) error {
	err := s.tools(ctx)
	if _, missing := os.Stat(filepath.Join(s.Programs(), "nft")); missing == nil {
		return nil
	}
	return err
}

func (s Site) programs() string { return filepath.Join(s.Dir, ".bin") }

// Programs is the folder of those tools.
func (s Site) Programs() string { return filepath.Join(s.programs(), "current") }

// remove takes away everything of a cluster. It goes on past what it cannot remove.
func (s Site) remove(ctx context.Context, name string) error {
	if err := s.oldTools(ctx); err != nil {
		return err
	}
	groups, err := machine.FindGroups()
	if err != nil {
		return err
	}
	// Of nodes whose files are gone, only the control groups tell.
	err = errors.Join(s.down(ctx, name, unix.SIGKILL), fell(ctx, name), groups.End(groupOf(name)))
	if err != nil {
		return err // its files tell what is to be removed yet
	}
	if err := os.RemoveAll(s.dir(name)); err != nil {
		return err
	}
	return s.Clear(ctx)
}

// Clear removes what clusters shared, if there is none any more, and what is left of those
// that were not finished: whoever makes one has the lock of all.
func (s Site) Clear(ctx context.Context) error {
	all, err := hold(ctx, s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // whoever removed another at the same time has done it
	}
	if err != nil {
		return err
	}
	defer all()
	if names, err := s.Names(); err != nil || len(names) > 0 {
		return err
	}
	for _, dir := range s.Remains() {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	_ = os.Remove(s.Dir) // unless it is a disk of its own, or has other people's files
	return nil
}

// Remains are the folders that belong to no single cluster.
func (s Site) Remains() []string {
	var out []string
	for _, name := range []string{".bin", ".podo", ".new-*"} {
		found, _ := filepath.Glob(filepath.Join(s.Dir, name))
		out = append(out, found...)
	}
	return out
}

// down turns all nodes of a cluster off, and closes its ports.
func (s Site) down(ctx context.Context, name string, signal unix.Signal) error {
	entries, err := os.ReadDir(s.file(name, "nodes"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var list []Node
	for _, e := range entries {
		list = append(list, Node{Name: e.Name()})
	}
	return errors.Join(
		s.each(list, func(n Node) error { return s.halt(ctx, name, n.Name, signal) }),
		seat(s.file(name, "ports")).end(ctx, unix.SIGTERM, 5*time.Second))
}
