package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/paths"
)

const (
	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 365 * 24 * time.Hour

	// backdate lets machines whose clocks run behind accept a certificate at once.
	backdate = time.Hour
	// skew is how far behind its CA's start the clock may be without complaint.
	skew = time.Minute
)

// ErrKeyMissing means a CA certificate is there and its key is not, so that
// nothing more can be signed in its name. Only a backup helps.
var ErrKeyMissing = errors.New("private key is missing")

// A ClockError says that the time is outside a certificate authority's life. One
// of clock and authority is wrong, and only a person knows which.
type ClockError struct {
	CA              string
	Now, Start, End time.Time
}

func (e *ClockError) Error() string {
	const layout = "2006-01-02 15:04:05 MST"
	now := e.Now.UTC().Format(layout)
	if e.Now.Before(e.Start) {
		return fmt.Sprintf("the clock says %s but the cluster's %s CA starts %s; set the clock", now, e.CA, e.Start.UTC().Format(layout))
	}
	return fmt.Sprintf("the clock says %s but the cluster's %s CA ended %s; set the clock if it is wrong, otherwise the cluster needs new CAs", now, e.CA, e.End.UTC().Format(layout))
}

// An Authority signs certificates.
type Authority struct {
	Name string
	Cert *x509.Certificate
	PEM  []byte // the certificate file, byte for byte
	key  *ecdsa.PrivateKey
}

// ensureAuthority loads a CA, or makes it if it was never finished. The key is
// written first: a crash leaves a key that the next start completes, never a
// certificate that nobody can sign for.
func ensureAuthority(name string, files paths.Pair, now time.Time) (*Authority, error) {
	certPEM, certErr := os.ReadFile(files.Cert)
	if certErr != nil && !errors.Is(certErr, fs.ErrNotExist) {
		return nil, certErr
	}
	key, keyErr := readKey(files.Key)
	switch {
	case errors.Is(keyErr, fs.ErrNotExist) && certErr == nil:
		return nil, fmt.Errorf("%s CA: %w: %s has no %s beside it; restore both from a backup", name, ErrKeyMissing, files.Cert, files.Key)
	case errors.Is(keyErr, fs.ErrNotExist):
		if err := atomicfile.EnsureDir(filepath.Dir(files.Key), 0o700); err != nil {
			return nil, err
		}
		if key, keyErr = newKey(files.Key); keyErr != nil {
			return nil, keyErr
		}
	case keyErr != nil:
		return nil, fmt.Errorf("%s CA: %w", name, keyErr)
	}

	if certErr != nil { // not there
		der, err := selfSign(name, key, now)
		if err != nil {
			return nil, fmt.Errorf("%s CA: sign: %w", name, err)
		}
		certPEM = encode(certBlock, der)
		if err := atomicfile.Write(files.Cert, certPEM, 0o644); err != nil {
			return nil, err
		}
	}
	cert, err := parseCert(files.Cert, certPEM)
	if err != nil {
		return nil, fmt.Errorf("%s CA: %w", name, err)
	}
	a := &Authority{Name: name, Cert: cert, PEM: certPEM, key: key}
	return a, a.check(files, now)
}

func (a *Authority) check(files paths.Pair, now time.Time) error {
	if !a.key.PublicKey.Equal(a.Cert.PublicKey) {
		return fmt.Errorf("%s CA: %s and %s do not belong together; restore both from a backup", a.Name, files.Cert, files.Key)
	}
	if !a.Cert.IsCA || a.Cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return fmt.Errorf("%s CA: the certificate in %s may not sign others; restore it from a backup", a.Name, files.Cert)
	}
	if now.Before(a.Cert.NotBefore.Add(-skew)) || now.After(a.Cert.NotAfter) {
		return &ClockError{CA: a.Name, Now: now, Start: a.Cert.NotBefore, End: a.Cert.NotAfter}
	}
	return nil
}

func selfSign(name string, key *ecdsa.PrivateKey, now time.Time) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: fmt.Sprintf("podo-%s-ca@%d", name, now.Unix())},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	return x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
}

// Sign issues a leaf for the holder of a key and returns it in PEM. It never
// outlives the authority.
func (a *Authority) Sign(l Leaf, holder crypto.PublicKey, now time.Time) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: l.CN, Organization: l.Orgs, SerialNumber: l.Holder},
		NotBefore:             later(now.Add(-backdate), a.Cert.NotBefore),
		NotAfter:              earlier(now.Add(leafLife), a.Cert.NotAfter),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           l.extUsage(),
		BasicConstraintsValid: true,
		DNSNames:              l.DNS,
	}
	for _, ip := range l.IPs {
		t.IPAddresses = append(t.IPAddresses, net.IP(ip.AsSlice()))
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.Cert, holder, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", l.Name, err)
	}
	return encode(certBlock, der), nil
}

// Right reports why a certificate does not serve as l, or nil if it does and
// has more than a third of its life before it.
func (a *Authority) Right(l Leaf, cert *x509.Certificate, now time.Time) error {
	if err := cert.CheckSignatureFrom(a.Cert); err != nil {
		return fmt.Errorf("not signed by the %s CA: %w", a.Name, err)
	}
	if !slices.Equal(cert.ExtKeyUsage, l.extUsage()) {
		return errors.New("made for another use")
	}
	if cert.Subject.CommonName != l.CN || !sameSet(cert.Subject.Organization, l.Orgs) {
		return fmt.Errorf("made for %q", cert.Subject.CommonName)
	}
	for _, name := range l.DNS {
		if !slices.Contains(cert.DNSNames, name) {
			return fmt.Errorf("lacks the name %s", name)
		}
	}
	for _, ip := range l.IPs {
		if !containsIP(cert.IPAddresses, net.IP(ip.AsSlice())) {
			return fmt.Errorf("lacks the address %s", ip)
		}
	}
	if now.Before(cert.NotBefore) {
		return fmt.Errorf("starts %s", cert.NotBefore.UTC().Format(time.RFC3339))
	}
	life := cert.NotAfter.Sub(cert.NotBefore)
	if cert.NotAfter.Sub(now) <= life/3 {
		return fmt.Errorf("ends %s", cert.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

func newSerial() (*big.Int, error) {
	// Positive and at most 20 octets, as RFC 5280 wants.
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

func newKey(path string, opts ...atomicfile.Option) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, atomicfile.Write(path, encode(keyBlock, der), 0o600, opts...)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func containsIP(have []net.IP, want net.IP) bool {
	return slices.ContainsFunc(have, want.Equal)
}

func sameSet(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	for _, s := range a {
		if !slices.Contains(b, s) {
			return false
		}
	}
	return true
}
