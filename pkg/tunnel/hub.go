package tunnel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// errGone means that a tunnel ended under a dial. Dial turns to another.
var errGone = errors.New("tunnel is gone")

// maxTunnels is how many tunnels a node may hold to one server. More than one is
// normal for a moment after a restart, and where a server has several addresses.
const maxTunnels = 4

// directly is how long we try to dial a node that has no tunnel but ought to.
const directly = 3 * time.Second

// An Owner says which node an address or name belongs to. It must know from
// the cluster's records, not from the nodes themselves, and is asked at each dial.
type Owner func(host string) (Place, bool)

// Hub is the server's end of all tunnels.
type Hub struct {
	mode  Mode
	owner Owner
	log   *slog.Logger

	silence time.Duration

	mu     sync.Mutex
	closed bool
	nodes  map[string][]*yamux.Session // newest last
}

// NewHub returns a hub without tunnels.
func NewHub(mode Mode, owner Owner, log *slog.Logger) *Hub {
	return &Hub{mode: mode, owner: owner, log: log, silence: silence, nodes: map[string][]*yamux.Session{}}
}

// Accept serves a request for [Path] from a caller who has proved to be node, until the
// tunnel or the request's context ends. The newest tunnel of a node takes all new
// connections; older ones keep theirs until the node closes them.
func (h *Hub) Accept(w http.ResponseWriter, r *http.Request, node string) {
	if h.mode == ModeDisabled {
		http.Error(w, "this cluster uses no tunnels", http.StatusNotFound)
		return
	}
	if r.ProtoMajor != 1 || r.Header.Get("Upgrade") != Protocol || !strings.EqualFold(r.Header.Get("Connection"), "upgrade") {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", Protocol)
		http.Error(w, "want an upgrade to "+Protocol, http.StatusUpgradeRequired)
		return
	}
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if err := h.serve(r.Context(), conn, buf.Reader, node); err != nil {
		h.log.Debug("tunnel refused", "component", "egress", "node", node, "err", err)
	}
}

func (h *Hub) serve(ctx context.Context, conn net.Conn, early *bufio.Reader, node string) error {
	l := &link{conn, io.MultiReader(io.LimitReader(early, int64(early.Buffered())), conn), h.silence}
	defer l.Close()
	_ = conn.SetDeadline(time.Now().Add(handshake))
	if _, err := fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", Protocol); err != nil {
		return err
	}
	_ = conn.SetDeadline(time.Time{})
	mux, err := yamux.Client(l, settings(h.log))
	if err != nil {
		return err
	}
	defer mux.Close()
	// Streams are ours to open. Any that a node opened would sit here unread.
	if err := mux.GoAway(); err != nil {
		return err
	}
	if !h.add(node, mux) {
		return net.ErrClosed
	}
	defer context.AfterFunc(ctx, func() { _ = mux.Close() })()
	h.log.Info("tunnel open", "component", "egress", "node", node, "addr", conn.RemoteAddr().String())
	<-mux.CloseChan()
	h.drop(node, mux)
	h.log.Info("tunnel closed", "component", "egress", "node", node, "addr", conn.RemoteAddr().String())
	return nil
}

// Nodes lists the nodes that hold a tunnel, in order.
func (h *Hub) Nodes() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Sorted(maps.Keys(h.nodes))
}

func (h *Hub) add(node string, mux *yamux.Session) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	held := append(h.nodes[node], mux)
	if len(held) > maxTunnels {
		go held[0].Close()
		held = held[1:]
	}
	h.nodes[node] = slices.Clone(held)
	return true
}

func (h *Hub) drop(node string, mux *yamux.Session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	held := slices.DeleteFunc(slices.Clone(h.nodes[node]), func(m *yamux.Session) bool { return m == mux })
	if h.nodes[node] = held; len(held) == 0 {
		delete(h.nodes, node)
	}
}

func (h *Hub) newest(node string) *yamux.Session {
	h.mu.Lock()
	defer h.mu.Unlock()
	held := h.nodes[node]
	if len(held) == 0 {
		return nil
	}
	return held[len(held)-1]
}

// close ends every tunnel, with what goes on in it, and takes no more.
func (h *Hub) close() {
	h.mu.Lock()
	h.closed = true
	var all []*yamux.Session
	for _, held := range h.nodes {
		all = append(all, held...)
	}
	h.mu.Unlock()
	var wg sync.WaitGroup
	for _, mux := range all {
		wg.Go(func() { _ = mux.Close() })
	}
	wg.Wait()
}

// Dial connects to addr, through a node's tunnel where the mode says so. A node
// without a tunnel is dialled, but not for long. The connection has CloseWrite.
func (h *Hub) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return h.dial(ctx, network, addr, h.owner)
}

// DialBy is Dial for who knows better whose an address or name is than the hub's Owner.
func (h *Hub) DialBy(owner Owner) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		return h.dial(ctx, network, addr, owner)
	}
}

func (h *Hub) dial(ctx context.Context, network, addr string, owner Owner) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	var (
		d      net.Dialer
		target string
		place  Place
	)
	near := addr
	if owner != nil {
		if p, known := owner(host); known {
			place, target = p, h.mode.target(p, addr, port)
			if p.Addr != "" {
				near = net.JoinHostPort(p.Addr, port)
			}
		}
	}
	if target == "" {
		return d.DialContext(ctx, network, near)
	}
	conn, err := h.through(ctx, place.Node, target)
	if !errors.Is(err, errGone) {
		return conn, err
	}
	d.Timeout = directly
	direct, failed := d.DialContext(ctx, network, near)
	if failed == nil {
		return direct, nil
	}
	// Its tunnel may have come back while we tried.
	if conn, err = h.through(ctx, place.Node, target); !errors.Is(err, errGone) {
		return conn, err
	}
	return nil, fmt.Errorf("no tunnel from node %s, and direct: %w", place.Node, failed)
}

// through dials target by a tunnel of node. The error is errGone if there is none.
func (h *Hub) through(ctx context.Context, node, target string) (net.Conn, error) {
	for mux := h.newest(node); mux != nil; mux = h.newest(node) {
		conn, err := open(ctx, mux, target)
		if err == nil {
			return conn, nil
		}
		if !errors.Is(err, errGone) {
			return nil, fmt.Errorf("node %s: %w", node, err)
		}
		h.drop(node, mux)
		go mux.Close()
	}
	return nil, errGone
}

// open asks the far end of mux for a connection to target.
func open(ctx context.Context, mux *yamux.Session, target string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshake)
	defer cancel()
	opened := make(chan *stream)
	go func() { // yamux waits without looking at a context
		y, err := mux.OpenStream()
		if err != nil {
			close(opened)
			return
		}
		s := &stream{Stream: y}
		select {
		case opened <- s:
		case <-ctx.Done():
			_ = s.Close()
		}
	}()
	var s *stream
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("tunnel is busy: %w", ctx.Err())
	case s = <-opened:
		if s == nil {
			return nil, errGone
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = s.SetDeadline(time.Unix(1, 0)) })
	reply, err := "", writeFrame(s, target)
	if err == nil {
		reply, err = readFrame(s)
	}
	switch {
	case !stop():
		err = fmt.Errorf("tunnel does not answer: %w", ctx.Err())
	case err != nil && mux.IsClosed():
		err = errGone
	case err == nil && reply != "":
		err = errors.New(reply)
	}
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}
