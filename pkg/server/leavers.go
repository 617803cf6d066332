package server

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/podo-dev/podo/pkg/storage/etcd"
)

// How long etcd keeps the member of a server whose node was deleted: it goes once it has been
// silent for a while, which a start of podo is not, and stays if it goes on answering.
const (
	silence  = 2 * time.Minute
	lookOut  = 10 * time.Minute
	lookOver = 5 * time.Second
)

// leavers takes servers out of etcd whose nodes were deleted: a member that never answers
// again would count as one that is away. Every server looks by itself, without a lease, since
// the one that held it may be the one that left. Who is late finds the member gone.
type leavers struct {
	admin func() (*etcd.Admin, error)
	taken func(address string) bool // some node stands there
	log   *slog.Logger

	mu   sync.Mutex
	gone map[string]*leaver // by node
}

// A leaver is a node that was deleted.
type leaver struct {
	addresses []string
	deleted   time.Time
	silent    map[string]time.Time // members that do not answer, by ID, since when
}

func newLeavers(admin func() (*etcd.Admin, error), taken func(address string) bool, log *slog.Logger) *leavers {
	return &leavers{admin: admin, taken: taken, log: log.With("component", "supervisor"), gone: map[string]*leaver{}}
}

// hear follows which nodes there are.
func (l *leavers) hear() cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) {
			if n, ok := o.(*corev1.Node); ok {
				l.back(n.Name)
			}
		},
		DeleteFunc: func(o any) {
			if last, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = last.Obj
			}
			if n, ok := o.(*corev1.Node); ok {
				l.left(n, time.Now())
			}
		},
	}
}

func (l *leavers) back(node string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.gone, node)
}

func (l *leavers) left(n *corev1.Node, now time.Time) {
	v := &leaver{deleted: now, silent: map[string]time.Time{}}
	for _, a := range n.Status.Addresses {
		v.addresses = append(v.addresses, a.Address)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gone[n.Name] = v
}

// run takes members out until ctx ends.
func (l *leavers) run(ctx context.Context) {
	again := time.NewTicker(lookOver)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-again.C:
		}
		l.mu.Lock()
		none := len(l.gone) == 0
		l.mu.Unlock()
		if !none {
			l.settle(ctx)
		}
	}
}

// settle asks the members who is there, and takes out those whose time is over. What cannot
// be done, for want of a quorum say, is tried again.
func (l *leavers) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, silence/2)
	defer cancel()
	admin, err := l.admin()
	if err != nil {
		return
	}
	members, err := admin.Members(ctx)
	if err != nil {
		l.log.Debug("etcd members of deleted nodes not looked at", "err", err)
		l.forgive()
		return
	}
	for _, m := range l.due(members, time.Now()) {
		if _, err := admin.Remove(ctx, m.ID); err != nil {
			l.log.Debug("etcd member of a deleted node not removed", "node", m.Node, "member", m.Name, "err", err)
			continue
		}
		l.log.Info("etcd member removed: its node was deleted, and it does not answer", "node", m.Node, "member", m.Name)
	}
}

// forgive begins anew to count how long members are silent: nobody has listened.
func (l *leavers) forgive() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, v := range l.gone {
		clear(v.silent)
	}
}

// due lists the members to take out, and forgets nodes that need no looking after: those
// that were of no member, and those of a member that went on answering.
func (l *leavers) due(members []etcd.Member, now time.Time) (out []etcd.Member) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for node, v := range l.gone {
		found, silent := false, map[string]time.Time{}
		for _, m := range members {
			if m.Client == "" || m.Node != node || !v.at(m) {
				continue // one that has not started yet joins just now
			}
			if l.taken(peerAddress(m)) {
				continue // its node has another name by now
			}
			found = true
			if m.Answered {
				continue
			}
			since, before := v.silent[m.ID]
			if !before {
				since = now
			}
			silent[m.ID] = since
			if now.Sub(since) >= silence {
				out = append(out, m)
			}
		}
		v.silent = silent
		if !found || len(silent) == 0 && now.Sub(v.deleted) > lookOut {
			delete(l.gone, node)
		}
	}
	return out
}

// at reports whether a member is where the node was: a server without a node may have the
// name of another machine's.
func (v *leaver) at(m etcd.Member) bool { return slices.Contains(v.addresses, peerAddress(m)) }

// peerAddress is where other members reach one, and empty if it has no such address.
func peerAddress(m etcd.Member) string {
	peer, err := netip.ParseAddrPort(strings.TrimPrefix(m.Peer, "https://"))
	if err != nil {
		return ""
	}
	return peer.Addr().String()
}
