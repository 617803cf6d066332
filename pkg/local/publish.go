package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/podo-dev/podo/pkg/balancer"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/machine"
)

// bracketed is an address as it stands before a port.
func bracketed(a netip.Addr) string {
	if a.Is6() {
		return "[" + a.String() + "]"
	}
	return a.String()
}

// listen is where the host is to listen for something: a port that is free, if 0 or -1 is
// asked for. One that is taken is an error.
func listen(address netip.Addr, port int32, protocol string) (netip.AddrPort, error) {
	if port < 0 {
		port = 0
	}
	at := netip.AddrPortFrom(address, uint16(port))
	var got net.Addr
	if protocol == "udp" {
		c, err := net.ListenUDP(balancer.Network("udp", address), net.UDPAddrFromAddrPort(at))
		if err != nil {
			return at, taken(at, protocol, err)
		}
		defer c.Close()
		got = c.LocalAddr()
	} else {
		l, err := net.ListenTCP(balancer.Network("tcp", address), net.TCPAddrFromAddrPort(at))
		if err != nil {
			return at, taken(at, protocol, err)
		}
		defer l.Close()
		got = l.Addr()
	}
	chosen, err := netip.ParseAddrPort(got.String())
	return netip.AddrPortFrom(address, chosen.Port()), err
}

func taken(at netip.AddrPort, protocol string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s port %s of this host is in use; stop what listens there, or choose another port", strings.ToUpper(protocol), at)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%w %s", errNoAddress, at.Addr())
	}
	return err
}

var errNoAddress = errors.New("this host has no address")

// placed is the field that an error of listen is about.
func placed(err error, port, address string) string {
	if errors.Is(err, errNoAddress) {
		return address
	}
	return port
}

// Published reports whether the host listens for a cluster.
func (s Site) Published(c Cluster) bool { return seat(s.file(c.Name, "ports")).pid() != 0 }

// Refers is the signal for the process that listens for a cluster to look which control
// planes there are now.
const Refers = syscall.SIGUSR1

// refer tells that process so, or starts it if there is none.
func (s Site) refer(ctx context.Context, c Cluster) error {
	pid := seat(s.file(c.Name, "ports")).pid()
	if pid == 0 || errors.Is(syscall.Kill(pid, Refers), syscall.ESRCH) {
		return s.open(ctx, c)
	}
	return nil
}

// Publish is the life of the process that listens on the host for a cluster: for its API,
// which any of its servers answers, and for ports of its nodes. It ends with ctx, and has
// the cluster's file for ports, held, until then. Refers comes by changed. Ready is called
// when all ports are open.
func (s Site) Publish(ctx context.Context, name string, held *os.File, changed <-chan os.Signal, ready func(), log *slog.Logger) error {
	defer held.Close()
	if err := enrol(held, name); err != nil {
		return err
	}
	c, err := s.Load(name)
	if err != nil {
		return err
	}
	g := lifecycle.NewGroup(log)
	api := balancer.New(balancer.Options{Listen: c.API, First: c.endpoints(), What: "API server of cluster " + name, Log: log})
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
			now, err := s.Load(name)
			if err != nil {
				log.Error("control planes are not known", "err", err)
				continue
			}
			api.Set(now.endpoints())
		}
	}()
	var open sync.WaitGroup
	open.Add(1)
	g.Add(api)
	for _, n := range c.Nodes {
		for _, p := range n.Ports {
			open.Add(1)
			g.Add(passage{p, netip.AddrPortFrom(c.Addr(n), p.Port), log})
		}
	}
	if c.Registry != 0 {
		open.Add(1)
		g.Add(registryServer{dir: s.file(name, "registry"), listen: c.doors(), log: log})
	}
	g.Observe = func(st lifecycle.Status) {
		if st.State == lifecycle.Ready {
			open.Done()
		}
	}
	go func() {
		open.Wait()
		ready()
	}()
	return g.Run(ctx)
}

// enrol has this process found, also if whoever started it was killed just then.
func enrol(held *os.File, cluster string) error {
	if err := note(held, os.Getpid()); err != nil {
		return fmt.Errorf("note down the process that listens: %w", err)
	}
	groups, err := machine.FindGroups()
	if err != nil {
		return err
	}
	return groups.Join(groupOf(cluster)+"/ports", os.Getpid())
}

// A passage is a port of the host that leads to one of a node.
type passage struct {
	Port
	to  netip.AddrPort
	log *slog.Logger
}

func (p passage) Name() string { return fmt.Sprintf("%s/%s", p.Listen, p.Protocol) }

func (p passage) Run(ctx context.Context, ready func()) error {
	if p.Protocol == "udp" {
		return p.datagrams(ctx, ready)
	}
	l, err := net.ListenTCP(balancer.Network("tcp", p.Listen.Addr()), net.TCPAddrFromAddrPort(p.Listen))
	if err != nil {
		return taken(p.Listen, p.Protocol, err)
	}
	ready()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var work sync.WaitGroup
	defer work.Wait()
	for {
		client, err := l.AcceptTCP()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil: // too many open files, for one: it may pass
			time.Sleep(100 * time.Millisecond)
		default:
			work.Go(func() { p.carry(ctx, client) })
		}
	}
}

// carry passes a connection on until both sides have ended it.
func (p passage) carry(ctx context.Context, client *net.TCPConn) {
	defer client.Close()
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", p.to.String())
	if err != nil {
		return
	}
	node := c.(*net.TCPConn)
	defer node.Close()
	defer context.AfterFunc(ctx, func() { client.Close(); node.Close() })()
	var both sync.WaitGroup
	for _, way := range [][2]*net.TCPConn{{client, node}, {node, client}} {
		both.Go(func() {
			_, _ = io.Copy(way[1], way[0])
			_ = way[1].CloseWrite()
		})
	}
	both.Wait()
}

// silence is how long a client of a UDP port is answered nothing until it is forgotten, and
// crowd how many such a port has at a time: whoever can reach it can feign any number.
const (
	silence = time.Minute
	crowd   = 1024
)

// datagrams passes datagrams on.
func (p passage) datagrams(ctx context.Context, ready func()) error {
	l, err := net.ListenUDP(balancer.Network("udp", p.Listen.Addr()), net.UDPAddrFromAddrPort(p.Listen))
	if err != nil {
		return taken(p.Listen, p.Protocol, err)
	}
	ready()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	clients := &clients{l: l, to: p.to, log: p.log, nodes: map[netip.AddrPort]*net.UDPConn{}}
	clients.buffers.New = func() any { return new([64 << 10]byte) }
	defer clients.work.Wait()
	text := make([]byte, 64<<10)
	for {
		n, from, err := l.ReadFromUDPAddrPort(text)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			continue
		}
		if node := clients.node(ctx, from); node != nil {
			_, _ = node.Write(text[:n])
		}
	}
}

// clients are those of a UDP port. Each has a socket of its own towards the node, so that
// answers find their way.
type clients struct {
	l       *net.UDPConn
	to      netip.AddrPort
	log     *slog.Logger
	buffers sync.Pool
	work    sync.WaitGroup

	mu    sync.Mutex
	nodes map[netip.AddrPort]*net.UDPConn
	full  bool // it was, and that was told
}

// node is a client's socket. It is nil if there are too many clients already.
func (c *clients) node(ctx context.Context, client netip.AddrPort) *net.UDPConn {
	c.mu.Lock()
	defer c.mu.Unlock()
	if node := c.nodes[client]; node != nil {
		return node
	}
	if len(c.nodes) == crowd {
		if !c.full {
			c.log.Warn("a UDP port has too many clients; others get nothing until some are silent", "port", c.l.LocalAddr(), "clients", crowd, "dropped", client)
		}
		c.full = true
		return nil
	}
	node, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(c.to))
	if err != nil {
		return nil
	}
	c.nodes[client] = node
	c.work.Go(func() {
		defer context.AfterFunc(ctx, func() { node.Close() })()
		c.answers(node, client)
		c.mu.Lock()
		delete(c.nodes, client)
		c.mu.Unlock()
		node.Close()
	})
	return node
}

// answers passes what a node says back to a client, until it is silent. It has a buffer only
// while there is something to pass: many clients wait, and few are answered at a time.
func (c *clients) answers(node *net.UDPConn, client netip.AddrPort) {
	raw, err := node.SyscallConn()
	if err != nil {
		return
	}
	for {
		_ = node.SetReadDeadline(time.Now().Add(silence))
		var said error
		err := raw.Read(func(fd uintptr) bool {
			text := c.buffers.Get().(*[64 << 10]byte)
			defer c.buffers.Put(text)
			var n int
			if n, said = syscall.Read(int(fd), text[:]); said == nil {
				_, _ = c.l.WriteToUDPAddrPort(text[:n], client)
			}
			return !errors.Is(said, syscall.EAGAIN)
		})
		switch {
		case err != nil:
			return
		case errors.Is(said, syscall.ECONNREFUSED), errors.Is(said, syscall.EINTR): // the former of an earlier datagram
		case said != nil:
			return
		}
	}
}

// open starts the process that listens for a cluster, in place of one that does.
func (s Site) open(ctx context.Context, c Cluster) error {
	at := seat(s.file(c.Name, "ports"))
	if err := at.end(ctx, syscall.SIGTERM, 5*time.Second); err != nil {
		return err
	}
	held, err := at.take()
	if err != nil {
		return err
	}
	defer held.Close()
	log, err := os.OpenFile(s.file(c.Name, "ports.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	hear, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	defer hear.Close()
	cmd := exec.Command(s.Exe, "cluster", "publish", "--name", c.Name)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, []*os.File{tell, held}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Dir = "/"
	err = cmd.Start()
	tell.Close()
	if err != nil {
		return err
	}
	if n, _ := hear.Read(make([]byte, 1)); n == 0 {
		_ = cmd.Wait()
		said, _ := os.ReadFile(log.Name())
		return fmt.Errorf("listen on the host's ports:%s", tail(string(said), 3))
	}
	return cmd.Process.Release()
}
