package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// abandoned is how long a member that only learns may be silent before somebody
// else who wants to join takes it out. It has no vote, so that costs nothing.
const abandoned = time.Minute

// changeWithin is how long one change of the membership may take. A leader drops
// what comes while an earlier change is under way, and whoever asked is never told
// (raft 3.6), so waiting for longer would be in vain.
const changeWithin = 3 * time.Second

// join asks the cluster to take this member in, for as long as it takes, and returns
// the members to start with. Again means that an earlier start may have asked in the
// name of id, and has not run since.
func (s *Store) join(ctx context.Context, id *identity, again bool) (string, error) {
	c, err := s.dial(ctx, s.cfg.Join)
	if err != nil {
		return "", err
	}
	defer c.Close()
	silent := map[uint64]time.Time{}
	for pause := 200 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		members, err := s.admit(ctx, c, id, &again, silent)
		if err != nil {
			return "", err
		}
		if members != "" {
			return members, nil
		}
		if err := sleep(ctx, pause); err != nil {
			return "", err
		}
	}
}

// admit tries once. It returns nothing if it is to be tried again.
func (s *Store) admit(ctx context.Context, c *clientv3.Client, id *identity, again *bool, silent map[uint64]time.Time) (string, error) {
	list, err := list(ctx, c)
	if err != nil {
		// The client says no more than that time ran out.
		if why := s.reach(ctx, s.cfg.Join, s.cfg.Caller); why != nil {
			err = why
		}
		s.wait("etcd cluster to join", fmt.Sprintf("%s: %v", strings.Join(s.cfg.Join, ", "), err))
		return "", nil
	}
	var down []string
	for _, m := range list {
		if *again && m.Name == "" && m.IsLearner && slices.Contains(m.PeerURLs, s.peerURL()) {
			return s.initial(id, list), nil
		}
		answers := s.answers(ctx, m.PeerURLs)
		switch {
		case nodeOf(m.Name) == s.cfg.Node || slices.Contains(m.PeerURLs, s.peerURL()):
			if answers {
				return "", fmt.Errorf("%w: %s at %s answers: stop that server, or give this one another name with --node-name and an address of its own", ErrTaken, describe(m), strings.Join(m.PeerURLs, ", "))
			}
			return "", s.discard(ctx, c, m)
		case m.IsLearner && !answers:
			if silent[m.ID].IsZero() {
				silent[m.ID] = time.Now()
			}
			if time.Since(silent[m.ID]) > abandoned {
				return "", s.discard(ctx, c, m)
			}
			fallthrough
		case m.IsLearner:
			s.wait("member that joins before this one", describe(m))
			return "", nil
		case !answers:
			down = append(down, describe(m))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, changeWithin)
	defer cancel()
	*again = true
	res, err := c.MemberAddAsLearner(ctx, []string{s.peerURL()})
	switch {
	case err == nil:
		s.log.Info("etcd member joins", "member", id.Name, "members", len(res.Members))
		return s.initial(id, res.Members), nil
	case len(down) > 0:
		s.wait("members of the etcd cluster", fmt.Sprintf("%s does not answer, and a member more would put the quorum at risk: bring it back, or take it out with podo etcd remove NAME", strings.Join(down, ", ")))
	case errors.Is(err, rpctypes.ErrTooManyLearners), errors.Is(err, context.DeadlineExceeded):
		s.wait("member that joins before this one", "")
	case errors.Is(err, rpctypes.ErrUnhealthy), errors.Is(err, rpctypes.ErrMemberNotEnoughStarted):
		s.wait("members of the etcd cluster", "they have only just found each other")
	default:
		s.wait("etcd cluster to join", fmt.Sprintf("%s: %v", strings.Join(s.cfg.Join, ", "), err))
	}
	return "", nil
}

// discard removes a member that will not come back as it was.
func (s *Store) discard(ctx context.Context, c *clientv3.Client, m *etcdserverpb.Member) error {
	ctx, cancel := context.WithTimeout(ctx, changeWithin)
	defer cancel()
	if _, err := c.MemberRemove(ctx, m.ID); err != nil {
		s.wait("removal of the member that had this place", fmt.Sprintf("%s: %v", describe(m), err))
		return nil
	}
	s.log.Info("stale etcd member removed", "member", describe(m))
	return nil
}

// initial lists the members in the form that etcd starts with.
func (s *Store) initial(id *identity, members []*etcdserverpb.Member) string {
	var out []string
	for _, m := range members {
		name := m.Name
		if name == "" {
			name = id.Name
		}
		for _, u := range m.PeerURLs {
			out = append(out, name+"="+u)
		}
	}
	return strings.Join(out, ",")
}

// list asks for the members as a quorum knows them.
func list(ctx context.Context, c *clientv3.Client) ([]*etcdserverpb.Member, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	res, err := c.MemberList(ctx)
	if err != nil {
		return nil, err
	}
	return res.Members, nil
}

// describe names a member; one that has never started has no name.
func describe(m *etcdserverpb.Member) string {
	if m.Name == "" {
		return strings.Join(m.PeerURLs, ", ")
	}
	return m.Name
}
