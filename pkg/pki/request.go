package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"path/filepath"
	"time"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/paths"
)

// EnsureKey reads a private key, and makes it if there is none. It is synced to
// disk before EnsureKey returns.
func EnsureKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := readKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := atomicfile.EnsureDir(filepath.Dir(path), 0o700); err != nil {
			return nil, err
		}
		return newKey(path)
	}
	return key, err
}

// Request returns a signing request, in PEM, for the key of a leaf. The key is made
// if there is none, and stays the same from then on, so that a certificate can be
// replaced by writing one file.
func Request(p paths.Paths, l Leaf) ([]byte, error) {
	key, err := EnsureKey(l.Files(p).Key)
	if err != nil {
		return nil, err
	}
	t := &x509.CertificateRequest{Subject: pkix.Name{CommonName: l.CN, Organization: l.Orgs}}
	der, err := x509.CreateCertificateRequest(rand.Reader, t, key)
	if err != nil {
		return nil, fmt.Errorf("request for %s: %w", l.Name, err)
	}
	return encode(requestBlock, der), nil
}

// Requester returns the key that a signing request asks for, once it is clear that
// whoever made the request holds it. Nothing else in a request is to be believed.
func Requester(request []byte) (crypto.PublicKey, error) {
	block, rest := pem.Decode(request)
	if block == nil || block.Type != requestBlock || len(rest) > 0 {
		return nil, errors.New("not a certificate request in PEM")
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	// First, since checking a signature of some other kinds is dear.
	key, ok := r.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("the key of the certificate request is not an ECDSA key on P-256")
	}
	if err := r.CheckSignature(); err != nil {
		return nil, err
	}
	return key, nil
}

// Accept keeps a certificate that a CA elsewhere issued for l, after checking that
// it is what was asked for.
func Accept(p paths.Paths, l Leaf, ca *Authority, certPEM []byte, now time.Time) error {
	files := l.Files(p)
	cert, err := parseCert("answer for "+l.Name, certPEM)
	if err != nil {
		return err
	}
	if err := ca.Right(l, cert, now); err != nil {
		return fmt.Errorf("certificate %s: %w", l.Name, err)
	}
	key, err := readKey(files.Key)
	if err != nil {
		return err
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return fmt.Errorf("certificate %s: made for another key", l.Name)
	}
	return atomicfile.Write(files.Cert, certPEM, 0o644)
}

// Verifier returns an authority that can judge certificates but sign none.
func Verifier(name string, certPEM []byte) (*Authority, error) {
	cert, err := parseCert(name+" CA", certPEM)
	if err != nil {
		return nil, err
	}
	return &Authority{Name: name, Cert: cert, PEM: certPEM}, nil
}

// Identity returns a certificate that proves nothing but that its holder has key,
// to be shown in a TLS handshake.
func Identity(key *ecdsa.PrivateKey, now time.Time) (tls.Certificate, error) {
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "podo-node-identity"},
		NotBefore:    now.Add(-24 * time.Hour),
		NotAfter:     now.Add(caLife),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("identity: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
