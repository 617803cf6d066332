package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/podo-dev/podo/pkg/datadir"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/pki"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/storage/etcd"
)

func etcdCommand() *cli.Command {
	return &cli.Command{
		Name:  "etcd",
		Usage: "look after the embedded etcd of a cluster of several servers",
		Description: `Each server begun with --cluster-init, or joined to such a one, runs a member of etcd.
A majority of the members must answer: of three, one may be away; of two, none.

Examples:
  podo etcd member-list
  podo etcd member-remove old-server         after that server is gone for good`,
		Subcommands: []*cli.Command{
			{
				Name: "member-list", Usage: "show the members, and how they are",
				Flags: []cli.Flag{outputFlag(), dataDirFlag()}, OnUsageError: flagProblem, Action: listMembers,
			},
			{
				Name: "member-remove", Aliases: []string{"remove"}, Usage: "take a member out of the cluster", ArgsUsage: "NAME",
				Flags: []cli.Flag{dataDirFlag()}, OnUsageError: flagProblem, Action: removeMember,
			},
		},
		Action: chooseOne,
	}
}

// openEtcd returns a way to ask the member that the podo of this machine runs.
func openEtcd(c *cli.Context) (*etcd.Admin, error) {
	p := paths.New(dataDir(c))
	kind, err := datadir.Datastore(p)
	switch {
	case err != nil:
		return nil, err
	case kind == "":
		return nil, fmt.Errorf("no server has run with the data directory %s; run this on a server of the cluster", p.Data)
	case kind == "remote":
		return nil, fmt.Errorf("this server runs no member of etcd (disable-etcd); ask on one that does%s", known(p))
	case kind != "etcd":
		return nil, errors.New("this server runs no etcd, so there are no members; podo status tells where it keeps its state")
	}
	return etcd.Open(c.Context, plan.Etcd{
		Dir: p.EtcdData(), Socket: p.Socket("etcd"),
		CA: p.CA(pki.EtcdCA).Cert, Caller: p.ServerLeaf("etcd-client"),
	})
}

// known names the servers that run etcd, as far as this one knows.
func known(p paths.Paths) string {
	text, err := os.ReadFile(p.EtcdMembers())
	var kept struct{ Servers []string }
	if err != nil || json.Unmarshal(text, &kept) != nil || len(kept.Servers) == 0 {
		return ""
	}
	var hosts []string
	for _, addr := range kept.Servers {
		host, _, err := net.SplitHostPort(addr)
		if err == nil {
			hosts = append(hosts, host)
		}
	}
	return ": " + strings.Join(hosts, ", ")
}

func listMembers(c *cli.Context) error {
	if err := noArgs(c); err != nil {
		return err
	}
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	a, err := openEtcd(c)
	if err != nil {
		return err
	}
	defer a.Close()
	ctx, cancel := context.WithTimeout(c.Context, 15*time.Second)
	defer cancel()
	list, err := a.Members(ctx)
	if err != nil {
		return fmt.Errorf("etcd: %w; is podo running here (podo status)?", err)
	}
	if asJSON {
		return printJSON(c.App.Writer, list)
	}
	var rows [][]string
	for _, m := range list {
		role := "follower"
		switch {
		case m.Err != "":
			role = "away"
		case m.Leader:
			role = "leader"
		case m.Learner:
			role = "learner"
		}
		rows = append(rows, []string{m.Name, role, m.Peer, size(m.Bytes), m.Err})
	}
	return table(c.App.Writer, []string{"NAME", "ROLE", "PEER", "SIZE", ""}, rows)
}

func removeMember(c *cli.Context) error {
	if c.NArg() != 1 {
		return usagef("etcd member-remove: name one member; podo etcd member-list shows them")
	}
	a, err := openEtcd(c)
	if err != nil {
		return err
	}
	defer a.Close()
	ctx, cancel := context.WithTimeout(c.Context, 15*time.Second)
	defer cancel()
	m, err := a.Remove(ctx, c.Args().First())
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.App.Writer, "member %s removed\n", m.Name)
	return err
}
