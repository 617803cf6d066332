package e2e

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crypto/x509/pkix"
)

// startRefused starts the shared cluster's server where it has to refuse.
func startRefused(t *testing.T, what string, code int, words ...string) {
	t.Helper()
	s := bootWith(t, nil, theCluster.flags...)
	if got := s.ended(t, 30*time.Second); got != code {
		t.Errorf("%s: exit code %d, want %d", what, got, code)
	}
	if err := contains(s.written(), words...); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

func refusesDamagedDatastore(t *testing.T) {
	clusterRuns(t)
	w := witnesses(t)
	theCluster.stop(t)
	db, file := theCluster.dir.DB(), theCluster.dir.StateDB()
	good := filepath.Join(room(), "good-db")
	copyTree(t, db, good)
	restore := func() {
		t.Helper()
		if err := os.RemoveAll(db); err != nil {
			t.Fatal(err)
		}
		copyTree(t, good, db)
	}
	t.Cleanup(func() {
		if !theCluster.running() {
			restore() // for the tests that follow
		}
	})
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func() error{
		"cut off": func() error { return os.Truncate(file, info.Size()/2) },
		"garbage": func() error { return os.WriteFile(file, []byte(strings.Repeat("garbage ", 10000)), 0o600) },
		"empty":   func() error { return os.Truncate(file, 0) },
		"a page of zeros": func() error {
			f, err := os.OpenFile(file, os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteAt(make([]byte, 8192), 4096)
				f.Close()
			}
			return err
		},
	} {
		restore()
		for _, beside := range []string{file + "-wal", file + "-shm"} {
			_ = os.Remove(beside)
		}
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		same := unchanged(t, file)
		startRefused(t, name, 1, "datastore", file, "backup")
		same()
	}

	// Never an empty cluster beside a node that has been in one.
	for name, lost := range map[string][]string{
		"the file": {file, file + "-wal", file + "-shm"}, "its folder and the note beside it": {db, theCluster.dir.DatastoreKind()},
	} {
		restore()
		for _, path := range lost {
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
		}
		startRefused(t, name+" is missing", 1, file, "backup", "podo uninstall")
		if _, err := os.Stat(file); err == nil {
			t.Errorf("%s was lost, and a new datastore made beside an old node", name)
		}
	}

	// A kill leaves the latest writes in the log.
	restore()
	startCluster(t)
	w.kubectl("create", "configmap", "written-last")
	theCluster.crash(t)
	if err := os.RemoveAll(good); err != nil {
		t.Fatal(err)
	}
	copyTree(t, db, good)
	for name, spoil := range map[string]func() error{
		"the log is missing": func() error { return os.Remove(file + "-wal") },
		"a byte of the log": func() error {
			text, err := os.ReadFile(file + "-wal")
			if err == nil {
				text[1000] ^= 1
				err = os.WriteFile(file+"-wal", text, 0o600)
			}
			return err
		},
	} {
		restore()
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		same := unchanged(t, file)
		startRefused(t, name, 1, "datastore", file+"-wal", "backup", "truncate")
		same()
	}

	w.ok(w.works()) // through all of it
	restore()
	startCluster(t)
	w.kubectl("get", "configmap", "written-last")
	w.noticedNothing()
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
}

func refusesWrongClock(t *testing.T) {
	clusterRuns(t)
	theCluster.stop(t)
	pair := theCluster.dir.CA("server")
	good, err := os.ReadFile(pair.Cert)
	if err != nil {
		t.Fatal(err)
	}
	restore := func() {
		if err := os.WriteFile(pair.Cert, good, 0o644); err != nil {
			t.Error(err)
		}
	}
	defer restore()
	// Turning the machine's clock back would hurt everybody on it, so the CA is turned
	// forward.
	if err := os.WriteFile(pair.Cert, later(t, pair.Key, good, 48*time.Hour), 0o644); err != nil {
		t.Fatal(err)
	}
	same := unchanged(t, pair.Cert, pair.Key, theCluster.dir.Token())
	startRefused(t, "a clock behind", 1, "clock", time.Now().UTC().Add(48*time.Hour).Format("2006-01-02"))
	same()
	restore()
	startCluster(t)
}

// later is a CA like the given one, that begins so much later.
func later(t *testing.T, keyFile string, cert []byte, by time.Duration) []byte {
	t.Helper()
	text, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	var key *ecdsa.PrivateKey
	if k, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
		key = k.(*ecdsa.PrivateKey)
	} else if key, err = x509.ParseECPrivateKey(block.Bytes); err != nil {
		t.Fatal(err)
	}
	block, _ = pem.Decode(cert)
	old, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: old.Subject.CommonName},
		NotBefore: time.Now().Add(by), NotAfter: old.NotAfter.Add(by),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: old.KeyUsage, SubjectKeyId: old.SubjectKeyId,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func refusesNewerLayout(t *testing.T) {
	clusterRuns(t)
	theCluster.stop(t)
	file := theCluster.dir.Layout()
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	defer write(t, file, string(good))
	write(t, file, "99\n")
	same := unchanged(t, file, theCluster.dir.StateDB())
	startRefused(t, "a newer layout", 2, theCluster.dir.Data, "newer podo", "99")
	same()
	write(t, file, string(good))

	ran := theCluster.dir.Kubernetes()
	before, err := os.ReadFile(ran)
	if err != nil {
		t.Fatal(err)
	}
	defer write(t, ran, string(before))
	write(t, ran, "v1.999.0+podo1\n")
	same = unchanged(t, ran, theCluster.dir.StateDB())
	startRefused(t, "data of a newer minor version of Kubernetes", 2, theCluster.dir.Data, "newer podo", "v1.999.0+podo1")
	same()
	write(t, ran, string(before))
	startCluster(t)
}
