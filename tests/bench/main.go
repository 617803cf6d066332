// Command bench measures podo beside the same components as separate processes.
//
// Both products run on this machine, one at a time and in turn, with the same
// container engine, images and pod network. A run starts from nothing, is timed until
// a pod runs, is left alone until it has settled, is watched while idle, and is
// started once more over its own data. What a run leaves on the machine is removed
// before the next one begins, also when it failed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/rest"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/host"
	"github.com/podo-dev/podo/pkg/paths"
)

func main() {
	o, err := parse(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are what was asked for.
type options struct {
	podo     string // file
	programs string // folder of the baseline's programs
	payload  string // file
	json     string // file, or nothing
	rounds   int
	only     string
	settle   time.Duration
	window   time.Duration
	pods     int
	args     list // for podo server
	each     bool // of the batteries, instead of the baseline
	env      list // for podo
	keep     bool
}

type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func parse(args []string, out io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(out)
	f.StringVar(&o.podo, "podo", "dist/podo", "the podo to measure")
	f.StringVar(&o.programs, "baseline", "dist/bench", "folder of the baseline's programs")
	f.StringVar(&o.payload, "payload", "dist/payload.tar.zst", "the payload, which counts towards the baseline's size")
	f.StringVar(&o.json, "json", "", "write every figure to this file too")
	f.IntVar(&o.rounds, "n", 3, "rounds; each runs podo and then the baseline")
	f.StringVar(&o.only, "only", "", "run only this: podo or baseline")
	f.DurationVar(&o.settle, "settle", time.Minute, "how long to wait before memory, CPU and writes are measured")
	f.DurationVar(&o.window, "window", 2*time.Minute, "how long to measure them")
	f.IntVar(&o.pods, "pods", 100, "pods to scale up to at the end of each round; 0 leaves it out")
	f.Var(&o.args, "podo-arg", "further `argument` for podo server; may be repeated; --disable=traefik, which the baseline has not, where none is given")
	f.Var(&o.env, "podo-env", "further `NAME=VALUE` in podo's environment; may be repeated")
	f.BoolVar(&o.keep, "keep-logs", false, "keep what the products logged, and say where; it is kept after a failure anyway")
	f.BoolVar(&o.each, "batteries", false, "measure podo with each battery alone and with none, instead of the baseline")
	quick := f.Bool("quick", false, "for trying out: -n 1 -settle 10s -window 20s, where not given")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q; -h lists the flags", f.Arg(0))
	}
	if *quick {
		given := map[string]bool{}
		f.Visit(func(f *flag.Flag) { given[f.Name] = true })
		for name, value := range map[string]string{"n": "1", "settle": "10s", "window": "20s"} {
			if !given[name] {
				_ = f.Set(name, value) // these are well-formed
			}
		}
	}
	switch {
	case o.each && (o.only != "" || len(o.args) > 0):
		return o, errors.New("-batteries: measures what it chooses itself; leave out -only and -podo-arg")
	case o.only != "" && o.only != "podo" && o.only != "baseline":
		return o, fmt.Errorf("-only %s: want podo or baseline", o.only)
	case o.rounds < 1:
		return o, fmt.Errorf("-n %d: want at least one round", o.rounds)
	case o.window < time.Second:
		return o, fmt.Errorf("-window %s: want at least a second", o.window)
	case o.pods < 0 || o.pods > maxPods-10:
		return o, fmt.Errorf("-pods %d: want 0 to %d", o.pods, maxPods-10)
	}
	if o.each {
		o.pods = 0
	}
	if len(o.args) == 0 {
		o.args = list{"--disable=traefik"}
	}
	return o, nil
}

// maxPods is what both kubelets are told, as the usual 110 leave no room for a
// scale-up to a hundred.
const maxPods = 250

func run(ctx context.Context, o options) (err error) {
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
	if os.Geteuid() != 0 {
		return errors.New("must run as root: it starts a node on this machine")
	}
	b := config.Default()
	b.DataDir = "/var/lib/podo-bench"
	facts, err := free(ctx, b)
	if err != nil {
		return err
	}
	room, err := os.MkdirTemp("", "podo-bench-")
	if err != nil {
		return err
	}
	defer func() {
		if err == nil && !o.keep {
			err = os.RemoveAll(room)
			return
		}
		_ = os.Remove(filepath.Join(room, "podo"))
		fmt.Fprintf(os.Stderr, "bench: logs are in %s\n", room)
	}()
	exe := filepath.Join(room, "podo") // the build may replace the original meanwhile
	if err := copyProgram(o.podo, exe); err != nil {
		return fmt.Errorf("%w; make build makes it", err)
	}
	programs, err := filepath.Abs(o.programs)
	if err != nil {
		return err
	}
	products := batteries(exe, room, o)
	if !o.each {
		other, err := newBaseline(baseline{
			cfg: b, facts: facts, exe: exe, programs: programs, payload: o.payload, home: room, env: environment(room),
		})
		if err != nil {
			return err
		}
		products = []product{newPodo(exe, room, o), other}
	}
	if o.only != "" {
		products = slices.DeleteFunc(products, func(p product) bool { return p.name != o.only })
	}

	all := report{Machine: describe(facts), Settle: o.settle.Seconds(), Window: o.window.Seconds(), Pods: o.pods}
	err = rounds(ctx, o, products, room, &all)
	if len(all.Runs) == 0 {
		return err
	}
	// What was measured before something failed is worth reading too.
	if o.json != "" {
		err = errors.Join(err, all.writeJSON(o.json))
	}
	if o.each {
		return errors.Join(err, all.costs(os.Stdout, products))
	}
	return errors.Join(err, all.table(os.Stdout))
}

// rounds runs the products in turn and adds each result to all.
func rounds(ctx context.Context, o options, products []product, room string, all *report) error {
	for round := 1; round <= o.rounds; round++ {
		for _, p := range products {
			dir := filepath.Join(room, fmt.Sprintf("%d-%s", round, p.name))
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
			m := measure{options: o, product: p, logs: dir}
			result, err := m.run(ctx)
			if err != nil {
				return fmt.Errorf("round %d of %s: %w", round, p.name, err)
			}
			result.Round = round
			all.Runs = append(all.Runs, result)
			fmt.Fprintln(os.Stderr, result)
		}
	}
	return nil
}

// free refuses to measure beside a Kubernetes that somebody uses, or on a machine
// that cannot run one.
func free(ctx context.Context, cfg config.Server) (host.Facts, error) {
	for _, dir := range []string{paths.DefaultData, cfg.DataDir, paths.DefaultEtc, paths.KubeletRoot} {
		if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
			return host.Facts{}, fmt.Errorf("%s exists and would be removed; save what you need and run podo uninstall --data-dir %s", dir, cfg.DataDir)
		}
	}
	settings := host.SettingsOf(cfg)
	settings.Ports = append(settings.Ports, host.Port{Number: 2379, Use: "etcd"}, host.Port{Number: 2380, Use: "etcd"})
	facts, err := host.Discover(ctx, host.Options{DataDir: cfg.DataDir, Ports: settings.Ports})
	if err != nil {
		return facts, err
	}
	if err := host.Err(host.Checks(facts, settings)); err != nil {
		return facts, err
	}
	// Both products meet a machine that has been made fit.
	_, findings := host.Prepare(ctx, facts, settings, host.NewLedger(paths.New(cfg.DataDir).Parameters()), slog.New(slog.DiscardHandler))
	return facts, host.Err(findings)
}

func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// environment is this process's without what podo, kubectl or Go would take for a
// setting, and with a home of its own.
func environment(home string) []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return strings.HasPrefix(name, "PODO_") || strings.HasPrefix(name, "K3S_") || strings.HasPrefix(name, "GO") ||
			slices.Contains([]string{"HOME", "KUBECONFIG", "NOTIFY_SOCKET"}, name)
	})
	return append(env, "HOME="+home)
}
