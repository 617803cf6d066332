package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
)

// keep looks after a member until ctx ends.
func (s *Store) keep(ctx context.Context, e *embed.Etcd, client *clientv3.Client, id *identity) error {
	pulse, long := time.NewTicker(s.pulse), time.NewTicker(s.every)
	defer pulse.Stop()
	defer long.Stop()
	u := &upkeep{Store: s, etcd: e, client: client}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-pulse.C:
			if e.Server.Leader() == 0 {
				s.awaitQuorum(ctx, e)
			} else if sameKind(s.Waiting(), forQuorum) || s.Waiting() == forLeader {
				s.log.Info("datastore has its quorum again")
				s.wait("", "")
			}
			if u.full || len(e.Server.Alarms()) > 0 {
				u.relieve(ctx)
			}
			if err := id.keep(e, s.cfg.Dir); err != nil {
				s.log.Warn("list of etcd members not kept", "err", err)
			}
		case <-long.C:
			u.tidy(ctx, s.every)
		}
	}
}

// upkeep is the housekeeping of one member.
type upkeep struct {
	*Store
	etcd   *embed.Etcd
	client *clientv3.Client
	full   bool // an alarm was told
}

// relieve makes room when the datastore has reached its quota. etcd refuses every
// write from then on, even the API server's own cleaning of old revisions, until
// there is room and somebody says so.
func (u *upkeep) relieve(ctx context.Context) {
	alarms := u.spaceAlarms()
	if len(alarms) == 0 {
		if u.full {
			u.full = false
			u.wait("", "")
			u.log.Info("datastore takes writes again")
		}
		return
	}
	if !u.full {
		u.full = true
		u.log.Error("datastore is full and takes no writes; making room", "bytes", u.etcd.Server.Backend().Size(), "quota", u.quota())
	}
	if err := u.compact(ctx); err != nil {
		u.log.Debug("compaction", "err", err)
		return
	}
	me := u.etcd.Server.MemberID()
	if u.tight() && u.turn(time.Now(), 2*u.pulse) {
		u.rewrite(ctx)
	}
	for _, a := range alarms {
		gone := !slices.ContainsFunc(u.members(), func(m uint64) bool { return m == a.MemberID })
		if a.MemberID != uint64(me) && !gone {
			continue // its own to say
		}
		size, quota := u.etcd.Server.Backend().Size(), u.quota()
		if size > quota-quota/10 && !gone {
			u.wait("room in the datastore", fmt.Sprintf("it is full, %d of %d MiB: delete what is not needed, or raise the quota with --etcd-arg quota-backend-bytes=BYTES on every server", size>>20, quota>>20))
			continue
		}
		if _, err := u.client.AlarmDisarm(ctx, &clientv3.AlarmMember{MemberID: a.MemberID, Alarm: a.Alarm}); err != nil {
			u.log.Debug("disarm", "err", err)
			continue
		}
	}
}

func (u *upkeep) spaceAlarms() []*etcdserverpb.AlarmMember {
	return slices.DeleteFunc(slices.Clone(u.etcd.Server.Alarms()), func(a *etcdserverpb.AlarmMember) bool {
		return a.Alarm != etcdserverpb.AlarmType_NOSPACE
	})
}

func (u *upkeep) quota() int64 {
	if q := u.etcd.Config().QuotaBackendBytes; q > 0 {
		return q
	}
	return 2 << 30
}

// tight reports whether the file is near its quota, and would not be if it were
// rewritten.
func (u *upkeep) tight() bool {
	b, limit := u.etcd.Server.Backend(), u.quota()-u.quota()/10
	return b.Size() > limit && b.SizeInUse() < limit
}

// compact forgets what was, so that its pages can be used again.
func (u *upkeep) compact(ctx context.Context) error {
	res, err := read(ctx, u.client, 5*time.Second)
	if err != nil {
		return err
	}
	_, err = u.client.Compact(ctx, res.Header.Revision, clientv3.WithCompactPhysical())
	if errors.Is(err, rpctypes.ErrCompacted) {
		return nil
	}
	return err
}

// tidy rewrites the file when most of it is empty, or too much for its quota.
func (u *upkeep) tidy(ctx context.Context, slot time.Duration) {
	b := u.etcd.Server.Backend()
	if free := b.Size() - b.SizeInUse(); (free > fragmented && free > b.Size()/2 || u.tight()) && u.turn(time.Now(), 2*slot) {
		u.rewrite(ctx)
	}
}

// rewrite gives free pages back to the disk. The member answers nobody meanwhile, so
// the leadership goes to another first.
func (u *upkeep) rewrite(ctx context.Context) {
	server := u.etcd.Server
	if server.Leader() == server.MemberID() && len(u.members()) > 1 {
		if err := server.TryTransferLeadershipOnShutdown(); err != nil {
			u.log.Debug("datastore is not rewritten by its leader", "err", err)
			return
		}
	}
	if ctx.Err() != nil {
		return
	}
	before, began := server.Backend().Size(), time.Now()
	if err := server.Defragment(); err != nil {
		u.log.Warn("datastore cannot be rewritten", "err", err)
		return
	}
	u.log.Info("datastore rewritten", "before", before, "bytes", server.Backend().Size(), "took", time.Since(began).Round(time.Millisecond))
}

// members lists the members' IDs in an order that all of them agree on.
func (u *upkeep) members() []uint64 {
	var out []uint64
	for _, m := range u.etcd.Server.Cluster().Members() {
		out = append(out, uint64(m.ID))
	}
	slices.Sort(out)
	return out
}

// turn reports whether a slot of time is this member's, so that no two of them are
// away at once. A lock in the datastore would do without clocks, but could not be
// taken when there is no room for it.
func (u *upkeep) turn(now time.Time, slot time.Duration) bool {
	members := u.members()
	mine := slices.Index(members, uint64(u.etcd.Server.MemberID()))
	return int(now.UnixNano()/int64(slot)%int64(max(1, len(members)))) == mine
}
