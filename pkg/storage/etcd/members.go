package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/podo-dev/podo/pkg/plan"
)

// A Member is one member of the cluster as this server sees it.
type Member struct {
	ID      string `json:"id"`
	Name    string `json:"name"` // empty if it has never started
	Node    string `json:"node"`
	Peer    string `json:"peer"`
	Client  string `json:"client"`
	Learner bool   `json:"learner"`
	Leader  bool   `json:"leader"`
	Bytes   int64  `json:"bytes"`
	Err     string `json:"err,omitempty"` // why it does not answer

	Answered bool `json:"-"` // whatever ails it
}

// Open returns a way to ask a member that another process on this machine runs. It
// is closed with Close.
func Open(ctx context.Context, cfg plan.Etcd) (*Admin, error) {
	c, err := clientv3.New(clientv3.Config{Context: ctx, Endpoints: []string{"unix://" + cfg.Socket}, Logger: zap.NewNop()})
	if err != nil {
		return nil, fmt.Errorf("etcd client: %w", err)
	}
	return &Admin{store: &Store{cfg: cfg}, client: c}, nil
}

// Admin asks and changes who is a member.
type Admin struct {
	store  *Store
	client *clientv3.Client
}

// Close ends it.
func (a *Admin) Close() error { return a.client.Close() }

// Admin returns the same for the member that this process runs. It is not to be
// closed.
func (s *Store) Admin() (*Admin, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client == nil {
		return nil, errors.New("etcd: this member takes no part in the cluster yet")
	}
	return &Admin{s, s.client}, nil
}

// Members lists the members by name, with what each says of itself.
func (a *Admin) Members(ctx context.Context) ([]Member, error) {
	known, err := list(ctx, a.client)
	if err != nil {
		return nil, fmt.Errorf("list etcd members: %w", err)
	}
	out := make([]Member, len(known))
	var asked sync.WaitGroup
	for i, m := range known {
		out[i] = Member{ID: strconv.FormatUint(m.ID, 16), Name: m.Name, Node: nodeOf(m.Name), Learner: m.IsLearner,
			Peer: strings.Join(m.PeerURLs, ","), Client: strings.Join(m.ClientURLs, ",")}
		if len(m.ClientURLs) == 0 {
			out[i].Err = "has not started yet"
			continue
		}
		asked.Go(func() {
			st, err := a.status(ctx, m.ClientURLs)
			if err != nil {
				out[i].Err = err.Error()
				out[i].Answered = a.store.answers(ctx, m.PeerURLs) // that way it may be well to others
				return
			}
			out[i].Answered, out[i].Leader, out[i].Bytes = true, st.Leader == m.ID, st.DbSize
			if len(st.Errors) > 0 {
				out[i].Err = strings.Join(st.Errors, "; ")
			}
		})
	}
	asked.Wait()
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func (a *Admin) status(ctx context.Context, urls []string) (*clientv3.StatusResponse, error) {
	c, err := a.store.dial(ctx, urls)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	res, err := c.Status(ctx, urls[0])
	if errors.Is(err, context.DeadlineExceeded) {
		err = errors.New("does not answer")
	}
	return res, err
}

// Remove takes a member out of the cluster, by the name of it or of its node, or by
// its ID. It refuses what would cost the quorum.
func (a *Admin) Remove(ctx context.Context, name string) (Member, error) {
	known, err := a.Members(ctx)
	if err != nil {
		return Member{}, err
	}
	var found []Member
	for _, m := range known {
		if m.Name == name || m.ID == name {
			found = []Member{m}
			break
		}
		if m.Node == name && name != "" {
			found = append(found, m)
		}
	}
	switch {
	case len(found) == 0:
		var names []string
		for _, m := range known {
			names = append(names, m.Name)
		}
		return Member{}, fmt.Errorf("etcd has no member %q; it has %s", name, strings.Join(names, ", "))
	case len(found) > 1:
		return Member{}, fmt.Errorf("etcd has %d members of the node %q: name one, %s or %s", len(found), name, found[0].Name, found[1].Name)
	case len(known) == 1:
		return found[0], fmt.Errorf("%s is the only member of etcd and holds the cluster: podo uninstall on its server gives the cluster up", found[0].Name)
	}
	m := found[0]
	id, err := strconv.ParseUint(m.ID, 16, 64)
	if err != nil {
		return m, err
	}
	_, err = a.client.MemberRemove(ctx, id)
	switch {
	case errors.Is(err, rpctypes.ErrMemberNotEnoughStarted), errors.Is(err, rpctypes.ErrUnhealthy):
		return m, fmt.Errorf("removing %s would leave etcd without a quorum, since other members do not answer: bring those back or remove them first (podo etcd member-list shows them)", m.Name)
	case err != nil:
		return m, fmt.Errorf("remove etcd member %s: %w", m.Name, err)
	}
	return m, nil
}

// Follow calls each with the values of all keys that begin with prefix, at once and
// whenever one of them has changed, until ctx ends. It is for a store that is ready.
func (s *Store) Follow(ctx context.Context, prefix string, each func(values [][]byte)) error {
	s.mu.Lock()
	c := s.client
	s.mu.Unlock()
	for ctx.Err() == nil {
		res, err := c.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithSerializable())
		if err != nil {
			s.log.Debug("keys not read", "prefix", prefix, "err", err)
			_ = sleep(ctx, time.Second)
			continue
		}
		var values [][]byte
		for _, kv := range res.Kvs {
			values = append(values, kv.Value)
		}
		each(values)
		change, end := context.WithCancel(ctx)
		<-c.Watch(change, prefix, clientv3.WithPrefix(), clientv3.WithRev(res.Header.Revision+1))
		end()
		_ = sleep(ctx, 100*time.Millisecond) // several at once are one change
	}
	return nil
}
