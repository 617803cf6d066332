package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/datadir"
	"github.com/podo-dev/podo/pkg/host"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/pki"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/server"
	"github.com/podo-dev/podo/pkg/storage/external"
	"github.com/podo-dev/podo/pkg/storage/migrate"
	"github.com/podo-dev/podo/pkg/version"
)

func datastoreCommand() *cli.Command {
	return &cli.Command{
		Name:  "datastore",
		Usage: "move a cluster's state to another datastore",
		Subcommands: []*cli.Command{{
			Name: "migrate", Usage: "copy the cluster to another datastore, while podo is stopped",
			Description: `Run it on one server, with podo stopped on every server; pods keep running. DATASTORE is
sqlite or etcd, for the one on this server's disk, or an endpoint as --datastore-endpoint
takes it. The source stays as it is; the target must be empty, and counts only when the
copy is whole and has been compared.

The settings of podo server are read from its configuration file and the environment.

Examples:
  podo datastore migrate --from sqlite --to etcd
  podo datastore migrate --from sqlite --to postgres://podo:SECRET@db.example.org/podo
  podo datastore migrate --from https://10.0.0.5:2379 --to sqlite`,
			Flags: []cli.Flag{
				&cli.StringFlag{Name: "from", Usage: "`DATASTORE` that this server has now"},
				&cli.StringFlag{Name: "to", Usage: "`DATASTORE` to copy to"},
				&cli.StringFlag{Name: "cafile", TakesFile: true, Usage: "CA `FILE` of a datastore elsewhere", DefaultText: "datastore-cafile of the configuration"},
				&cli.StringFlag{Name: "certfile", TakesFile: true, Usage: "certificate `FILE` to show it"},
				&cli.StringFlag{Name: "keyfile", TakesFile: true, Usage: "its key `FILE`"},
				dataDirFlag(),
			},
			OnUsageError: flagProblem, Action: migrateDatastore,
		}},
		Action: chooseOne,
	}
}

func migrateDatastore(c *cli.Context) error {
	if err := noArgs(c); err != nil {
		return err
	}
	if c.String("from") == "" || c.String("to") == "" {
		return usagef("datastore migrate: give --from and --to, each sqlite, etcd or an endpoint such as postgres://…")
	}
	cfg, _, err := resolveServer(os.Environ(), []config.Setting{{Name: "data-dir", Values: []string{dataDir(c)}, Origin: "--data-dir"}})
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("datastore migrate: must be run as root, who alone can read the cluster's state; try: sudo podo datastore migrate …")
	}
	life, end := context.WithCancelCause(c.Context)
	defer end(nil)
	log, closer, err := openLog(life, cfg.Logging, func(reason string) { end(fatal{reason}) })
	if err != nil {
		return err
	}
	defer closer.Close()
	where := paths.New(cfg.DataDir)
	claim, err := datadir.Judge(where, version.Kubernetes(), shape(cfg), cfg.Logging.File)
	if err != nil {
		return unfit(err)
	}
	defer claim.Release()

	from, err := ends(life, c, cfg, "from")
	if err != nil {
		return err
	}
	to, err := ends(life, c, cfg, "to")
	if err != nil {
		return err
	}
	kind, err := datadir.Datastore(where)
	switch {
	case err != nil:
		return err
	case kind == "":
		return fmt.Errorf("no server has run with the data directory %s; run this on a server of the cluster", where.Data)
	case kind == "remote":
		return fmt.Errorf("this server runs no member of etcd (disable-etcd); run this on one that does%s", known(where))
	case kindOf(from) != kind:
		return usagef("--from: this server's cluster is in %s; give that", map[string]string{"sqlite": "sqlite", "etcd": "etcd", "external": "a datastore elsewhere, by its endpoint"}[kind])
	case kindOf(to) == kind && kind != "external":
		return usagef("--to: this server's cluster is in %s already", kind)
	}
	o := migrate.Options{Log: log, Tell: func(text string) { fmt.Fprintf(c.App.ErrWriter, "  copied %s\n", text) }}
	if o.Sealed, err = server.Sealed(where, config.Shared(cfg)); err != nil {
		return err
	}
	began := time.Now()
	fmt.Fprintf(c.App.ErrWriter, "%s to %s\n", migrate.Name(from), migrate.Name(to))
	done, err := migrate.Copy(life, from, to, o)
	if why, ok := errors.AsType[fatal](context.Cause(life)); ok {
		err = why
	}
	if errors.Is(err, migrate.ErrNotEmpty) || errors.Is(err, external.ErrRefused) {
		return usageError{err}
	}
	if err != nil {
		return fmt.Errorf("%w; this server's cluster is still in %s", err, migrate.Name(from))
	}
	if err := migrate.Switch(where.StateDB(), kindOf(to)); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.App.Writer, `%d keys copied and compared in %s. This server's cluster is now in %s.

Next: %s
Nothing needs the old datastore any more; it is as it was.
`, done.Keys, time.Since(began).Round(100*time.Millisecond), migrate.Name(to), next(from, to))
	return err
}

// next is how servers go on after their cluster was moved.
func next(from, to plan.Storage) string {
	const others = "\nOther servers of this cluster: run podo uninstall there, and join again."
	switch {
	case to.SQLite != nil:
		return "start podo server here, without --cluster-init and --datastore-endpoint." + others
	case to.Etcd != nil:
		return "start podo server here, without --datastore-endpoint." + others
	case from.Etcd != nil:
		return "start podo server here, with --datastore-endpoint." + others
	}
	return "start podo server with --datastore-endpoint, on each server."
}

func kindOf(s plan.Storage) string {
	switch {
	case s.SQLite != nil:
		return "sqlite"
	case s.Etcd != nil:
		return "etcd"
	}
	return "external"
}

// ends is the datastore that a flag names.
func ends(ctx context.Context, c *cli.Context, cfg config.Server, flag string) (plan.Storage, error) {
	where, text := paths.New(cfg.DataDir), c.String(flag)
	switch text {
	case "sqlite":
		return plan.Storage{SQLite: &plan.SQLite{DB: where.StateDB(), Socket: where.Socket("kine")}}, nil
	case "etcd":
		return ownEtcd(ctx, cfg)
	}
	e, err := config.ParseEndpoint(config.Secret(text))
	if err != nil {
		return plan.Storage{}, usagef("--%s: %w; for the datastore on this server, write sqlite or etcd", flag, err)
	}
	x := plan.External{Endpoint: e, CA: cfg.Datastore.CAFile, Files: paths.Pair{Cert: cfg.Datastore.CertFile, Key: cfg.Datastore.KeyFile},
		Socket: where.Socket("kine"), Marker: where.DatastoreKind()}
	if f := c.String("cafile"); f != "" {
		x.CA = f
	}
	if c.IsSet("certfile") || c.IsSet("keyfile") {
		x.Files = paths.Pair{Cert: c.String("certfile"), Key: c.String("keyfile")}
	}
	return plan.Storage{External: &x}, nil
}

// ownEtcd is the member that this server would run, with certificates for it.
func ownEtcd(ctx context.Context, cfg config.Server) (plan.Storage, error) {
	cfg.Join.Server, cfg.Datastore = "", config.Datastore{EtcdArgs: cfg.Datastore.EtcdArgs}
	facts, err := host.Discover(ctx, host.Options{DataDir: cfg.DataDir})
	if err != nil {
		return plan.Storage{}, err
	}
	p, err := plan.New(cfg, facts, plan.Known{Datastore: "etcd"}, os.Environ())
	if err != nil {
		return plan.Storage{}, usageError{err}
	}
	where := paths.New(cfg.DataDir)
	if _, err := pki.Export(where); err != nil {
		return plan.Storage{}, fmt.Errorf("%w; run this on a server of the cluster", err)
	}
	if _, _, err := pki.Ensure(where, pki.Table(p.Server.Certificates.Names), time.Now); err != nil {
		return plan.Storage{}, err
	}
	return plan.Storage{Etcd: p.Server.Storage.Etcd}, nil
}
