package helm

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// A tether ends the requests of an operation with its context. Helm would go on in the
// background, or note as failed what was only told to stop; so it reaches nothing more,
// and its release stays pending, as after a sudden end.
type tether struct {
	ctx  context.Context
	base http.RoundTripper
}

func (t tether) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(r.Context())
	stop := context.AfterFunc(t.ctx, cancel)
	end := func() { stop(); cancel() }
	if err := t.ctx.Err(); err != nil {
		end()
		return nil, fmt.Errorf("%s: %w", r.URL.Path, err)
	}
	answer, err := t.base.RoundTrip(r.WithContext(ctx))
	if err != nil {
		end()
		return nil, err
	}
	answer.Body = &held{answer.Body, sync.OnceFunc(end)}
	return answer, nil
}

// held is the body of an answer that is read while its request lasts.
type held struct {
	io.ReadCloser
	end func()
}

func (h *held) Close() error {
	defer h.end()
	return h.ReadCloser.Close()
}

// A getter is how Helm gets its clients. All of them share one transport: each of its own
// would be kept for ever by client-go's cache.
type getter struct {
	config *rest.Config
	disco  discovery.CachedDiscoveryInterface
	mapper meta.RESTMapper
	loader clientcmd.ClientConfig
}

func newGetter(ctx context.Context, host string, base http.RoundTripper, namespace string) (*getter, error) {
	rc := &rest.Config{Host: host, Transport: tether{ctx, base}, QPS: -1, UserAgent: "podo-helm"}
	client, err := discovery.NewDiscoveryClientForConfig(rc)
	if err != nil {
		return nil, err
	}
	disco := memory.NewMemCacheClient(client)
	return &getter{
		config: rc,
		disco:  disco,
		mapper: restmapper.NewShortcutExpander(restmapper.NewDeferredDiscoveryRESTMapper(disco), disco, nil),
		loader: clientcmd.NewDefaultClientConfig(api.Config{}, &clientcmd.ConfigOverrides{Context: api.Context{Namespace: namespace}}),
	}, nil
}

func (g *getter) ToRESTConfig() (*rest.Config, error)           { return rest.CopyConfig(g.config), nil }
func (g *getter) ToRESTMapper() (meta.RESTMapper, error)        { return g.mapper, nil }
func (g *getter) ToRawKubeConfigLoader() clientcmd.ClientConfig { return g.loader }
func (g *getter) ToDiscoveryClient() (discovery.CachedDiscoveryInterface, error) {
	return g.disco, nil
}
