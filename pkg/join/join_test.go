package join

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/pki"
	"github.com/podo-dev/podo/pkg/token"
)

func TestTokensLetIn(t *testing.T) {
	c := newCluster(t)
	for name, secret := range map[string]config.Secret{
		"server's":          c.whole(token.Token{User: token.Server, Password: serverPassword}),
		"agent's":           c.agentToken(),
		"server's-as-agent": c.whole(token.Token{User: token.Agent, Password: serverPassword}),
		"bootstrap":         c.bootstrap(Bootstrap{Expires: time.Now().Add(time.Hour)}),
		"without-end":       c.bootstrap(Bootstrap{}),
		"once":              c.bootstrap(Bootstrap{Once: true}),
	} {
		t.Run(name, func(t *testing.T) {
			j := c.machine("node-"+strings.Trim(strings.ReplaceAll(name, "'", ""), "-"), secret)
			m, fresh, err := j.Join(within(t))
			if err != nil || !fresh || m.Name != j.Name || len(m.Servers) != 1 || len(m.Cluster.PodCIDR) != 1 {
				t.Fatalf("got %+v, fresh %v, %v", m, fresh, err)
			}
			if err := j.Stale(m); err != nil {
				t.Errorf("what was given is stale: %v", err)
			}
			// A second start needs no token, and no server either.
			j.Token = ""
			again, fresh, err := j.Join(within(t))
			if err != nil || !fresh || again.Name != m.Name {
				t.Errorf("the second start: node %s, fresh %v, %v", again.Name, fresh, err)
			}
			away := j
			away.Server = "https://127.0.0.1:1"
			kept, fresh, err := away.Join(within(t))
			if err != nil || fresh || kept.Name != m.Name {
				t.Errorf("a start while no server answers: node %s, fresh %v, %v", kept.Name, fresh, err)
			}
			for _, ca := range []string{pki.ServerCA, pki.KubeletCA, pki.ClientCA} {
				if text, err := os.ReadFile(j.Paths.AgentCA(ca)); err != nil || string(text) != string(c.cas[ca].PEM) {
					t.Errorf("copy of the %s CA: %v", ca, err)
				}
			}
		})
	}
}

func TestAnUnpinnedTokenIsTakenWhenAskedFor(t *testing.T) {
	c := newCluster(t)
	j := c.machine("n1", agentPassword)
	j.Unpinned = true
	if _, _, err := j.Join(within(t)); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(c.logs.String(), "trusts whatever answered") {
		t.Error("no warning")
	}
}

// TestRefusals lists the mistakes, each with the reason that is told and words of
// its remedy.
func TestRefusals(t *testing.T) {
	tests := map[string]struct {
		setup  func(c *cluster, j *Joiner)
		reason Reason
		says   []string
	}{
		"token of another cluster": {
			func(c *cluster, j *Joiner) { j.Token = newCluster(c.t).agentToken() },
			WrongPin, []string{"another cluster", "check --server"},
		},
		"token cut off": {
			func(c *cluster, j *Joiner) {
				j.Token = config.Secret(strings.TrimSuffix(string(c.agentToken()), agentPassword))
			},
			BadToken, []string{"token: ", "cut off"},
		},
		"no token": {
			func(_ *cluster, j *Joiner) { j.Token = "" },
			BadToken, []string{"podo token create", "server/token"},
		},
		"token without a pin": {
			func(_ *cluster, j *Joiner) { j.Token = agentPassword },
			NotPinned, []string{"K10<hash>::", "--insecure-trust-server"},
		},
		"wrong password": {
			func(c *cluster, j *Joiner) { j.Token = c.whole(token.Token{User: token.Agent, Password: "guess"}) },
			BadToken, []string{"password", "agent-token"},
		},
		"agent's password as a server's": {
			func(c *cluster, j *Joiner) {
				j.Token = c.whole(token.Token{User: token.Server, Password: agentPassword})
			},
			BadToken, []string{"password"},
		},
		"password of nobody's": {
			func(c *cluster, j *Joiner) { j.Token = c.whole(token.Token{User: "admin", Password: serverPassword}) },
			BadToken, []string{"password"},
		},
		"bootstrap token that is not there": {
			func(c *cluster, j *Joiner) { j.Token = c.whole(token.GenerateBootstrap()) },
			BadToken, []string{"no join token", "podo token create"},
		},
		"bootstrap token with another secret": {
			func(c *cluster, j *Joiner) {
				c.bootstrap(Bootstrap{ID: "abc123", Secret: "0123456789abcdef"})
				j.Token = c.whole(token.Token{ID: "abc123", Password: "0123456789abcdeg"})
			},
			BadToken, []string{"abc123", "mistyped"},
		},
		"bootstrap token that ended": {
			func(c *cluster, j *Joiner) { j.Token = c.bootstrap(Bootstrap{Expires: time.Now().Add(-time.Second)}) },
			BadToken, []string{"ended 20", "podo token create"},
		},
		"bootstrap token of kubeadm's": {
			func(c *cluster, j *Joiner) {
				j.Token = c.bootstrap(Bootstrap{ID: "abc123", Secret: "0123456789abcdef"})
				delete(c.api.kept["bootstrap-token-abc123"].Data, tokenUsage)
			},
			BadToken, []string{"no join token"},
		},
		"one-time token that is used": {
			func(c *cluster, j *Joiner) {
				j.Token = c.bootstrap(Bootstrap{Once: true})
				c.join("first", j.Token)
			},
			BadToken, []string{"as node first", "podo token create"},
		},
		"token to replace another node": {
			func(c *cluster, j *Joiner) { j.Token = c.bootstrap(Bootstrap{Once: true, Replaces: "other"}) },
			BadToken, []string{"replace node other", "--node-name other"},
		},
		"name of another machine": {
			func(c *cluster, j *Joiner) { c.join(j.Name, c.agentToken()) },
			NameTaken, []string{"belongs to another machine", "--node-name", "podo node replace n1"},
		},
		"clock a day ahead": {
			func(_ *cluster, j *Joiner) { j.Now = func() time.Time { return time.Now().Add(24 * time.Hour) } },
			BadClock, []string{" ahead of the server's", "set the one that is wrong"},
		},
		"clock a day behind": {
			func(_ *cluster, j *Joiner) { j.Now = func() time.Time { return time.Now().Add(-24 * time.Hour) } },
			BadClock, []string{" behind the server's"},
		},
		"server's clock a day ahead": {
			func(c *cluster, _ *Joiner) { c.ahead.Store(int64(24 * time.Hour)) },
			BadClock, []string{" behind the server's"},
		},
		"newer than the servers": {
			func(_ *cluster, j *Joiner) { j.kubernetes = "v1.37.0" },
			BadVersion, []string{"v1.37.0", kubernetesVersion, "upgrade the servers first"},
		},
		"much older than the servers": {
			func(_ *cluster, j *Joiner) { j.kubernetes = "v1.32.9" },
			BadVersion, []string{"v1.32.9", kubernetesVersion, "install a newer"},
		},
		"plain http": {
			func(_ *cluster, j *Joiner) { j.Server = strings.Replace(j.Server, "https:", "http:", 1) },
			BadRequest, []string{"server: ", "https://"},
		},
		"another program": {
			func(c *cluster, _ *Joiner) { c.with(func(http.Handler) http.Handler { return http.NotFoundHandler() }) },
			BadRequest, []string{"no podo server", "404", "check the address"},
		},
		"an API server that is not podo's": {
			func(c *cluster, _ *Joiner) {
				c.with(only(PathNode, func(w http.ResponseWriter) {
					w.WriteHeader(http.StatusForbidden)
					fmt.Fprint(w, `{"kind":"Status","message":"forbidden: User \"system:anonymous\"","reason":"Forbidden","code":403}`)
				}))
			},
			BadRequest, []string{"no podo server", "403"},
		},
		"address that is none": {
			func(_ *cluster, j *Joiner) { j.Addresses = []netip.Addr{netip.IPv4Unspecified()} },
			BadRequest, []string{"node-ip: 0.0.0.0", "--node-ip"},
		},
		"no address": {
			func(_ *cluster, j *Joiner) { j.Addresses = nil },
			BadRequest, []string{"node-ip: ", "--node-ip"},
		},
		"name that is none": {
			func(_ *cluster, j *Joiner) { j.Name = "Node_1" },
			BadRequest, []string{`node-name: "Node_1"`, "--node-name"},
		},
		"certificate for another address": {
			func(_ *cluster, j *Joiner) { j.Server = strings.Replace(j.Server, "127.0.0.1", "localhost", 1) },
			WrongPin, []string{"localhost", "--tls-san"},
		},
		"token of another cluster, once joined": {
			func(c *cluster, j *Joiner) {
				j.Token = c.agentToken()
				j.must(c.t)
				j.Token = newCluster(c.t).agentToken()
			},
			WrongPin, []string{"another cluster", "podo uninstall", "leave --token out"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			j := c.machine("n1", c.agentToken())
			tt.setup(c, j)
			_, _, err := j.Join(within(t))
			var no *Refusal
			if !errors.As(err, &no) || no.Reason != tt.reason || !no.Final() {
				t.Fatalf("got %v, want a final refusal with the reason %s", err, tt.reason)
			}
			for _, words := range tt.says {
				if !strings.Contains(no.Message, words) {
					t.Errorf("%q does not say %q", no.Message, words)
				}
			}
			if j.Token != "" {
				if given, err := token.Parse(string(j.Token)); err == nil && strings.Contains(no.Message+c.logs.String(), string(given.Password)) {
					t.Errorf("%q or the log tells the secret", no.Message)
				}
			}
			if _, err := j.Kept(); err == nil && !strings.Contains(name, "once joined") {
				t.Error("and yet something was kept")
			}
		})
	}
}

func (c *cluster) join(name string, secret config.Secret) *Joiner {
	j := c.machine(name, secret)
	j.must(c.t)
	return j
}

func (j *Joiner) must(t *testing.T) Membership {
	t.Helper()
	m, _, err := j.Join(within(t))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// only answers one path differently.
func only(path string, answer func(http.ResponseWriter)) func(http.Handler) http.Handler {
	return func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == path {
				answer(w)
				return
			}
			h.ServeHTTP(w, r)
		})
	}
}

func TestJoinTriesOnWhileNobodyCanAnswer(t *testing.T) {
	tests := map[string]struct{ trouble, end func(c *cluster) }{
		"the server is starting": {func(c *cluster) { c.starting.Store(true) }, func(c *cluster) { c.starting.Store(false) }},
		"the datastore is away":  {func(c *cluster) { c.api.away.Store(true) }, func(c *cluster) { c.api.away.Store(false) }},
		"a load balancer has no server": {
			func(c *cluster) {
				c.with(func(http.Handler) http.Handler {
					return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
						w.WriteHeader(http.StatusServiceUnavailable)
						fmt.Fprint(w, `{"message":"no healthy upstream","reason":"ServiceUnavailable"}`)
					})
				})
			},
			func(c *cluster) { c.with(func(h http.Handler) http.Handler { return h }) },
		},
		"too many ask": {
			func(c *cluster) { c.handler.limit.allow(netip.MustParseAddr("127.0.0.1"), burst, time.Now()) },
			func(c *cluster) { c.forgive() },
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			tt.trouble(c)
			j := c.machine("n1", c.agentToken())
			var no *Refusal
			if _, err := j.Renew(within(t)); err == nil || errors.As(err, &no) && no.Final() {
				t.Fatalf("got %v, want an error to come again after", err)
			} else if strings.Contains(err.Error(), "inside of the datastore") {
				t.Errorf("a stranger is told %v", err)
			}
			time.AfterFunc(50*time.Millisecond, func() { tt.end(c) })
			if _, _, err := j.Join(within(t)); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestNothingSecretIsSentBeforeThePinIsChecked meets the machine with a server that
// is not its token's, and looks at all that it sends.
func TestNothingSecretIsSentBeforeThePinIsChecked(t *testing.T) {
	real, elsewhere := newCluster(t), newCluster(t)
	var mu sync.Mutex
	var seen []string
	note := func(r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, fmt.Sprintf("%s %s %q %d certificates", r.Method, r.URL.Path, r.Header.Get("Authorization"), len(r.TLS.PeerCertificates)))
	}
	elsewhere.with(func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { note(r); h.ServeHTTP(w, r) })
	})
	impostor := newCluster(t) // has the CA's certificate, which is public, and not its key
	impostor.with(func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			note(r)
			if r.URL.Path == PathCAs {
				w.Write(real.cas[pki.ServerCA].PEM)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	sender := newCluster(t) // sends people elsewhere
	sender.with(func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			note(r)
			http.Redirect(w, r, elsewhere.srv.URL+r.URL.Path, http.StatusTemporaryRedirect)
		})
	})
	for name, c := range map[string]*cluster{"another cluster": elsewhere, "impostor": impostor, "sender": sender} {
		t.Run(name, func(t *testing.T) {
			seen = nil
			j := real.machine("n1", real.agentToken())
			j.Server = c.srv.URL
			_, _, err := j.Join(within(t))
			var no *Refusal
			if !errors.As(err, &no) || !no.Final() {
				t.Errorf("got %v", err)
			}
			if len(seen) != 1 || seen[0] != `GET /cacerts "" 0 certificates` {
				t.Errorf("sent %q", seen)
			}
		})
	}
}

// TestReplacedMachineIsTold: its next start ends, unless it may join again.
func TestReplacedMachineIsTold(t *testing.T) {
	c := newCluster(t)
	first := c.join("n1", c.agentToken())
	c.join("n1", c.bootstrap(Bootstrap{Once: true, Replaces: "n1"}))
	for _, tt := range []struct {
		token config.Secret
		says  string
	}{{"", "start it with --token"}, {c.agentToken(), "podo node replace n1"}} {
		first.Token = tt.token
		_, _, err := first.Join(within(t))
		if no, ok := errors.AsType[*Refusal](err); !ok || !no.Final() || !strings.Contains(no.Message, tt.says) {
			t.Errorf("a replaced machine starts with token %t: %v, want a refusal that says %q", tt.token != "", err, tt.says)
		}
	}
	first.Token = c.bootstrap(Bootstrap{Once: true, Replaces: "n1"})
	if _, fresh, err := first.Join(within(t)); err != nil || !fresh {
		t.Errorf("in its turn it replaces the other: fresh %t, %v", fresh, err)
	}
}

func TestANameBelongsToTheMachineThatJoinedUnderIt(t *testing.T) {
	c := newCluster(t)
	first := c.join("n1", c.agentToken())
	first.Token = ""
	if _, err := first.Renew(within(t)); err != nil {
		t.Fatalf("its identity alone does not renew: %v", err)
	}
	thief := c.machine("n1", c.whole(token.Token{User: token.Server, Password: serverPassword}))
	wantReason(t, thief, NameTaken)

	ticket := c.bootstrap(Bootstrap{Once: true, Replaces: "n1"})
	if said := c.api.patched.Load(); said != nil {
		t.Errorf("before it is replaced, the node's status is changed: %s", said)
	}
	rebuilt := c.join("n1", ticket)
	if said, _ := c.api.patched.Load().(string); !strings.HasPrefix(said, `{"status":{"conditions":[{"type":"Ready","status":"Unknown",`) {
		t.Errorf("of a node that is replaced it is said: %s", said)
	}
	wantReason(t, first, BadToken) // it shows no token; with one, the name is taken
	first.Token = c.agentToken()
	wantReason(t, first, NameTaken)
	c.forgive()
	first.Token = ticket
	wantReason(t, first, BadToken) // the ticket was for one machine
	wantReason(t, c.machine("n1", ticket), BadToken)
	if _, err := rebuilt.Renew(within(t)); err != nil {
		t.Errorf("the machine that replaced it: %v", err)
	}
}

func wantReason(t *testing.T, j *Joiner, why Reason) {
	t.Helper()
	_, err := j.Renew(within(t))
	var no *Refusal
	if !errors.As(err, &no) || no.Reason != why {
		t.Errorf("got %v, want %s", err, why)
	}
}

func TestOneMachineWinsARaceForAOneTimeToken(t *testing.T) {
	for name, b := range map[string]Bootstrap{"to join": {Once: true}, "to replace": {Once: true, Replaces: "n1"}} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			if b.Replaces != "" {
				c.join("n1", c.agentToken())
			}
			secret := c.bootstrap(b)
			var won, lost atomic.Int32
			var wg sync.WaitGroup
			for i := range 4 {
				name := "n1"
				if b.Replaces == "" && i%2 == 0 {
					name = fmt.Sprint("m", i)
				}
				j := c.machine(name, secret)
				wg.Go(func() {
					_, err := j.Renew(within(t))
					var no *Refusal
					switch {
					case err == nil:
						won.Add(1)
					case errors.As(err, &no) && (no.Reason == BadToken || no.Reason == NameTaken):
						lost.Add(1)
					default:
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if won.Load() != 1 || lost.Load() != 3 {
				t.Errorf("%d won, %d lost", won.Load(), lost.Load())
			}
		})
	}
}

func TestTheSlowerOfTwoIsToldThatTheTokenIsUsed(t *testing.T) {
	c := newCluster(t)
	b, err := c.records.Create(t.Context(), Bootstrap{Once: true})
	if err != nil {
		t.Fatal(err)
	}
	faster := func() {
		if err := c.records.spend(within(t), b, "n2", []byte("b")); err != nil {
			t.Error(err)
		}
	}
	c.api.meanwhile.Store(&faster)
	err = c.records.spend(within(t), b, "n1", []byte("a"))
	var no *Refusal
	if !errors.As(err, &no) || no.Reason != BadToken || !strings.Contains(no.Message, "as node n2") {
		t.Errorf("got %v", err)
	}
}

func TestALostAnswerLosesNothing(t *testing.T) {
	c := newCluster(t)
	var lost atomic.Int32
	c.with(func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != PathNode || lost.Add(1) > 1 {
				h.ServeHTTP(w, r)
				return
			}
			h.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		})
	})
	for name, b := range map[string]Bootstrap{"n1": {Once: true}, "n2": {Once: true, Replaces: "n2"}} {
		lost.Store(0)
		c.join(name, c.bootstrap(b))
	}
}

// TestATokenIsNotSpentForNothing cuts a join between the token and the name.
func TestATokenIsNotSpentForNothing(t *testing.T) {
	c := newCluster(t)
	secret := c.bootstrap(Bootstrap{Once: true})
	j := c.join("n1", secret)
	c.api.mu.Lock()
	delete(c.api.kept, "n1"+identitySuffix)
	c.api.mu.Unlock()
	if _, err := j.Renew(within(t)); err != nil {
		t.Errorf("the machine that spent the token: %v", err)
	}
}

func TestWhatCannotBeKeptIsAskedForAgain(t *testing.T) {
	c := newCluster(t)
	for name, path := range map[string]func(paths.Paths) string{
		"keys":         func(p paths.Paths) string { return p.AgentLeaf("kubelet").Key },
		"certificates": func(p paths.Paths) string { return p.AgentLeaf("kubelet").Cert },
		"cas":          func(p paths.Paths) string { return p.AgentCA(pki.ServerCA) },
		"membership":   paths.Paths.Membership,
	} {
		t.Run(name, func(t *testing.T) {
			j := c.machine(name, c.bootstrap(Bootstrap{Once: true}))
			blocked := path(j.Paths) // a folder in its place: a full disk is no different
			if err := os.MkdirAll(filepath.Join(blocked, "x"), 0o700); err != nil {
				t.Fatal(err)
			}
			var no *Refusal
			if _, err := j.Renew(within(t)); err == nil || errors.As(err, &no) {
				t.Fatalf("got %v, want the disk's error", err)
			}
			if _, err := j.Kept(); err == nil {
				t.Error("half a membership is taken for one")
			}
			if err := os.RemoveAll(blocked); err != nil {
				t.Fatal(err)
			}
			j.must(t)
		})
	}
}

func TestKept(t *testing.T) {
	c, other := newCluster(t), newCluster(t)
	late := func() time.Time { return time.Now().Add(2 * 365 * 24 * time.Hour) }
	tests := map[string]struct {
		change func(t *testing.T, j *Joiner)
		says   string // empty: it serves
	}{
		"nothing changed":    {func(*testing.T, *Joiner) {}, ""},
		"no certificate":     {func(t *testing.T, j *Joiner) { remove(t, j.Paths.AgentLeaf("kubelet").Cert) }, "kubelet.crt"},
		"no key":             {func(t *testing.T, j *Joiner) { remove(t, j.Paths.AgentLeaf("kube-proxy").Key) }, "kube-proxy.key"},
		"empty":              {func(t *testing.T, j *Joiner) { write(t, j.Paths.Membership(), "") }, "membership.json"},
		"another's":          {func(_ *testing.T, j *Joiner) { j.Name = "n2" }, "n2"},
		"ended":              {func(_ *testing.T, j *Joiner) { j.Now = late }, "ended"},
		"clock back in 1970": {func(_ *testing.T, j *Joiner) { j.Now = func() time.Time { return time.Unix(0, 0) } }, ""},
		"killed between two clusters": {func(t *testing.T, j *Joiner) {
			there := other.join("n1", other.agentToken())
			for _, l := range pki.NodeTable(pki.Names{Node: "n1"}) {
				files, from := l.Files(j.Paths), l.Files(there.Paths)
				copyFile(t, from.Cert, files.Cert)
				copyFile(t, from.Key, files.Key)
			}
		}, "another cluster"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c.forgive()
			j := c.machine("n1", c.bootstrap(Bootstrap{Replaces: "n1"}))
			j.must(t)
			tt.change(t, j)
			_, err := j.Kept()
			if err == nil != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want %q", err, tt.says)
			}
		})
	}
}

func TestCopiesOfCAsThatAPowerCutTookComeBack(t *testing.T) {
	c := newCluster(t)
	j := c.join("n1", c.agentToken())
	c.srv.Close()
	for _, name := range nodeCAs() {
		write(t, j.Paths.AgentCA(name), "")
	}
	if _, fresh, err := j.Join(within(t)); err != nil || fresh {
		t.Fatalf("fresh %v, %v", fresh, err)
	}
	if text, err := os.ReadFile(j.Paths.AgentCA(pki.ServerCA)); err != nil || string(text) != string(c.cas[pki.ServerCA].PEM) {
		t.Errorf("the copy holds %q, %v", text, err)
	}
}

func TestAServerMadeAnewIsNotTakenForTheOldOne(t *testing.T) {
	c := newCluster(t)
	j := c.join("n1", c.agentToken())
	j.Server, j.Token = newCluster(t).srv.URL, ""
	wantReason(t, j, WrongPin)
}

func TestAClockOutsideTheServersCertificateIsTold(t *testing.T) {
	c := newCluster(t)
	j := c.join("n1", c.agentToken())
	c.srv.TLS.Certificates = []tls.Certificate{c.serving(time.Now().Add(-2 * 365 * 24 * time.Hour))}
	wantReason(t, j, BadClock)
}

func TestStale(t *testing.T) {
	c := newCluster(t)
	j := c.join("n1", c.agentToken())
	m, err := j.Kept()
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func(*Joiner)
		says   string
	}{
		"fresh":           {func(*Joiner) {}, ""},
		"another address": {func(j *Joiner) { j.Addresses = []netip.Addr{netip.MustParseAddr("10.0.0.8")} }, "10.0.0.8"},
		"old":             {func(j *Joiner) { j.Now = func() time.Time { return time.Now().Add(300 * 24 * time.Hour) } }, "ends"},
	} {
		j := *j
		tt.change(&j)
		if err := j.Stale(m); err == nil != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: got %v, want %q", name, err, tt.says)
		}
	}
}

func TestJoinEndsWhenToldTo(t *testing.T) {
	c := newCluster(t)
	c.starting.Store(true)
	ctx, cancel := context.WithTimeout(within(t), 20*time.Millisecond)
	defer cancel()
	if _, _, err := c.machine("n1", c.agentToken()).Join(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestAddresses(t *testing.T) {
	port := int32(6443)
	slice := func(addrs ...string) discoveryv1.EndpointSlice {
		return discoveryv1.EndpointSlice{Ports: []discoveryv1.EndpointPort{{Port: &port}, {}}, Endpoints: []discoveryv1.Endpoint{{Addresses: addrs}}}
	}
	got := Addresses([]discoveryv1.EndpointSlice{slice("10.0.0.2", "10.0.0.1"), slice("fd00::1", "10.0.0.1"), {}})
	if want := "10.0.0.1:6443 10.0.0.2:6443 [fd00::1]:6443"; strings.Join(got, " ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	write(t, to, string(text))
}
