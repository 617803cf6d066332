package balancer_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/podo-dev/podo/pkg/balancer"
	"github.com/podo-dev/podo/pkg/lifecycle/lifecycletest"
)

// An upstream says its address to whoever connects, and then echoes.
type upstream struct {
	addr string
	hung atomic.Bool // accepts and reads, but says nothing
	l    net.Listener
	mu   sync.Mutex
	open map[net.Conn]struct{}
}

func serve(t *testing.T) *upstream {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{addr: l.Addr().String(), l: l, open: map[net.Conn]struct{}{}}
	go u.accept()
	t.Cleanup(u.kill)
	return u
}

func (u *upstream) accept() {
	for {
		c, err := u.l.Accept()
		if err != nil {
			return
		}
		u.mu.Lock()
		u.open[c] = struct{}{}
		u.mu.Unlock()
		go u.echo(c.(*net.TCPConn))
	}
}

func (u *upstream) echo(c *net.TCPConn) {
	buffer := make([]byte, 8<<10)
	if !u.hung.Load() {
		fmt.Fprintln(c, u.addr)
	}
	for {
		n, err := c.Read(buffer)
		if u.hung.Load() {
			select {} // the connection lives until the upstream is killed
		}
		c.Write(buffer[:n])
		if err != nil {
			c.CloseWrite()
			return
		}
	}
}

// kill ends the upstream as a killed process ends.
func (u *upstream) kill() {
	u.l.Close()
	u.mu.Lock()
	defer u.mu.Unlock()
	for c := range u.open {
		c.Close()
	}
}

// healthy is the check of an API server: it wants an answer.
func healthy(ctx context.Context, addr string) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if _, err := c.Read(make([]byte, 1)); err != nil {
		return errors.Join(err, ctx.Err())
	}
	return nil
}

// free returns an address that nothing listens on.
func free(t *testing.T) netip.AddrPort {
	t.Helper()
	var b [2]byte
	rand.Read(b[:])
	l, err := net.Listen("tcp", fmt.Sprintf("127.64.%d.%d:0", b[0], b[1]))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// TestHasOneFamily: a balancer on all of IPv4 leaves the port to others on IPv6.
func TestHasOneFamily(t *testing.T) {
	l, err := net.Listen("tcp", "[::]:0") // a port that is free on both
	if err != nil {
		t.Skip("there is no IPv6 here: ", err)
	}
	l.Close()
	at := netip.AddrPortFrom(netip.IPv4Unspecified(), l.Addr().(*net.TCPAddr).AddrPort().Port())
	ctx, end := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	b := balancer.New(balancer.Options{Listen: at, Healthy: healthy, Log: slog.New(slog.DiscardHandler)})
	go func() { done <- b.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	if l, err = net.Listen("tcp6", fmt.Sprintf("[::]:%d", at.Port())); err != nil {
		t.Error(err)
	} else {
		l.Close()
	}
	end()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

type bench struct {
	*balancer.Balancer
	t    *testing.T
	addr string
	log  *bytes.Buffer
	stop func() time.Duration
}

// start runs a balancer over upstreams.
func start(t *testing.T, steady time.Duration, upstreams ...*upstream) *bench {
	t.Helper()
	return run(t, balancer.Options{First: addrs(upstreams...), Healthy: healthy}, steady)
}

func run(t *testing.T, opts balancer.Options, steady time.Duration) *bench {
	t.Helper()
	b := prepare(t, opts, steady)
	b.run()
	return b
}

func prepare(t *testing.T, opts balancer.Options, steady time.Duration) *bench {
	t.Helper()
	opts.Listen = free(t)
	log := &bytes.Buffer{}
	opts.Log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	b := &bench{Balancer: balancer.New(opts), t: t, addr: opts.Listen.String(), log: log}
	b.Hurry(steady)
	return b
}

func (b *bench) run() {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- b.Run(ctx, sync.OnceFunc(func() { close(ready) })) }()
	var once sync.Once
	b.stop = func() (took time.Duration) {
		once.Do(func() {
			began := time.Now()
			cancel()
			if err := <-done; err != nil {
				b.t.Errorf("Run = %v, want nil", err)
			}
			took = time.Since(began)
		})
		return took
	}
	b.t.Cleanup(func() {
		b.stop()
		if b.t.Failed() {
			b.t.Log(b.log)
		}
	})
	select {
	case <-ready:
	case err := <-done:
		b.t.Fatal(err)
	}
}

func addrs(upstreams ...*upstream) []string {
	var out []string
	for _, u := range upstreams {
		out = append(out, u.addr)
	}
	slices.Sort(out)
	return out
}

type client struct {
	*net.TCPConn
	*bufio.Reader
	at string // the upstream it was passed to
}

func (c *client) Read(p []byte) (int, error) { return c.Reader.Read(p) }

// dial connects through b and returns when an upstream has spoken.
func (b *bench) dial() (*client, error) {
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		return nil, err
	}
	b.t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	return &client{c.(*net.TCPConn), r, strings.TrimSpace(line)}, err
}

func (b *bench) connect() *client {
	b.t.Helper()
	c, err := b.dial()
	if err != nil {
		b.t.Fatalf("connect: %v", err)
	}
	return c
}

// ended waits for the other end to close, and tells how long that took.
func (c *client) ended(t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	if _, err := io.Copy(io.Discard, c.Reader); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("the connection does not end")
	}
	return time.Since(began)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// healthies counts the servers that are healthy.
func (b *bench) healthies() (n int) {
	for _, s := range b.Servers() {
		if s.Healthy {
			n++
		}
	}
	return n
}

func (b *bench) conns(addr string) int {
	for _, s := range b.Servers() {
		if s.Addr == addr {
			return s.Conns
		}
	}
	return 0
}

func of(addr string, upstreams ...*upstream) (this *upstream, others []*upstream) {
	for _, u := range upstreams {
		if u.addr == addr {
			this = u
		} else {
			others = append(others, u)
		}
	}
	return this, others
}

func TestContract(t *testing.T) {
	u := serve(t)
	lifecycletest.Check(t, prepare(t, balancer.Options{First: addrs(u)}, time.Hour))
	lifecycletest.Check(t, prepare(t, balancer.Options{}, time.Hour))
}

func TestPassesBytes(t *testing.T) {
	b := start(t, time.Hour, serve(t))
	c := b.connect()
	sent := make([]byte, 4<<20)
	rand.Read(sent)
	go func() {
		c.Write(sent)
		c.CloseWrite()
	}()
	got, err := io.ReadAll(c.Reader) // ends because the half-close arrived and came back
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("got %d bytes, err %v; want the %d sent", len(got), err, len(sent))
	}
	eventually(t, "the connection is forgotten", func() bool { return b.Servers()[0].Conns == 0 })
}

func TestStays(t *testing.T) {
	u, v, w := serve(t), serve(t), serve(t)
	b := start(t, 10*time.Millisecond, u, v, w)
	eventually(t, "all are healthy", func() bool { return b.healthies() == 3 })
	at := b.connect().at
	for range 20 {
		if c := b.connect(); c.at != at {
			t.Fatalf("passed to %s while %s is well", c.at, at)
		}
	}
	if n := b.conns(at); n != 21 {
		t.Errorf("%d connections, want 21", n)
	}
}

// TestKilled shows that clients are elsewhere at their next connection, whatever
// the checks say.
func TestKilled(t *testing.T) {
	u, v := serve(t), serve(t)
	b := start(t, time.Hour, u, v)
	eventually(t, "all are healthy", func() bool { return b.healthies() == 2 })
	c := b.connect()
	dead, others := of(c.at, u, v)
	dead.kill()
	if took := c.ended(t); took > time.Second {
		t.Errorf("connection ended after %s", took)
	}
	for range 5 {
		if c := b.connect(); c.at != others[0].addr {
			t.Fatalf("passed to %s, which is dead", c.at)
		}
	}
	eventually(t, "the dead one is unhealthy", func() bool { return b.healthies() == 1 })
	for _, s := range b.Servers() {
		if !s.Healthy && (s.Addr != dead.addr || !strings.Contains(s.Err, "refused") || s.Since.IsZero()) {
			t.Errorf("status = %+v", s)
		}
	}
}

// TestHung has a server that accepts and says nothing. Its next check is an hour
// away, so what its client asks in vain is what gives it away.
func TestHung(t *testing.T) {
	u, v := serve(t), serve(t)
	b := start(t, time.Hour, u, v)
	eventually(t, "all are healthy", func() bool { return b.healthies() == 2 })
	c, silent := b.connect(), b.connect()
	hung, others := of(c.at, u, v)
	hung.hung.Store(true)
	c.Write([]byte("are you there?"))
	c.ended(t)
	silent.ended(t)
	if c := b.connect(); c.at != others[0].addr {
		t.Errorf("passed to %s, which hangs", c.at)
	}

	hung.hung.Store(false)
	eventually(t, "it is healthy again", func() bool { return b.healthies() == 2 })
	if c := b.connect(); c.at != others[0].addr {
		t.Errorf("passed to %s while %s is well", c.at, others[0].addr)
	}
}

func TestUnhealthyIsCutOnceAnotherServes(t *testing.T) {
	u, v := serve(t), serve(t)
	var well sync.Map
	well.Store(u.addr, true)
	check := func(_ context.Context, addr string) error {
		if _, ok := well.Load(addr); !ok {
			return errors.New("etcd: no leader")
		}
		return nil
	}
	b := run(t, balancer.Options{First: addrs(u, v), Healthy: check}, 10*time.Millisecond)
	eventually(t, "one is healthy", func() bool { return b.healthies() == 1 })
	c := b.connect()
	if c.at != u.addr {
		t.Fatalf("passed to %s, which is unhealthy", c.at)
	}
	well.Delete(u.addr)
	eventually(t, "none is healthy", func() bool { return b.healthies() == 0 })
	fmt.Fprintln(c, "still here")
	if line, err := c.ReadString('\n'); err != nil || line != "still here\n" {
		t.Fatalf("cut with nowhere to go: %q, %v", line, err)
	}
	b.connect() // an unhealthy server is better than none
	well.Store(v.addr, true)
	c.ended(t)
	if c := b.connect(); c.at != v.addr {
		t.Errorf("passed to %s, which is unhealthy", c.at)
	}
}

func TestListChanges(t *testing.T) {
	u, v := serve(t), serve(t)
	b := run(t, balancer.Options{First: addrs(u), Healthy: healthy}, time.Hour)
	list, changed := b.Watch()
	if !slices.Equal(list, addrs(u)) {
		t.Fatalf("list = %v", list)
	}
	c := b.connect()
	began := time.Now()
	b.Set(addrs(v))
	select {
	case <-changed:
	default:
		t.Error("the watcher is not told")
	}
	fmt.Fprintln(c, "last words")
	if line, err := c.ReadString('\n'); err != nil || line != "last words\n" {
		t.Errorf("not drained: %q, %v", line, err)
	}
	eventually(t, "the new one is used", func() bool { return b.connect().at == v.addr })
	c.ended(t)
	if took := time.Since(began); took < 100*time.Millisecond {
		t.Errorf("cut after %s", took)
	}

	list, changed = b.Watch()
	b.Set(nil)
	b.Set([]string{"nonsense", ":6443", "host:0", b.addr})
	b.Set([]string{v.addr, strings.Replace(v.addr, "127.0.0.1", "[::ffff:127.0.0.1]", 1), v.addr})
	select {
	case <-changed:
		after, _ := b.Watch()
		t.Errorf("list changed from %v to %v", list, after)
	default:
	}
}

// TestLastResort has a list that leads nowhere, as the addresses of servers behind a
// NAT do.
func TestLastResort(t *testing.T) {
	u, dead, v := serve(t), serve(t), serve(t)
	dead.kill()
	b := run(t, balancer.Options{First: addrs(u), Healthy: healthy}, 10*time.Millisecond)
	c := b.connect()
	b.Set(addrs(dead))
	if got := b.connect().at; got != u.addr {
		t.Errorf("passed to %q", got)
	}
	time.Sleep(200 * time.Millisecond)
	fmt.Fprintln(c, "still here")
	if line, err := c.ReadString('\n'); err != nil || line != "still here\n" {
		t.Errorf("cut with nowhere else to go: %q, %v", line, err)
	}
	for _, s := range b.Servers() {
		if s.LastResort != (s.Addr == u.addr) || s.Healthy != s.LastResort {
			t.Errorf("status = %+v", s)
		}
	}
	b.Set(addrs(v))
	c.ended(t)
	if got := b.connect().at; got != v.addr {
		t.Errorf("passed to %s, the last resort", got)
	}
}

// TestFormer: a list of a server that does not come back leads to those that were on the
// list before, now and after a restart; not for ever to all.
func TestFormer(t *testing.T) {
	u, dead, v := serve(t), serve(t), serve(t)
	dead.kill()
	path := filepath.Join(t.TempDir(), "servers.json")
	b := run(t, balancer.Options{First: addrs(dead), File: path, Healthy: healthy}, 10*time.Millisecond)
	b.Set(addrs(u, dead))
	b.Set(addrs(dead))
	if got := b.connect().at; got != u.addr {
		t.Errorf("passed to %q", got)
	}
	again := run(t, balancer.Options{First: addrs(dead), File: path, Healthy: healthy}, 10*time.Millisecond)
	if got := again.connect().at; got != u.addr {
		t.Errorf("after a restart: passed to %q", got)
	}
	again.Set(addrs(v))
	eventually(t, "the list is what counts", func() bool { return again.connect().at == v.addr })
	for i := range 20 {
		again.Set([]string{v.addr, fmt.Sprintf("10.9.8.7:%d", 1000+i)})
	}
	again.Set(addrs(v))
	eventually(t, "eight are remembered", func() bool { return len(again.Servers()) == 1+1+8 })
	for _, s := range again.Servers() {
		if s.Addr == u.addr {
			t.Error("the oldest is remembered")
		}
	}
}

func TestNoServer(t *testing.T) {
	u := serve(t)
	u.kill()
	for name, first := range map[string][]string{"none known": nil, "all dead": addrs(u)} {
		t.Run(name, func(t *testing.T) {
			b := run(t, balancer.Options{First: first, Healthy: healthy}, time.Hour)
			began := time.Now()
			if c, err := b.dial(); err == nil {
				t.Errorf("passed to %s", c.at)
			}
			if took := time.Since(began); took > time.Second {
				t.Errorf("closed after %s", took)
			}
			v := serve(t)
			b.Set(addrs(v))
			if got := b.connect().at; got != v.addr {
				t.Errorf("passed to %s", got)
			}
		})
	}
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "servers.json")
	list := func(opts balancer.Options) []string {
		opts.File = path
		list, _ := prepare(t, opts, time.Hour).Watch()
		return list
	}
	first := []string{"Podo.Example:6443"}
	if got := list(balancer.Options{First: first}); !slices.Equal(got, []string{"podo.example:6443"}) {
		t.Errorf("without a file: %v", got)
	}
	want := []string{"10.0.0.1:6443", "[fd00::2]:6443"}
	prepare(t, balancer.Options{File: path, First: first}, time.Hour).Set([]string{"[FD00::2]:6443", "10.0.0.1:6443"})
	if got := list(balancer.Options{First: first}); !slices.Equal(got, want) {
		t.Errorf("after Set: %v, want %v", got, want)
	}
	for _, damaged := range []string{"", "{", `{"servers":["10.0.0.1:6443"`, `{"servers":[]}`, `{"servers":["x"]}`, "\x00\x00", "null"} {
		if err := os.WriteFile(path, []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		b := prepare(t, balancer.Options{File: path, First: first}, time.Hour)
		if got, _ := b.Watch(); !slices.Equal(got, []string{"podo.example:6443"}) {
			t.Errorf("with %q: %v", damaged, got)
		}
		if !strings.Contains(b.log.String(), "level=WARN") {
			t.Errorf("with %q: no warning: %s", damaged, b.log)
		}
	}
}

func TestFileCannotBeWritten(t *testing.T) {
	u := serve(t)
	b := run(t, balancer.Options{File: filepath.Join(t.TempDir(), "absent", "servers.json")}, time.Hour)
	b.Set(addrs(u))
	if got := b.connect().at; got != u.addr {
		t.Errorf("passed to %s", got)
	}
	b.stop()
	if !strings.Contains(b.log.String(), "list of servers not kept") {
		t.Errorf("no warning: %s", b.log)
	}
}

func TestPortTaken(t *testing.T) {
	b := start(t, time.Hour)
	other := balancer.New(balancer.Options{Listen: netip.MustParseAddrPort(b.addr), Log: slog.New(slog.DiscardHandler)})
	err := other.Run(t.Context(), func() { t.Error("ready") })
	if err == nil || !strings.Contains(err.Error(), b.addr) || !strings.Contains(err.Error(), "--lb-server-port") {
		t.Errorf("err = %v, want one that names the address and the flag", err)
	}
}

func TestManyConnections(t *testing.T) {
	const n = 1500
	u, v := serve(t), serve(t)
	b := start(t, 50*time.Millisecond, u, v)
	var work sync.WaitGroup
	slots := make(chan struct{}, 32)
	for range n {
		slots <- struct{}{}
		work.Go(func() {
			defer func() { <-slots }()
			c, err := b.dial()
			if err == nil {
				fmt.Fprintln(c, "x")
				_, err = c.ReadString('\n')
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
	if got := b.conns(u.addr) + b.conns(v.addr); got != n {
		t.Errorf("%d connections, want %d", got, n)
	}
	if took := b.stop(); took > time.Second {
		t.Errorf("stopped after %s", took)
	}
}

func TestLimit(t *testing.T) {
	b := prepare(t, balancer.Options{First: addrs(serve(t))}, time.Hour)
	b.Limit(2)
	b.run()
	c := b.connect()
	b.connect()
	if _, err := b.dial(); err == nil {
		t.Error("a third connection is passed")
	}
	c.Close()
	eventually(t, "there is room again", func() bool {
		_, err := b.dial()
		return err == nil
	})
}

// TestHalfOpen has clients that leave, and a server that does not care.
func TestHalfOpen(t *testing.T) {
	u := serve(t)
	b := start(t, time.Hour, u)
	c := b.connect()
	u.hung.Store(true)
	c.CloseWrite()
	c.ended(t)
	eventually(t, "the connection is forgotten", func() bool { return b.conns(u.addr) == 0 })
}

func TestStopsWhileDialling(t *testing.T) {
	asked := make(chan struct{}, 1)
	check := func(ctx context.Context, _ string) error {
		select {
		case asked <- struct{}{}:
		default:
		}
		<-ctx.Done()
		return ctx.Err()
	}
	// An address that packets to are lost, or refused where there is no route.
	b := run(t, balancer.Options{First: []string{"192.0.2.1:6443"}, Healthy: check}, time.Hour)
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	<-asked
	if took := b.stop(); took > time.Second {
		t.Errorf("stopped after %s", took)
	}
}
