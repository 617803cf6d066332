// Package front speaks the etcd protocol over a unix socket, before a datastore that
// kine makes of a database.
//
// The parts of kine are assembled here rather than by its endpoint package, which
// would link every database it knows. What the API server must never notice is kept
// here too: how it asks for what is current, and what an idle watch costs.
package front

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/k3s-io/kine/pkg/drivers"
	"github.com/k3s-io/kine/pkg/server"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
)

// Config is how kine keeps its log of revisions, whatever the database.
func Config() drivers.Config {
	return drivers.Config{
		CompactInterval:       5 * time.Minute,
		CompactIntervalJitter: 5,
		CompactTimeout:        5 * time.Second,
		CompactMinRetain:      1000,
		CompactBatchSize:      1000,
		PollBatchSize:         500,
	}
}

// Serve answers on the socket until ctx ends, and calls ready as soon as it does.
// Requests in flight then have two seconds.
func Serve(ctx context.Context, socket string, backend server.Backend, log *slog.Logger, ready func()) error {
	listener, err := listen(ctx, socket)
	if err != nil {
		return err
	}
	g := newServer(backend, log)
	done := make(chan error, 1)
	go func() { done <- g.Serve(listener) }()
	ready()
	select {
	case err := <-done:
		return fmt.Errorf("serve %s: %w", socket, err)
	case <-ctx.Done():
	}
	late := time.AfterFunc(2*time.Second, g.Stop)
	defer late.Stop()
	g.GracefulStop()
	<-done
	return nil
}

// Health asks a backend one small question and returns its size in bytes and how long
// the answer took. A backend that is not open yet is nil.
func Health(ctx context.Context, backend server.Backend) (bytes int64, latency time.Duration, err error) {
	if backend == nil {
		return 0, 0, errors.New("not open yet")
	}
	began := time.Now()
	if _, _, err := backend.Get(ctx, server.HealthKey, 0, true); err != nil {
		return 0, 0, err
	}
	latency = time.Since(began)
	bytes, err = backend.DbSize(ctx)
	return bytes, latency, err
}

// Kubernetes' storage of this version believes an etcd before 3.5.13 to be without
// progress requests, and then reads from the database whatever must be current. With
// progress requests it waits up to a second for kine's poll loop to report a
// revision that has long been delivered, after every write (kine 0.16).
const emulatedEtcd = "3.5.12"

func newServer(backend server.Backend, log *slog.Logger) *grpc.Server {
	g := grpc.NewServer(
		grpc.UnaryInterceptor((&health{log: log}).note),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 2 * time.Hour, Timeout: 20 * time.Second}),
		grpc.MaxConcurrentStreams(math.MaxUint32),
		grpc.MaxRecvMsgSize(2<<20), // as etcd: an object of 1.5 MiB and room around it
		grpc.MaxSendMsgSize(math.MaxInt32),
	)
	bridge := server.New(backend, "unix", progressEvery, emulatedEtcd)
	etcdserverpb.RegisterKVServer(g, bridge)
	etcdserverpb.RegisterLeaseServer(g, bridge)
	etcdserverpb.RegisterClusterServer(g, bridge)
	etcdserverpb.RegisterMaintenanceServer(g, bridge)
	etcdserverpb.RegisterWatchServer(g, watches{backend, log})
	return g
}

func listen(ctx context.Context, socket string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o711); err != nil {
		return nil, err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	return l, os.Chmod(socket, 0o600)
}
