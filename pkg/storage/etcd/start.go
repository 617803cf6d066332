package etcd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// running is an etcd that was started.
type running struct {
	etcd  *embed.Etcd
	fatal chan error
}

// start starts etcd. Where etcd would end the process, the reason is an error here.
func (s *Store) start(ctx context.Context, ec *embed.Config) (*running, error) {
	if err := sound(ctx, s.cfg.Dir); err != nil {
		return nil, s.explain(err)
	}
	fatal := make(chan error, 1)
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(newLogger(ctx, s.log, fatal))
	type result struct {
		etcd *embed.Etcd
		err  error
	}
	started := make(chan result, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				started <- result{err: fmt.Errorf("panic: %v", p)}
			}
		}()
		e, err := embed.StartEtcd(ec)
		started <- result{e, err}
	}()
	select {
	case r := <-started:
		if r.err != nil {
			return nil, s.explain(r.err)
		}
		run := &running{r.etcd, fatal}
		for _, socket := range []string{s.cfg.Socket, httpSocket(s.cfg.Socket)} {
			if err := os.Chmod(socket, 0o600); err != nil {
				run.stop()
				return nil, err
			}
		}
		return run, nil
	case err := <-fatal:
		return nil, s.explain(err)
	case <-ctx.Done():
		go func() {
			if r := <-started; r.err == nil {
				(&running{r.etcd, fatal}).stop()
			}
		}()
		return nil, context.Cause(ctx)
	}
}

// explain adds to why etcd does not start what can be done about it.
func (s *Store) explain(err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE), errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("start etcd: %w: %s and %s must be addresses of this machine, with nothing else listening there", err, s.cfg.Peer, s.cfg.Client)
	case hasData(s.cfg.Dir):
		return fmt.Errorf("start etcd with %s: %w; if that cannot be put right, move the folder away and join the cluster's other servers with --server, or put it back from a backup", s.cfg.Dir, err)
	}
	return fmt.Errorf("start etcd with %s: %w", s.cfg.Dir, err)
}

// wait returns why etcd ended, or nothing if ctx ended first.
func (r *running) wait(ctx context.Context) error {
	server := r.etcd.Server
	select {
	case err := <-r.fatal:
		return err
	case <-server.StopNotify():
	case err := <-r.etcd.Err():
		select {
		case <-server.StoppingNotify():
		default:
			if err == nil {
				err = errors.New("a listener closed")
			}
			return fmt.Errorf("serve etcd: %w", err)
		}
	case <-ctx.Done():
		return nil
	}
	// A member that dies of a broken disk says so a moment before it stops.
	select {
	case err := <-r.fatal:
		return err
	case <-server.StopNotify():
		return errStopped
	}
}

// patience is how long an orderly stop may take. Everything acknowledged is on disk
// long before; what is left behind then ends with the process.
const patience = 2 * time.Second

// stop hands the leadership over and ends etcd.
func (r *running) stop() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		moved := make(chan struct{})
		go func() {
			defer close(moved)
			r.etcd.Server.TryTransferLeadershipOnShutdown()
		}()
		select {
		case <-moved:
		case <-time.After(patience / 3):
		}
		select {
		case <-r.etcd.Server.ReadyNotify():
		default:
			// Listeners that wait for readiness would hold Close up for ever.
			r.etcd.Server.HardStop()
		}
		r.etcd.Close()
	}()
	select {
	case <-done:
	case <-time.After(patience):
	}
}
