// Package balancer is a node's own way to the API servers, whichever of them live.
//
// It listens on a loopback port and passes each connection, byte for byte, to one
// server of a list. The list is given by Set and kept on disk, so a node that
// starts while the server it joined through is gone finds the others. So are servers
// that left the list: a cluster that starts or stops publishes some of its servers
// alone, and they may be the ones that do not come back. A connection
// stays where it is until its server fails; then it is cut, because a client whose
// connection ends comes back at once, and is passed to another server.
//
// Whether a server is healthy is the caller's judgement: TLS is between the client
// and the server, and the balancer holds no certificate. It cuts nothing as long as
// no server is better than the one in use.
package balancer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// most is how many connections are passed at once. A node has a dozen clients; the
// bound is what a runaway one may cost in files and memory.
const most = 4096

// apiServer is what a server is unless Options say otherwise.
const apiServer = "API server"

// Options are what a Balancer needs to know.
type Options struct {
	// Listen is the loopback address that clients connect to.
	Listen netip.AddrPort
	// File keeps the list of servers; its folder must exist. With no name the list
	// is kept in memory only.
	File string
	// First are the servers, host:port, to begin with where File has none. They are
	// the last resort for ever: the name that a node was joined by may lead to a
	// server when no address of the list does.
	First []string
	// What one of the servers is, for the log; "API server" if it is empty.
	What string
	// Healthy returns nil if the server at addr can do its work. It must return
	// when ctx ends. Nil is satisfied with a connection.
	Healthy func(ctx context.Context, addr string) error
	Log     *slog.Logger
}

// A Server is what an operator sees of one server.
type Server struct {
	Addr       string    `json:"addr"`
	Healthy    bool      `json:"healthy"`
	Since      time.Time `json:"since,omitzero"` // that Healthy has been so; zero before the first check
	Err        string    `json:"error,omitempty"`
	Conns      int       `json:"connections"`
	LastResort bool      `json:"lastResort,omitempty"` // not on the list
}

// A Balancer is a lifecycle.Component. It runs once.
type Balancer struct {
	opts    Options
	log     *slog.Logger
	pace    pace
	most    int
	born    time.Time
	buffers sync.Pool
	wake    chan struct{}
	stirred atomic.Bool    // a glance is to come
	work    sync.WaitGroup // everything that Run started

	setting sync.Mutex // one Set at a time, or the file might end as another than the list

	mu      sync.Mutex
	servers []*server
	first   []string // of Options
	former  []string // no longer on the list, those that left last first
	present *server  // served last
	open    int      // connections accepted and not yet ended
	changed chan struct{}
}

// New returns a balancer over the list in opts.File, or over opts.First if there is
// none to be read.
func New(opts Options) *Balancer {
	b := &Balancer{
		opts:    opts,
		log:     opts.Log.With("component", "balancer"),
		pace:    usual(),
		most:    most,
		born:    time.Now(),
		buffers: sync.Pool{New: func() any { return new([32 << 10]byte) }},
		wake:    make(chan struct{}, 1),
		changed: make(chan struct{}),
	}
	if b.opts.Healthy == nil {
		b.opts.Healthy = b.reachable
	}
	if b.opts.What == "" {
		b.opts.What = apiServer
	}
	var err error
	if b.first, err = b.clean(opts.First); err != nil {
		b.log.Warn("server address ignored", "err", err)
	}
	list, former, err := b.load()
	if err != nil {
		b.log.Warn("list of servers not readable; starting with those the node was joined by", "path", opts.File, "err", err)
	}
	if len(list) == 0 {
		list = b.first
	}
	b.replace(list)
	b.resort(former)
	return b
}

// Network is a protocol of the family alone that an address is of, as package net calls it:
// with plain tcp or udp, 0.0.0.0 would mean all of IPv6 too.
func Network(protocol string, at netip.Addr) string {
	if at.Unmap().Is4() {
		return protocol + "4"
	}
	return protocol + "6"
}

// Name is the component's name.
func (b *Balancer) Name() string { return "balancer" }

// Run passes connections until ctx ends, and then cuts them all. It is ready once
// it listens, whether a server answers or not.
func (b *Balancer) Run(ctx context.Context, ready func()) error {
	var cfg net.ListenConfig
	cfg.KeepAlive = -1 // a peer on this machine does not vanish
	cfg.SetMultipathTCP(false)
	l, err := cfg.Listen(ctx, Network("tcp", b.opts.Listen.Addr()), b.opts.Listen.String())
	if errors.Is(err, syscall.EADDRINUSE) {
		remedy := "stop it"
		if b.opts.What == apiServer {
			remedy += ", or choose another with --lb-server-port"
		}
		return fmt.Errorf("listen on %s: another program has this port; %s: %w", b.opts.Listen, remedy, err)
	}
	if err != nil {
		return err // names the operation and the address
	}
	b.work.Go(func() { b.accept(ctx, l.(*net.TCPListener)) })
	ready()

	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-b.wake:
			timer.Reset(b.turn(ctx))
		case <-timer.C:
			timer.Reset(b.turn(ctx))
		}
	}
	l.Close()
	b.mu.Lock()
	for _, s := range b.servers {
		s.cut()
	}
	b.mu.Unlock()
	b.work.Wait()
	return nil
}

// Set replaces the list. Connections to a server that is no longer on it end after
// a moment. A list without any valid address changes nothing.
func (b *Balancer) Set(addrs []string) {
	b.setting.Lock()
	defer b.setting.Unlock()
	list, err := b.clean(addrs)
	if err != nil {
		b.log.Warn("server address ignored", "err", err)
	}
	if len(list) == 0 {
		return
	}
	b.mu.Lock()
	before := b.list()
	changed := b.replace(list)
	b.resort(append(before, b.former...))
	former := b.former
	b.mu.Unlock()
	if changed {
		b.log.Info("list of servers changed", "what", b.opts.What, "servers", list)
		b.rouse()
	}
	if err := b.save(list, former); err != nil {
		b.log.Warn("list of servers not kept", "err", err)
	}
}

// Watch returns the list, sorted, and a channel that is closed when it is no longer
// the list. Last resorts are not on it.
func (b *Balancer) Watch() ([]string, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.list(), b.changed
}

// Servers tells how each server is: those on the list, and the last resorts.
func (b *Balancer) Servers() []Server {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []Server
	for _, s := range b.servers {
		if !s.usable() {
			continue
		}
		seen := Server{Addr: s.addr, Healthy: s.state == healthy, Since: s.since, Conns: len(s.pairs), LastResort: !s.listed}
		if s.err != nil {
			seen.Err = s.err.Error()
		}
		out = append(out, seen)
	}
	return out
}

func (b *Balancer) accept(ctx context.Context, l *net.TCPListener) {
	var warned time.Time
	warn := func(message string, err error) {
		if time.Since(warned) > time.Minute {
			warned = time.Now()
			b.log.Warn(message, "err", err)
		}
	}
	for {
		client, err := l.AcceptTCP()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				client.Close()
			}
			return
		case err != nil: // too many open files, for one: it may pass
			warn("connection not accepted", err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		case !b.enter():
			client.Close()
			warn("connection refused", fmt.Errorf("%d are open", b.most))
		default:
			b.work.Go(func() {
				b.serve(ctx, client)
				b.exit()
			})
		}
	}
}

// serve passes one client's connection to the first server that takes it.
func (b *Balancer) serve(ctx context.Context, client *net.TCPConn) {
	defer client.Close()
	tried := map[*server]bool{}
	for ctx.Err() == nil {
		s, dialer := b.pick(tried)
		if s == nil {
			return
		}
		tried[s] = true
		c, err := b.dial(ctx, dialer, s.addr)
		if err != nil {
			b.log.Debug("server not reached", "addr", s.addr, "err", err)
			b.suspect(s, true)
			continue
		}
		p := &pair{client: client, server: c, born: b.born, buffers: &b.buffers, stir: b.stir}
		if b.join(ctx, s, p) {
			err := p.carry()
			b.part(s, p)
			if err != nil {
				b.log.Debug("connection failed", "addr", s.addr, "err", err)
				b.suspect(s, vanished(err))
			}
			return
		}
		c.Close()
	}
}

func (b *Balancer) enter() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open >= b.most {
		return false
	}
	b.open++
	return true
}

func (b *Balancer) exit() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open--
}

// rouse lets Run look again at what is due.
func (b *Balancer) rouse() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// errClosing reports a server that ended a connection before its client did.
var errClosing = errors.New("ended by the server")
