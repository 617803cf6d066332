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
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apiserver"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/resourceconfig"
	"k8s.io/client-go/rest"
	aggregator "k8s.io/kube-aggregator/pkg/apiserver/scheme"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/controlplane"
	rbacrest "k8s.io/kubernetes/pkg/registry/rbac/rest"
	schedulingrest "k8s.io/kubernetes/pkg/registry/scheduling/rest"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/gate"
	"github.com/podo-dev/podo/pkg/kube"
	"github.com/podo-dev/podo/pkg/kube/args"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/plan"
)

// Server is kube-apiserver.
type Server struct {
	plan    plan.APIServer
	options *options.ServerRunOptions
	hooks   Hooks
	gate    *gate.Gate
	log     *slog.Logger
}

// Hooks are what podo adds to kube-apiserver. Each may be nil.
type Hooks struct {
	// Front serves every request of the port, before any of Kubernetes' own checks.
	Front func(http.Handler) http.Handler
	// Extra is served besides Kubernetes' own API groups.
	Extra Group
	// Settle runs once the API answers, and before anything of this process may use it.
	// Its error ends the server.
	Settle func(context.Context, *rest.Config) error
}

// A Group is an API group beside Kubernetes' own. It needs an APIService that names no
// Service.
type Group interface {
	// AddToScheme makes the group's kinds known to what describes the API.
	AddToScheme(*runtime.Scheme) error
	// Install makes the group part of a server that does not serve yet.
	Install(*genericapiserver.GenericAPIServer) error
}

// New checks the flags of p. Nothing runs until Run, which opens g once the API
// is ready and closes it when told to stop.
func New(p plan.APIServer, hooks Hooks, g *gate.Gate, log *slog.Logger) (*Server, error) {
	set, err := Args(p)
	if err != nil {
		return nil, err
	}
	o := options.NewServerRunOptions()
	if err := kube.Parse("kube-apiserver-arg", o.Flags(), set.Flags()); err != nil {
		return nil, err
	}
	// What else Kubernetes validates needs files that the start has yet to write.
	if errs := o.APIEnablement.Validate(legacyscheme.Scheme, apiextensions.Scheme, aggregator.Scheme); len(errs) > 0 {
		return nil, fmt.Errorf("kube-apiserver-arg: runtime-config: %w", errors.Join(errs...))
	}
	if _, err := resourceconfig.MergeAPIResourceConfigs(controlplane.DefaultAPIResourceConfigSource(), o.APIEnablement.RuntimeConfig, legacyscheme.Scheme); err != nil {
		return nil, fmt.Errorf("kube-apiserver-arg: runtime-config: %w; give GROUP/VERSION=true or =false, of one that there is", err)
	}
	return &Server{plan: p, options: o, hooks: hooks, gate: g, log: log}, nil
}

// Name is the component's name.
func (s *Server) Name() string { return "kube-apiserver" }

// Run serves the API until ctx ends.
func (s *Server) Run(ctx context.Context, ready func()) error {
	quiet()
	if err := writeAuthentication(s.plan.Paths); err != nil {
		return err
	}
	port, err := Listen(ctx, s.plan.Bind, s.plan.Port)
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
		err := errors.Join(errs...)
		if args.Given(s.plan.Args, "authorization-config") { // which names files, and those may come
			return err
		}
		return kube.Refuse("kube-apiserver-arg", s.plan.Args, err)
	}
	config, err := app.NewConfig(completed)
	if err != nil {
		return err
	}
	generic := config.KubeAPIs.ControlPlane.Generic
	generic.DisabledPostStartHooks.Insert(rbacrest.PostStartHookName, schedulingrest.PostStartHookName)
	if s.hooks.Extra != nil {
		if err := describe(generic, s.hooks.Extra); err != nil {
			return err
		}
	}
	// The aggregator is the outermost of the chained servers.
	if s.hooks.Front != nil {
		outer := config.Aggregator.GenericConfig
		chainFor := outer.BuildHandlerChainFunc
		outer.BuildHandlerChainFunc = func(api http.Handler, c *genericapiserver.Config) http.Handler {
			return s.hooks.Front(chainFor(api, c))
		}
	}
	done, err := config.Complete()
	if err != nil {
		return err
	}
	chain, err := app.CreateServerChain(done)
	if err != nil {
		return err
	}
	if s.hooks.Extra != nil {
		// The aggregator delegates what no Service answers to Kubernetes' own APIs.
		kubernetes, ok := chain.GenericAPIServer.NextDelegate().(*genericapiserver.GenericAPIServer)
		if !ok {
			return errors.New("kube-apiserver is not built as it was: no server behind the aggregator")
		}
		if err := s.hooks.Extra.Install(kubernetes); err != nil {
			return err
		}
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
	serving, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	go func() {
		if err := s.announce(serving, loopback, ready); err != nil {
			fail(err)
			time.AfterFunc(goodbye, port.Cut)
		}
	}()
	defer s.gate.Close()
	// Our own clients go first, since some never end by themselves; then, after a
	// moment for what is in flight, everybody else.
	defer context.AfterFunc(ctx, func() {
		s.gate.Close()
		time.AfterFunc(goodbye, port.Cut)
	})()
	err = prepared.Run(serving)
	if ctx.Err() == nil && serving.Err() != nil {
		return context.Cause(serving)
	}
	return err
}

// describe lets the OpenAPI documents say of which kinds the types of g are, which is
// what clients look for in them.
func describe(c *genericapiserver.Config, g Group) error {
	own := runtime.NewScheme()
	if err := g.AddToScheme(own); err != nil {
		return err
	}
	names := openapi.NewDefinitionNamer(legacyscheme.Scheme, apiextensions.Scheme, aggregator.Scheme, own)
	c.OpenAPIConfig.GetDefinitionName = names.GetDefinitionName
	c.OpenAPIV3Config.GetDefinitionName = names.GetDefinitionName
	return nil
}

// goodbye is how long requests in flight may take once the server is told to stop.
// Watches of pods and people never end by themselves, and upstream would wait a
// minute for them.
const goodbye = time.Second

// announce opens the gate once the API is ready.
func (s *Server) announce(ctx context.Context, loopback *rest.Config, ready func()) error {
	if err := waitReady(ctx, loopback, s.log); err != nil {
		return nil // only a cancelled context ends the wait
	}
	if s.hooks.Settle != nil {
		if err := s.hooks.Settle(ctx, loopback); err != nil || ctx.Err() != nil {
			return err
		}
	}
	s.gate.Open()
	ready()
	return nil
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
