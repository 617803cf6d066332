// Package apiserver runs kube-apiserver in this process.
//
// It follows upstream's own Run, except that two start-up hooks are replaced by
// bootstrap.go, which writes the same objects at once instead of after a pause
// and one by one. The component is ready when /readyz says so, and opens the gate
// that every other part's connections wait behind.
package apiserver

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	rbacrest "k8s.io/kubernetes/pkg/registry/rbac/rest"
	schedulingrest "k8s.io/kubernetes/pkg/registry/scheduling/rest"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/gate"
	"github.com/podo-dev/podo/pkg/kube"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/plan"
)

// Server is kube-apiserver.
type Server struct {
	plan    plan.APIServer
	options *options.ServerRunOptions
	front   func(http.Handler) http.Handler
	gate    *gate.Gate
	log     *slog.Logger
}

// New checks the flags of p. Nothing runs until Run, which opens g once the API
// is ready and closes it when told to stop. What front returns serves every request
// of the port, before any of Kubernetes' own checks.
func New(p plan.APIServer, front func(http.Handler) http.Handler, g *gate.Gate, log *slog.Logger) (*Server, error) {
	set, err := Args(p)
	if err != nil {
		return nil, err
	}
	o := options.NewServerRunOptions()
	if err := kube.Parse("kube-apiserver-arg", o.Flags(), set.Flags()); err != nil {
		return nil, err
	}
	return &Server{plan: p, options: o, front: front, gate: g, log: log}, nil
}

// Name is the component's name.
func (s *Server) Name() string { return "kube-apiserver" }

// Run serves the API until ctx ends.
func (s *Server) Run(ctx context.Context, ready func()) error {
	quiet()
	if err := writeAuthentication(s.plan.Paths); err != nil {
		return err
	}
	port, err := listen(ctx, s.plan.Bind, s.plan.Port)
	if err != nil {
		return err
	}
	defer port.Close()
	s.options.SecureServing.Listener = port
	completed, err := s.options.Complete(ctx)
	if err != nil {
		return err
	}
	if errs := completed.Validate(); len(errs) > 0 {
		return errors.Join(errs...)
	}
	config, err := app.NewConfig(completed)
	if err != nil {
		return err
	}
	generic := config.KubeAPIs.ControlPlane.Generic
	generic.DisabledPostStartHooks.Insert(rbacrest.PostStartHookName, schedulingrest.PostStartHookName)
	// The aggregator is the outermost of the chained servers.
	outer := config.Aggregator.GenericConfig
	chainFor := outer.BuildHandlerChainFunc
	outer.BuildHandlerChainFunc = func(api http.Handler, c *genericapiserver.Config) http.Handler {
		return s.front(chainFor(api, c))
	}
	done, err := config.Complete()
	if err != nil {
		return err
	}
	chain, err := app.CreateServerChain(done)
	if err != nil {
		return err
	}
	loopback := rest.CopyConfig(chain.GenericAPIServer.LoopbackClientConfig)
	loopback.QPS = -1
	if err := chain.GenericAPIServer.AddPostStartHook("podo/bootstrap", func(h genericapiserver.PostStartHookContext) error {
		return bootstrap(h.Context, loopback)
	}); err != nil {
		return err
	}
	prepared, err := chain.PrepareRun()
	if err != nil {
		return err
	}
	go s.announce(ctx, loopback, ready)
	defer s.gate.Close()
	// Our own clients go first, since some never end by themselves; then, after a
	// moment for what is in flight, everybody else.
	defer context.AfterFunc(ctx, func() {
		s.gate.Close()
		time.AfterFunc(goodbye, port.Cut)
	})()
	return prepared.Run(ctx)
}

// announce opens the gate once the API is ready.
func (s *Server) announce(ctx context.Context, loopback *rest.Config, ready func()) {
	if err := waitReady(ctx, loopback); err != nil {
		return // only a cancelled context ends the wait
	}
	s.gate.Open()
	ready()
}

// Anonymous requests may ask whether the server lives, and nothing else.
const anonymousHealthOnly = `apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous:
  enabled: true
  conditions:
  - path: /livez
  - path: /readyz
  - path: /healthz
`

func authentication(f paths.Paths) string { return filepath.Join(f.Run, "authentication.yaml") }

func writeAuthentication(f paths.Paths) error {
	if err := os.MkdirAll(f.Run, 0o711); err != nil {
		return err
	}
	return atomicfile.Write(authentication(f), []byte(anonymousHealthOnly), 0o600)
}

// probePause is how long the readiness probe rests between tries. A try costs
// about a millisecond.
const probePause = 20 * time.Millisecond
