package join

import (
	"bytes"
	"context"
	"crypto"
	"crypto/subtle"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/podo-dev/podo/pkg/pki"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/token"
	"github.com/podo-dev/podo/pkg/version"
)

// maxRequest is what a request may weigh, in bytes: four certificate requests are
// some 3 KB.
const maxRequest = 64 << 10

// ErrStarting is what Options' functions return until there is something to return.
var ErrStarting = errors.New("the server is starting")

// Options are what the server's half works with.
type Options struct {
	Cluster plan.Cluster
	// Authorities, Tokens, Records and Owners are asked for at each request. Until they
	// are there, they return ErrStarting, and the joiner is told to come again.
	Authorities func() (pki.Authorities, error)
	Tokens      func() ([]token.Token, error) // that may join a node
	Records     func() (*Records, error)
	Owners      func() (Owners, error)
	Servers     func(context.Context) ([]string, error)
	// Tunnel serves a node that has shown its certificate.
	Tunnel func(w http.ResponseWriter, r *http.Request, node string)
	Peers  Peers
	Now    func() time.Time
	Log    *slog.Logger
}

// Handler serves podo's own paths, and passes every other request to next.
func Handler(o Options, next http.Handler) http.Handler {
	return newServer(o).before(next)
}

func newServer(o Options) *server {
	return &server{Options: o, kubernetes: version.Kubernetes(), limit: newLimiter(), lookups: newLimiter(), complaints: newLimiter()}
}

func (s *server) before(next http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+PathPing, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "pong\n") })
	mux.HandleFunc("GET "+PathCAs, s.cas)
	mux.HandleFunc("POST "+PathNode, s.node)
	mux.HandleFunc("POST "+PathPeer, s.peer)
	mux.HandleFunc("GET "+PathTunnel, s.tunnel)
	return s.held(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == PathPing || r.URL.Path == PathCAs || strings.HasPrefix(r.URL.Path, "/v1-podo/") {
			mux.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	}))
}

type server struct {
	Options
	kubernetes string
	limit      *limiter
	lookups    *limiter // of owners that are not known yet
	complaints *limiter // of log lines
}

func (s *server) cas(w http.ResponseWriter, r *http.Request) {
	cas, err := s.Authorities()
	if err != nil {
		s.answer(w, nil, refuse(Unavailable, "the server is starting"))
		return
	}
	w.Header().Set("Content-Type", "application/x-pem-file")
	w.Write(cas[pki.ServerCA].PEM)
}

func (s *server) node(w http.ResponseWriter, r *http.Request) {
	s.serve(w, r, func() (any, error) {
		m, err := s.admit(w, r)
		if err == nil {
			s.Log.Info("node was given its certificates", "component", "join", "node", m.Name, "addr", remote(r))
		}
		return m, err
	})
}

// serve answers one request, if its source does not ask too much.
func (s *server) serve(w http.ResponseWriter, r *http.Request, do func() (any, error)) {
	from := remote(r)
	if !s.limit.allow(from, 1, s.Now()) {
		s.answer(w, nil, tooMany(from))
		return
	}
	// Whoever sends a body byte by byte holds nothing for long.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(patience))
	body, err := do()
	var no *Refusal
	switch {
	case errors.As(err, &no):
		if no.Reason == BadToken || no.Reason == BadRequest {
			s.limit.punish(from, s.Now())
		}
		s.complain("join refused", "addr", from, "reason", no.Reason, "err", no.Message)
	case errors.Is(err, ErrStarting):
		err = refuse(Unavailable, "the server is starting")
	case err != nil:
		// The reason is not for strangers.
		s.complain("join not possible now", "addr", from, "err", err)
		err = refuse(Unavailable, "the server cannot answer now, and its log says why")
	}
	s.answer(w, body, err)
}

// complain logs what a stranger can cause: five lines, then one every two seconds,
// whoever causes them.
func (s *server) complain(message string, attrs ...any) {
	if s.complaints.allow(netip.IPv6Unspecified(), burst/5, s.Now()) {
		s.Log.Warn(message, append(attrs, "component", "join")...)
	}
}

func (s *server) answer(w http.ResponseWriter, body any, err error) {
	status := http.StatusOK
	var no *Refusal
	if errors.As(err, &no) {
		body, status = no, no.status()
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		s.Log.Debug("answer not sent", "component", "join", "err", err)
	}
}

func tooMany(from netip.Addr) *Refusal {
	return refuse(TooMany, "too many requests from %s; try again in a few seconds", from)
}

func (r *Refusal) status() int {
	switch r.Reason {
	case BadToken:
		return http.StatusUnauthorized
	case NameTaken:
		return http.StatusConflict
	case TooMany:
		return http.StatusTooManyRequests
	case Unavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusBadRequest
}

// admit judges a request from the cheapest question to the dearest, and signs.
func (s *server) admit(w http.ResponseWriter, r *http.Request) (*Membership, error) {
	key, err := identity(r)
	if err != nil {
		return nil, err
	}
	q, keys, err := s.read(w, r)
	if err != nil {
		return nil, err
	}
	if no := skewed(q.Time, s.Now()); no != nil {
		return nil, no
	}
	if no := skew(q.Kubernetes, s.kubernetes); no != nil {
		return nil, no
	}
	cas, err := s.Authorities()
	if err != nil {
		return nil, err
	}
	if err := s.authorise(r, q.Name, key); err != nil {
		return nil, err
	}
	return s.sign(r.Context(), q, holder(key), keys, cas)
}

// identity is the public key that the joiner proved to hold in the TLS handshake.
func identity(r *http.Request) ([]byte, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil, refuse(BadRequest, "no identity was shown in the TLS handshake")
	}
	key, err := x509.MarshalPKIXPublicKey(r.TLS.PeerCertificates[0].PublicKey)
	if err != nil {
		return nil, refuse(BadRequest, "identity: %v", err)
	}
	return key, nil
}

// nameable refuses what cannot name a node. Nothing that is too long is told or logged.
func nameable(name string) *Refusal {
	if len(name) > validation.DNS1123LabelMaxLength {
		return refuse(BadRequest, "node-name: it has %d letters; a node's name is a label too, which takes %d at most: give another with --node-name",
			len(name), validation.DNS1123LabelMaxLength)
	}
	if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
		return refuse(BadRequest, "node-name: %s cannot name a node: %s; give another with --node-name", clip(name), problems[0])
	}
	return nil
}

// read takes a request apart and returns it with the key of each leaf.
func (s *server) read(w http.ResponseWriter, r *http.Request) (Request, map[string]crypto.PublicKey, error) {
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil {
		return Request{}, nil, refuse(BadRequest, "request: %v", err)
	}
	var q Request
	if err := json.Unmarshal(text, &q); err != nil {
		return Request{}, nil, refuse(BadRequest, "request: %s", clip(err.Error()))
	}
	if no := nameable(q.Name); no != nil {
		return Request{}, nil, no
	}
	if len(q.Kubernetes) > 64 {
		return Request{}, nil, refuse(BadRequest, "request: a version of %d letters is none", len(q.Kubernetes))
	}
	if n := len(q.Addresses); n == 0 || n > 16 {
		return Request{}, nil, refuse(BadRequest, "node-ip: %d addresses are named, and a node has 1 to 16; name them with --node-ip", n)
	}
	for _, a := range q.Addresses {
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
			return Request{}, nil, refuse(BadRequest, "node-ip: %s cannot be the address of a node; name others with --node-ip", a.WithZone(""))
		}
	}
	keys := map[string]crypto.PublicKey{}
	for _, l := range pki.NodeTable(pki.Names{Node: q.Name}) {
		key, err := pki.Requester(q.Requests[l.Name])
		if err != nil {
			return Request{}, nil, refuse(BadRequest, "request for %s: %v", l.Name, err)
		}
		keys[l.Name] = key
	}
	return q, keys, nil
}

// authorise lets a node through that shows the identity its name belongs to, and
// otherwise one with a token, to which the name then belongs.
func (s *server) authorise(r *http.Request, node string, key []byte) error {
	records, err := s.Records()
	if err != nil {
		return err
	}
	owner, err := records.Identity(r.Context(), node)
	if err != nil {
		return err
	}
	if bytes.Equal(owner, key) {
		return nil
	}
	b, err := s.credential(r, records)
	if err != nil {
		return err
	}
	replace := b != nil && b.Replaces == node
	if b != nil && b.Replaces != "" && !replace {
		return refuse(BadToken, "this join token was made to replace node %s, and this is %s; start with --node-name %s, or make another with: podo token create", b.Replaces, node, b.Replaces)
	}
	if owner != nil && !replace {
		return taken(node)
	}
	if b != nil && b.Once {
		if err := records.spend(r.Context(), *b, node, key); err != nil {
			return err
		}
	}
	if err := records.Claim(r.Context(), node, key, replace); errors.Is(err, ErrTaken) {
		return taken(node)
	} else if err != nil {
		return err
	}
	return nil
}

func taken(node string) *Refusal {
	return refuse(NameTaken, "the name %s belongs to another machine of this cluster: give this one another with --node-name; "+
		"or, if this is that machine and was rebuilt, run podo node replace %s on a server and start here with the token it prints", node, node)
}

// credential checks what a request carries to be let in. The token returned is nil
// for a password that the servers keep.
func (s *server) credential(r *http.Request, records *Records) (*Bootstrap, error) {
	text, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return nil, refuse(BadToken, "this machine is unknown here and showed no join token; start it with --token (a server shows one with: podo token create --print-join-command)")
	}
	t, err := token.ParseCredential(text)
	if err != nil {
		return nil, refuse(BadToken, "the join token is malformed: %v", err)
	}
	if t.ID == "" {
		known, err := s.Tokens()
		if err != nil {
			return nil, err
		}
		ok := false
		for _, k := range known { // all of them, whichever fits
			ok = k.Accepts(string(t.Password)) && k.Serves(t.User) || ok
		}
		if !ok {
			return nil, refuse(BadToken, "the join token's password is not this cluster's; a server keeps the right one in its server/agent-token file")
		}
		return nil, nil
	}
	b, err := records.Bootstrap(r.Context(), t.ID)
	if errors.Is(err, ErrNoToken) || err == nil && subtle.ConstantTimeCompare([]byte(b.Secret), []byte(t.Password)) != 1 {
		return nil, refuse(BadToken, "this cluster knows no join token %s with that secret: it is mistyped, or ended and was removed; make another with: podo token create", t.ID)
	}
	if err != nil {
		return nil, err
	}
	if !b.Expires.IsZero() && s.Now().After(b.Expires) {
		return nil, refuse(BadToken, "the join token %s ended %s; make another with: podo token create", t.ID, b.Expires.UTC().Format(clock))
	}
	return &b, nil
}

func (s *server) sign(ctx context.Context, q Request, holder string, keys map[string]crypto.PublicKey, cas pki.Authorities) (*Membership, error) {
	servers, err := s.Servers(ctx)
	if err != nil {
		return nil, err
	}
	m := &Membership{
		Name:         q.Name,
		Certificates: map[string][]byte{},
		CAs:          map[string][]byte{},
		Cluster:      s.Cluster,
		Servers:      servers,
	}
	for _, name := range nodeCAs() {
		m.CAs[name] = cas[name].PEM
	}
	for _, l := range pki.NodeTable(pki.Names{Node: q.Name, NodeIPs: q.Addresses}) {
		l.Holder = holder
		if m.Certificates[l.Name], err = cas[l.CA].Sign(l, keys[l.Name], s.Now()); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// nodeCAs are the authorities whose certificates a node keeps a copy of.
func nodeCAs() []string { return []string{pki.ServerCA, pki.KubeletCA, pki.ClientCA} }

// tunnel lets a node through by its kubelet's client certificate.
func (s *server) tunnel(w http.ResponseWriter, r *http.Request) {
	// Judging a certificate is dear enough to be an attack.
	from := remote(r)
	if !s.limit.allow(from, 0, s.Now()) {
		s.answer(w, nil, tooMany(from))
		return
	}
	node, err := s.nodeOf(r)
	if err != nil && !errors.Is(err, ErrStarting) {
		s.limit.punish(from, s.Now())
	}
	if err != nil {
		s.answer(w, nil, refuse(BadToken, "tunnel: %v", err))
		return
	}
	s.Tunnel(w, r, node)
}

func (s *server) nodeOf(r *http.Request) (string, error) {
	cas, err := s.Authorities()
	if err != nil {
		return "", err
	}
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return "", errors.New("no certificate was shown")
	}
	cert, roots := r.TLS.PeerCertificates[0], x509.NewCertPool()
	roots.AddCert(cas[pki.ClientCA].Cert)
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: s.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return "", err
	}
	node, ok := strings.CutPrefix(cert.Subject.CommonName, "system:node:")
	if !ok || !slices.Contains(cert.Subject.Organization, "system:nodes") {
		return "", fmt.Errorf("%q is no node", cert.Subject.CommonName)
	}
	return node, nil
}

func remote(r *http.Request) netip.Addr {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap()
}
