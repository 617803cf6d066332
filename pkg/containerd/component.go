// Package containerd runs the container engine as a child process.
//
// Its configuration is rendered at each start from podo's own settings. The child
// dies with podo; the shims, and the pods with them, outlive both. The component
// is ready when the engine's socket accepts connections.
package containerd

import (
	"context"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/logging"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/process"
)

// New returns the engine. It is restarted in place when it dies.
func New(p plan.Containerd, log *slog.Logger) lifecycle.Component {
	return lifecycle.Restart(log, 200*time.Millisecond, lifecycle.Func("containerd", func(ctx context.Context, ready func()) error {
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
			Probe:  func(ctx context.Context) error { return accepts(ctx, p.Paths.Socket("containerd")) },
		}, log).Run(ctx, ready)
	}))
}

func prepare(p plan.Containerd) error {
	f := p.Paths
	for dir, mode := range map[string]os.FileMode{
		f.Run: 0o711, f.ContainerdState(): 0o711, f.ContainerdRoot(): 0o711, f.CNIConfig(): 0o755, f.RegistryHosts(): 0o755,
	} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return err
		}
	}
	return atomicfile.Write(f.ContainerdConfig(), Render(p), 0o600)
}

// accepts returns when socket takes a connection. The engine opens it last.
func accepts(ctx context.Context, socket string) error {
	var d net.Dialer
	for {
		c, err := d.DialContext(ctx, "unix", socket)
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}
