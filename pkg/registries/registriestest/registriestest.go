// Package registriestest is what tests of image registries need of the world.
//
// The registries themselves are real ones: go-containerregistry's, in the test's process.
package registriestest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// OverTLS serves h on loopback until the test ends, with a certificate of its own that is
// good for an hour before until. It returns host and port, and the certificate's file in dir.
func OverTLS(t testing.TB, dir string, h http.Handler, until time.Time) (host, ca string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "registry"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: until.Add(-time.Hour), NotAfter: until, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	host = strings.TrimPrefix(s.URL, "https://")
	ca = filepath.Join(dir, "ca-"+strings.ReplaceAll(host, ":", "-")+".pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		t.Fatal(err)
	}
	return host, ca
}

// Basic lets in who shows the password of the user "grape", which is "sweet".
func Basic(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "grape" || password != "sweet" {
			w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// BreaksOff is h, but each blob ends in the middle when it is asked for the first time.
func BreaksOff(h http.Handler) http.Handler {
	var mu sync.Mutex
	done := map[string]bool{}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
			h.ServeHTTP(w, r)
			return
		}
		mu.Lock()
		again := done[r.URL.Path]
		done[r.URL.Path] = true
		mu.Unlock()
		rec := httptest.NewRecorder()
		part := r.Header.Get("Range")
		r.Header.Del("Range")
		h.ServeHTTP(rec, r)
		if again {
			r.Header.Set("Range", part)
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(rec.Body.Bytes()))
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(rec.Body.Len()))
		_, _ = w.Write(rec.Body.Bytes()[:rec.Body.Len()/2])
		panic(http.ErrAbortHandler)
	})
}

// Limited refuses whoever asks, as one that asked too often.
func Limited() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusTooManyRequests)
		_, _ = io.WriteString(w, `{"errors":[{"code":"TOOMANYREQUESTS","message":"come back tomorrow"}]}`)
	})
}
