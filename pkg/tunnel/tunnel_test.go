package tunnel

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/podo-dev/podo/pkg/lifecycle/lifecycletest"
)

// far is an address that nothing here can dial: what answers there came by tunnel.
const far = "192.0.2.7"

// farNode is an Owner that places far in node.
func farNode(node string) Owner {
	return func(host string) (Place, bool) { return Place{Node: node}, host == far }
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// serveTLS is a server that takes everyone for node.
func serveTLS(t *testing.T, h *Hub, node string) *httptest.Server {
	t.Helper()
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.Accept(w, r, node) }))
	t.Cleanup(func() { h.close(); srv.Close() })
	return srv
}

func dialPlain(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}

func dialTLS(ctx context.Context, addr string) (net.Conn, error) {
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}}
	return d.DialContext(ctx, "tcp", addr)
}

// start runs an agent until the test ends or the returned function is called.
func start(t *testing.T, o AgentOptions) (stop func()) {
	t.Helper()
	if o.Dial == nil {
		o.Dial = dialTLS
	}
	if o.Log == nil {
		o.Log = quiet()
	}
	return run(t, NewAgent(o))
}

func run(t *testing.T, a *Agent) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx, func() {}) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("agent: %v", err)
			}
		case <-time.After(time.Second):
			t.Error("agent does not stop within a second")
		}
	})
	t.Cleanup(stop)
	return stop
}

func fixed(addrs ...string) func() []string { return func() []string { return addrs } }

// await waits until what holds.
func await(t *testing.T, within time.Duration, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !holds(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", within, what)
		}
	}
}

func awaitNodes(t *testing.T, h *Hub, want ...string) {
	t.Helper()
	await(t, 5*time.Second, fmt.Sprintf("tunnels from %v", want), func() bool { return slices.Equal(h.Nodes(), want) })
}

// listenTCP serves each connection with do.
func listenTCP(t *testing.T, addr string, do func(*net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); do(c.(*net.TCPConn)) }()
		}
	}()
	return l.Addr().String()
}

// says answers with its name and closes.
func says(name string) func(*net.TCPConn) {
	return func(c *net.TCPConn) { io.WriteString(c, name) }
}

// echo returns what it hears, until it hears the end.
func echo(c *net.TCPConn) { io.Copy(c, c); c.CloseWrite() }

func ask1(t *testing.T, h *Hub, addr string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	c, err := h.Dial(ctx, "tcp", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	b, err := io.ReadAll(c)
	return string(b), err
}

func TestModes(t *testing.T) {
	node, odd, pod := Place{Node: "n"}, Place{Node: "n", KubeletPort: 11250}, Place{Node: "n", Pod: true}
	type by map[Mode]string // "" is dialled
	tests := map[string]struct {
		place Place
		port  string
		want  by
	}{
		"kubelet":                {node, "10250", by{ModeAgent: "kubelet", ModePod: "kubelet", ModeCluster: "kubelet"}},
		"kubelet at its port":    {odd, "11250", by{ModeAgent: "kubelet", ModePod: "kubelet", ModeCluster: "kubelet"}},
		"another port of a node": {odd, "10250", by{ModeCluster: "h:10250"}},
		"pod":                    {pod, "8443", by{ModePod: "h:8443", ModeCluster: "h:8443"}},
		"pod at 10250":           {pod, "10250", by{ModePod: "h:10250", ModeCluster: "h:10250"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for _, m := range []Mode{ModeDisabled, ModeAgent, ModePod, ModeCluster} {
				if got := m.target(tt.place, "h:"+tt.port, tt.port); got != tt.want[m] {
					t.Errorf("%s: target = %q, want %q", m, got, tt.want[m])
				}
			}
		})
	}
	for _, s := range []string{"disabled", "agent", "pod", "cluster"} {
		if m, err := ParseMode(s); err != nil || string(m) != s {
			t.Errorf("ParseMode(%q) = %q, %v", s, m, err)
		}
	}
	if _, err := ParseMode("nodes"); err == nil || !strings.Contains(err.Error(), `"nodes"`) {
		t.Errorf("ParseMode(nodes): %v", err)
	}
}

func TestDialsTheKubeletThroughTheTunnel(t *testing.T) {
	h := NewHub(ModeAgent, farNode("n1"), quiet())
	srv := serveTLS(t, h, "n1")
	start(t, AgentOptions{Servers: fixed(srv.Listener.Addr().String()), Kubelet: listenTCP(t, "127.0.0.1:0", says("kubelet"))})
	awaitNodes(t, h, "n1")
	if got, err := ask1(t, h, far+":10250"); got != "kubelet" || err != nil {
		t.Errorf("kubelet: %q, %v", got, err)
	}
	if got, err := ask1(t, h, listenTCP(t, "127.0.0.1:0", says("direct"))); got != "direct" || err != nil {
		t.Errorf("unknown address: %q, %v", got, err)
	}
}

func TestReachesPodsOnlyWhereExposed(t *testing.T) {
	pod := listenTCP(t, "127.0.0.2:0", says("pod"))
	other := listenTCP(t, "127.0.0.3:0", says("other"))
	tests := map[string]struct {
		reach func() []netip.Prefix
		ask   string
		want  string
		err   error
	}{
		"kubelets only":      {nil, pod, "", errOutOfReach},
		"own pod":            {func() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")} }, pod, "pod", nil},
		"another node's pod": {func() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")} }, other, "", errOutOfReach},
		"a name":             {func() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")} }, "localhost:1", "", errOutOfReach},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			host, _, _ := net.SplitHostPort(tt.ask)
			h := NewHub(ModePod, func(got string) (Place, bool) { return Place{Node: "n1", Pod: true}, got == host }, quiet())
			srv := serveTLS(t, h, "n1")
			start(t, AgentOptions{Servers: fixed(srv.Listener.Addr().String()), Reach: tt.reach})
			awaitNodes(t, h, "n1")
			got, err := ask1(t, h, tt.ask)
			if got != tt.want {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
			if tt.err != nil && (err == nil || !strings.Contains(err.Error(), tt.err.Error()) || !strings.Contains(err.Error(), "n1")) {
				t.Errorf("err = %v, want node n1 and %v", err, tt.err)
			}
		})
	}
}

func TestANodeAnswersForNoOther(t *testing.T) {
	h := NewHub(ModeAgent, farNode("n1"), quiet())
	srv := serveTLS(t, h, "n2")
	start(t, AgentOptions{Servers: fixed(srv.Listener.Addr().String()), Kubelet: listenTCP(t, "127.0.0.1:0", says("n2"))})
	awaitNodes(t, h, "n2")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := h.Dial(ctx, "tcp", far+":10250")
	if err == nil || !strings.Contains(err.Error(), "no tunnel from node n1, and direct: ") {
		t.Errorf("err = %v", err)
	}
}

func TestWithoutATunnelTheNodeIsDialled(t *testing.T) {
	addr := listenTCP(t, "127.0.0.1:0", says("kubelet"))
	port := netip.MustParseAddrPort(addr).Port()
	owner := func(string) (Place, bool) { return Place{Node: "n1", KubeletPort: port}, true }
	for _, m := range []Mode{ModeAgent, ModeDisabled} {
		if got, err := ask1(t, NewHub(m, owner, quiet()), addr); got != "kubelet" || err != nil {
			t.Errorf("%s: %q, %v", m, got, err)
		}
	}
}

func TestKubeletErrorsComeBack(t *testing.T) {
	h := NewHub(ModeAgent, farNode("n1"), quiet())
	srv := serveTLS(t, h, "n1")
	start(t, AgentOptions{Servers: fixed(srv.Listener.Addr().String()), Kubelet: "127.0.0.1:1"})
	awaitNodes(t, h, "n1")
	if _, err := ask1(t, h, far+":10250"); err == nil || !strings.Contains(err.Error(), "node n1: ") || !strings.Contains(err.Error(), "127.0.0.1:1: connect: connection refused") {
		t.Errorf("err = %v", err)
	}
}

func TestTheNewestTunnelServes(t *testing.T) {
	h := NewHub(ModeAgent, farNode("n1"), quiet())
	srv := serveTLS(t, h, "n1")
	servers := fixed(srv.Listener.Addr().String())
	held := func() int {
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.nodes["n1"])
	}
	start(t, AgentOptions{Servers: servers, Kubelet: listenTCP(t, "127.0.0.1:0", says("old"))})
	awaitNodes(t, h, "n1")
	leave := start(t, AgentOptions{Servers: servers, Kubelet: listenTCP(t, "127.0.0.1:0", says("new"))})
	await(t, 5*time.Second, "second tunnel", func() bool { return held() == 2 })
	if got, err := ask1(t, h, far+":10250"); got != "new" || err != nil {
		t.Errorf("with both: %q, %v", got, err)
	}
	leave()
	if got, err := ask1(t, h, far+":10250"); got != "old" || err != nil {
		t.Errorf("with the older alone: %q, %v", got, err)
	}
}

func TestADeadTunnelIsPassedOver(t *testing.T) {
	h := NewHub(ModeAgent, farNode("n1"), quiet())
	srv := serveTLS(t, h, "n1")
	start(t, AgentOptions{Servers: fixed(srv.Listener.Addr().String()), Kubelet: listenTCP(t, "127.0.0.1:0", says("older"))})
	awaitNodes(t, h, "n1")
	dead, _ := net.Pipe()
	mux, err := yamux.Client(dead, settings(quiet()))
	if err != nil {
		t.Fatal(err)
	}
	mux.Close()
	h.add("n1", mux)
	if got, err := ask1(t, h, far+":10250"); got != "older" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestANodeHoldsFewTunnels(t *testing.T) {
	h := NewHub(ModeAgent, nil, quiet())
	for range maxTunnels + 3 {
		a, b := net.Pipe()
		go io.Copy(io.Discard, b)
		mux, err := yamux.Client(a, settings(quiet()))
		if err != nil {
			t.Fatal(err)
		}
		h.add("n1", mux)
		t.Cleanup(func() { mux.Close() })
	}
	if n := len(h.nodes["n1"]); n != maxTunnels {
		t.Errorf("%d tunnels, want %d", n, maxTunnels)
	}
}

func TestTunnelReturnsAfterServerRestart(t *testing.T) {
	h := NewHub(ModeAgent, farNode("n1"), quiet())
	srv := serveTLS(t, h, "n1")
	addr := srv.Listener.Addr().String()
	start(t, AgentOptions{Servers: fixed(addr), Kubelet: listenTCP(t, "127.0.0.1:0", says("kubelet"))})
	awaitNodes(t, h, "n1")
	h.close()
	srv.Close()

	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	h = NewHub(ModeAgent, farNode("n1"), quiet())
	again := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.Accept(w, r, "n1") }))
	again.Listener.Close()
	again.Listener = l
	again.StartTLS()
	t.Cleanup(func() { h.close(); again.Close() })
	await(t, 2*time.Second, "tunnel to the server's next life", func() bool { return len(h.Nodes()) == 1 })
	if got, err := ask1(t, h, far+":10250"); got != "kubelet" || err != nil {
		t.Errorf("after restart: %q, %v", got, err)
	}
}

func TestFollowsTheListOfServers(t *testing.T) {
	hubs := []*Hub{NewHub(ModeAgent, nil, quiet()), NewHub(ModeAgent, nil, quiet())}
	var addrs []string
	for _, h := range hubs {
		addrs = append(addrs, serveTLS(t, h, "n1").Listener.Addr().String())
	}
	var mu sync.Mutex
	list := addrs[:1]
	changed := make(chan struct{}, 1)
	set := func(l []string) {
		mu.Lock()
		list = l
		mu.Unlock()
		changed <- struct{}{}
	}
	start(t, AgentOptions{
		Servers: func() []string { mu.Lock(); defer mu.Unlock(); return list },
		Changed: func() <-chan struct{} { return changed },
	})
	awaitNodes(t, hubs[0], "n1")
	set(addrs)
	awaitNodes(t, hubs[1], "n1")
	set(addrs[1:])
	awaitNodes(t, hubs[0])
	awaitNodes(t, hubs[1], "n1")
}

func TestHalfCloseTravels(t *testing.T) {
	h := NewHub(ModeAgent, farNode("n1"), quiet())
	srv := serveTLS(t, h, "n1")
	start(t, AgentOptions{
		Servers: fixed(srv.Listener.Addr().String()),
		Kubelet: listenTCP(t, "127.0.0.1:0", func(c *net.TCPConn) {
			heard, _ := io.ReadAll(c) // answers only once it has heard the end
			fmt.Fprintf(c, "heard %q", heard)
		}),
	})
	awaitNodes(t, h, "n1")
	c, err := h.Dial(t.Context(), "tcp", far+":10250")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	io.WriteString(c, "all")
	c.(half).CloseWrite()
	if got, err := io.ReadAll(c); string(got) != `heard "all"` || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestCloseReachesTheKubelet(t *testing.T) {
	h := NewHub(ModeAgent, farNode("n1"), quiet())
	srv := serveTLS(t, h, "n1")
	gone := make(chan error, 1)
	start(t, AgentOptions{
		Servers: fixed(srv.Listener.Addr().String()),
		Kubelet: listenTCP(t, "127.0.0.1:0", func(c *net.TCPConn) {
			go func() {
				_, err := io.Copy(io.Discard, c)
				gone <- err
			}()
			io.Copy(c, io.LimitReader(zeros{}, 8<<20)) // does not heed its reader
		}),
	})
	awaitNodes(t, h, "n1")
	c, err := h.Dial(t.Context(), "tcp", far+":10250")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() { _, err := io.Copy(io.Discard, c); read <- err }()
	c.Close()
	for what, ch := range map[string]chan error{"reader": read, "kubelet": gone} {
		select {
		case err := <-ch:
			if what == "reader" && !errors.Is(err, net.ErrClosed) {
				t.Errorf("reader: %v", err)
			}
		case <-time.After(2 * time.Second):
			t.Errorf("%s has not noticed", what)
		}
	}
	h.mu.Lock()
	mux := h.nodes["n1"][0]
	h.mu.Unlock()
	await(t, 2*time.Second, "the node ends the stream too", func() bool { return mux.NumStreams() == 0 })
}

func TestALostTunnelIsNoEnd(t *testing.T) {
	h := NewHub(ModeAgent, farNode("n1"), quiet())
	srv := serveTLS(t, h, "n1")
	stop := start(t, AgentOptions{Servers: fixed(srv.Listener.Addr().String()), Kubelet: listenTCP(t, "127.0.0.1:0", echo)})
	awaitNodes(t, h, "n1")
	c, err := h.Dial(t.Context(), "tcp", far+":10250")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "x")
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	srv.CloseClientConnections()
	h.mu.Lock()
	mux := h.nodes["n1"][0]
	h.mu.Unlock()
	mux.Close()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read from a lost tunnel: %v", err)
	}
	stop()
}

func TestAThousandStreams(t *testing.T) {
	h := NewHub(ModeAgent, farNode("n1"), quiet())
	srv := serveTLS(t, h, "n1")
	start(t, AgentOptions{Servers: fixed(srv.Listener.Addr().String()), Kubelet: listenTCP(t, "127.0.0.1:0", echo)})
	awaitNodes(t, h, "n1")
	const n = 1000
	var wg sync.WaitGroup
	var open sync.WaitGroup
	open.Add(n)
	for i := range n {
		wg.Go(func() {
			c, err := h.Dial(t.Context(), "tcp", far+":10250")
			open.Done()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			open.Wait() // all at once
			c.SetDeadline(time.Now().Add(10 * time.Second))
			want := fmt.Sprintf("stream %d", i)
			io.WriteString(c, want)
			c.(half).CloseWrite()
			if got, err := io.ReadAll(c); string(got) != want || err != nil {
				t.Errorf("got %q, %v; want %q", got, err, want)
			}
		})
	}
	wg.Wait()
	h.mu.Lock()
	mux := h.nodes["n1"][0]
	h.mu.Unlock()
	await(t, 2*time.Second, "no stream left behind", func() bool { return mux.NumStreams() == 0 })
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// TestBigTransferLeavesRoom sends 256 MiB and meanwhile talks in another stream; a
// third stream, which nobody reads, must not stop either.
func TestBigTransferLeavesRoom(t *testing.T) {
	const size = 256 << 20
	h := NewHub(ModeAgent, farNode("n1"), quiet())
	addr := listenTCP(t, "127.0.0.1:0", func(c *net.TCPConn) {
		br := bufioReader(c)
		if _, err := http.ReadRequest(br); err == nil {
			h.serve(t.Context(), c, br, "n1")
		}
	})
	t.Cleanup(h.close)
	start(t, AgentOptions{
		Servers: fixed(addr),
		Dial:    dialPlain, // TLS under the race detector takes most of the time
		Kubelet: listenTCP(t, "127.0.0.1:0", func(c *net.TCPConn) {
			order := make([]byte, 1)
			io.ReadFull(c, order)
			if order[0] == 'e' {
				echo(c)
				return
			}
			io.CopyN(struct{ io.Writer }{c}, zeros{}, size)
		}),
	})
	awaitNodes(t, h, "n1")
	dial := func(order string) net.Conn {
		c, err := h.Dial(t.Context(), "tcp", far+":10250")
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, order)
		return c
	}
	neglected, big, small := dial("b"), dial("b"), dial("e")
	defer neglected.Close()
	defer big.Close()
	defer small.Close()

	done := make(chan int64, 1)
	go func() { n, _ := io.Copy(io.Discard, big); done <- n }()
	var worst time.Duration
	for talks := 0; ; talks++ {
		began := time.Now()
		io.WriteString(small, "x")
		if _, err := io.ReadFull(small, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		worst = max(worst, time.Since(began))
		select {
		case n := <-done:
			if n != size {
				t.Errorf("%d bytes arrived, want %d", n, size)
			}
			if talks < 10 || worst > time.Second {
				t.Errorf("%d round trips meanwhile, the slowest %s", talks, worst)
			}
			return
		default:
		}
	}
}

func TestStopsThoughTheServerIsMute(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts by the kernel, never answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	stop := start(t, AgentOptions{Servers: fixed(l.Addr().String()), Dial: dialPlain})
	if _, err := l.Accept(); err != nil {
		t.Fatal(err)
	}
	stop()
}

func TestStopsWithStreamsOpen(t *testing.T) {
	h := NewHub(ModeAgent, farNode("n1"), quiet())
	srv := serveTLS(t, h, "n1")
	stop := start(t, AgentOptions{
		Servers: fixed(srv.Listener.Addr().String()),
		Kubelet: listenTCP(t, "127.0.0.1:0", func(c *net.TCPConn) { io.Copy(struct{ io.Writer }{c}, zeros{}) }),
	})
	awaitNodes(t, h, "n1")
	for range 20 {
		c, err := h.Dial(t.Context(), "tcp", far+":10250")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	stop()
}

func TestRefusesWhatIsNoTunnel(t *testing.T) {
	h := NewHub(ModeAgent, nil, quiet())
	srv := serveTLS(t, h, "n1")
	res, err := srv.Client().Get(srv.URL + Path)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusUpgradeRequired || res.Header.Get("Upgrade") != Protocol {
		t.Errorf("plain GET: %s, Upgrade %q", res.Status, res.Header.Get("Upgrade"))
	}
}

// TestANodeOpensNoStreams: what a node sent in a stream of its own would stay in
// the server's memory.
func TestANodeOpensNoStreams(t *testing.T) {
	h := NewHub(ModeAgent, nil, quiet())
	near, away := net.Pipe()
	go h.serve(t.Context(), near, bufioReader(near), "n1")
	l := accepted(t, away)
	mux, err := yamux.Server(l, settings(quiet()))
	if err != nil {
		t.Fatal(err)
	}
	defer mux.Close()
	awaitNodes(t, h, "n1")
	await(t, time.Second, "refusal of streams", func() bool {
		_, err := mux.OpenStream()
		return errors.Is(err, yamux.ErrRemoteGoAway)
	})
}

func TestSilenceEndsATunnel(t *testing.T) {
	if heartbeat > silence/2 || silence >= 15*time.Second {
		t.Errorf("a heartbeat each %s, and death after %s", heartbeat, silence)
	}
	const short = 200 * time.Millisecond
	mute := func(c net.Conn) { io.Copy(io.Discard, c) }
	t.Run("server's end", func(t *testing.T) {
		h := NewHub(ModeAgent, nil, quiet())
		h.silence = short
		near, away := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- h.serve(t.Context(), near, bufioReader(near), "n1") }()
		accepted(t, away)
		go mute(away)
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			t.Fatal("not noticed")
		}
		if len(h.Nodes()) != 0 {
			t.Error("still on the list")
		}
	})
	t.Run("node's end", func(t *testing.T) {
		dials := make(chan struct{}, 10)
		a := NewAgent(AgentOptions{Servers: fixed("s:1"), Log: quiet(), Dial: func(context.Context, string) (net.Conn, error) {
			dials <- struct{}{}
			near, away := net.Pipe()
			go func() {
				if _, err := http.ReadRequest(bufioReader(away)); err == nil {
					fmt.Fprintf(away, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: %s\r\n\r\n", Protocol)
					mute(away)
				}
			}()
			return near, nil
		}})
		a.silence = short
		run(t, a)
		for range 2 {
			select {
			case <-dials:
			case <-time.After(5 * time.Second):
				t.Fatal("not dialled again")
			}
		}
	})
}

func TestAnIdleTunnelStays(t *testing.T) {
	h := NewHub(ModeAgent, nil, quiet())
	h.silence = 500 * time.Millisecond
	var dials atomic.Int32
	a := NewAgent(AgentOptions{Servers: fixed("s:1"), Log: quiet(), Dial: func(context.Context, string) (net.Conn, error) {
		dials.Add(1)
		near, away := net.Pipe()
		go func() {
			br := bufioReader(away)
			if _, err := http.ReadRequest(br); err == nil {
				h.serve(t.Context(), away, br, "n1")
			}
		}()
		return near, nil
	}})
	a.heartbeat, a.silence = h.silence/10, h.silence
	run(t, a)
	time.Sleep(2 * h.silence)
	if n := dials.Load(); n != 1 || !slices.Equal(h.Nodes(), []string{"n1"}) {
		t.Errorf("%d dials, nodes %v", n, h.Nodes())
	}
}

func TestSaysOncePerChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		var tries int
		stop := start(t, AgentOptions{
			Servers: fixed("s:1"),
			Dial:    func(context.Context, string) (net.Conn, error) { tries++; return nil, errors.New("refused") },
			Log:     slog.New(slog.NewTextHandler(&out, nil)),
		})
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		stop()
		if n := strings.Count(out.String(), "\n"); n != 1 {
			t.Errorf("%d lines:\n%s", n, out.String())
		}
		if tries < 10*60/5 || tries > 10*60/2 {
			t.Errorf("%d tries in ten minutes", tries)
		}
	})
}

func TestContract(t *testing.T) {
	lifecycletest.Check(t, NewAgent(AgentOptions{Servers: fixed("127.0.0.1:1"), Dial: dialTLS, Log: quiet()}))
	lifecycletest.Check(t, Connect(NewHub(ModeAgent, nil, quiet()), t.TempDir()+"/egress.sock"))
}
