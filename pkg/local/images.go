package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/podo-dev/podo/pkg/images"
	"github.com/podo-dev/podo/pkg/paths"
)

// LoadArchives brings the images of archives into nodes of a cluster, or into all, those
// included that are being added.
func (s Site) LoadArchives(ctx context.Context, name string, only, files []string) error {
	release, err := s.holdOf(ctx, name)
	if err != nil {
		return err
	}
	defer release()
	c, err := s.Load(name)
	if err != nil {
		return err
	}
	list := c.Nodes
	if len(only) > 0 {
		list = nil
	}
	for _, name := range only {
		n, err := c.find(name)
		if err != nil {
			return err
		}
		list = append(list, n)
	}
	for _, file := range files {
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			return Unfit{fmt.Errorf("there is no archive %s; write one with: docker save --output FILE IMAGE", file)}
		} else if err != nil {
			return err
		}
	}
	var stores []images.Store
	for _, n := range list {
		if s.seat(c.Name, n.Name).pid() == 0 {
			return fmt.Errorf("%w; or name those to load into: --nodes", off(c, n.Name))
		}
		stores = append(stores, s.store(c, n))
	}
	for _, file := range files {
		done := s.Step(fmt.Sprintf("Loading %s into %s", filepath.Base(file), plural(len(list), "node")))
		_, err := images.Load(ctx, file, "overlayfs", stores...)
		done(err)
		if err != nil {
			return err
		}
	}
	return nil
}

// off tells that a node does not run, and how it would.
func off(c Cluster, node string) error {
	return fmt.Errorf("node %s is off; start the cluster with: podo cluster start --name %s", node, c.Name)
}

func (s Site) store(c Cluster, n Node) images.Store {
	where := paths.New(paths.DefaultData)
	return images.Store{Socket: s.inside(c, n, where.Socket("containerd")), Root: s.on(c.Name, n.Name, where.ContainerdRoot())}
}

// engineWithin is how long the container engine of a new node may take to its start.
const engineWithin = 30 * time.Second

// stock gives a new node the images that were loaded into the others.
func (s Site) stock(ctx context.Context, c Cluster, n Node) error {
	from := s.gate(c)
	ctx, cancel := context.WithTimeout(ctx, engineWithin)
	defer cancel()
	for {
		_, err := os.Stat(s.inside(c, n, paths.New(paths.DefaultData).Socket("containerd")))
		if err == nil {
			err = s.store(c, from).Share(ctx, s.store(c, n))
		}
		if err == nil {
			return nil
		}
		if off := s.lives(c, n); off != nil {
			return off
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("give %s the images that were loaded: %w", n.Name, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// inside is where this machine finds a file of a node that runs.
func (s Site) inside(c Cluster, n Node, path string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", s.seat(c.Name, n.Name).pid()), path)
}
