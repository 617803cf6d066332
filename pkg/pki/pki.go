// Package pki makes and keeps a cluster's certificates.
//
// What exists is a table (table.go). Ensure makes the disk agree with it: it keeps
// what is still right, replaces leaves that are not, and never replaces a
// certificate authority, since that would be another cluster. It may be killed at
// any moment; the next call completes what was begun, with the same authorities.
package pki

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/paths"
)

// Authorities holds every CA by name.
type Authorities map[string]*Authority

// Ensure makes everything that a server and its node need: the CAs, the
// service-account key, the leaves, and the node's copies of CA certificates. It
// returns the CAs and the names of the leaves it issued.
func Ensure(p paths.Paths, leaves []Leaf, now func() time.Time) (Authorities, []string, error) {
	cas, err := EnsureCAs(p, now)
	if err != nil {
		return nil, nil, err
	}
	var issued []string
	err = together(
		func() error { return EnsureServiceAccountKey(p) },
		func() (err error) { issued, err = EnsureLeaves(p, cas, leaves, now); return err },
		func() error {
			if !slices.ContainsFunc(leaves, func(l Leaf) bool { return l.Node }) {
				return nil
			}
			return CopyCAs(p, map[string][]byte{ServerCA: cas[ServerCA].PEM, ClientCA: cas[ClientCA].PEM})
		},
	)
	if err != nil {
		return nil, nil, err
	}
	return cas, issued, nil
}

// EnsureCAs loads the certificate authorities and makes those that are missing.
func EnsureCAs(p paths.Paths, now func() time.Time) (Authorities, error) {
	names := authorities()
	cas, at := make([]*Authority, len(names)), now()
	var work []func() error
	for i, name := range names {
		work = append(work, func() (err error) {
			cas[i], err = ensureAuthority(name, p.CA(name), at)
			return err
		})
	}
	if err := together(work...); err != nil {
		return nil, fmt.Errorf("certificates: %w", err)
	}
	out := Authorities{}
	for i, name := range names {
		out[name] = cas[i]
	}
	return out, nil
}

// EnsureServiceAccountKey makes the key that signs service-account tokens, once.
func EnsureServiceAccountKey(p paths.Paths) error {
	path := p.ServiceAccountKey()
	_, err := readKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = atomicfile.EnsureDir(filepath.Dir(path), 0o700); err == nil {
			_, err = newKey(path)
		}
	}
	if err != nil {
		return fmt.Errorf("service-account key: %w", err)
	}
	return nil
}

// EnsureLeaves issues the leaves that are missing, damaged or no longer Right, and
// returns their names. A leaf is always replaced as a whole, with a new key.
func EnsureLeaves(p paths.Paths, cas Authorities, leaves []Leaf, now func() time.Time) ([]string, error) {
	issued, at := make([]string, len(leaves)), now()
	var work []func() error
	for i, l := range leaves {
		work = append(work, func() error {
			ca := cas[l.CA]
			if ca == nil {
				return fmt.Errorf("certificate %s: no CA named %q here", l.Name, l.CA)
			}
			files := l.Files(p)
			if kept(ca, l, files, at) {
				return nil
			}
			if err := issue(ca, l, files, at); err != nil {
				return fmt.Errorf("certificate %s: %w", l.Name, err)
			}
			issued[i] = l.Name
			return nil
		})
	}
	err := together(work...)
	return slices.DeleteFunc(issued, func(name string) bool { return name == "" }), err
}

// CopyCAs writes a node's copies of CA certificates, given in PEM by name.
func CopyCAs(p paths.Paths, bundles map[string][]byte) error {
	for name, bundle := range bundles {
		path := p.AgentCA(name)
		if err := atomicfile.EnsureDir(filepath.Dir(path), 0o700); err != nil {
			return fmt.Errorf("copy of the %s CA: %w", name, err)
		}
		if _, err := atomicfile.WriteIfChanged(path, bundle, 0o644, atomicfile.Unsynced()); err != nil {
			return fmt.Errorf("copy of the %s CA: %w", name, err)
		}
	}
	return nil
}

// kept reports whether the files on disk serve as l. Anything unreadable does
// not: leaves cost nothing to replace.
func kept(ca *Authority, l Leaf, files paths.Pair, now time.Time) bool {
	cert, err := Load(files)
	return err == nil && ca.Right(l, cert, now) == nil
}

// Load reads a certificate and checks that the key beside it is its own.
func Load(files paths.Pair) (*x509.Certificate, error) {
	text, err := os.ReadFile(files.Cert)
	if err != nil {
		return nil, err
	}
	cert, err := parseCert(files.Cert, text)
	if err != nil {
		return nil, err
	}
	key, err := readKey(files.Key)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("%s and %s do not belong together", files.Cert, files.Key)
	}
	return cert, nil
}

// issue does not wait for the disk: a leaf that a power cut damages is replaced.
func issue(ca *Authority, l Leaf, files paths.Pair, now time.Time) error {
	if err := atomicfile.EnsureDir(filepath.Dir(files.Key), 0o700); err != nil {
		return err
	}
	key, err := newKey(files.Key, atomicfile.Unsynced())
	if err != nil {
		return err
	}
	cert, err := ca.Sign(l, &key.PublicKey, now)
	if err != nil {
		return err
	}
	return atomicfile.Write(files.Cert, cert, 0o644, atomicfile.Unsynced())
}

// together runs work in parallel, since much of its time is spent waiting for the
// disk, and returns all errors.
func together(work ...func() error) error {
	errs := make([]error, len(work))
	var group sync.WaitGroup
	for i, do := range work {
		group.Go(func() { errs[i] = do() })
	}
	group.Wait()
	return errors.Join(errs...)
}
