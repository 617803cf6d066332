package registries

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// routes are the ways to registries that one file describes.
type routes struct {
	file      File
	noDefault bool // a registry that has mirrors is not asked itself

	mu    sync.Mutex
	known map[string][]*endpoint
}

func newRoutes(f File, noDefault bool) *routes {
	return &routes{file: f, noDefault: noDefault, known: map[string][]*endpoint{}}
}

// to returns the endpoints of a registry, in the order in which they are asked. They are
// the same ones each time, since they keep connections and tokens.
func (r *routes) to(registry string) []*endpoint {
	r.mu.Lock()
	defer r.mu.Unlock()
	list, ok := r.known[registry]
	if !ok {
		list = r.endpoints(registry)
		r.known[registry] = list
	}
	var out, resting []*endpoint
	for _, e := range list {
		if e.rests() {
			resting = append(resting, e)
		} else {
			out = append(out, e)
		}
	}
	return append(out, resting...)
}

func (r *routes) endpoints(registry string) []*endpoint {
	mirror, own := r.file.Mirrors[registry], r.config(registry)
	keepsHome := !own.empty()
	if len(mirror.Endpoints) == 0 && own.empty() {
		mirror, own = r.file.Mirrors["*"], r.file.Configs["*"]
	}
	var out []*endpoint
	home, err := endpointURL(registry)
	if err == nil && own.TLS != nil {
		home.Scheme = "https" // one on loopback has it for being told how
	}
	for _, u := range mirror.Endpoints {
		out = append(out, newEndpoint(u, r.config(u.Host), mirror.Rewrites, home == nil || *u != *home))
	}
	disabled := r.noDefault && len(mirror.Endpoints) > 0 && !keepsHome
	listed := err != nil || slices.ContainsFunc(mirror.Endpoints, func(u *url.URL) bool { return *u == *home })
	if !disabled && !listed {
		out = append(out, newEndpoint(home, own, nil, false))
	}
	return out
}

// config is how a host is spoken to.
func (r *routes) config(host string) Config {
	if host == dockerIO || host == dockerHub {
		if c, ok := r.file.Configs[dockerHub]; ok {
			return c
		}
		return r.file.Configs[dockerIO]
	}
	return r.file.Configs[host]
}

// registries are those that the engine has to ask for here, "*" among them.
func (r *routes) registries() []string {
	var out []string
	for name, m := range r.file.Mirrors {
		if len(m.Endpoints) > 0 {
			out = append(out, name)
		}
	}
	for name, c := range r.file.Configs {
		if name == dockerHub {
			name = dockerIO
		}
		if !c.empty() {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// An endpoint is one place to get the images of a registry from.
type endpoint struct {
	base     *url.URL
	rewrites []Rewrite
	mirror   bool // it may hold the images of several registries, and is told which is meant
	own      auth.Credential
	http     *http.Client

	mu      sync.Mutex
	clients map[auth.Credential]*auth.Client // they keep tokens
	failed  time.Time                        // to answer as a registry
}

// rest is how long one that does not answer, or not as a registry, is asked after all
// others: a pull asks many times, and must not wait for it each time.
const rest = 30 * time.Second

func (e *endpoint) rests() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return time.Since(e.failed) < rest
}

func newEndpoint(base *url.URL, c Config, rewrites []Rewrite, mirror bool) *endpoint {
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		TLSClientConfig:       c.TLS.Clone(),
		TLSHandshakeTimeout:   5 * time.Second,
		ResponseHeaderTimeout: 20 * time.Second, // the engine gives all of them thirty
		IdleConnTimeout:       30 * time.Second,
		ForceAttemptHTTP2:     true,
	}
	return &endpoint{
		base: base, rewrites: rewrites, mirror: mirror, own: c.Auth,
		http: &http.Client{Transport: transport}, clients: map[auth.Credential]*auth.Client{},
	}
}

// client shows c to whoever the endpoint says is to see it. It follows redirects, and
// takes no credentials along to other hosts.
func (e *endpoint) client(c auth.Credential) *auth.Client {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.clients[c] == nil {
		e.clients[c] = &auth.Client{
			Client: e.http, Cache: auth.NewCache(), ClientID: "podo",
			Credential: func(context.Context, string) (auth.Credential, error) { return c, nil },
		}
	}
	return e.clients[c]
}

// A want is what is asked of a registry.
type want struct {
	method           string
	repo, kind, name string // kind: manifests, blobs or referrers
	query            url.Values
	header           http.Header
}

// ask returns the answer of the endpoint, or a *failure. Without credentials of the one
// who asks, it has those of the file.
func (e *endpoint) ask(ctx context.Context, w want, theirs auth.Credential) (*http.Response, error) {
	repo := w.repo
	for _, r := range e.rewrites {
		if repo = r.From.ReplaceAllString(w.repo, r.To); repo != w.repo {
			break
		}
	}
	u := e.base.JoinPath(repo, w.kind, w.name)
	query := maps.Clone(w.query)
	if !e.mirror {
		query.Del("ns")
	}
	u.RawQuery = query.Encode()
	ctx = auth.WithScopes(ctx, auth.ScopeRepository(repo, auth.ActionPull))
	req, err := http.NewRequestWithContext(ctx, w.method, u.String(), nil)
	if err != nil {
		return nil, &failure{host: e.base.Host, text: err.Error()}
	}
	for _, name := range []string{"Accept", "Range", "User-Agent"} {
		if v := w.header.Values(name); len(v) > 0 {
			req.Header[name] = v
		}
	}
	shown := e.own
	if theirs != auth.EmptyCredential {
		shown = theirs
	}
	res, err := e.client(shown).Do(req)
	if err != nil {
		return nil, e.unanswered(ctx, err)
	}
	if res.StatusCode >= http.StatusBadRequest {
		defer res.Body.Close()
		return nil, &failure{host: e.base.Host, code: res.StatusCode, text: told(res)}
	}
	// A portal that wants a login, or another server than was meant, answers anything with a
	// page. A blob may be one, so it is not judged, but asked for elsewhere first.
	if kind := res.Header.Get("Content-Type"); w.kind != "blobs" && strings.HasPrefix(strings.ToLower(kind), "text/html") {
		res.Body.Close()
		e.retire()
		return nil, &failure{host: e.base.Host, code: res.StatusCode, text: fmt.Sprintf("%s with a web page (%s) for %s: this is no registry; mend its URL in registries.yaml", res.Status, kind, res.Request.URL.Path)}
	}
	return res, nil
}

// unanswered says what went wrong before the endpoint answered.
func (e *endpoint) unanswered(ctx context.Context, err error) *failure {
	f := &failure{host: e.base.Host, text: err.Error()}
	if answer, ok := errors.AsType[*errcode.ErrorResponse](err); ok { // of who gives tokens
		f.code, f.text = answer.StatusCode, fmt.Sprintf("%s gave no token: %s", answer.URL.Host, http.StatusText(answer.StatusCode))
		if len(answer.Errors) > 0 {
			f.text += ": " + answer.Errors.Error()
		}
	} else if errors.Is(err, auth.ErrBasicCredentialNotFound) {
		f.code, f.text = http.StatusUnauthorized, "wants credentials"
	} else if transport, ok := errors.AsType[*url.Error](err); ok {
		f.text = transport.Err.Error()
	}
	if f.code == 0 && ctx.Err() == nil {
		e.retire()
	}
	return f
}

// retire has the endpoint asked after all others for a while.
func (e *endpoint) retire() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.failed = time.Now()
}

// told is the status of an answer, and what a registry says besides.
func told(res *http.Response) string {
	var said struct {
		Errors []struct{ Code, Message string }
	}
	text := res.Status
	if json.NewDecoder(io.LimitReader(res.Body, 64<<10)).Decode(&said) == nil {
		for _, e := range said.Errors {
			text += ": " + strings.TrimSpace(e.Code+" "+e.Message)
		}
	}
	return text
}

// A failure is why an endpoint did not give what it was asked for.
type failure struct {
	host string
	code int // of HTTP; 0 if there was no answer
	text string
}

func (f *failure) Error() string { return f.host + ": " + f.text }

// refused reports whether other credentials might help.
func (f *failure) refused() bool {
	return f.code == http.StatusUnauthorized || f.code == http.StatusForbidden
}
