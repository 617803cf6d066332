package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/paths"
)

// Stop turns a cluster off. Its state stays, and Start brings it back.
func (s Site) Stop(ctx context.Context, name string) (Cluster, error) {
	release, err := s.holdOf(ctx, name)
	if err != nil {
		return Cluster{}, err
	}
	defer release()
	c, err := s.Load(name)
	if err != nil {
		return c, err
	}
	if err := s.oldTools(ctx); err != nil {
		return c, err
	}
	done := s.Step("Stopping its nodes")
	err = s.down(ctx, name, unix.SIGTERM)
	if err == nil {
		err = fell(ctx, name)
	}
	done(err)
	return c, err
}

// Start brings back a cluster that was stopped, or that a reboot of this machine ended,
// with the addresses that it had. Nodes that run stay as they are.
func (s Site) Start(ctx context.Context, name string, wait time.Duration) (Cluster, error) {
	c, err := s.Load(name)
	if err != nil {
		return c, err
	}
	release, err := s.holdOf(ctx, name)
	if err != nil {
		return c, err
	}
	defer release()
	if c, err = s.Load(name); err != nil { // somebody else may have had it until now
		return c, err
	}
	if err := s.tools(ctx); err != nil {
		return c, err
	}
	woken := map[string]time.Time{}
	var known, fresh []Node // fresh are those that whoever made the cluster did not come to
	for _, n := range c.Nodes {
		if s.seat(c.Name, n.Name).pid() == 0 {
			woken[n.Name] = time.Now()
		}
		switch _, err := os.Stat(s.on(c.Name, n.Name, paths.New(paths.DefaultData).ConfigFile())); {
		case err == nil:
			known = append(known, n)
		case errors.Is(err, fs.ErrNotExist):
			fresh = append(fresh, n)
		default:
			return c, err
		}
	}
	if slices.ContainsFunc(fresh, func(n Node) bool { return n.Name == c.servers()[0].Name }) {
		return c, unfinished(name)
	}
	done := s.Step(fmt.Sprintf("Starting %s (%s)", plural(len(c.Nodes), "node"), strings.Join(texts(c.Ranges), ", ")))
	err = c.raise(ctx)
	if err == nil {
		err = together(
			func() error { return s.open(ctx, c) },
			func() error { return s.each(known, func(n Node) error { return s.wake(c, n) }) })
	}
	if err == nil {
		err = s.answers(ctx, c, s.gate(c), patience)
	}
	if err == nil {
		err = s.each(fresh, func(n Node) error {
			if err := s.prepare(ctx, c, n); err != nil {
				return err
			}
			if err := s.enlist(ctx, c, n); err != nil {
				return err
			}
			return s.stock(ctx, c, n)
		})
	}
	if err == nil && len(fresh) > 0 {
		err = s.announce(ctx, c)
	}
	done(err)
	if err != nil {
		return c, err
	}
	return c, s.settle(ctx, c, c.Nodes, woken, wait)
}

// wake turns a node on that is off.
func (s Site) wake(c Cluster, n Node) error {
	if s.seat(c.Name, n.Name).pid() != 0 {
		return nil
	}
	return s.boot(c, n)
}

// A Status is how one of the nodes of a cluster is.
type Status struct {
	Cluster string   `json:"cluster"`
	Name    string   `json:"name"`
	Role    Role     `json:"role"`
	IPs     []string `json:"ips"`
	Running bool     `json:"running"`
	Ports   []Port   `json:"ports,omitempty"` // that the host listens on for it
}

// Nodes tells of a cluster's nodes.
func (s Site) Nodes(c Cluster) []Status {
	var out []Status
	for _, n := range c.Nodes {
		out = append(out, Status{c.Name, n.Name, n.Role, texts(c.addrs(n)), s.seat(c.Name, n.Name).pid() != 0, n.Ports})
	}
	return out
}
