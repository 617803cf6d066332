package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/join"
	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/pki"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/storage/etcd"
	"github.com/podo-dev/podo/pkg/token"
)

// keyring is everything that says who is who: the CAs, the certificates, the join
// tokens, and a kubeconfig for every component and for the administrator.
type keyring struct {
	plan plan.Server
	log  *slog.Logger

	mu  sync.Mutex
	cas pki.Authorities // nil until they and the tokens are on disk
}

func (t *keyring) component() lifecycle.Component {
	return lifecycle.Func("certificates", func(ctx context.Context, ready func()) error {
		if t.plan.Storage.External != nil {
			if err := t.receive(ctx); err != nil || ctx.Err() != nil {
				return err
			}
		}
		cas, err := t.make()
		if err != nil {
			return err
		}
		ready()
		t.renew(ctx, cas)
		return nil
	})
}

// make puts everything in place.
func (t *keyring) make() (pki.Authorities, error) {
	names := t.plan.Certificates
	cas, _, err := pki.Ensure(t.plan.Paths, pki.Table(names.Names), time.Now)
	if err != nil {
		return nil, err
	}
	ca := cas[pki.ServerCA].PEM
	if err := t.ensure(t.plan.Paths.Token(), token.Server, names.Token, ca); err != nil {
		return nil, err
	}
	if err := t.ensure(t.plan.Paths.AgentToken(), token.Agent, names.Agent, ca); err != nil {
		return nil, err
	}
	t.mu.Lock()
	t.cas = cas
	t.mu.Unlock()
	if err := internal(t.plan); err != nil {
		return nil, err
	}
	return cas, administrator(t.plan.Paths, t.plan.Kubeconfig, ca)
}

// ensure makes a token that is missing.
func (t *keyring) ensure(path, user string, given config.Secret, ca []byte) error {
	kept, err := token.Ensure(path, user, given, ca)
	if err != nil || given == "" {
		return err
	}
	if said, err := token.Parse(string(given)); err == nil && !kept.Accepts(string(said.Password)) {
		t.log.Warn("token in the settings is not used, since it was replaced by podo token rotate", "component", "certificates", "path", path)
	}
	return nil
}

// renewal is how often certificates are looked at while podo runs.
const renewal = 4 * time.Hour

// renew issues certificates anew in time, until ctx ends. Their users read them from
// disk again by themselves: servers at a handshake, clients within minutes.
func (t *keyring) renew(ctx context.Context, cas pki.Authorities) {
	tick := time.NewTicker(renewal)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		issued, err := pki.EnsureLeaves(t.plan.Paths, cas, pki.Table(t.plan.Certificates.Names), time.Now)
		if err == nil && slices.Contains(issued, "admin") {
			err = administrator(t.plan.Paths, t.plan.Kubeconfig, cas[pki.ServerCA].PEM)
		}
		if err != nil {
			t.log.Warn("certificates not renewed; trying again in a few hours", "component", "certificates", "err", err)
		} else if len(issued) > 0 {
			t.log.Info("certificates renewed", "component", "certificates", "names", strings.Join(issued, ", "))
		}
	}
}

func (t *keyring) authorities() (pki.Authorities, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cas == nil {
		return nil, join.ErrStarting
	}
	return t.cas, nil
}

// forServers is the token that lets a machine join as a server.
func (t *keyring) forServers() (token.Token, error) {
	if _, err := t.authorities(); err != nil {
		return token.Token{}, err
	}
	return token.Read(t.plan.Paths.Token())
}

// bundle is what another server needs to be one.
func (t *keyring) bundle() (pki.Bundle, error) {
	if _, err := t.authorities(); err != nil {
		return pki.Bundle{}, err
	}
	return pki.Export(t.plan.Paths)
}

// forAgents are the tokens that let a machine join as an agent. They are read anew,
// since podo token rotate may have replaced them.
func (t *keyring) forAgents() ([]token.Token, error) {
	if _, err := t.authorities(); err != nil {
		return nil, err
	}
	server, err := token.Read(t.plan.Paths.Token())
	if err != nil {
		return nil, err
	}
	agent, err := token.Read(t.plan.Paths.AgentToken())
	return []token.Token{server, agent}, err
}

// internal writes the kubeconfigs of podo's own parts. They name certificates by
// file, so a renewed certificate needs no new kubeconfig.
func internal(p plan.Server) error {
	var errs []error
	for _, leaf := range pki.Table(p.Certificates.Names) {
		switch leaf.Name {
		case "podo", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "podo-node":
		default:
			continue
		}
		files, ca, path := leaf.Files(p.Paths), p.Paths.CA(pki.ServerCA).Cert, p.Paths.ServerKubeconfig(leaf.Name)
		if leaf.Node {
			ca, path = p.Paths.AgentCA(pki.ServerCA), p.Paths.AgentKubeconfig(leaf.Name)
		}
		errs = append(errs, kubeconfig.Write(path, kubeconfig.Config{
			Name: "podo", Server: p.API, CAFile: ca, CertFile: files.Cert, KeyFile: files.Key,
		}, kubeconfig.DefaultMode))
	}
	return errors.Join(errs...)
}

// administrator writes the kubeconfig that people use, complete in itself so that
// it can be copied elsewhere.
func administrator(p paths.Paths, k plan.Kubeconfig, ca []byte) error {
	cert, key, err := read(p.ServerLeaf("admin"))
	if err != nil {
		return err
	}
	var opts []atomicfile.Option
	if k.Group != "" {
		gid, err := groupID(k.Group)
		if err != nil {
			return fmt.Errorf("write-kubeconfig-group: %w", err)
		}
		opts = append(opts, atomicfile.Group(gid))
	}
	return kubeconfig.Write(k.Path, kubeconfig.Config{Name: k.Name, Server: k.Server, CA: ca, Cert: cert, Key: key}, k.Mode, opts...)
}

func groupID(name string) (int, error) {
	if gid, err := strconv.Atoi(name); err == nil {
		return gid, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(g.Gid)
}

// Reset makes the datastore of this server that of one server alone, and returns
// where the data as it was is kept.
func Reset(ctx context.Context, p plan.Server, log *slog.Logger) (kept string, err error) {
	return etcd.New(*p.Storage.Etcd, log).Reset(ctx)
}

// ready asks the API whether it is ready.
func ready(ctx context.Context, rc *rest.Config) error {
	transport, err := rest.TransportFor(rc)
	if err != nil {
		return err
	}
	return ask(ctx, transport, rc.Host)
}

func ask(ctx context.Context, transport http.RoundTripper, host string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, host+"/readyz", nil)
	if err != nil {
		return err
	}
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return err
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("/readyz answers %s", res.Status)
	}
	return nil
}

func read(files paths.Pair) (cert, key []byte, err error) {
	if cert, err = os.ReadFile(files.Cert); err != nil {
		return nil, nil, err
	}
	key, err = os.ReadFile(files.Key)
	return cert, key, err
}
