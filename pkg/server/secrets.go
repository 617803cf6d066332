package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/pki"
	"github.com/podo-dev/podo/pkg/storage/vault"
	"github.com/podo-dev/podo/pkg/token"
)

var (
	// ErrUnfit means that the cluster in the datastore does not take a server with these
	// settings. Trying again is no use.
	ErrUnfit = errors.New("this server does not fit the cluster in its datastore")

	// ErrLost means that the datastore no longer holds the cluster that this server had
	// in it. Starting empty would lose the cluster silently.
	ErrLost = errors.New("datastore lost")

	errFaster = errors.New("another server was faster")
)

// receive gets what servers share from an external datastore, or is the first to put
// it there. A server that has it already does not wait for the datastore.
func (t *keyring) receive(ctx context.Context) error {
	p := t.plan.Paths
	_, err := pki.Export(p)
	if _, missing := os.Stat(p.Token()); err == nil && missing == nil {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	v, err := vault.Open(ctx, t.plan.Storage.Client())
	if err != nil {
		return err
	}
	defer v.Close()
	return insist(ctx, t.log, func() error {
		found, err := v.Read(ctx)
		if err != nil {
			return err
		}
		own, given, err := t.token()
		if err != nil {
			return final{err}
		}
		if found.Revision != 0 {
			return t.open(found, own, given)
		}
		if err := t.lost(); err != nil {
			return err
		}
		err = t.begin(ctx, v, own.Password)
		if errors.Is(err, errFaster) && !given {
			os.Remove(p.Token()) // the other server's is the cluster's
		}
		return err
	})
}

// open takes what the datastore holds.
func (t *keyring) open(found vault.Sealed, own token.Token, given bool) error {
	if !given {
		return final{fmt.Errorf("%w: the datastore holds a cluster already; give the token of its servers with --token (a server keeps it in its server/token file)", ErrUnfit)}
	}
	if own.Hash != "" && own.Hash != found.Cluster {
		return final{fmt.Errorf("%w: token: it is of another cluster than the datastore's", ErrUnfit)}
	}
	b, err := pki.Open(found.Bundle, own.Password)
	if errors.Is(err, pki.ErrSealed) {
		return final{fmt.Errorf("%w: token: it is not the one of the servers whose cluster is in the datastore; a server keeps that one in its server/token file", ErrUnfit)}
	}
	if err == nil {
		err = agree(b.Settings, t.plan.Shared)
	}
	if err == nil {
		err = b.Import(t.plan.Paths)
	}
	if err != nil {
		return final{err}
	}
	return t.remember()
}

// token is what opens the cluster's secrets, and whether anybody gave it: if not, one
// is made up.
func (t *keyring) token() (own token.Token, given bool, err error) {
	if want := t.plan.Certificates.Token; want != "" {
		own, err = token.Parse(string(want))
		return own, true, err
	}
	own, err = token.Read(t.plan.Paths.Token())
	if errors.Is(err, fs.ErrNotExist) {
		return token.Token{Password: token.Generate()}, false, nil
	}
	return own, true, err
}

// begin makes the cluster's secrets and is the first to put them into the datastore.
// They are made aside, from what people may have put in place: of two servers that
// begin at a time, one must take what the other made.
func (t *keyring) begin(ctx context.Context, v *vault.Vault, password config.Secret) error {
	p := t.plan.Paths
	aside := paths.Paths{Etc: p.Etc, Run: p.Run, Data: filepath.Join(p.Run, "first")}
	if err := os.RemoveAll(aside.Data); err != nil {
		return err
	}
	defer os.RemoveAll(aside.Data)
	if err := atomicfile.EnsureDir(filepath.Dir(aside.ServiceAccountKey()), 0o700); err != nil {
		return err
	}
	// Noted before anything is sealed with it. The CA's hash is filled in later.
	if _, err := os.Stat(p.Token()); errors.Is(err, fs.ErrNotExist) {
		if err := atomicfile.EnsureDir(filepath.Dir(p.Token()), 0o700); err != nil {
			return err
		}
		if err := atomicfile.Write(p.Token(), []byte(string(password)+"\n"), 0o600); err != nil {
			return err
		}
	}
	for to, from := range map[string]string{
		filepath.Dir(aside.CA(pki.ServerCA).Cert): filepath.Dir(p.CA(pki.ServerCA).Cert),
		aside.ServiceAccountKey():                 p.ServiceAccountKey(),
		aside.Token():                             p.Token(),
		aside.AgentToken():                        p.AgentToken(),
	} {
		if err := copyThere(to, from); err != nil {
			return err
		}
	}
	cas, err := pki.EnsureCAs(aside, time.Now)
	if err != nil {
		return final{err}
	}
	if err := pki.EnsureServiceAccountKey(aside); err != nil {
		return final{err}
	}
	if _, err := token.Ensure(aside.AgentToken(), token.Agent, t.plan.Certificates.Agent, cas[pki.ServerCA].PEM); err != nil {
		return final{err}
	}
	if _, err := put(ctx, v, vault.Sealed{}, aside, t.plan.Shared); err != nil {
		return err
	}
	b, err := pki.Export(aside)
	if err != nil {
		return err
	}
	if err := b.Import(p); err != nil {
		return final{err}
	}
	return t.remember()
}

// copyThere copies a file or a folder that may be missing.
func copyThere(to, from string) error {
	info, err := os.Stat(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.IsDir() {
		return os.CopyFS(to, os.DirFS(from))
	}
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return atomicfile.Write(to, text, 0o600, atomicfile.Unsynced())
}

// agree refuses a server that would run the cluster differently.
func agree(cluster, own map[string]string) error {
	var wrong []string
	for _, name := range slices.Sorted(maps.Keys(cluster)) {
		if asked, known := own[name]; known && asked != cluster[name] {
			wrong = append(wrong, fmt.Sprintf("%s: the cluster has %q, this server asks for %q; start it with --%s=%q", name, cluster[name], asked, name, cluster[name]))
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("%w: %s", ErrUnfit, strings.Join(wrong, "; "))
	}
	return nil
}

// externalMark is what the marker of a server says whose cluster is in a datastore
// elsewhere.
const externalMark = "external\n"

// remember notes that this server's cluster is in a datastore elsewhere.
func (t *keyring) remember() error {
	if t.plan.Storage.External == nil {
		return nil
	}
	_, err := atomicfile.WriteIfChanged(t.plan.Storage.External.Marker, []byte(externalMark), 0o600)
	return err
}

// lost refuses an empty datastore where this server once had a cluster.
func (t *keyring) lost() error {
	x := t.plan.Storage.External
	if x == nil {
		return nil
	}
	if text, err := os.ReadFile(x.Marker); err != nil || string(text) != externalMark {
		return nil
	}
	return final{fmt.Errorf("%w: %s at %s is empty, but this server had a cluster there: put it back from a backup, or give its endpoint if it was moved; "+
		"to give the cluster up and begin another, run podo uninstall first", ErrLost, x.Product(), x.Where)}
}

// final is an error that trying again does not help.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

// insist tries until it works or ctx ends, or until an error is final. It says once why it
// has to try again.
func insist(ctx context.Context, log *slog.Logger, try func() error) error {
	said := ""
	for pause := 300 * time.Millisecond; ctx.Err() == nil; pause = min(2*pause, 5*time.Second) {
		err := try()
		if err == nil || errors.Is(err, vault.ErrPartial) {
			return err
		}
		if f, ok := errors.AsType[final](err); ok {
			return f.error
		}
		if text := err.Error(); text != said && !errors.Is(err, errFaster) {
			log.Warn("datastore's secrets not settled yet, trying on", "component", "secrets", "err", err)
			said = text
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return nil
}
