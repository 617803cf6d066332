package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/pki"
	"github.com/podo-dev/podo/pkg/storage/vault"
	"github.com/podo-dev/podo/pkg/token"
)

// tokens are the lasting ones of a cluster, as its servers tell them to each other.
// Its JSON form is concealed before it leaves a server.
type tokens struct {
	Generation int               `json:"generation"` // grows with each change
	Server     string            `json:"server"`
	Agent      string            `json:"agent"`
	Settings   map[string]string `json:"settings"` // that the bundle beside them holds
}

// equal reports whether the tokens are the same, whatever else differs.
func (t tokens) equal(o tokens) bool { return t.Server == o.Server && t.Agent == o.Agent }

// secrets keeps in the datastore, sealed, what servers share: so that a further server
// of an external datastore needs its address and the token alone, and a snapshot of an
// embedded one is a whole cluster. A token that is replaced on one server gets to the
// others by it.
func (t *keyring) secrets() lifecycle.Component {
	return lifecycle.Func("secrets", func(ctx context.Context, ready func()) error {
		files, err := fsnotify.NewWatcher()
		if err != nil {
			return fmt.Errorf("watch the tokens: %w", err)
		}
		defer files.Close()
		if err := files.Add(filepath.Dir(t.plan.Paths.Token())); err != nil {
			return fmt.Errorf("watch the tokens: %w", err)
		}
		v, err := vault.Open(ctx, t.plan.Storage.Client())
		if err != nil {
			return err
		}
		defer v.Close()
		settings := t.plan.Shared
		for {
			var found vault.Sealed
			err := insist(ctx, t.log, func() (err error) {
				found, err = t.settle(ctx, v, settings)
				return err
			})
			if err != nil || ctx.Err() != nil {
				return err
			}
			ready()
			settings = nil
			if t.idle(ctx, v, found, files); ctx.Err() != nil {
				return nil
			}
		}
	})
}

// idle waits until a token may have changed, here or in the datastore, and then a
// little longer: two files may be about to.
func (t *keyring) idle(ctx context.Context, v *vault.Vault, found vault.Sealed, files *fsnotify.Watcher) {
	ctx, end := context.WithCancel(ctx)
	defer end()
	changed := v.Changed(ctx, found)
	for waiting := true; waiting; {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			waiting = false
		case e := <-files.Events:
			waiting = e.Name != t.plan.Paths.Token() && e.Name != t.plan.Paths.AgentToken()
		case <-files.Errors: // events were lost
			waiting = false
		}
	}
	select {
	case <-ctx.Done():
	case <-time.After(300 * time.Millisecond):
	}
}

// settle makes this server and the datastore hold the same tokens, and the datastore
// what this server has. It returns what it has found. A start gives the settings that
// are to be kept; nil keeps those of the server that started last.
func (t *keyring) settle(ctx context.Context, v *vault.Vault, settings map[string]string) (vault.Sealed, error) {
	found, err := v.Read(ctx)
	if err != nil {
		return found, err
	}
	if found.Revision == 0 {
		if err := t.lost(); err != nil {
			return found, err
		}
		return found, t.deposit(ctx, v, found, t.plan.Shared)
	}
	cas, err := t.authorities()
	if err != nil {
		return found, err
	}
	there, err := reveal(t.plan.Paths, found.Tokens)
	if found.Cluster != token.Hash(cas[pki.ServerCA].PEM) || err != nil {
		return found, final{fmt.Errorf("%w: the datastore holds another one; give the endpoint of this server's own cluster, or run podo uninstall to give that up", ErrUnfit)}
	}
	base, err := agreed(t.plan.Paths)
	if err != nil {
		return found, err
	}
	here, err := kept(t.plan.Paths)
	if err != nil {
		return found, err
	}
	want := merge(base, here, there)
	if err := t.take(base, here, want); err != nil {
		return found, err
	}
	if settings == nil {
		settings = there.Settings
	}
	if !want.equal(there) || !maps.Equal(settings, there.Settings) {
		return found, t.deposit(ctx, v, found, settings)
	}
	return found, errors.Join(t.agree(found.Tokens), t.remember())
}

// merge is what the tokens are to be, given those that were agreed upon last. What was
// replaced on one side goes to the other. On both, the datastore's counts, unless that
// is older than what was agreed upon: then it was put back from a backup.
func merge(base, here, there tokens) tokens {
	if there.Generation < base.Generation {
		return here
	}
	pick := func(base, here, there string) string {
		if there == base {
			return here
		}
		return there
	}
	return tokens{Server: pick(base.Server, here.Server, there.Server), Agent: pick(base.Agent, here.Agent, there.Agent)}
}

// take replaces the tokens in this server's files by others.
func (t *keyring) take(base, here, want tokens) error {
	for _, f := range []struct {
		path, user       string
		base, here, want string
	}{
		{t.plan.Paths.Token(), token.Server, base.Server, here.Server, want.Server},
		{t.plan.Paths.AgentToken(), token.Agent, base.Agent, here.Agent, want.Agent},
	} {
		if f.here == f.want {
			continue
		}
		if _, err := token.Replace(f.path, f.user, config.Secret(f.want)); err != nil {
			return err
		}
		if f.base != "" && f.base != f.here {
			t.log.Warn("token was replaced on another server as well, and that one counts", "component", "secrets", "path", f.path)
			continue
		}
		t.log.Info("token was replaced on another server", "component", "secrets", "path", f.path)
	}
	return nil
}

// deposit puts what this server has into the datastore, in the place of before.
func (t *keyring) deposit(ctx context.Context, v *vault.Vault, before vault.Sealed, settings map[string]string) error {
	next, err := put(ctx, v, before, t.plan.Paths, settings)
	if err != nil {
		return err
	}
	t.log.Info("cluster's secrets sealed in the datastore", "component", "secrets")
	return errors.Join(t.agree(next.Tokens), t.remember())
}

// put seals what p holds, and puts it into the datastore in the place of before.
func put(ctx context.Context, v *vault.Vault, before vault.Sealed, p paths.Paths, settings map[string]string) (vault.Sealed, error) {
	next, err := seal(p, settings, before)
	if err != nil {
		return next, err
	}
	ok, err := v.Write(ctx, before, next)
	if err == nil && !ok {
		err = errFaster
	}
	return next, err
}

// agree notes what the servers have agreed upon.
func (t *keyring) agree(concealed []byte) error {
	_, err := atomicfile.WriteIfChanged(t.plan.Paths.AgreedTokens(), concealed, 0o600)
	return err
}

// Sealed is what a datastore is given of the cluster whose server has p.
func Sealed(p paths.Paths, settings map[string]string) ([]byte, error) {
	s, err := seal(p, settings, vault.Sealed{})
	return s.Encode(), err
}

// seal seals what p holds, as later than before and than what its server agreed upon.
func seal(p paths.Paths, settings map[string]string, before vault.Sealed) (vault.Sealed, error) {
	b, err := pki.Export(p)
	if err != nil {
		return vault.Sealed{}, err
	}
	b.Settings = settings
	ca, err := os.ReadFile(p.CA(pki.ServerCA).Cert)
	if err != nil {
		return vault.Sealed{}, err
	}
	base, err := agreed(p)
	if err != nil {
		return vault.Sealed{}, err
	}
	var there tokens
	if len(before.Tokens) > 0 {
		if there, err = reveal(p, before.Tokens); err != nil {
			return vault.Sealed{}, err
		}
	}
	now, err := kept(p)
	if err != nil {
		return vault.Sealed{}, err
	}
	now.Generation, now.Settings = max(base.Generation, there.Generation)+1, settings
	text, err := json.Marshal(now)
	if err != nil {
		return vault.Sealed{}, err
	}
	concealed, err := pki.Conceal(p, text)
	if err != nil {
		return vault.Sealed{}, err
	}
	bundle, err := pki.Seal(b, config.Secret(now.Server))
	return vault.Sealed{Cluster: token.Hash(ca), Tokens: concealed, Bundle: bundle}, err
}

// kept are the tokens in the files of a server.
func kept(p paths.Paths) (tokens, error) {
	server, err1 := token.Read(p.Token())
	agent, err2 := token.Read(p.AgentToken())
	return tokens{Server: string(server.Password), Agent: string(agent.Password)}, errors.Join(err1, err2)
}

// agreed are the tokens that a server last agreed upon with the others: none if it
// never did, or with another cluster.
func agreed(p paths.Paths) (tokens, error) {
	concealed, err := os.ReadFile(p.AgreedTokens())
	if errors.Is(err, fs.ErrNotExist) {
		return tokens{}, nil
	}
	if err != nil {
		return tokens{}, err
	}
	base, err := reveal(p, concealed)
	if errors.Is(err, pki.ErrConcealed) {
		return tokens{}, nil
	}
	return base, err
}

// reveal reads what a server of the same cluster has concealed.
func reveal(p paths.Paths, concealed []byte) (tokens, error) {
	var out tokens
	text, err := pki.Reveal(p, concealed)
	if err == nil {
		// What json says could quote a token.
		if json.NewDecoder(bytes.NewReader(text)).Decode(&out) != nil {
			err = pki.ErrConcealed
		}
	}
	return out, err
}
