package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"k8s.io/client-go/kubernetes"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/join"
	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/pki"
	"github.com/podo-dev/podo/pkg/token"
)

func tokenCommand() *cli.Command {
	with := func(flags ...cli.Flag) []cli.Flag { return append(flags, dataDirFlag()) }
	return &cli.Command{
		Name:  "token",
		Usage: "let machines join this cluster",
		Description: `Join tokens are secrets that let machines in, and pin the cluster's CA so that nothing
in between can pose as it. A server keeps two for good: server/token in its data
directory, which lets in servers and agents, and server/agent-token, which lets in
agents alone. The tokens made here let in agents and end by themselves.

A node that has joined needs no token any more: it keeps a key of its own. A token that
is rotated on one of several servers is replaced on all of them, within seconds.

Examples:
  podo token create --print-join-command           the line to type on the new machine
  podo token create --ttl 1h --once                for one machine, within the hour
  podo token list
  podo token delete 7x4k2p
  podo token rotate --agent                        replace the agents' lasting token`,
		Subcommands: []*cli.Command{
			{
				Name: "create", Usage: "make a token that ends by itself, and print it", ArgsUsage: "[ID.SECRET]",
				Flags: with(
					&cli.DurationFlag{Name: "ttl", Value: 24 * time.Hour, Usage: "how long it is good for; 0 means until it is deleted"},
					&cli.StringFlag{Name: "description", Usage: "`TEXT` that says what it is for"},
					&cli.BoolFlag{Name: "once", Usage: "good for one machine only"},
					&cli.BoolFlag{Name: "print-join-command", Usage: "print the whole command for the new machine"},
					outputFlag()),
				OnUsageError: flagProblem, Action: createToken,
			},
			{
				Name: "list", Usage: "show the tokens that end by themselves, without their secrets",
				Flags: with(outputFlag()), OnUsageError: flagProblem, Action: listTokens,
			},
			{
				Name: "delete", Usage: "end tokens now", ArgsUsage: "ID...",
				Flags: with(), OnUsageError: flagProblem, Action: deleteTokens,
			},
			{
				Name: "generate", Usage: "print a new ID.SECRET without making a token of it", OnUsageError: flagProblem,
				Action: func(c *cli.Context) error {
					if err := noArgs(c); err != nil {
						return err
					}
					_, err := fmt.Fprintln(c.App.Writer, token.GenerateBootstrap().Text())
					return err
				},
			},
			{
				Name: "rotate", Usage: "replace a lasting token by a new one, and print it",
				Flags: with(
					&cli.BoolFlag{Name: "agent", Usage: "the one for agents, instead of the server's"},
					&cli.StringFlag{Name: "new-token", Usage: "`SECRET` to use instead of a random one"}),
				OnUsageError: flagProblem, Action: rotateToken,
			},
		},
		Action: chooseOne,
	}
}

// members is what the verbs about joining work with, on a server.
type members struct {
	paths   paths.Paths
	client  kubernetes.Interface
	records *join.Records
	ca      []byte
}

func openMembers(c *cli.Context) (members, error) {
	m := members{paths: paths.New(dataDir(c))}
	var err error
	if m.ca, err = os.ReadFile(m.paths.CA(pki.ServerCA).Cert); errors.Is(err, fs.ErrNotExist) {
		return m, fmt.Errorf("no server has run with the data directory %s; run this on a server of the cluster", m.paths.Data)
	} else if err != nil {
		return m, err
	}
	rc, err := kubeconfig.Client(m.paths.ServerKubeconfig("podo"), nil)
	if err != nil {
		return m, err
	}
	rc.Timeout = 15 * time.Second
	if m.client, err = kubernetes.NewForConfig(rc); err != nil {
		return m, err
	}
	m.records = join.NewRecords(m.client)
	return m, nil
}

// server is the URL that a new machine joins by.
func (m members) server(ctx context.Context) (string, error) {
	list, err := m.client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=kubernetes"})
	if err != nil {
		return "", err
	}
	addrs := join.Addresses(list.Items)
	if len(addrs) == 0 {
		return "", errors.New("no server has published its address yet; try again in a moment")
	}
	return "https://" + addrs[0], nil
}

func (m members) command(ctx context.Context, b join.Bootstrap, more ...string) (string, error) {
	server, err := m.server(ctx)
	if err != nil {
		return "", err
	}
	return strings.Join(append([]string{"podo agent --server", server, "--token", m.text(b)}, more...), " "), nil
}

// text is the whole token, for the eyes of whoever asked for it.
func (m members) text(b join.Bootstrap) string {
	return token.Token{Hash: token.Hash(m.ca), ID: b.ID, Password: b.Secret}.Text()
}

func createToken(c *cli.Context) error {
	b := join.Bootstrap{Description: c.String("description"), Once: c.Bool("once")}
	if c.NArg() > 1 {
		return usagef("token create takes one ID.SECRET at most; see podo token create --help")
	}
	if text := c.Args().First(); text != "" {
		t, err := token.Parse(text)
		if err != nil || t.ID == "" {
			return usagef("%q is no ID.SECRET: 6 and 16 small letters or digits; podo token generate prints one", text)
		}
		b.ID, b.Secret = t.ID, t.Password
	}
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	ttl := c.Duration("ttl")
	if ttl < 0 {
		return usagef("--ttl: %s is in the past; give a time such as 24h, or 0 for a token without an end", ttl)
	}
	if ttl > 0 {
		b.Expires = time.Now().Add(ttl)
	}
	m, err := openMembers(c)
	if err != nil {
		return err
	}
	if b, err = m.records.Create(c.Context, b); err != nil {
		return err
	}
	command, err := m.command(c.Context, b)
	if err != nil {
		return err
	}
	switch {
	case asJSON:
		return printJSON(c.App.Writer, struct {
			join.Bootstrap
			Token   string `json:"token"`
			Command string `json:"joinCommand"`
		}{b, m.text(b), command})
	case c.Bool("print-join-command"):
		_, err = fmt.Fprintln(c.App.Writer, command)
	default:
		_, err = fmt.Fprintln(c.App.Writer, m.text(b))
	}
	return err
}

func listTokens(c *cli.Context) error {
	if err := noArgs(c); err != nil {
		return err
	}
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	m, err := openMembers(c)
	if err != nil {
		return err
	}
	list, err := m.records.Bootstraps(c.Context)
	if err != nil {
		return err
	}
	slices.SortFunc(list, func(a, b join.Bootstrap) int { return a.Created.Compare(b.Created) })
	if asJSON {
		return printJSON(c.App.Writer, append([]join.Bootstrap{}, list...))
	}
	return printTokens(c.App.Writer, list, time.Now())
}

func printTokens(w io.Writer, list []join.Bootstrap, now time.Time) error {
	var rows [][]string
	for _, b := range list {
		ends := "never"
		switch {
		case b.UsedBy != "":
			ends = "used by " + b.UsedBy
		case b.Expires.IsZero():
		case now.After(b.Expires):
			ends = "ended"
		default:
			ends = "in " + roughly(b.Expires.Sub(now))
		}
		lets := "agents"
		switch {
		case b.Replaces != "":
			lets = "node " + b.Replaces
		case b.Once:
			lets = "one agent"
		}
		rows = append(rows, []string{b.ID, ends, lets, b.Description})
	}
	return table(w, []string{"ID", "ENDS", "LETS IN", "DESCRIPTION"}, rows)
}

func deleteTokens(c *cli.Context) error {
	if !c.Args().Present() {
		return usagef("token delete: which? podo token list shows the IDs")
	}
	m, err := openMembers(c)
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range c.Args().Slice() {
		if t, err := token.Parse(id); err == nil && t.ID != "" {
			id = t.ID // people paste the whole token
		}
		if !token.ValidID(id) {
			errs = append(errs, usagef("%q is no token's ID: 6 small letters or digits; podo token list shows them", id))
			continue
		}
		if err := m.records.Delete(c.Context, id); err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Fprintf(c.App.Writer, "token %s deleted\n", id)
	}
	return errors.Join(errs...)
}

func rotateToken(c *cli.Context) error {
	if err := noArgs(c); err != nil {
		return err
	}
	p := paths.New(dataDir(c))
	path, user := p.Token(), token.Server
	if c.Bool("agent") {
		path, user = p.AgentToken(), token.Agent
	}
	given := config.Secret(c.String("new-token"))
	t, err := token.Replace(path, user, given)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no server has run with the data directory %s; run this on a server of the cluster", p.Data)
	}
	if errors.Is(err, token.ErrMalformed) {
		return usagef("--new-token: %w", err)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.App.Writer, t.Text())
	return err
}

func nodeCommand() *cli.Command {
	return &cli.Command{
		Name:  "node",
		Usage: "say which machine a node's name belongs to",
		Description: `A node's name belongs to the machine that joined under it first: that machine keeps a
key, and no other can take the name, not even with a valid token.

Examples:
  podo node replace worker-1            worker-1 was rebuilt; let the new machine take its name`,
		Subcommands: []*cli.Command{{
			Name: "replace", Usage: "print the command by which a rebuilt machine takes its node's name back", ArgsUsage: "NAME",
			Flags: []cli.Flag{
				&cli.DurationFlag{Name: "ttl", Value: time.Hour, Usage: "how long the command is good for"},
				outputFlag(), dataDirFlag(),
			},
			OnUsageError: flagProblem, Action: replaceNode,
		}},
		Action: chooseOne,
	}
}

func replaceNode(c *cli.Context) error {
	if c.NArg() != 1 {
		return usagef("node replace: name one node, after the flags; podo kubectl get nodes shows them")
	}
	name, ttl := c.Args().First(), c.Duration("ttl")
	if ttl <= 0 {
		return usagef("--ttl: %s is no time to come; give one such as 1h", ttl)
	}
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	m, err := openMembers(c)
	if err != nil {
		return err
	}
	owner, err := m.records.Identity(c.Context, name)
	if err != nil {
		return err
	}
	if owner == nil {
		return fmt.Errorf("no machine has joined as %s, so the name is free; make an ordinary token with: podo token create", name)
	}
	b, err := m.records.Create(c.Context, join.Bootstrap{
		Description: "replaces node " + name, Once: true, Replaces: name, Expires: time.Now().Add(ttl),
	})
	if err != nil {
		return err
	}
	command, err := m.command(c.Context, b, "--node-name", name)
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(c.App.Writer, struct {
			join.Bootstrap
			Token   string `json:"token"`
			Command string `json:"joinCommand"`
		}{b, m.text(b), command})
	}
	_, err = fmt.Fprintln(c.App.Writer, command)
	return err
}
