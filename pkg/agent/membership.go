package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"time"

	"github.com/podo-dev/podo/pkg/balancer"
	"github.com/podo-dev/podo/pkg/gate"
	"github.com/podo-dev/podo/pkg/join"
	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/pki"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/tunnel"
)

// Tie is a node's connection to servers elsewhere, as status tells it.
type Tie struct {
	API     *lifecycle.Unit // the node's parts may talk to the API
	Servers func() []balancer.Server
	Healthy func(context.Context) error // reports whether some server answers
}

// Join adds to g what ties a node to its servers. An agent's parts start whether a
// server answers or not. What was given is asked for again soon, unless it is fresh.
func Join(g *lifecycle.Group, p plan.Agent, given join.Membership, fresh bool, doors *gate.Gate, log *slog.Logger) (Tie, error) {
	m, err := newMember(p, given, fresh, doors, log)
	if err != nil {
		return Tie{}, err
	}
	tie := Tie{Servers: func() []balancer.Server { return nil }, Healthy: m.answers}
	var needs []lifecycle.Need
	if m.balancer != nil {
		needs = append(needs, g.Add(m.balancer))
		tie.Servers = m.balancer.Servers
	}
	tie.API = g.Add(m.open(), needs...)
	g.Add(m.keep(), tie.API)
	if m.balancer != nil {
		g.Add(m.follow(), tie.API)
	}
	if p.Tunnels != nil {
		g.Add(m.tunnels(), tie.API)
	}
	return tie, nil
}

// member ties a node to servers elsewhere: its way to the API, the tunnels back,
// and certificates that never end.
type member struct {
	plan     plan.Agent
	given    join.Membership
	fresh    bool // given was asked for since the start
	said     string
	gate     *gate.Gate
	balancer *balancer.Balancer // nil if there is none
	log      *slog.Logger
}

func newMember(p plan.Agent, given join.Membership, fresh bool, g *gate.Gate, log *slog.Logger) (*member, error) {
	m := &member{plan: p, given: given, fresh: fresh, gate: g, log: log}
	if !p.Listen.IsValid() {
		return m, nil
	}
	first, err := hostPort(p.Joining.Server)
	if err != nil {
		return nil, err
	}
	m.balancer = balancer.New(balancer.Options{Listen: p.Listen, File: p.Paths.Servers(), First: []string{first}, Healthy: m.healthy, Log: log})
	if len(given.Servers) > 0 {
		m.balancer.Set(given.Servers)
	}
	return m, nil
}

// hostPort is what a URL's host is dialled by.
func hostPort(server string) (string, error) {
	u, err := url.Parse(server)
	if err != nil {
		return "", fmt.Errorf("server: %w", err)
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}

// open lets the node's parts through to the API. They start whether a server
// answers or not.
func (m *member) open() lifecycle.Component {
	return lifecycle.Func("api", func(ctx context.Context, ready func()) error {
		for _, l := range pki.NodeTable(pki.Names{Node: m.plan.Joining.Identity.Name}) {
			if l.Usage != pki.Client {
				continue
			}
			files := l.Files(m.plan.Paths)
			err := kubeconfig.Write(m.plan.Paths.AgentKubeconfig(l.Name), kubeconfig.Config{
				Name: "podo", Server: m.plan.API, CAFile: m.plan.Paths.AgentCA(pki.ServerCA), CertFile: files.Cert, KeyFile: files.Key,
			}, kubeconfig.DefaultMode)
			if err != nil {
				return err
			}
		}
		m.gate.Open()
		ready()
		<-ctx.Done()
		m.gate.Close()
		return nil
	})
}

// Certificates are looked at each time the first pause has passed, and asked for
// anew when a third of their life is left or they no longer fit.
const (
	look      = time.Hour
	lookAgain = 30 * time.Second
)

// keep renews what the cluster gave, at the start and then in time. A cluster in which
// this node's name is no longer this machine's ends the process.
func (m *member) keep() lifecycle.Component {
	return lifecycle.Func("membership", func(ctx context.Context, ready func()) error {
		ready()
		j := join.New(m.plan.Joining, m.log)
		j.Server, j.Token = m.plan.API, "" // by now the identity is enough, and any server will do
		for {
			pause := look
			if !m.fresh || j.Stale(m.given) != nil {
				given, err := j.Renew(ctx)
				var no *join.Refusal
				switch {
				case err == nil:
					m.fresh = true
					m.compare(given)
				case ctx.Err() != nil:
					return nil
				case errors.As(err, &no) && (no.Reason == join.NameTaken || no.Reason == join.BadToken):
					return fmt.Errorf("membership: %w", err)
				default:
					m.complain(j, err, errors.As(err, &no) && no.Final())
					pause = lookAgain
				}
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(pause):
			}
		}
	})
}

// complain says why nothing was renewed, once, if somebody should act: a server said
// no, or certificates are old and none answers.
func (m *member) complain(j join.Joiner, err error, refused bool) {
	text := ""
	switch {
	case refused:
		text = "the cluster does not renew this node's membership"
	case j.Stale(m.given) != nil:
		text = "certificates of this node end soon, and no server renews them"
	}
	if text != m.said && text != "" {
		m.log.Warn(text, "component", "membership", "err", err)
	}
	m.said = text
}

// compare says what a restart would change.
func (m *member) compare(given join.Membership) {
	if !reflect.DeepEqual(given.Cluster, m.given.Cluster) {
		m.log.Warn("the cluster's settings have changed since this node started; they take effect when podo is started again", "component", "membership")
	}
	m.given.CAs = given.CAs
}

// follow keeps the balancer's list as the cluster publishes it.
func (m *member) follow() lifecycle.Component {
	return lifecycle.Func("servers", func(ctx context.Context, ready func()) error {
		follow, err := published(m.plan.Paths, m.gate, func(list []string) {
			m.balancer.Set(list) // none at all is a server that restarts
		})
		if err != nil {
			return err
		}
		ready()
		follow(ctx)
		return nil
	})
}

// tunnels are the ways back from every server to this node.
func (m *member) tunnels() *tunnel.Agent {
	o := tunnelOptions(*m.plan.Tunnels, m.log)
	if m.balancer == nil {
		server, _ := hostPort(m.plan.Joining.Server) // newMember has read it
		o.Servers = func() []string { return []string{server} }
	} else {
		o.Servers = func() []string { list, _ := m.balancer.Watch(); return list }
		o.Changed = func() <-chan struct{} { _, changed := m.balancer.Watch(); return changed }
	}
	return tunnel.NewAgent(o)
}

// answers reports whether the API can be reached the way that the node's parts do.
func (m *member) answers(ctx context.Context) error {
	addr, err := hostPort(m.plan.API)
	if err != nil {
		return err
	}
	return m.healthy(ctx, addr)
}

// healthy asks a server whether it is ready.
func (m *member) healthy(ctx context.Context, addr string) error {
	c := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return dial(ctx, m.plan.Paths, addr, false)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+addr+"/readyz", nil)
	if err != nil {
		return err
	}
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("/readyz answers %s", res.Status)
	}
	return nil
}
