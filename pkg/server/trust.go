package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/user"
	"strconv"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	"github.com/podo-dev/podo/pkg/atomicfile"
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

	mu  sync.Mutex
	cas pki.Authorities // nil until they and the tokens are on disk
}

func (t *keyring) component() lifecycle.Component {
	return lifecycle.Task("certificates", func(context.Context) error {
		names := t.plan.Certificates
		cas, _, err := pki.Ensure(t.plan.Paths, pki.Table(names.Names), time.Now)
		if err != nil {
			return err
		}
		ca := cas[pki.ServerCA].PEM
		if _, err := token.Ensure(t.plan.Paths.Token(), token.Server, names.Token, ca); err != nil {
			return err
		}
		if _, err := token.Ensure(t.plan.Paths.AgentToken(), token.Agent, names.Agent, ca); err != nil {
			return err
		}
		t.mu.Lock()
		t.cas = cas
		t.mu.Unlock()
		if err := internal(t.plan); err != nil {
			return err
		}
		return administrator(t.plan.Paths, t.plan.Kubeconfig, ca)
	})
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
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, rc.Host+"/readyz", nil)
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
