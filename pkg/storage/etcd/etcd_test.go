package etcd

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/plan"
)

// trust is the certificates of one cluster.
type trust struct {
	ca  string
	all paths.Pair // shown as server, member and caller
}

func newTrust(t *testing.T) trust {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	must := func(der []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	caKey, leafKey := key(), key()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "etcd"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "member"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	return trust{
		ca: write("ca.crt", "CERTIFICATE", must(x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey))),
		all: paths.Pair{
			Cert: write("leaf.crt", "CERTIFICATE", must(x509.CreateCertificate(rand.Reader, leaf, ca, &leafKey.PublicKey, caKey))),
			Key:  write("leaf.key", "EC PRIVATE KEY", must(x509.MarshalECPrivateKey(leafKey))),
		},
	}
}

// lines collects a log.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// server is one server of a test, over all its starts.
type server struct {
	cfg plan.Etcd
	log lines

	*Store
	cancel  context.CancelFunc
	done    chan error
	isReady chan struct{}
}

func port(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func newServer(t *testing.T, tr trust, node string, members ...*server) *server {
	t.Helper()
	dir := t.TempDir()
	sockets, err := os.MkdirTemp("", "etcd") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(sockets) })
	s := &server{cfg: plan.Etcd{
		Node: node, Dir: filepath.Join(dir, "db", "etcd"), Socket: filepath.Join(sockets, "etcd.sock"),
		Peer: port(t), Client: port(t), CA: tr.ca, Server: tr.all, Member: tr.all, Caller: tr.all, Init: len(members) == 0,
	}}
	for _, m := range members {
		s.cfg.Join = append(s.cfg.Join, "https://"+m.cfg.Client.String())
	}
	return s
}

// begin starts the server and does not wait.
func (s *server) begin(t *testing.T) *server {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s.Store = New(s.cfg, slog.New(slog.NewTextHandler(&s.log, nil)))
	s.pulse, s.every = 100*time.Millisecond, 500*time.Millisecond
	s.cancel, s.done, s.isReady = cancel, make(chan error, 1), make(chan struct{})
	store, done, ready := s.Store, s.done, s.isReady
	go func() { done <- store.Run(ctx, func() { close(ready) }) }()
	t.Cleanup(cancel)
	return s
}

// ready waits for a server that was begun.
func (s *server) ready(t *testing.T) *server {
	t.Helper()
	select {
	case <-s.isReady:
	case err := <-s.done:
		t.Fatalf("%s ended before it was ready: %v\n%s", s.cfg.Node, err, s.log.String())
	case <-time.After(40 * time.Second):
		t.Fatalf("%s is not ready, and waits for %q\n%s", s.cfg.Node, s.Waiting(), s.log.String())
	}
	return s
}

func (s *server) start(t *testing.T) *server {
	t.Helper()
	return s.begin(t).ready(t)
}

// fails waits for the end of a server that cannot go on.
func (s *server) fails(t *testing.T) error {
	t.Helper()
	select {
	case err := <-s.done:
		if err == nil {
			t.Fatalf("%s ended without a reason", s.cfg.Node)
		}
		return err
	case <-time.After(30 * time.Second):
		t.Fatalf("%s goes on, and waits for %q\n%s", s.cfg.Node, s.Waiting(), s.log.String())
		return nil
	}
}

func (s *server) stop(t *testing.T) {
	t.Helper()
	began := time.Now()
	s.cancel()
	select {
	case err := <-s.done:
		if err != nil {
			t.Fatalf("stop of %s: %v", s.cfg.Node, err)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("%s does not stop", s.cfg.Node)
	}
	if took := time.Since(began); took > 2500*time.Millisecond {
		t.Errorf("%s took %s to stop", s.cfg.Node, took)
	}
	// What is left behind of a stop that took too long ends with the process, which
	// here goes on.
	eventually(t, "the port is free", func() bool {
		conn, err := net.Dial("tcp", s.cfg.Peer.String())
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
}

// kill ends a server without a word to the others.
func (s *server) kill(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	live := s.live
	s.mu.Unlock()
	live.Server.HardStop()
	if err := s.fails(t); !errors.Is(err, errStopped) {
		t.Fatalf("kill: %v", err)
	}
}

func (s *server) isLeader() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live != nil && s.live.Server.Leader() == s.live.Server.MemberID()
}

func (s *server) put(t *testing.T, key, value string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := s.client.Put(ctx, key, value); err != nil {
		t.Fatalf("put %s at %s: %v", key, s.cfg.Node, err)
	}
}

func (s *server) get(t *testing.T, key string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	res, err := s.client.Get(ctx, key)
	if err != nil {
		t.Fatalf("get %s at %s: %v", key, s.cfg.Node, err)
	}
	if len(res.Kvs) == 0 {
		return "(none)"
	}
	return string(res.Kvs[0].Value)
}

func (s *server) members(t *testing.T) []Member {
	t.Helper()
	a, err := s.Admin()
	if err != nil {
		t.Fatal(err)
	}
	list, err := a.Members(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not so within 20s: %s", what)
}

func old(t *testing.T, s *server) int {
	t.Helper()
	found, err := filepath.Glob(s.cfg.Dir + "-old-*")
	if err != nil {
		t.Fatal(err)
	}
	return len(found)
}

// TestThreeServers is the life of one cluster. The parts build on each other.
func TestThreeServers(t *testing.T) {
	t.Parallel()
	tr := newTrust(t)
	a := newServer(t, tr, "a")
	b := newServer(t, tr, "b", a)
	c := newServer(t, tr, "c", a)
	three := []*server{a, b, c}
	step := func(name string, f func(t *testing.T)) {
		t.Helper()
		began := time.Now()
		if !t.Run(name, f) {
			t.FailNow()
		}
		t.Logf("%-28s %s", name, time.Since(began).Round(time.Millisecond))
	}
	other := func(than ...*server) *server {
		for _, s := range three {
			if !(s == than[0] || len(than) > 1 && s == than[1]) {
				return s
			}
		}
		return nil
	}

	// Servers must not be ended by the end of a part, so they are begun with t.
	outer := t
	step("two join at once", func(t *testing.T) {
		a.start(outer)
		a.put(t, "/registry/first", "1")
		b.begin(outer)
		c.begin(outer)
		b.ready(t)
		c.ready(t)
		if got := c.get(t, "/registry/first"); got != "1" {
			t.Errorf("c has %q", got)
		}
		list := a.members(t)
		if len(list) != 3 {
			t.Fatalf("%d members: %+v", len(list), list)
		}
		for i, m := range list {
			if m.Learner || m.Err != "" || m.Bytes == 0 || m.Node != three[i].cfg.Node {
				t.Errorf("member %+v", m)
			}
		}
	})

	var dead *server
	step("leader dies under writes", func(t *testing.T) {
		eventually(t, "one leads", func() bool { return a.isLeader() || b.isLeader() || c.isLeader() })
		for _, s := range three {
			if s.isLeader() {
				dead = s
			}
		}
		rest := []*server{other(dead)}
		rest = append(rest, other(dead, rest[0]))
		var mu sync.Mutex
		acknowledged := 0
		var writers sync.WaitGroup
		for w, s := range rest {
			writers.Go(func() {
				for i := 0; i < 150; i++ {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					_, err := s.client.Put(ctx, fmt.Sprintf("/registry/w%d/%03d", w, i), "x")
					cancel()
					if err != nil {
						i-- // not acknowledged: written again
						continue
					}
					mu.Lock()
					acknowledged++
					mu.Unlock()
				}
			})
		}
		eventually(t, "writes flow", func() bool { mu.Lock(); defer mu.Unlock(); return acknowledged > 60 })
		dead.kill(t)
		writers.Wait()
		for w, s := range rest {
			res, err := s.client.Get(t.Context(), fmt.Sprintf("/registry/w%d/", 1-w), clientv3.WithPrefix(), clientv3.WithCountOnly())
			if err != nil || res.Count != 150 {
				t.Errorf("%d of 150 acknowledged writes at %s, %v", res.Count, s.cfg.Node, err)
			}
		}
	})

	step("killed one comes back", func(t *testing.T) {
		dead.start(outer)
		res, err := dead.client.Get(t.Context(), "/registry/w", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil || res.Count != 300 {
			t.Errorf("%d of 300 writes, %v", res.Count, err)
		}
	})

	step("wiped server joins anew", func(t *testing.T) {
		b.stop(t)
		if err := os.RemoveAll(filepath.Dir(filepath.Dir(b.cfg.Dir))); err != nil {
			t.Fatal(err)
		}
		b.cfg.Init, b.cfg.Join = false, []string{"https://" + a.cfg.Client.String(), "https://" + c.cfg.Client.String()}
		b.start(outer)
		if list := a.members(t); len(list) != 3 {
			t.Errorf("%d members: %+v", len(list), list)
		}
		if got := b.get(t, "/registry/first"); got != "1" {
			t.Errorf("b has %q", got)
		}
	})

	step("address changes", func(t *testing.T) {
		c.stop(t)
		c.cfg.Peer, c.cfg.Client = port(t), port(t)
		c.cfg.Join = []string{"https://127.0.0.1:1"}
		c.start(outer)
		eventually(t, "the others know the new address", func() bool {
			m := a.members(t)[2]
			return m.Peer == "https://"+c.cfg.Peer.String() && m.Client == "https://"+c.cfg.Client.String() && m.Err == ""
		})
	})

	step("name is taken", func(t *testing.T) {
		twin := newServer(t, tr, "b", a).begin(t)
		if err := twin.fails(t); !errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), "--node-name") {
			t.Errorf("err = %v", err)
		}
	})

	step("removed while it runs", func(t *testing.T) {
		admin, err := Open(t.Context(), a.cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer admin.Close()
		if _, err := admin.Remove(t.Context(), "nobody"); err == nil || !strings.Contains(err.Error(), `no member "nobody"`) {
			t.Errorf("err = %v", err)
		}
		eventually(t, "c can be removed", func() bool { _, err = admin.Remove(t.Context(), "c"); return err == nil })
		if err := c.fails(t); !errors.Is(err, ErrRemoved) {
			t.Errorf("err = %v", err)
		}
		c.cfg.Join = nil
		if err := c.begin(outer).fails(t); !errors.Is(err, ErrRemoved) || !strings.Contains(err.Error(), "--server") {
			t.Errorf("err = %v", err)
		}
		c.cfg.Join = []string{"https://" + b.cfg.Client.String()}
		c.start(outer)
		if old(t, c) != 1 {
			t.Error("old data was not kept")
		}
	})

	step("removed while it is away", func(t *testing.T) {
		c.stop(t)
		admin, err := a.Admin()
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "c can be removed", func() bool { _, err = admin.Remove(t.Context(), "c"); return err == nil })
		c.cfg.Join = nil
		if err := c.begin(outer).fails(t); !errors.Is(err, ErrRemoved) {
			t.Errorf("err = %v", err)
		}
	})

	step("no start without quorum", func(t *testing.T) {
		var stops sync.WaitGroup
		for _, s := range []*server{a, b} {
			stops.Go(func() { s.stop(t) })
		}
		stops.Wait()
		a.cfg.Init = true
		a.begin(outer)
		eventually(t, "a waits", func() bool { return strings.Contains(a.Waiting(), "1 of 2 members answer") })
		if n := strings.Count(a.log.String(), "members answer"); n != 1 {
			t.Errorf("told %d times that it waits:\n%s", n, a.log.String())
		}
		b.start(outer)
		a.ready(t)
		if got := a.Waiting(); got != "" {
			t.Errorf("a waits for %q", got)
		}
		if _, _, err := a.Health(t.Context()); err != nil {
			t.Errorf("health: %v", err)
		}
	})

	step("lost quorum is reset", func(t *testing.T) {
		b.kill(t)
		eventually(t, "a misses its quorum", func() bool { return strings.Contains(a.Waiting(), "1 of 2 members answer") })
		admin, _ := a.Admin()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := admin.Remove(ctx, "b"); err == nil {
			t.Error("a member was removed without a quorum")
		}
		a.stop(t)
		began := time.Now()
		kept, err := New(a.cfg, slog.New(slog.DiscardHandler)).Reset(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("reset took %s", time.Since(began))
		if !hasData(kept) {
			t.Errorf("no data in %s", kept)
		}
		a.start(outer)
		if list := a.members(t); len(list) != 1 || list[0].Node != "a" || !list[0].Leader {
			t.Errorf("members %+v", list)
		}
		res, err := a.client.Get(t.Context(), "/registry/w", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil || res.Count != 300 {
			t.Errorf("%d of 300 writes, %v", res.Count, err)
		}
		if _, err := must(a.Admin()).Remove(t.Context(), "a"); err == nil || !strings.Contains(err.Error(), "only member") {
			t.Errorf("err = %v", err)
		}
	})

	step("survivor of a reset comes back", func(t *testing.T) {
		a.put(t, "/registry/after", "1")
		b.cfg.Join = []string{"https://" + a.cfg.Client.String()}
		b.start(outer)
		if old(t, b) != 1 {
			t.Error("old data was not kept")
		}
		if got := b.get(t, "/registry/after"); got != "1" {
			t.Errorf("b has %q", got)
		}
		b.stop(t)
		a.stop(t)
	})
	for _, s := range three {
		for line := range strings.Lines(s.log.String()) {
			busy := strings.Contains(line, "failed to send out heartbeat on time") // true of this machine, if others work on it
			if strings.Contains(line, "level=WARN") && !busy && !strings.Contains(line, "datastore waits") {
				t.Errorf("%s told of trouble that is its daily life: %s", s.cfg.Node, line)
			}
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// smallQuota is a quota that is reached soon.
const smallQuota = "quota-backend-bytes=8388608"

// fill writes until there is no space. The quota is held against what is committed, which
// trails the writes by 100 ms or more, so a fast disk takes several times the quota before
// the first refusal.
func (s *server) fill(t *testing.T) {
	t.Helper()
	value := strings.Repeat("grape", 50_000)
	for i := range 1000 {
		if _, err := s.client.Put(t.Context(), fmt.Sprintf("/registry/%d", i), value); err != nil {
			if !strings.Contains(err.Error(), "space") {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("never full")
}

// TestFullDatastoreRecovers runs alone: etcd's flags belong to the whole process.
func TestFullDatastoreRecovers(t *testing.T) {
	s := newServer(t, newTrust(t), "a")
	s.cfg.Args = []string{smallQuota}
	s.start(t)
	s.fill(t)
	eventually(t, "it says that it is full", func() bool { return strings.Contains(s.Waiting(), "quota-backend-bytes") })
	if _, err := s.client.Delete(t.Context(), "/registry/", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it takes writes again", func() bool {
		_, err := s.client.Put(t.Context(), "/registry/after", "1")
		return err == nil && s.Waiting() == ""
	})
	eventually(t, "both are told", func() bool { return strings.Contains(s.log.String(), "takes writes again") })
	if n := strings.Count(s.log.String(), "is full and takes no writes"); n != 1 {
		t.Errorf("told %d times:\n%s", n, s.log.String())
	}
	if bytes, _, err := s.Health(t.Context()); err != nil || bytes > 4<<20 {
		t.Errorf("%d bytes, %v", bytes, err)
	}
	s.stop(t)
}

// TestFullClusterRecovers: of three full members each rewrites its file, the leader after
// it has handed over, and the cluster takes writes again. It runs alone, as the one above.
func TestFullClusterRecovers(t *testing.T) {
	tr := newTrust(t)
	a := newServer(t, tr, "a")
	b, c := newServer(t, tr, "b", a), newServer(t, tr, "c", a)
	three := []*server{a, b, c}
	for _, s := range three {
		s.cfg.Args = []string{smallQuota}
		s.start(t)
	}
	a.fill(t)
	eventually(t, "one leads", func() bool { return a.isLeader() || b.isLeader() || c.isLeader() })
	led := map[string]bool{}
	look := func() {
		for _, s := range three {
			if s.isLeader() {
				led[s.cfg.Node] = true
			}
		}
	}
	look()
	if _, err := b.client.Delete(t.Context(), "/registry/", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "every member is rewritten", func() bool {
		look()
		for _, s := range three {
			if !strings.Contains(s.log.String(), "datastore rewritten") {
				return false
			}
		}
		return true
	})
	eventually(t, "every member takes writes again", func() bool {
		look()
		for _, s := range three {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, err := s.client.Put(ctx, "/registry/by-"+s.cfg.Node, "1")
			cancel()
			if err != nil || s.Waiting() != "" {
				return false
			}
		}
		return true
	})
	if len(led) < 2 {
		t.Errorf("the leader rewrote its file and still led: %v", led)
	}
	for _, m := range a.members(t) {
		if m.Err != "" || m.Bytes > 4<<20 {
			t.Errorf("member %+v", m)
		}
	}
	for _, s := range three {
		s.stop(t)
	}
}

func TestOneServer(t *testing.T) {
	t.Parallel()
	s := newServer(t, newTrust(t), "a")
	s.cfg.Metrics = []netip.AddrPort{port(t)}
	s.start(t)
	s.put(t, "/registry/a", "1")
	if res, err := http.Get("http://" + s.cfg.Metrics[0].String() + "/health"); err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("health: %v", err)
	}
	local, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + s.cfg.Socket}})
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	if res, err := local.Get(t.Context(), "/registry/a"); err != nil || res.Count != 1 {
		t.Errorf("over the socket: %v", err)
	}
	if info, err := os.Stat(s.cfg.Socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
	s.stop(t)
	if strings.Contains(s.log.String(), "WARN") {
		t.Errorf("a quiet life was told as:\n%s", s.log.String())
	}

	s.cfg.Peer, s.cfg.Client = port(t), port(t)
	s.start(t)
	if m := s.members(t); len(m) != 1 || m[0].Peer != s.peerURL() {
		t.Errorf("members after a move: %+v", m)
	}
	if got := s.get(t, "/registry/a"); got != "1" {
		t.Errorf("after a move: %q", got)
	}
	s.stop(t)

	logs, err := filepath.Glob(filepath.Join(s.cfg.Dir, "member", "wal", "*.wal"))
	if err != nil || len(logs) == 0 {
		t.Fatal("no log", err)
	}
	whole, err := os.ReadFile(logs[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(logs[0], overwrite(whole, 200, bytes.Repeat([]byte{0xa5}, 600)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.begin(t).fails(t); !strings.Contains(err.Error(), "crc") || !strings.Contains(err.Error(), "backup") {
		t.Errorf("damaged log: %v", err)
	}

	if err := os.RemoveAll(s.cfg.Dir); err != nil {
		t.Fatal(err)
	}
	if err := s.begin(t).fails(t); !errors.Is(err, ErrDamaged) {
		t.Errorf("lost data: %v", err)
	}
}

// TestDamage spoils the files of a member that was killed, one at a time.
func TestDamage(t *testing.T) {
	t.Parallel()
	s := newServer(t, newTrust(t), "a")
	s.cfg.Args = []string{"snapshot-count=20"}
	s.start(t)
	const keys = 100
	value := strings.Repeat("grape", 200)
	for i := range keys {
		s.put(t, fmt.Sprintf("/registry/%d", i), value)
	}
	s.kill(t)
	member := filepath.Join(s.cfg.Dir, "member")
	good := t.TempDir()
	if err := os.CopyFS(good, os.DirFS(member)); err != nil {
		t.Fatal(err)
	}
	only := func(pattern string) string {
		found, err := filepath.Glob(filepath.Join(member, pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("no %s (%v)", pattern, err)
		}
		return found[len(found)-1]
	}
	db, log, snapshot := only("snap/db"), only("wal/*.wal"), only("snap/*.snap")
	flip := func(text []byte, at int) []byte { return overwrite(text, at, []byte{text[at] ^ 0x10}) }
	page := os.Getpagesize()
	// A page by its number, where a leaf that is no root lies.
	leaf := func(text []byte) int {
		for at := 2 * page; at < len(text); at += page {
			if text[at+8] == 2 && text[at+10] > 2 && bytes.Contains(text[at:at+page], []byte(value[:100])) {
				return at
			}
		}
		t.Fatal("the file has no leaf with values in it")
		return 0
	}
	// The last way in each page of ways, as some are left from earlier, begins with another key.
	ways := func(text []byte) []byte {
		out := text
		for at := 2 * page; at < len(text); at += page {
			if n := int(binary.LittleEndian.Uint16(text[at+10:])); text[at+8] == 1 && n > 1 {
				last := at + 16*n
				out = overwrite(out, last+int(binary.LittleEndian.Uint32(text[last:])), []byte{0xff})
			}
		}
		if bytes.Equal(out, text) {
			t.Fatal("the file has no page of ways to others")
		}
		return out
	}
	end := func(text []byte) int { return len(bytes.TrimRight(text, "\x00")) }
	tests := map[string]struct {
		file  string
		spoil func([]byte) []byte
		want  string // empty: it goes on, with all that it acknowledged
	}{
		"the log's last sectors never reached the disk": {log, func(b []byte) []byte { return overwrite(b, (end(b)-100)&^511, make([]byte, 1024)) }, ""},
		"the log is cut off in its last record":         {log, func(b []byte) []byte { return b[:end(b)-50] }, ""},
		"a byte of the log's last record":               {log, func(b []byte) []byte { return flip(b, end(b)-100) }, "crc"},
		"a byte in the middle of the log":               {log, func(b []byte) []byte { return flip(b, end(b)/2) }, "crc"},
		"a byte of the newest snapshot":                 {snapshot, func(b []byte) []byte { return flip(b, len(b)/2) }, ""},
		"the file's first header":                       {db, func(b []byte) []byte { return flip(b, 40) }, ""},
		"the file's second header":                      {db, func(b []byte) []byte { return flip(b, page+40) }, ""},
		"the file's headers":                            {db, func(b []byte) []byte { return flip(flip(b, 40), page+40) }, db},
		"the kind of a page":                            {db, func(b []byte) []byte { return flip(b, leaf(b)+8) }, db},
		"the keys of a page": {db, func(b []byte) []byte {
			return overwrite(b, bytes.Index(b[leaf(b):], []byte(value[:100]))+leaf(b)-200, bytes.Repeat([]byte{0xff}, 150))
		}, db},
		"the ways to pages":   {db, ways, db},
		"a page of zeros":     {db, func(b []byte) []byte { return overwrite(b, leaf(b), make([]byte, page)) }, db},
		"the file is cut off": {db, func(b []byte) []byte { return b[:leaf(b)] }, db},
		"the file is empty":   {db, func([]byte) []byte { return nil }, db},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if err := errors.Join(os.RemoveAll(member), os.CopyFS(member, os.DirFS(good))); err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(tt.file)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(tt.file, tt.spoil(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if tt.want != "" {
				if err := s.begin(t).fails(t); !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "backup") {
					t.Errorf("err = %v, want %q and the remedy in it", err, tt.want)
				}
				return
			}
			s.start(t)
			for i := range keys {
				if key := fmt.Sprintf("/registry/%d", i); s.get(t, key) != value {
					t.Errorf("%s is %.20q", key, s.get(t, key))
				}
			}
			s.stop(t)
		})
	}
}

func overwrite(text []byte, offset int, b []byte) []byte {
	out := bytes.Clone(text)
	copy(out[offset:], b)
	return out
}

func TestNothingToStartFrom(t *testing.T) {
	t.Parallel()
	s := newServer(t, newTrust(t), "a")
	s.cfg.Init = false
	if err := s.begin(t).fails(t); !strings.Contains(err.Error(), "--cluster-init") {
		t.Errorf("err = %v", err)
	}
	if _, err := s.Reset(t.Context()); err == nil || !strings.Contains(err.Error(), "no etcd data") {
		t.Errorf("reset: %v", err)
	}
	if err := os.RemoveAll(s.cfg.Dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.cfg.Dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.cfg.Init = true
	if err := s.begin(t).fails(t); !strings.Contains(err.Error(), s.cfg.Dir) {
		t.Errorf("err = %v", err)
	}
}

func TestJoinWaitsForACluster(t *testing.T) {
	t.Parallel()
	tr := newTrust(t)
	a := newServer(t, tr, "a")
	b := newServer(t, tr, "b", a).begin(t)
	eventually(t, "b waits", func() bool { return strings.Contains(b.Waiting(), "connection refused") })
	b.stop(t)
	stranger := newServer(t, newTrust(t), "x", a)
	a.start(t)
	stranger.begin(t)
	eventually(t, "a stranger waits", func() bool { return strings.Contains(stranger.Waiting(), "unknown authority") })
	stranger.stop(t)
	if list := a.members(t); len(list) != 1 {
		t.Errorf("members %+v", list)
	}
}

func TestArgs(t *testing.T) {
	for arg, want := range map[string]string{
		"quota-backend-bytes=4294967296":      "",
		"--heartbeat-interval=200":            "",
		"max-concurrent-streams=100":          "",
		"feature-gates=CompactHashCheck=true": "",
		"pre_vote":                            "",
		"quota-backend-bytes=much":            `"much" is not a value`,
		"qouta-backend-bytes=1":               `no flag "qouta-backend-bytes"`,
		"data-dir=/tmp":                       "--data-dir",
		"listen-client-urls=http://0.0.0.0:1": "--node-ip",
		"unsafe-no-fsync=true":                "power cut",
		"peer-cert-file=/x":                   "certificates of the cluster",
		"initial-cluster-state=new":           "--cluster-init",
	} {
		err := CheckArgs("etcd-arg", []string{arg})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "etcd-arg")) {
			t.Errorf("%s: err = %v, want %q", arg, err, want)
		}
	}
	s := &Store{cfg: plan.Etcd{Peer: netip.MustParseAddrPort("10.0.0.1:2380"), Client: netip.MustParseAddrPort("[fd00::1]:2379"), Socket: "/run/e.sock",
		Args: []string{"quota-backend-bytes=4294967296", "max-concurrent-streams=100"}}}
	ec, err := s.config("a-01234567")
	if err != nil || ec.QuotaBackendBytes != 4<<30 || ec.MaxConcurrentStreams != 100 {
		t.Errorf("quota %d, streams %d, %v", ec.QuotaBackendBytes, ec.MaxConcurrentStreams, err)
	}
	var listens []string
	for _, u := range ec.ListenClientUrls {
		listens = append(listens, u.String())
	}
	if got := strings.Join(listens, " "); got != "https://[fd00::1]:2379 https://[::1]:2379 unix:///run/e.sock" {
		t.Errorf("listens on %s", got)
	}
}

func TestNodeOf(t *testing.T) {
	for name, want := range map[string]string{"a-01234567": "a", "web-1-89abcdef": "web-1", "a": "a", "": "", "-01234567": "-01234567"} {
		if got := nodeOf(name); got != want {
			t.Errorf("nodeOf(%q) = %q, want %q", name, got, want)
		}
	}
	if id := newIdentity("a-deadbeef"); nodeOf(id.Name) != "a-deadbeef" {
		t.Errorf("name %s", id.Name)
	}
}
