package join

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/pki"
	"github.com/podo-dev/podo/pkg/token"
)

// settings are what all servers of a cluster of peers share.
func settings() map[string]string {
	return map[string]string{"cluster-cidr": "10.42.0.0/16", "disable": "servicelb,traefik", "cluster-dns": ""}
}

// newPeers is a cluster that lets servers in. Nobody is at work under a name.
func newPeers(t *testing.T) *cluster {
	t.Helper()
	c := newCluster(t)
	if err := pki.EnsureServiceAccountKey(c.paths); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.paths.AgentToken(), []byte(agentPassword+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.handler.Peers = Peers{
		Token:    func() (token.Token, error) { return token.Token{User: token.Server, Password: serverPassword}, nil },
		Bundle:   func() (pki.Bundle, error) { return pki.Export(c.paths) },
		Settings: settings(),
		Members:  func(context.Context) ([]string, error) { return []string{"https://10.0.0.1:2379"}, nil },
		Live:     func(context.Context, string) (bool, error) { return false, nil },
	}
	return c
}

// patiently is within for servers: what they are given is sealed at some cost.
func patiently(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (c *cluster) serverToken() config.Secret {
	return c.whole(token.Token{User: token.Server, Password: serverPassword})
}

// TestServersAreLetIn: with every key of the cluster, and under a name that is free or
// whose machine is gone; another patch of the same minor version will do.
func TestServersAreLetIn(t *testing.T) {
	c := newPeers(t)
	for _, version := range []string{kubernetesVersion, "v1.36.99"} {
		j := c.machine("s1", c.serverToken()) // each time a machine of its own
		j.kubernetes = version
		bundle, members, err := j.JoinPeer(patiently(t), settings())
		if err != nil || !slices.Equal(members, []string{"https://10.0.0.1:2379"}) {
			t.Fatalf("%s: %v, %v", version, members, err)
		}
		own := paths.New(t.TempDir())
		if err := bundle.Import(own); err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile(own.CA(pki.ServerCA).Key); err != nil || string(text) == "" {
			t.Errorf("no key of the CA: %v", err)
		}
	}
}

// TestServersAreRefused lists what keeps a server out, each with the reason that is told
// and words of its remedy. Nobody who is refused has taken a name.
func TestServersAreRefused(t *testing.T) {
	tests := map[string]struct {
		setup  func(c *cluster, j *Joiner, asked map[string]string)
		reason Reason
		says   []string
	}{
		"a minor version older": {
			func(_ *cluster, j *Joiner, _ map[string]string) { j.kubernetes = "v1.35.9+podo1" },
			BadVersion, []string{"v1.35.9+podo1", kubernetesVersion, "same minor version", "install that one here"},
		},
		"a minor version newer": {
			func(_ *cluster, j *Joiner, _ map[string]string) { j.kubernetes = "v1.37.0+podo1" },
			BadVersion, []string{"v1.37.0+podo1", kubernetesVersion, "same minor version", "upgrade them one by one"},
		},
		"no version": {
			func(_ *cluster, j *Joiner, _ map[string]string) { j.kubernetes = "unknown" },
			BadVersion, []string{`"unknown" is no version`},
		},
		"clock a day ahead": {
			func(_ *cluster, j *Joiner, _ map[string]string) {
				j.Now = func() time.Time { return time.Now().Add(24 * time.Hour) }
			},
			BadClock, []string{" ahead of the server's", "set the one that is wrong"},
		},
		"clock a day behind": {
			func(_ *cluster, j *Joiner, _ map[string]string) {
				j.Now = func() time.Time { return time.Now().Add(-24 * time.Hour) }
			},
			BadClock, []string{" behind the server's", "set the one that is wrong"},
		},
		"server's clock a day ahead": {
			func(c *cluster, _ *Joiner, _ map[string]string) { c.ahead.Store(int64(24 * time.Hour)) },
			BadClock, []string{" behind the server's"},
		},
		"other settings": {
			func(_ *cluster, _ *Joiner, asked map[string]string) {
				asked["cluster-cidr"], asked["cluster-dns"] = "10.9.0.0/16", "10.43.0.9"
			},
			BadSettings, []string{`cluster-cidr: the cluster has "10.42.0.0/16", this server asks for "10.9.0.0/16"`, "--cluster-cidr=10.42.0.0/16", "10.43.0.9", `--cluster-dns=""`},
		},
		"a setting that this podo does not know": {
			func(_ *cluster, _ *Joiner, asked map[string]string) { delete(asked, "disable") },
			BadSettings, []string{"--disable=servicelb,traefik"},
		},
		"a cluster on one server alone": {
			func(c *cluster, _ *Joiner, _ map[string]string) {
				c.handler.Peers.Members = func(context.Context) ([]string, error) { return nil, ErrAlone }
			},
			BadSettings, []string{"SQLite", "podo server --cluster-init", "podo agent"},
		},
		"agents' token": {
			func(c *cluster, j *Joiner, _ map[string]string) { j.Token = c.agentToken() },
			BadToken, []string{"the one for agents", "server/token"},
		},
		"bootstrap token": {
			func(c *cluster, j *Joiner, _ map[string]string) { j.Token = c.bootstrap(Bootstrap{}) },
			BadToken, []string{"let in agents alone", "server/token"},
		},
		"wrong password": {
			func(c *cluster, j *Joiner, _ map[string]string) {
				j.Token = c.whole(token.Token{User: token.Server, Password: "guess"})
			},
			BadToken, []string{"password is not this cluster's", "server/token"},
		},
		"token of another cluster": {
			func(c *cluster, j *Joiner, _ map[string]string) { j.Token = newPeers(c.t).serverToken() },
			WrongPin, []string{"another cluster", "check --server"},
		},
		"no token": {
			func(_ *cluster, j *Joiner, _ map[string]string) { j.Token = "" },
			BadToken, []string{"to join as a server", "server/token"},
		},
		"name that is none": {
			func(_ *cluster, j *Joiner, _ map[string]string) { j.Name = "Node_1" },
			BadRequest, []string{`"Node_1"`, "--node-name"},
		},
		"name of a machine at work": {
			func(c *cluster, j *Joiner, _ map[string]string) {
				if _, _, err := c.machine(j.Name, c.serverToken()).JoinPeer(patiently(c.t), settings()); err != nil {
					c.t.Fatal(err)
				}
				c.handler.Peers.Live = func(_ context.Context, name string) (bool, error) { return name == j.Name, nil }
			},
			NameTaken, []string{"s1 belongs to another machine that is at work", "--node-name"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newPeers(t)
			j, asked := c.machine("s1", c.serverToken()), settings()
			tt.setup(c, j, asked)
			before := c.api.count()
			_, _, err := j.JoinPeer(patiently(t), asked)
			var no *Refusal
			if !errors.As(err, &no) || no.Reason != tt.reason || !no.Final() {
				t.Fatalf("got %v, want a final refusal with the reason %s", err, tt.reason)
			}
			for _, words := range tt.says {
				if !strings.Contains(no.Message, words) {
					t.Errorf("%q does not say %q", no.Message, words)
				}
			}
			if after := c.api.count(); after != before {
				t.Errorf("the cluster keeps %d things, and kept %d", after, before)
			}
		})
	}
}
