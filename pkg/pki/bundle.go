package pki

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/paths"
)

// bundleVersion is raised when what servers share becomes another set of files, as
// by a further authority.
const bundleVersion = 1

// ErrOtherCluster means that a data directory holds another cluster's secrets than
// those it was to receive. Neither is worth less, so only a person can choose.
var ErrOtherCluster = errors.New("differs from the cluster's")

// A Bundle is what the servers of one cluster share: the certificate authorities
// with their keys, the key of service-account tokens and the agents' token.
//
// The secrets are in a closure that only Seal and Import call, so that no printing,
// logging or marshalling of a Bundle, or of what holds one, shows them. A pointer
// would not do: for a verb that does not suit it, fmt prints what is behind.
type Bundle struct {
	// Settings are the cluster-wide settings by name. Whoever exports a bundle
	// fills them in, and whoever opens it compares them; Import leaves them alone.
	Settings map[string]string

	files func() secrets
}

// secrets are whole files, byte for byte, by the names of sharedFiles.
type secrets map[string][]byte

// sharedFile is one file that servers share.
type sharedFile struct {
	name string // in bundles, for good
	path string
	mode fs.FileMode

	remedy string // if the file there is another one
}

// sharedFiles lists what servers share in the order in which it is written: each
// key before its certificate, as ensureAuthority does.
func sharedFiles(p paths.Paths) []sharedFile {
	const foreign = "run podo uninstall to give up the cluster that is here, or restore the file from a backup of this one"
	var out []sharedFile
	for _, name := range authorities() {
		ca := p.CA(name)
		out = append(out,
			sharedFile{"ca/" + name + ".key", ca.Key, 0o600, foreign},
			sharedFile{"ca/" + name + ".crt", ca.Cert, 0o644, foreign},
		)
	}
	return append(out,
		sharedFile{"service-account.key", p.ServiceAccountKey(), 0o600, foreign},
		sharedFile{"agent-token", p.AgentToken(), 0o600, "move the file away to take the cluster's"},
	)
}

// authorities names every CA. All servers of a cluster have all of them.
func authorities() []string {
	return []string{ServerCA, KubeletCA, ClientCA, RequestHeaderCA, EtcdCA}
}

// Export reads what this server shares with others. It must have been made whole,
// by Ensure and token.Ensure.
func Export(p paths.Paths) (Bundle, error) {
	files := secrets{}
	for _, f := range sharedFiles(p) {
		text, err := os.ReadFile(f.path)
		if err != nil {
			return Bundle{}, fmt.Errorf("export the cluster's secrets: %w", err)
		}
		files[f.name] = text
	}
	b := Bundle{files: func() secrets { return files }}
	if err := b.check(); err != nil {
		return Bundle{}, fmt.Errorf("export the cluster's secrets: %w", err)
	}
	return b, nil
}

// Import writes what is missing in p and replaces nothing: if anything there
// differs, it returns ErrOtherCluster and has written nothing. It may be killed at
// any moment; the next call completes what was begun. Until then Ensure must not be
// called, since it would make up what is missing.
func (b Bundle) Import(p paths.Paths) error {
	if err := b.check(); err != nil {
		return fmt.Errorf("import the cluster's secrets: %w", err)
	}
	var missing []sharedFile
	var errs []error
	for _, f := range sharedFiles(p) {
		text, err := os.ReadFile(f.path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			missing = append(missing, f)
		case err != nil:
			errs = append(errs, err)
		case !bytes.Equal(text, b.files()[f.name]):
			errs = append(errs, fmt.Errorf("%s %w; %s", f.path, ErrOtherCluster, f.remedy))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("import the cluster's secrets: %w", err)
	}
	for _, f := range missing {
		if err := atomicfile.EnsureDir(filepath.Dir(f.path), 0o700); err != nil {
			return fmt.Errorf("import the cluster's secrets: %w", err)
		}
		if err := atomicfile.Write(f.path, b.files()[f.name], f.mode); err != nil {
			return fmt.Errorf("import the cluster's secrets: %w", err)
		}
	}
	return nil
}

// check refuses a bundle that is not whole, before a server is made of it that
// cannot start. Files are called by their places below the server's folders.
func (b Bundle) check() error {
	shared := sharedFiles(paths.Paths{})
	if b.files == nil || len(b.files()) != len(shared) {
		return fmt.Errorf("the bundle does not hold the %d files that servers share", len(shared))
	}
	files := b.files()
	for _, f := range shared {
		if len(files[f.name]) == 0 {
			return fmt.Errorf("%s is missing or empty", f.name)
		}
	}
	if _, err := parseKey(files["service-account.key"]); err != nil {
		return fmt.Errorf("service-account.key is no private key, %w", err)
	}
	for _, name := range authorities() {
		key, err := parseKey(files["ca/"+name+".key"])
		if err != nil {
			return fmt.Errorf("ca/%s.key is no private key, %w", name, err)
		}
		cert, err := parseCert("ca/"+name+".crt", files["ca/"+name+".crt"])
		if err != nil {
			return err
		}
		if !cert.IsCA || !key.PublicKey.Equal(cert.PublicKey) {
			return fmt.Errorf("ca/%s.crt is not the certificate of a CA with the key in ca/%s.key", name, name)
		}
	}
	return nil
}
