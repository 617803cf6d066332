// Package containerd runs the container engine as a child process.
//
// Its configuration is rendered at each start from podo's own settings. The child
// dies with podo; the shims, and the pods with them, outlive both. The component is
// ready when the engine answers for pods: after a restart it opens its socket first
// and then looks at every pod that it has.
package containerd

import (
	"context"
	"log/slog"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/logging"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/process"
)

// patience is how long the engine may take to answer. After a restart it looks at
// every pod first.
const patience = 2 * time.Minute

// New returns the engine. It is restarted in place when it dies.
func New(p plan.Containerd, log *slog.Logger) lifecycle.Component {
	return lifecycle.Restart(log, 200*time.Millisecond, lifecycle.Within(patience, lifecycle.Func("containerd", func(ctx context.Context, ready func()) error {
		if err := prepare(p); err != nil {
			return err
		}
		out := logging.Child(log, "containerd")
		defer out.Close()
		return process.New(process.Command{
			Name:   "containerd",
			Path:   p.Paths.Program("containerd"),
			Args:   []string{"--config", p.Paths.ContainerdConfig(), "--log-level", p.LogLevel},
			Env:    p.Env,
			Output: out,
			Probe:  func(ctx context.Context) error { return serves(ctx, p.Paths.Socket("containerd")) },
		}, log).Run(ctx, ready)
	})))
}

func prepare(p plan.Containerd) error {
	f := p.Paths
	for dir, mode := range map[string]os.FileMode{
		f.Run: 0o711, f.ContainerdState(): 0o711, f.ContainerdRoot(): 0o711, p.CNIConfig: 0o755, f.RegistryHosts(): 0o755,
	} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return err
		}
	}
	return atomicfile.Write(f.ContainerdConfig(), Render(p), 0o600)
}

// serves returns when the engine takes calls for pods. Until it has looked at those it
// has, it refuses them, and the kubelet gives up at the first refusal (Kubernetes 1.36).
func serves(ctx context.Context, socket string) error {
	if err := accepts(ctx, socket); err != nil {
		return err
	}
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	engine := runtimeapi.NewRuntimeServiceClient(conn)
	return again(ctx, func() error {
		_, err := engine.Version(ctx, &runtimeapi.VersionRequest{})
		return err
	})
}

// accepts returns when socket takes a connection.
func accepts(ctx context.Context, socket string) error {
	var d net.Dialer
	return again(ctx, func() error {
		c, err := d.DialContext(ctx, "unix", socket)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// again calls do until it succeeds or ctx ends.
func again(ctx context.Context, do func() error) error {
	for do() != nil {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}
