package join

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/pki"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/token"
	"github.com/podo-dev/podo/pkg/version"
)

// A Joiner is a machine's half of the protocol.
type Joiner struct {
	Paths     paths.Paths
	Server    string        // URL of a server, or of something that passes to servers
	Token     config.Secret // needed the first time; empty afterwards
	Unpinned  bool          // trust whatever answers, if the token names no CA
	Name      string        // of the node
	Addresses []netip.Addr
	Now       func() time.Time
	Log       *slog.Logger

	kubernetes string // version.Kubernetes(), unless set
}

// New returns the joiner of a plan.
func New(p plan.Joining, log *slog.Logger) Joiner {
	return Joiner{
		Paths: p.Paths, Server: p.Server, Token: p.Token, Unpinned: p.Unpinned,
		Name: p.Identity.Name, Addresses: p.Identity.Addresses, Now: time.Now, Log: log,
	}
}

// Join returns what this node has been given: by a server just now, which is fresh, or
// what it kept from an earlier join if that serves and no server answers soon. It asks
// until one does, or until ctx ends; a *Refusal that is Final ends it at once.
func (j Joiner) Join(ctx context.Context) (m Membership, fresh bool, err error) {
	m, err = j.Kept()
	if err == nil {
		if t, err := token.Parse(string(j.Token)); err == nil && t.Hash != "" && !t.Pins(m.CAs[pki.ServerCA]) {
			return m, false, foreign()
		}
		// A power cut may have taken these: only the membership is sure to be on disk.
		if err = pki.CopyCAs(j.Paths, m.CAs); err == nil {
			return j.refresh(ctx, m)
		}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		j.Log.Warn("what this node kept of its cluster does not serve, so it joins again", "component", "join", "err", err)
	}
	err = j.insist(ctx, func() (err error) { m, err = j.Renew(ctx); return err })
	return m, err == nil, err
}

// A start waits so long for news of its cluster, and so long for each server's, before
// it goes on with what it has.
const (
	news     = 3 * time.Second
	newsEach = 1500 * time.Millisecond
)

// refresh asks the servers that a member knows for what is true now, and returns what
// it kept if none answers. It is an error only if the name is no longer this machine's,
// and no token lets it join again.
func (j Joiner) refresh(ctx context.Context, kept Membership) (m Membership, fresh bool, err error) {
	all, done := context.WithTimeout(ctx, news)
	defer done()
	urls := []string{j.Server}
	for _, addr := range kept.Servers {
		urls = append(urls, "https://"+addr)
	}
	given := j.Token
	for _, j.Server = range urls {
		one, done := context.WithTimeout(all, newsEach)
		j.Token = "" // the identity is enough, as long as it owns the name
		m, err := j.Renew(one)
		if given != "" && isDisowned(err) {
			j.Token = given
			m, err = j.Renew(one)
		}
		done()
		switch {
		case err == nil:
			return m, true, nil
		case isDisowned(err):
			return m, false, err
		case all.Err() != nil:
			return kept, false, nil
		}
		j.Log.Debug("no news of the cluster", "component", "join", "addr", j.Server, "err", err)
	}
	return kept, false, nil
}

// isDisowned reports whether a server said that a machine's identity owns its name no more:
// another has replaced it, or the identity was deleted.
func isDisowned(err error) bool {
	no, ok := errors.AsType[*Refusal](err)
	return ok && (no.Reason == NameTaken || no.Reason == BadToken)
}

// insist asks until there is an answer that asking again would not change.
func (j Joiner) insist(ctx context.Context, ask func() error) error {
	said := ""
	for pause := 250 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		err := ask()
		var no *Refusal
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &no) && no.Final():
			return no
		case err.Error() != said:
			said = err.Error()
			j.Log.Warn("cannot join yet, trying on", "component", "join", "addr", j.Server, "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// Kept is the membership on disk. It is an error if there is none, or if it is
// another node's, or if the node could not show itself with its certificates any
// more, be it that they ended or that they are of another cluster than it is.
func (j Joiner) Kept() (Membership, error) {
	text, err := os.ReadFile(j.Paths.Membership())
	if err != nil {
		return Membership{}, err
	}
	var m Membership
	if err := json.Unmarshal(text, &m); err != nil {
		return Membership{}, fmt.Errorf("%s: %w", j.Paths.Membership(), err)
	}
	if m.Name != j.Name {
		return Membership{}, fmt.Errorf("%s is node %s's, and this is %s", j.Paths.Membership(), m.Name, j.Name)
	}
	for _, l := range pki.NodeTable(pki.Names{Node: j.Name}) {
		ca, err := pki.Verifier(l.CA, m.CAs[l.CA])
		if err != nil {
			return Membership{}, fmt.Errorf("%s: %w", j.Paths.Membership(), err)
		}
		cert, err := pki.Load(l.Files(j.Paths))
		if err != nil {
			return Membership{}, err
		}
		if err := cert.CheckSignatureFrom(ca.Cert); err != nil {
			return Membership{}, fmt.Errorf("%s is of another cluster than %s: %w", l.Files(j.Paths).Cert, j.Paths.Membership(), err)
		}
		if l.Usage == pki.Client && j.Now().After(cert.NotAfter) {
			return Membership{}, fmt.Errorf("%s ended %s", l.Files(j.Paths).Cert, cert.NotAfter.UTC().Format(time.RFC3339))
		}
	}
	return m, nil
}

// Stale reports why certificates should be renewed, or nil if there is no need.
func (j Joiner) Stale(m Membership) error {
	for _, l := range pki.NodeTable(pki.Names{Node: j.Name, NodeIPs: j.Addresses}) {
		ca, err := pki.Verifier(l.CA, m.CAs[l.CA])
		if err != nil {
			return err
		}
		cert, err := pki.Load(l.Files(j.Paths))
		if err != nil {
			return err
		}
		if err := ca.Right(l, cert, j.Now()); err != nil {
			return fmt.Errorf("certificate %s: %w", l.Name, err)
		}
	}
	return nil
}

// Renew asks the server once, and keeps what it answers.
func (j Joiner) Renew(ctx context.Context) (Membership, error) {
	ca, t, err := j.trust(ctx)
	if err != nil {
		return Membership{}, err
	}
	q := Request{
		Name:       j.Name,
		Kubernetes: cmp.Or(j.kubernetes, version.Kubernetes()),
		Addresses:  j.Addresses,
		Time:       j.Now(),
		Requests:   map[string][]byte{},
	}
	leaves := pki.NodeTable(pki.Names{Node: j.Name, NodeIPs: j.Addresses})
	for _, l := range leaves {
		if q.Requests[l.Name], err = pki.Request(j.Paths, l); err != nil {
			return Membership{}, err
		}
	}
	var m Membership
	if err := j.post(ctx, PathNode, ca, t, q, &m); err != nil {
		return Membership{}, err
	}
	if !bytes.Equal(m.CAs[pki.ServerCA], ca) {
		return Membership{}, refuse(WrongPin, "the server's answer names another CA than the one it was pinned by")
	}
	for name := range m.CAs { // which become names of files
		if !slices.Contains(nodeCAs(), name) {
			delete(m.CAs, name)
		}
	}
	return m, j.keep(m, leaves)
}

// keep writes the certificates first and the membership last, so that one which is
// there is whole.
func (j Joiner) keep(m Membership, leaves []pki.Leaf) error {
	if err := pki.CopyCAs(j.Paths, m.CAs); err != nil {
		return err
	}
	for _, l := range leaves {
		ca, err := pki.Verifier(l.CA, m.CAs[l.CA])
		if err != nil {
			return err
		}
		if err := pki.Accept(j.Paths, l, ca, m.Certificates[l.Name], j.Now()); err != nil {
			return err
		}
	}
	m.Certificates = nil
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	_, err = atomicfile.WriteIfChanged(j.Paths.Membership(), append(text, '\n'), 0o600)
	return err
}

// trust returns the CA that servers are to be verified by, and the token to show
// them: the CA on disk once this machine has joined, and before that the one that
// the server names, if the token pins it.
func (j Joiner) trust(ctx context.Context) ([]byte, token.Token, error) {
	var t token.Token
	if j.Token != "" {
		var err error
		if t, err = token.Parse(string(j.Token)); err != nil {
			return nil, t, refuse(BadToken, "token: %v", err)
		}
	}
	if !strings.HasPrefix(j.Server, "https://") {
		return nil, t, refuse(BadRequest, "server: %q is no URL of a server; it starts with https://", j.Server)
	}
	kept, err := os.ReadFile(j.Paths.AgentCA(pki.ServerCA))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, t, err
	}
	if err == nil && (t.Hash == "" || t.Pins(kept)) {
		return kept, t, nil
	}
	if err == nil {
		if _, known := j.Kept(); known == nil {
			return nil, t, foreign()
		}
	}
	if j.Token == "" {
		return nil, t, refuse(BadToken, "this machine has not joined yet, so it needs a token: podo token create on a server makes one for an agent; to join as a server takes the one in a server's server/token file")
	}
	if t.Hash == "" && !j.Unpinned {
		return nil, t, refuse(NotPinned, "token: it does not name the cluster's CA (K10<hash>::…), so anybody in between could take it; "+
			"use the whole token, or start with --insecure-trust-server if the network can be trusted")
	}
	ca, err := j.ask(ctx)
	if err != nil {
		return nil, t, err
	}
	if t.Hash != "" && !t.Pins(ca) {
		return nil, t, refuse(WrongPin, "token: it was made for another cluster than the one at %s (its CA has the hash %s, the token says %s); "+
			"check --server and take the token from that server", j.Server, token.Hash(ca), t.Hash)
	}
	if t.Hash == "" {
		j.Log.Warn("the token names no CA: this machine trusts whatever answered", "component", "join", "addr", j.Server, "hash", token.Hash(ca))
	}
	return ca, t, nil
}

func foreign() *Refusal {
	return refuse(WrongPin, "token: it was made for another cluster than the one this machine is a node of; "+
		"remove it from there with podo uninstall, or leave --token out to stay")
}

// ask fetches the CA from whoever answers. Nothing secret is sent, and nothing of
// the answer is believed but what the token confirms; the clock's skew, which would
// make every later step fail in an obscure way, is told early.
func (j Joiner) ask(ctx context.Context) ([]byte, error) {
	c := j.client(&tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true})
	defer c.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, j.url(PathCAs), nil)
	if err != nil {
		return nil, err
	}
	res, err := c.Do(req)
	if err != nil {
		return nil, undress(err)
	}
	defer res.Body.Close()
	if at, err := http.ParseTime(res.Header.Get("Date")); err == nil {
		if no := skewed(j.Now(), at); no != nil {
			return nil, no
		}
	}
	text, err := io.ReadAll(io.LimitReader(res.Body, maxRequest))
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		return nil, j.refusal(res, text)
	}
	if _, err := pki.Verifier(pki.ServerCA, text); err != nil {
		return nil, j.stranger(res)
	}
	return text, nil
}

// post sends a question as this machine, to a server that ca vouches for.
func (j Joiner) post(ctx context.Context, path string, ca []byte, t token.Token, question, answer any) error {
	key, err := pki.EnsureKey(j.Paths.Identity())
	if err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	id, err := pki.Identity(key, j.Now())
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	c := j.client(&tls.Config{
		MinVersion: tls.VersionTLS12,
		RootCAs:    roots,
		// The server's list of accepted CAs is for Kubernetes' clients.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &id, nil },
	})
	defer c.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	body, err := json.Marshal(question)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, j.url(path), bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if t.Password != "" {
		req.Header.Set("Authorization", "Bearer "+t.Credential())
	}
	res, err := c.Do(req)
	if err != nil {
		return undress(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return j.refusal(res, text)
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return fmt.Errorf("answer of %s: %w", j.Server, err)
	}
	return nil
}

// patience is how long one request may take; a server signs four certificates in
// some milliseconds, but may be a small board that is just starting.
const patience = 15 * time.Second

func (j Joiner) client(c *tls.Config) *http.Client {
	return &http.Client{
		Transport: &http.Transport{TLSClientConfig: c, Proxy: nil, ForceAttemptHTTP2: true},
		// Servers send nobody elsewhere; one who does is not to be followed.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (j Joiner) url(path string) string { return strings.TrimSuffix(j.Server, "/") + path }

// refusal reads what a server said instead of yes. Load balancers and other API
// servers have messages of their own, with which no status of ours goes.
func (j Joiner) refusal(res *http.Response, text []byte) error {
	var no Refusal
	err := json.Unmarshal(text, &no)
	switch {
	case err == nil && no.Message != "" && no.status() == res.StatusCode:
		return &no
	case res.StatusCode >= http.StatusInternalServerError || res.StatusCode == http.StatusTooManyRequests:
		return fmt.Errorf("what answers at %s says %s", j.Server, res.Status)
	}
	return j.stranger(res)
}

func (j Joiner) stranger(res *http.Response) *Refusal {
	return refuse(BadRequest, "server: what answers at %s is no podo server (%s); check the address and the port", j.Server, res.Status)
}

// undress takes the method and URL off an error of net/http, and says what a wrong
// certificate means.
func undress(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	var unknown x509.UnknownAuthorityError
	var wrong x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown):
		return refuse(WrongPin, "server: its certificate is not signed by the CA that the token pins; something stands in between, or the cluster was made anew")
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return refuse(BadClock, "server: its certificate is good from %s to %s, which is not now by this machine's clock; set the clock that is wrong, then start again",
			invalid.Cert.NotBefore.UTC().Format(clock), invalid.Cert.NotAfter.UTC().Format(clock))
	case errors.As(err, &wrong):
		return refuse(WrongPin, "server: %v; start the server with --tls-san for the name or address that --server gives", err)
	}
	return err
}
