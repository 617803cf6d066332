package join

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/pki"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/token"
)

const kubernetesVersion = "v1.36.4+podo1"

// The passwords of every cluster of these tests. No log may hold them.
const (
	serverPassword = "server-passw0rd"
	agentPassword  = "agent-passw0rd"
)

// within ends what would be tried for ever.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// cluster is a server: the real handler behind a real listener, with CAs of its own
// and an API that knows Secrets and nothing else.
type cluster struct {
	t       *testing.T
	srv     *httptest.Server
	handler *server
	cas     pki.Authorities
	paths   paths.Paths // where those are
	records *Records
	owners  Owners // that the server has heard of: none, unless a test says so
	api     *secrets
	logs    *buffer

	ahead    atomic.Int64 // of the server's clock, in nanoseconds
	starting atomic.Bool  // nothing is there yet
	around   atomic.Pointer[func(http.Handler) http.Handler]
	requests atomic.Int64 // for certificates
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, paths: paths.New(t.TempDir()), api: &secrets{kept: map[string]*corev1.Secret{}}, logs: &buffer{}}
	var err error
	if c.cas, err = pki.EnsureCAs(c.paths, time.Now); err != nil {
		t.Fatal(err)
	}
	api := httptest.NewServer(c.api)
	t.Cleanup(api.Close)
	client, err := kubernetes.NewForConfig(&rest.Config{Host: api.URL, QPS: -1, ContentConfig: rest.ContentConfig{
		ContentType: "application/json", AcceptContentTypes: "application/json",
	}})
	if err != nil {
		t.Fatal(err)
	}
	c.records = NewRecords(client)
	ready := func() error {
		if c.starting.Load() {
			return ErrStarting
		}
		return nil
	}
	if c.owners, err = newOwners(informers.NewSharedInformerFactory(client, 0)); err != nil {
		t.Fatal(err)
	}
	c.handler = newServer(Options{
		Cluster:     plan.Cluster{PodCIDR: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}},
		Authorities: func() (pki.Authorities, error) { return c.cas, ready() },
		Tokens: func() ([]token.Token, error) {
			return []token.Token{{User: token.Server, Password: serverPassword}, {User: token.Agent, Password: agentPassword}}, nil
		},
		Records: func() (*Records, error) { return c.records, ready() },
		Owners:  func() (Owners, error) { return c.owners, ready() },
		Servers: func(context.Context) ([]string, error) { return []string{"10.0.0.1:6443"}, nil },
		Tunnel:  func(w http.ResponseWriter, _ *http.Request, node string) { fmt.Fprint(w, "tunnel of ", node) },
		Now:     func() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) },
		Log:     slog.New(slog.NewTextHandler(c.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	c.handler.kubernetes = kubernetesVersion
	next := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Error(w, "kubernetes", http.StatusTeapot) })
	h := c.handler.before(next)
	c.srv = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == PathNode {
			c.requests.Add(1)
		}
		w.Header().Set("Date", c.handler.Now().UTC().Format(http.TimeFormat))
		if wrap := c.around.Load(); wrap != nil {
			(*wrap)(h).ServeHTTP(w, r)
			return
		}
		h.ServeHTTP(w, r)
	}))
	c.srv.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, Certificates: []tls.Certificate{c.serving(time.Now())}}
	c.srv.EnableHTTP2 = true
	c.srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	c.srv.StartTLS()
	t.Cleanup(c.srv.Close)
	t.Cleanup(func() {
		for _, secret := range []string{serverPassword, agentPassword} {
			if strings.Contains(c.logs.String(), secret) {
				t.Errorf("the log holds a password:\n%s", c.logs)
			}
		}
	})
	return c
}

// serving is an API server's certificate.
func (c *cluster) serving(at time.Time) tls.Certificate {
	l := pki.Leaf{Name: "kube-apiserver", CA: pki.ServerCA, CN: "kube-apiserver", Usage: pki.Serving, IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}
	return c.issue(l, at)
}

func (c *cluster) issue(l pki.Leaf, at time.Time) tls.Certificate {
	c.t.Helper()
	p := paths.New(c.t.TempDir())
	if _, err := pki.EnsureLeaves(p, c.cas, []pki.Leaf{l}, func() time.Time { return at }); err != nil {
		c.t.Fatal(err)
	}
	cert, err := tls.LoadX509KeyPair(l.Files(p).Cert, l.Files(p).Key)
	if err != nil {
		c.t.Fatal(err)
	}
	return cert
}

// with puts a wrapper around the handler, or none.
func (c *cluster) with(wrap func(http.Handler) http.Handler) { c.around.Store(&wrap) }

// whole is a token that pins this cluster.
func (c *cluster) whole(t token.Token) config.Secret {
	t.Hash = token.Hash(c.cas[pki.ServerCA].PEM)
	return config.Secret(t.Text())
}

func (c *cluster) agentToken() config.Secret {
	return c.whole(token.Token{User: token.Agent, Password: agentPassword})
}

// bootstrap makes a token that lives in the cluster.
func (c *cluster) bootstrap(b Bootstrap) config.Secret {
	c.t.Helper()
	b, err := c.records.Create(c.t.Context(), b)
	if err != nil {
		c.t.Fatal(err)
	}
	return c.whole(token.Token{ID: b.ID, Password: b.Secret})
}

// machine is a new machine that would join.
func (c *cluster) machine(name string, secret config.Secret) *Joiner {
	return &Joiner{
		Paths: paths.New(c.t.TempDir()), Server: c.srv.URL, Token: secret, Name: name,
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.7")}, Now: time.Now,
		Log:        slog.New(slog.NewTextHandler(c.logs, nil)),
		kubernetes: kubernetesVersion,
	}
}

// forgive lets sources start anew: every machine here has the same address.
func (c *cluster) forgive() {
	c.handler.limit.mu.Lock()
	defer c.handler.limit.mu.Unlock()
	clear(c.handler.limit.sources)
}

// raw posts a body as a machine with an identity would, or without one.
func (c *cluster) raw(body []byte, credential string, id *tls.Certificate) (int, Refusal) {
	c.t.Helper()
	return c.rawTo(PathNode, body, credential, id)
}

func (c *cluster) rawTo(path string, body []byte, credential string, id *tls.Certificate) (int, Refusal) {
	c.t.Helper()
	hc := &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if id == nil {
				return &tls.Certificate{}, nil
			}
			return id, nil
		}}}}
	defer hc.CloseIdleConnections()
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodPost, c.srv.URL+path, bytes.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	if credential != "" {
		req.Header.Set("Authorization", credential)
	}
	res, err := hc.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	if len(text) > 1024 && res.StatusCode != http.StatusOK {
		c.t.Errorf("a refusal of %d bytes", len(text))
	}
	for line := range strings.Lines(c.logs.String()) {
		if len(line) > 1024 {
			c.t.Errorf("a line of %d letters in the log", len(line))
		}
	}
	var no Refusal
	_ = json.Unmarshal(text, &no)
	return res.StatusCode, no
}

// buffer is a log that can be read while it is written.
type buffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// secrets is the part of the Kubernetes API that Records use, with its optimistic
// concurrency, and of a node's status no more than what is said of it.
type secrets struct {
	away      atomic.Bool            // the datastore does not answer
	meanwhile atomic.Pointer[func()] // happens once, before the next update
	patched   atomic.Value           // what was last said of the status of node n1

	mu      sync.Mutex
	kept    map[string]*corev1.Secret
	version int
}

func (s *secrets) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.away.Load() {
		s.fail(w, http.StatusInternalServerError, "InternalError")
		return
	}
	if r.Method == http.MethodPatch && r.URL.Path == "/api/v1/nodes/n1/status" {
		patch, _ := io.ReadAll(r.Body)
		s.patched.Store(string(patch))
		s.answer(w, corev1.Node{TypeMeta: metav1.TypeMeta{Kind: "Node", APIVersion: "v1"}})
		return
	}
	const base = "/api/v1/namespaces/kube-system/secrets"
	name, ok := strings.CutPrefix(r.URL.Path, base)
	if !ok {
		s.fail(w, http.StatusNotFound, metav1.StatusReasonNotFound)
		return
	}
	name = strings.TrimPrefix(name, "/")
	if r.Method == http.MethodPut {
		if do := s.meanwhile.Swap(nil); do != nil {
			(*do)()
		}
	}
	var in corev1.Secret
	if r.Method == http.MethodPost || r.Method == http.MethodPut {
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			s.fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest)
			return
		}
		name = in.Name
		for k, v := range in.StringData {
			if in.Data == nil {
				in.Data = map[string][]byte{}
			}
			in.Data[k] = []byte(v)
		}
		in.StringData = nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	have := s.kept[name]
	switch {
	case r.Method == http.MethodGet && name == "":
		list := corev1.SecretList{TypeMeta: metav1.TypeMeta{Kind: "SecretList", APIVersion: "v1"}}
		for _, x := range s.kept {
			if f := r.URL.Query().Get("fieldSelector"); f == "" || f == "type="+string(x.Type) {
				list.Items = append(list.Items, *x)
			}
		}
		s.answer(w, list)
		return
	case r.Method != http.MethodPost && have == nil:
		s.fail(w, http.StatusNotFound, metav1.StatusReasonNotFound)
		return
	case r.Method == http.MethodPost && have != nil:
		s.fail(w, http.StatusConflict, metav1.StatusReasonAlreadyExists)
		return
	case r.Method == http.MethodPut && in.ResourceVersion != have.ResourceVersion:
		s.fail(w, http.StatusConflict, metav1.StatusReasonConflict)
		return
	case r.Method == http.MethodDelete:
		delete(s.kept, name)
	case r.Method == http.MethodPost, r.Method == http.MethodPut:
		s.version++
		in.ResourceVersion, in.CreationTimestamp = strconv.Itoa(s.version), metav1.Now()
		have = &in
		s.kept[name] = have
	}
	s.answer(w, have)
}

func (s *secrets) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.kept)
}

func (s *secrets) answer(w http.ResponseWriter, what any) {
	if x, ok := what.(*corev1.Secret); ok {
		x = x.DeepCopy()
		x.Kind, x.APIVersion, what = "Secret", "v1", x
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(what)
}

func (s *secrets) fail(w http.ResponseWriter, code int, why metav1.StatusReason) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Code: int32(code), Reason: why, Message: "inside of the datastore: " + rand.Text(),
	})
}
