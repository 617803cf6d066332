package registries

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path"
	"regexp"
	"strings"
	"sync/atomic"

	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/podo-dev/podo/pkg/plan"
)

// secretHeader is shown by the engine, and known to nobody else on the machine.
const secretHeader = "X-Podo-Registries"

// A proxy answers the engine as a registry does, with the images of every registry.
type proxy struct {
	secret string
	routes atomic.Pointer[routes]
	local  http.Handler // of the images that podo brings
	path   *regexp.Regexp
	log    *slog.Logger
}

func newProxy(secret string, local http.Handler, log *slog.Logger) *proxy {
	return &proxy{secret: secret, local: local, log: log, path: regexp.MustCompile(`^/v2/(.+)/(manifests|blobs|referrers)/([^/]+)$`)}
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if subtle.ConstantTimeCompare([]byte(r.Header.Get(secretHeader)), []byte(p.secret)) != 1 {
		http.Error(w, "this is for the container engine of this node alone", http.StatusForbidden)
		return
	}
	parts := p.path.FindStringSubmatch(r.URL.Path)
	registry := r.URL.Query().Get("ns")
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		http.Error(w, "images are only read here", http.StatusMethodNotAllowed)
	case parts == nil || path.Clean(r.URL.Path) != r.URL.Path || registry == "":
		http.NotFound(w, r)
	case registry == plan.OwnRegistry:
		p.local.ServeHTTP(w, r)
	default:
		p.forward(w, r, registry, want{
			method: r.Method, repo: parts[1], kind: parts[2], name: parts[3], query: r.URL.Query(), header: r.Header,
		})
	}
}

// forward asks the endpoints of a registry in turn, and passes on the first answer that
// helps.
func (p *proxy) forward(w http.ResponseWriter, r *http.Request, registry string, ask want) {
	var theirs auth.Credential
	theirs.Username, theirs.Password, _ = r.BasicAuth()
	var failures []*failure
	for _, e := range p.routes.Load().to(registry) {
		res, err := e.ask(r.Context(), ask, theirs)
		if r.Context().Err() != nil {
			return
		}
		if f, ok := errors.AsType[*failure](err); ok {
			failures = append(failures, f)
			level := slog.LevelWarn
			if f.code == http.StatusNotFound || f.refused() && e.own == theirs {
				level = slog.LevelDebug // the next one may have it, or let pods in that show a secret
			}
			p.log.Log(r.Context(), level, "registry does not give an image", "component", "registries", "image", registry+"/"+ask.repo, "err", f)
			continue
		}
		p.relay(r.Context(), w, res)
		return
	}
	deny(w, failures, theirs != auth.EmptyCredential)
}

// relay passes an answer on. One that breaks off does so here too: the engine goes on
// from there, at the next endpoint if need be.
func (p *proxy) relay(ctx context.Context, w http.ResponseWriter, res *http.Response) {
	defer res.Body.Close()
	for _, name := range []string{
		"Accept-Ranges", "Content-Length", "Content-Range", "Content-Type", "Docker-Content-Digest",
		"Docker-Distribution-Api-Version", "Etag", "Link", "Oci-Filters-Applied",
	} {
		if v := res.Header.Values(name); len(v) > 0 {
			w.Header()[name] = v
		}
	}
	w.WriteHeader(res.StatusCode)
	if _, err := io.Copy(w, res.Body); err != nil {
		if ctx.Err() == nil {
			p.log.Warn("registry broke off", "component", "registries", "host", res.Request.URL.Host, "err", err)
		}
		panic(http.ErrAbortHandler)
	}
}

// deny says why no endpoint helped. The engine is asked for credentials, which it has if a
// pod brings an imagePullSecret, unless it has shown some.
func deny(w http.ResponseWriter, failures []*failure, authorized bool) {
	missing, refused := len(failures) > 0, false
	var words []string
	for _, f := range failures {
		missing = missing && f.code == http.StatusNotFound
		refused = refused || f.refused()
		words = append(words, f.Error())
	}
	switch {
	case missing:
		w.WriteHeader(http.StatusNotFound)
	case refused && !authorized:
		w.Header().Set("WWW-Authenticate", `Basic realm="podo"`)
		w.WriteHeader(http.StatusUnauthorized)
	case len(words) == 0:
		explain(w, "no endpoint is left to ask: registries.yaml names none, and the registry itself is disabled")
	default:
		explain(w, strings.Join(words, "; "))
	}
}

// explain fails a request in words that get to people: of an answer without a body, as
// those to HEAD are, the engine repeats the status line and nothing else.
func explain(w http.ResponseWriter, why string) {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, why, http.StatusBadGateway)
		return
	}
	defer conn.Close()
	why = strings.Join(strings.Fields(why), " ")
	fmt.Fprintf(buffered, "HTTP/1.1 %d %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", http.StatusBadGateway, why)
	buffered.Flush()
}
