package join

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/pkg/pki"
)

// request is a good request, and the identity to show with it.
func request(t *testing.T, j *Joiner) (Request, tls.Certificate) {
	t.Helper()
	key, err := pki.EnsureKey(j.Paths.Identity())
	if err != nil {
		t.Fatal(err)
	}
	id, err := pki.Identity(key, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	q := Request{Name: j.Name, Kubernetes: kubernetesVersion, Addresses: j.Addresses, Time: time.Now(), Requests: map[string][]byte{}}
	for _, l := range pki.NodeTable(pki.Names{Node: j.Name}) {
		if q.Requests[l.Name], err = pki.Request(j.Paths, l); err != nil {
			t.Fatal(err)
		}
	}
	return q, id
}

func csr(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: "system:admin", Organization: []string{"system:masters"}},
		DNSNames: []string{"kubernetes.default.svc"},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func ecKey(t *testing.T, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestMalformedRequests lists what no podo sends.
func TestMalformedRequests(t *testing.T) {
	c := newCluster(t)
	good, id := request(t, c.machine("n1", ""))
	token := "Bearer node:" + agentPassword
	rsaKey, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	stolen := csr(t, ecKey(t, elliptic.P256())) // with its signature broken
	block, _ := pem.Decode(stolen)
	block.Bytes[len(block.Bytes)-1] ^= 1
	stolen = pem.EncodeToMemory(block)
	requests := func(text []byte) func(*Request) {
		return func(q *Request) {
			q.Requests = map[string][]byte{"kubelet": text, "kubelet-serving": text, "podo-node": text, "kube-proxy": text}
		}
	}
	tests := map[string]struct {
		change     func(*Request)
		body       string // instead
		credential string // instead
		anonymous  bool
		reason     Reason
		says       string
	}{
		"no identity":          {anonymous: true, reason: BadRequest, says: "no identity"},
		"nothing":              {body: " ", reason: BadRequest, says: "request: "},
		"not JSON":             {body: "<xml/>", reason: BadRequest, says: "request: "},
		"a list":               {body: "[]", reason: BadRequest, says: "request: "},
		"a lot":                {body: `{"name":"` + strings.Repeat("a", maxRequest) + `"}`, reason: BadRequest, says: "too large"},
		"deep":                 {body: strings.Repeat("[", 60000), reason: BadRequest, says: "request: "},
		"no name":              {change: func(q *Request) { q.Name = "" }, reason: BadRequest, says: "node-name: "},
		"path as a name":       {change: func(q *Request) { q.Name = "a/../b" }, reason: BadRequest, says: `"a/../b"`},
		"capital letters":      {change: func(q *Request) { q.Name = "N1" }, reason: BadRequest, says: `"N1"`},
		"new line in the name": {change: func(q *Request) { q.Name = "n1\nlevel=ERROR" }, reason: BadRequest, says: `\n`},
		"dots at the end":      {change: func(q *Request) { q.Name = "n1.." }, reason: BadRequest, says: `"n1.."`},
		"name of 64 letters":   {change: func(q *Request) { q.Name = strings.Repeat("a", 64) }, reason: BadRequest, says: "64 letters"},
		"name of 30,000":       {change: func(q *Request) { q.Name = strings.Repeat("a", 30000) }, reason: BadRequest, says: "30000 letters"},
		"no version":           {change: func(q *Request) { q.Kubernetes = "" }, reason: BadVersion, says: `""`},
		"version of 30,000":    {change: func(q *Request) { q.Kubernetes = "v1.99.0" + strings.Repeat("x", 30000) }, reason: BadRequest, says: "version"},
		"no address":           {change: func(q *Request) { q.Addresses = nil }, reason: BadRequest, says: "0 addresses"},
		"many addresses":       {change: func(q *Request) { q.Addresses = make([]netip.Addr, 17) }, reason: BadRequest, says: "17 addresses"},
		"empty address":        {change: func(q *Request) { q.Addresses = make([]netip.Addr, 1) }, reason: BadRequest, says: "node-ip: "},
		"multicast":            {change: func(q *Request) { q.Addresses = []netip.Addr{netip.MustParseAddr("224.0.0.1")} }, reason: BadRequest, says: "224.0.0.1"},
		"zone of 30,000": {change: func(q *Request) {
			q.Addresses = []netip.Addr{netip.MustParseAddr("fe80::1%" + strings.Repeat("z", 30000))}
		}, reason: BadRequest, says: "fe80::1 "},
		"no time":              {change: func(q *Request) { q.Time = time.Time{} }, reason: BadClock, says: "0001-01-01"},
		"no requests":          {change: func(q *Request) { q.Requests = nil }, reason: BadRequest, says: "request for kubelet"},
		"a request is missing": {change: func(q *Request) { q.Requests = map[string][]byte{"kubelet": good.Requests["kubelet"]} }, reason: BadRequest, says: "request for kubelet-serving"},
		"garbage":              {change: requests([]byte("garbage")), reason: BadRequest, says: "in PEM"},
		"garbage in PEM":       {change: requests(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: []byte("x")})), reason: BadRequest, says: "request for kubelet"},
		"something after it":   {change: requests(append(bytes.Clone(good.Requests["kubelet"]), "more"...)), reason: BadRequest, says: "in PEM"},
		"RSA":                  {change: requests(csr(t, rsaKey)), reason: BadRequest, says: "P-256"},
		"P-521":                {change: requests(csr(t, ecKey(t, elliptic.P521()))), reason: BadRequest, says: "P-256"},
		"somebody else's key":  {change: requests(stolen), reason: BadRequest, says: "request for kubelet"},
		"no credential":        {credential: " ", reason: BadToken, says: "--token"},
		"another scheme":       {credential: "Basic " + token[7:], reason: BadToken, says: "--token"},
		"empty credential":     {credential: "Bearer ", reason: BadToken, says: "malformed"},
		"empty password":       {credential: "Bearer node:", reason: BadToken, says: "malformed"},
		"no user":              {credential: "Bearer :" + agentPassword, reason: BadToken, says: "malformed"},
		"hash of the password": {credential: "Bearer node:" + fmt.Sprintf("%x", agentPassword), reason: BadToken, says: "password"},
		"path as a token's ID": {credential: "Bearer ../../.0123456789abcdef", reason: BadToken, says: "malformed"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c.forgive()
			q, shown, credential := good, &id, token
			if tt.change != nil {
				tt.change(&q)
			}
			body := []byte(tt.body)
			if tt.body == "" {
				var err error
				if body, err = json.Marshal(q); err != nil {
					t.Fatal(err)
				}
			}
			if tt.credential != "" {
				credential = strings.TrimLeft(tt.credential, " ")
			}
			if tt.anonymous {
				shown = nil
			}
			code, no := c.raw(body, credential, shown)
			if no.Reason != tt.reason || code != no.status() || !strings.Contains(no.Message, tt.says) {
				t.Errorf("got %d %+v, want %s with %q", code, no, tt.reason, tt.says)
			}
		})
	}
	for name := range c.api.kept {
		t.Errorf("%s was kept", name)
	}
}

// TestTheServerDecidesWhatACertificateSays asks for more than a node may have.
func TestTheServerDecidesWhatACertificateSays(t *testing.T) {
	c := newCluster(t)
	q, id := request(t, c.machine("n1", ""))
	for name := range q.Requests {
		q.Requests[name] = csr(t, ecKey(t, elliptic.P256()))
	}
	q.Requests["admin"] = csr(t, ecKey(t, elliptic.P256()))
	body, _ := json.Marshal(q)
	r := httptest.NewRequest(http.MethodPost, PathNode, bytes.NewReader(body))
	r.Header.Set("Authorization", "Bearer node:"+agentPassword)
	leaf, err := x509.ParseCertificate(id.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}
	w := httptest.NewRecorder()
	c.handler.node(w, r)
	var m Membership
	if err := json.Unmarshal(w.Body.Bytes(), &m); err != nil || len(m.Certificates) != 4 || len(m.CAs) != 3 {
		t.Fatalf("got %s, %v", w.Body, err)
	}
	for _, l := range pki.NodeTable(pki.Names{Node: "n1", NodeIPs: q.Addresses}) {
		block, _ := pem.Decode(m.Certificates[l.Name])
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.cas[l.CA].Right(l, cert, time.Now()); err != nil || cert.IsCA || len(cert.DNSNames) != len(l.DNS) || len(cert.IPAddresses) != len(l.IPs) {
			t.Errorf("%s: %v; names %v, addresses %v", l.Name, err, cert.DNSNames, cert.IPAddresses)
		}
	}
	if strings.Contains(w.Body.String(), "PRIVATE KEY") {
		t.Error("the answer holds a private key")
	}
}

func TestTunnelsAreForNodes(t *testing.T) {
	c, other := newCluster(t), newCluster(t)
	node := func(c *cluster, change func(*pki.Leaf)) *tls.Certificate {
		l := pki.Leaf{Name: "kubelet", CA: pki.ClientCA, CN: "system:node:n1", Orgs: []string{"system:nodes"}}
		change(&l)
		cert := c.issue(l, time.Now())
		return &cert
	}
	_, identity := request(t, c.machine("n1", ""))
	ended := c.issue(pki.Leaf{Name: "kubelet", CA: pki.ClientCA, CN: "system:node:n1", Orgs: []string{"system:nodes"}}, time.Now().Add(-400*24*time.Hour))
	for name, tt := range map[string]struct {
		cert *tls.Certificate
		want string
	}{
		"kubelet":                   {node(c, func(*pki.Leaf) {}), "tunnel of n1"},
		"nobody":                    {nil, "bad-token"},
		"an identity":               {&identity, "bad-token"},
		"a node of another cluster": {node(other, func(*pki.Leaf) {}), "bad-token"},
		"kubelet's serving side":    {node(c, func(l *pki.Leaf) { l.CA, l.Usage = pki.KubeletCA, pki.Serving }), "bad-token"},
		"administrator":             {node(c, func(l *pki.Leaf) { l.CN, l.Orgs = "system:admin", []string{"system:masters"} }), "bad-token"},
		"a node's name alone":       {node(c, func(l *pki.Leaf) { l.Orgs = nil }), "bad-token"},
		"ended":                     {&ended, "bad-token"},
	} {
		t.Run(name, func(t *testing.T) {
			c.forgive()
			hc := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
			if tt.cert != nil {
				hc.Transport.(*http.Transport).TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return tt.cert, nil }
			}
			defer hc.CloseIdleConnections()
			res, err := hc.Get(c.srv.URL + PathTunnel)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if text, _ := io.ReadAll(res.Body); !strings.Contains(string(text), tt.want) {
				t.Errorf("got %s, want %s", text, tt.want)
			}
		})
	}
}

func TestOtherPathsAreKubernetes(t *testing.T) {
	c := newCluster(t)
	for path, want := range map[string]int{
		"/ping": 200, "/cacerts": 200, "/v1-podo/node": 405, "/v1-podo/other": 404, "/v1-podo": 418, "/api": 418, "/readyz": 418, "/cacerts/": 418, "//v1-podo/node": 418,
	} {
		res, err := c.srv.Client().Transport.RoundTrip(httptest.NewRequestWithContext(t.Context(), http.MethodGet, c.srv.URL+path, nil))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s answers %d, want %d", path, res.StatusCode, want)
		}
	}
}

// TestAFloodIsNotWorkNorLog sends what a broken or hostile machine might, over
// connections that it keeps.
func TestAFloodIsNotWorkNorLog(t *testing.T) {
	c := newCluster(t)
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	codes := map[int]int{}
	for range 1000 {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, c.srv.URL+PathNode, strings.NewReader("{"))
		res, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		res.Body.Close()
		codes[res.StatusCode]++
	}
	if codes[http.StatusTooManyRequests] < 980 {
		t.Errorf("answered %v", codes)
	}
	if n := strings.Count(c.logs.String(), "\n"); n > 6 {
		t.Errorf("%d lines in the log", n)
	}
}

// TestMalformedRequestsOfServers are answered, and logged, as shortly as those of nodes.
func TestMalformedRequestsOfServers(t *testing.T) {
	c := newPeers(t)
	_, id := request(t, c.machine("s1", c.serverToken()))
	for _, body := range []string{"{", `{"time": "` + strings.Repeat("a", 60<<10) + `"}`, `{"name": "` + strings.Repeat("a", 60<<10) + `"}`} {
		if code, no := c.rawTo(PathPeer, []byte(body), "", &id); code != http.StatusBadRequest || no.Reason != BadRequest {
			t.Errorf("%.20s: got %d %+v", body, code, no)
		}
	}
}

func TestABodyThatNeverEndsIsCut(t *testing.T) {
	c := newCluster(t)
	var at time.Time
	c.with(func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h.ServeHTTP(deadline{w, &at}, r)
		})
	})
	c.raw([]byte("{"), "", nil)
	if left := time.Until(at); left <= 0 || left > patience {
		t.Errorf("the body may take %v", left)
	}
}

// deadline notes until when a handler lets its client send.
type deadline struct {
	http.ResponseWriter
	at *time.Time
}

func (d deadline) SetReadDeadline(t time.Time) error { *d.at = t; return nil }

func TestLimit(t *testing.T) {
	now, l := time.Now(), newLimiter()
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	for i := range burst {
		if !l.allow(a, 1, now) {
			t.Fatalf("request %d of a burst is refused", i)
		}
	}
	if l.allow(a, 1, now) || l.allow(netip.MustParseAddr("::ffff:10.0.0.1"), 1, now) {
		t.Error("more than a burst")
	}
	if !l.allow(b, 1, now) {
		t.Error("one source pays for another")
	}
	if now = now.Add(time.Second); !l.allow(a, perSecond, now) || l.allow(a, 1, now) {
		t.Error("not the rate")
	}

	// Guessing gets slower, not only the first time.
	guesses := 0
	for end := now.Add(time.Minute); now.Before(end); now = now.Add(50 * time.Millisecond) {
		if l.allow(b, 1, now) {
			guesses++
			l.punish(b, now)
		}
	}
	if guesses > 35 {
		t.Errorf("%d guesses in a minute", guesses)
	}

	l.allow(netip.MustParseAddr("2001:db8::1"), burst, now)
	if l.allow(netip.MustParseAddr("2001:db8::ffff"), 1, now) || !l.allow(netip.MustParseAddr("2001:db8:0:1::1"), 1, now) {
		t.Error("a source in IPv6 is not its /64")
	}
	if !l.allow(netip.Addr{}, 1, now) {
		t.Error("an address that cannot be read is refused")
	}
}

func TestLimitRemembersSoManyAndForgets(t *testing.T) {
	now, l := time.Now(), newLimiter()
	source := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}) }
	for i := range most {
		l.allow(source(i), 1, now)
	}
	l.allow(source(0), burst-1, now)
	for i := range burst + 1 {
		if got := l.allow(source(most+i), 1, now); got != (i < burst) {
			t.Fatalf("new source %d beyond the most: %v", i, got)
		}
	}
	if len(l.sources) != most {
		t.Errorf("%d sources are remembered", len(l.sources))
	}
	now = now.Add(2 * time.Second)
	if l.allow(source(2*most), 1, now); len(l.sources) != 2 || l.allow(source(0), burst/2, now) {
		t.Errorf("%d sources are left, want the one that has used much and the new one", len(l.sources))
	}
}

func TestClaims(t *testing.T) {
	c := newCluster(t)
	ctx := context.Background()
	if key, err := c.records.Identity(ctx, "n1"); key != nil || err != nil {
		t.Fatalf("got %x, %v", key, err)
	}
	for _, step := range []struct {
		key     string
		replace bool
		want    error
		owner   string
	}{{"a", false, nil, "a"}, {"a", false, nil, "a"}, {"b", false, ErrTaken, "a"}, {"b", true, nil, "b"}, {"a", false, ErrTaken, "b"}} {
		if err := c.records.Claim(ctx, "n1", []byte(step.key), step.replace); err != step.want {
			t.Errorf("%+v: got %v", step, err)
		}
		if got, err := c.records.Identity(ctx, "n1"); string(got) != step.owner || err != nil {
			t.Errorf("%+v: %s owns it, %v", step, got, err)
		}
	}
}

func TestBootstraps(t *testing.T) {
	c := newCluster(t)
	ctx := t.Context()
	ends := time.Now().Add(time.Hour).Truncate(time.Second)
	made, err := c.records.Create(ctx, Bootstrap{Description: "rack 4", Expires: ends, Once: true, Replaces: "n1"})
	if err != nil || made.Created.IsZero() {
		t.Fatalf("made %+v, %v", made, err)
	}
	got, err := c.records.Bootstrap(ctx, made.ID)
	if err != nil || got.Secret != made.Secret || got.Description != "rack 4" || !got.Expires.Equal(ends) || !got.Once || got.Replaces != "n1" || got.UsedBy != "" {
		t.Errorf("got %+v, %v", got, err)
	}
	if text, _ := json.Marshal(got); strings.Contains(string(text), string(made.Secret)) {
		t.Errorf("%s shows the secret", text)
	}
	if _, err := c.records.Create(ctx, made); err == nil || !strings.Contains(err.Error(), "podo token delete "+made.ID) {
		t.Errorf("made twice: %v", err)
	}
	if list, err := c.records.Bootstraps(ctx); err != nil || len(list) != 1 {
		t.Errorf("listed %v, %v", list, err)
	}
	if err := c.records.Delete(ctx, made.ID); err != nil {
		t.Error(err)
	}
	if err := c.records.Delete(ctx, made.ID); err == nil {
		t.Error("deleted twice")
	}
}
