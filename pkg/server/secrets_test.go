package server

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/pki"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/storage/external/externaltest"
	"github.com/podo-dev/podo/pkg/storage/vault"
	"github.com/podo-dev/podo/pkg/token"
)

// newcomer is a server that never ran, before a datastore elsewhere.
func newcomer(t *testing.T, db *externaltest.Database, name string, secret config.Secret) *keyring {
	dir := t.TempDir()
	p := paths.Paths{Etc: filepath.Join(dir, "etc"), Data: filepath.Join(dir, "data"), Run: filepath.Join(dir, "run")}
	x := db.External()
	x.Marker = p.DatastoreKind()
	return &keyring{
		log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		plan: plan.Server{
			Paths:   p,
			Storage: plan.Storage{External: &x},
			Certificates: plan.Certificates{Paths: p, Token: secret, Names: pki.Names{
				Node: name, NodeIPs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, ServiceIPs: []netip.Addr{netip.MustParseAddr("10.43.0.1")}, ClusterDomain: "cluster.local",
			}},
			Shared:     map[string]string{"cluster-cidr": "10.42.0.0/16"},
			API:        "https://127.0.0.1:6443",
			Kubeconfig: plan.Kubeconfig{Path: filepath.Join(dir, "podo.yaml"), Mode: 0o600, Name: "default", Server: "https://127.0.0.1:6443"},
		},
	}
}

// start does what a start does, to where the API could start.
func (t *keyring) start(ctx context.Context) error {
	ready, ended, late := make(chan struct{}, 2), make(chan error, 2), time.After(2*time.Minute)
	for _, c := range []interface {
		Run(context.Context, func()) error
	}{t.component(), t.secrets()} {
		go func() { ended <- c.Run(ctx, sync.OnceFunc(func() { ready <- struct{}{} })) }()
		select {
		case <-ready:
		case err := <-ended:
			return err
		case <-late:
			return errors.New("not ready in time")
		}
	}
	return nil
}

func (t *keyring) ca() string {
	text, _ := os.ReadFile(t.plan.Paths.CA(pki.ServerCA).Cert)
	return string(text)
}

func TestFirstServerMakesTheSecretsAndOthersTakeThem(t *testing.T) {
	db := externaltest.Start(t, "etcd")
	one := newcomer(t, db, "one", "")
	if err := one.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	kept, err := token.Read(one.plan.Paths.Token())
	if err != nil || kept.Hash == "" || kept.User != token.Server {
		t.Fatalf("token %v, %v", kept, err)
	}
	tests := map[string]struct {
		token  config.Secret
		shared map[string]string
		want   string
	}{
		"whole token":    {token: config.Secret(kept.Text())},
		"password alone": {token: kept.Password},
		"no token":       {want: "--token"},
		"wrong token":    {token: "open-sesame", want: "it is not the one"},
		"other settings": {token: kept.Password, shared: map[string]string{"cluster-cidr": "10.9.0.0/16"}, want: `--cluster-cidr="10.42.0.0/16"`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			two := newcomer(t, db, "two", tt.token)
			if tt.shared != nil {
				two.plan.Shared = tt.shared
			}
			err := two.start(t.Context())
			if tt.want != "" {
				if !errors.Is(err, ErrUnfit) || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "open-sesame") {
					t.Errorf("err = %v, want ErrUnfit with %q in it, and no secret", err, tt.want)
				}
				if _, err := os.Stat(two.plan.Paths.Token()); err == nil {
					t.Error("left a token")
				}
				return
			}
			if err != nil || two.ca() != one.ca() {
				t.Errorf("err = %v; the same CA: %v", err, two.ca() == one.ca())
			}
		})
	}
	if err := one.start(t.Context()); err != nil {
		t.Errorf("second start: %v", err)
	}
}

// TestTwoBeginAtOnce: of servers that begin on an empty datastore at the same time, all
// end up in one cluster.
func TestTwoBeginAtOnce(t *testing.T) {
	db := externaltest.Start(t, "etcd")
	servers := []*keyring{newcomer(t, db, "one", "same"), newcomer(t, db, "two", "same"), newcomer(t, db, "three", "same")}
	ended := make(chan error)
	for _, s := range servers {
		go func() { ended <- s.start(t.Context()) }()
	}
	for range servers {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	for _, s := range servers[1:] {
		if s.ca() == "" || s.ca() != servers[0].ca() {
			t.Error("two servers have two CAs")
		}
	}
}

func TestEmptyDatastoreInPlaceOfTheCluster(t *testing.T) {
	one := newcomer(t, externaltest.Start(t, "etcd"), "one", "")
	if err := one.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	x := externaltest.Start(t, "etcd").External()
	x.Marker = one.plan.Storage.External.Marker
	one.plan.Storage.External = &x
	if err := one.start(t.Context()); !errors.Is(err, ErrLost) {
		t.Errorf("an empty datastore: %v, want ErrLost", err)
	}
	other := newcomer(t, externaltest.Start(t, "etcd"), "other", "")
	if err := other.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	x = *other.plan.Storage.External
	x.Marker = one.plan.Paths.DatastoreKind()
	if err := one.start(t.Context()); !errors.Is(err, ErrUnfit) {
		t.Errorf("another cluster's datastore: %v, want ErrUnfit", err)
	}
}

// TestPartialCopyIsRefused: no server starts on what a migration left unfinished.
func TestPartialCopyIsRefused(t *testing.T) {
	db := externaltest.Start(t, "etcd")
	one := newcomer(t, db, "one", "")
	c, err := vault.Dial(t.Context(), one.plan.Storage.Client())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := vault.Begin(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if err := one.start(t.Context()); !errors.Is(err, vault.ErrPartial) {
		t.Errorf("err = %v, want ErrPartial", err)
	}
	if err := vault.Finish(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if err := one.start(t.Context()); err != nil {
		t.Error(err)
	}
}
