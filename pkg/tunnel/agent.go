package tunnel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// The pause before a lost tunnel is dialled again doubles from the first to the
// last of these, each shortened by up to half so that nodes do not come in step.
const (
	firstPause = 200 * time.Millisecond
	lastPause  = 5 * time.Second
)

// AgentOptions is what a node's end needs to know.
type AgentOptions struct {
	// Servers lists the API servers, host:port. Changed, if set, is called before
	// each look at the list; what it returns is to receive, or be closed, when the
	// list has changed since.
	Servers func() []string
	Changed func() <-chan struct{}

	// Dial connects to a server with TLS: it verifies the server, shows the node's
	// client certificate and offers HTTP/1.1 alone.
	Dial func(ctx context.Context, addr string) (net.Conn, error)

	// Kubelet is where this node's kubelet listens, host:port.
	Kubelet string

	// Reach, if set, lists what else servers may connect to, at any port: the
	// node's own pods in ModePod, and the node's own addresses in ModeCluster.
	Reach func() []netip.Prefix

	Log *slog.Logger
}

// Agent is a node's end of its tunnels, one to each server.
type Agent struct {
	o   AgentOptions
	log *slog.Logger

	heartbeat, silence time.Duration
}

// NewAgent returns the component that keeps a node's tunnels. It is ready at once:
// a node works without servers.
func NewAgent(o AgentOptions) *Agent {
	return &Agent{o: o, log: o.Log.With("component", "tunnel"), heartbeat: heartbeat, silence: silence}
}

// Name is "tunnel".
func (a *Agent) Name() string { return "tunnel" }

// Run keeps the tunnels until ctx ends.
func (a *Agent) Run(ctx context.Context, ready func()) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	kept := map[string]context.CancelFunc{}
	ready()
	for {
		var changed <-chan struct{}
		if a.o.Changed != nil {
			changed = a.o.Changed()
		}
		listed := map[string]bool{}
		for _, addr := range a.o.Servers() {
			if listed[addr] = true; kept[addr] == nil {
				here, leave := context.WithCancel(ctx)
				defer leave()
				kept[addr] = leave
				wg.Go(func() { a.keep(here, addr) })
			}
		}
		for addr, leave := range kept {
			if !listed[addr] {
				leave()
				delete(kept, addr)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// keep holds a tunnel to one server, and says so when that changes.
func (a *Agent) keep(ctx context.Context, addr string) {
	log, told, pause := a.log.With("addr", addr), false, firstPause
	for {
		var opened time.Time
		err := a.tunnel(ctx, addr, func() {
			opened, told = time.Now(), false
			log.Info("tunnel open")
		})
		if ctx.Err() != nil {
			return
		}
		if !told {
			told = true
			log.Warn("no tunnel", "err", err)
		}
		// One that ends as soon as it is open counts as a failure.
		if !opened.IsZero() && time.Since(opened) > lastPause {
			pause = firstPause
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause - rand.N(pause/2)):
		}
		pause = min(2*pause, lastPause)
	}
}

// tunnel opens one tunnel and serves it until it ends, which is an error.
func (a *Agent) tunnel(ctx context.Context, addr string, opened func()) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	l, err := a.upgrade(ctx, addr)
	if err != nil {
		return err
	}
	mux, err := yamux.Server(l, settings(a.log))
	if err != nil {
		_ = l.Close()
		return err
	}
	defer mux.Close()
	wg.Go(func() {
		<-ctx.Done()
		_ = mux.Close()
	})
	wg.Go(func() { beat(ctx, mux, a.heartbeat) })
	opened()
	for {
		s, err := mux.AcceptStream()
		if err != nil {
			return fmt.Errorf("tunnel ended: %w", err)
		}
		wg.Go(func() { a.serve(ctx, &stream{Stream: s}) })
	}
}

// beat pings. Whether it was heard is judged by the link, see silence.
func beat(ctx context.Context, mux *yamux.Session, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_, _ = mux.Ping()
		}
	}
}

// upgrade dials a server and turns the connection into a tunnel's.
func (a *Agent) upgrade(ctx context.Context, addr string) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, handshake)
	defer cancel()
	conn, err := a.o.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	br := bufio.NewReader(conn)
	err = ask(conn, br, addr)
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		_ = (&link{Conn: conn}).Close()
		return nil, err
	}
	return &link{conn, io.MultiReader(io.LimitReader(br, int64(br.Buffered())), conn), a.silence}, nil
}

// ask speaks HTTP by hand: net/http would keep the connection to itself.
func ask(conn net.Conn, br *bufio.Reader, addr string) error {
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", Path, addr, Protocol); err != nil {
		return err
	}
	res, err := http.ReadResponse(br, nil)
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		why, _ := io.ReadAll(io.LimitReader(res.Body, maxFrame))
		return fmt.Errorf("server answers %s: %s", res.Status, strings.TrimSpace(string(why)))
	}
	if got := res.Header.Get("Upgrade"); got != Protocol {
		return fmt.Errorf("server speaks %q, not %q", got, Protocol)
	}
	return nil
}

// serve connects one stream to what it asks for.
func (a *Agent) serve(ctx context.Context, s *stream) {
	defer s.Close()
	_ = s.SetDeadline(time.Now().Add(handshake))
	target, err := readFrame(s)
	if err != nil {
		return
	}
	var far net.Conn
	addr, err := a.resolve(target)
	if err == nil {
		d := net.Dialer{Timeout: handshake / 2}
		far, err = d.DialContext(ctx, "tcp", addr)
	}
	if err != nil {
		_ = writeFrame(s, err.Error())
		return
	}
	defer far.Close()
	if err := writeFrame(s, ""); err != nil {
		return
	}
	_ = s.SetDeadline(time.Time{})
	splice(ctx, s, far.(*net.TCPConn))
}

// errOutOfReach refuses a target that this node does not expose.
var errOutOfReach = errors.New("not reachable through this node's tunnel")

// resolve is the address to dial for a target, if it may be dialled at all.
func (a *Agent) resolve(target string) (string, error) {
	if target == toKubelet {
		return a.o.Kubelet, nil
	}
	addr, err := netip.ParseAddrPort(target)
	if err == nil && addr.Addr().Zone() == "" && a.o.Reach != nil {
		ip := addr.Addr().Unmap()
		for _, p := range a.o.Reach() {
			if p.Contains(ip) {
				return netip.AddrPortFrom(ip, addr.Port()).String(), nil
			}
		}
	}
	return "", fmt.Errorf("%q: %w", target, errOutOfReach)
}
