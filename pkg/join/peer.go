package join

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/podo-dev/podo/pkg/pki"
	"github.com/podo-dev/podo/pkg/token"
	"github.com/podo-dev/podo/pkg/version"
)

// A PeerRequest asks to become one more server of the cluster. Its JSON form crosses
// the wire between podos of different versions: fields are added, never renamed.
type PeerRequest struct {
	Name       string            `json:"name"` // of its node
	Kubernetes string            `json:"kubernetes"`
	Time       time.Time         `json:"time"`
	Settings   map[string]string `json:"settings"` // that all servers must share, by name
}

// A PeerAnswer is all that one more server needs.
type PeerAnswer struct {
	Bundle  []byte   `json:"bundle"`  // sealed with the token that was shown; see pki.Open
	Members []string `json:"members"` // client URLs of the datastore's members
}

// Peers are what a server works with that lets other servers in.
type Peers struct {
	Token    func() (token.Token, error) // the one for servers
	Bundle   func() (pki.Bundle, error)
	Settings map[string]string
	// Members are the client URLs of the datastore's members, or ErrAlone.
	Members func(context.Context) ([]string, error)
	// Live reports whether a node is at work now.
	Live func(ctx context.Context, node string) (bool, error)
	// Apart means that this server runs no API server. It lets servers in even while
	// nobody can tell whose a name is, since the first API server may be among them;
	// each claims its name when there is one.
	Apart bool
}

// ErrAlone means that the datastore is one server's, so that no other can join it.
var ErrAlone = errors.New("the datastore is of one server")

// peer lets another server in. Whoever holds the servers' token is given every key
// of the cluster, so nothing but that token will do.
func (s *server) peer(w http.ResponseWriter, r *http.Request) {
	s.serve(w, r, func() (any, error) {
		key, err := identity(r)
		if err != nil {
			return nil, err
		}
		text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
		if err != nil {
			return nil, refuse(BadRequest, "request: %v", err)
		}
		var q PeerRequest
		if err := json.Unmarshal(text, &q); err != nil {
			return nil, refuse(BadRequest, "request: %s", clip(err.Error()))
		}
		if no := nameable(q.Name); no != nil {
			return nil, no
		}
		t, err := s.peerToken(r)
		if err != nil {
			return nil, err
		}
		if no := skewed(q.Time, s.Now()); no != nil {
			return nil, no
		}
		if no := s.fits(q); no != nil {
			return nil, no
		}
		members, err := s.Peers.Members(r.Context())
		if errors.Is(err, ErrAlone) {
			return nil, refuse(BadSettings, "this cluster keeps its state in SQLite, on one server alone; a cluster of several servers is begun with: podo server --cluster-init (more nodes join this one with: podo agent)")
		}
		if err != nil {
			return nil, err
		}
		if err := s.claimPeer(r.Context(), q.Name, key); err != nil {
			if _, no := errors.AsType[*Refusal](err); no || !s.Peers.Apart {
				return nil, err
			}
			s.Log.Info("server joins under a name that no API server was asked about", "component", "join", "node", q.Name, "err", err)
		}
		bundle, err := s.Peers.Bundle()
		if err != nil {
			return nil, err
		}
		sealed, err := pki.Seal(bundle, t.Password)
		if err != nil {
			return nil, err
		}
		s.Log.Info("server joins", "component", "join", "node", q.Name, "addr", remote(r))
		return PeerAnswer{Bundle: sealed, Members: members}, nil
	})
}

// peerToken returns the token that the caller has shown, if it is the servers'.
func (s *server) peerToken(r *http.Request) (token.Token, error) {
	text, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return token.Token{}, refuse(BadToken, "a server that joins must show the servers' token; a server keeps it in its server/token file")
	}
	shown, err := token.ParseCredential(text)
	if err != nil {
		return token.Token{}, refuse(BadToken, "the token is malformed: %v", err)
	}
	kept, err := s.Peers.Token()
	if err != nil {
		return token.Token{}, err
	}
	switch {
	case shown.ID != "":
		return token.Token{}, refuse(BadToken, "token: tokens made by podo token create let in agents alone; a server joins with the one that a server keeps in its server/token file")
	case kept.Accepts(string(shown.Password)):
		return kept, nil
	case shown.User == token.Agent:
		return token.Token{}, refuse(BadToken, "token: it is the one for agents, or it is not this cluster's; a server joins with the one that a server keeps in its server/token file")
	}
	return token.Token{}, refuse(BadToken, "token: its password is not this cluster's; a server keeps the right one in its server/token file")
}

// fits refuses a server that would run the cluster differently.
func (s *server) fits(q PeerRequest) *Refusal {
	theirs, err1 := minor(q.Kubernetes)
	ours, err2 := minor(s.kubernetes)
	if err := errors.Join(err1, err2); err != nil {
		return refuse(BadVersion, "version: %v", err)
	}
	if theirs != ours {
		return refuse(BadVersion, "this podo has Kubernetes %s, and the cluster's servers %s: servers join with the same minor version; install that one here, and upgrade them one by one afterwards", q.Kubernetes, s.kubernetes)
	}
	var wrong []string
	for _, name := range slices.Sorted(maps.Keys(s.Peers.Settings)) {
		have, asked := s.Peers.Settings[name], q.Settings[name]
		if have != asked {
			wrong = append(wrong, fmt.Sprintf("%s: the cluster has %q, this server asks for %q; start it with --%s=%s", name, have, asked, name, cmp.Or(have, `""`)))
		}
	}
	if len(wrong) > 0 {
		return refuse(BadSettings, "%s", strings.Join(wrong, "\n"))
	}
	return nil
}

// claimWithin is how long the API may take, so that what asks still waits for the answer.
const claimWithin = patience / 2

// claimPeer gives a node's name to a server that joins.
func (s *server) claimPeer(ctx context.Context, node string, key []byte) error {
	ctx, cancel := context.WithTimeout(ctx, claimWithin)
	defer cancel()
	records, err := s.Records()
	if err != nil {
		return err
	}
	return records.ClaimServer(ctx, node, key, s.Peers.Live)
}

// JoinPeer asks until a server answers, or until ctx ends; a *Refusal that is Final
// ends it at once. The bundle is opened with the joiner's token.
func (j Joiner) JoinPeer(ctx context.Context, settings map[string]string) (pki.Bundle, []string, error) {
	var (
		bundle  pki.Bundle
		members []string
	)
	err := j.insist(ctx, func() error {
		ca, t, err := j.trust(ctx)
		if err != nil {
			return err
		}
		if t.Password == "" {
			return refuse(BadToken, "a server that joins needs --token: the servers' token, which a server keeps in its server/token file")
		}
		if t.User == "" {
			t.User = token.Server
		}
		var a PeerAnswer
		err = j.post(ctx, PathPeer, ca, t, PeerRequest{
			Name: j.Name, Kubernetes: cmp.Or(j.kubernetes, version.Kubernetes()), Time: j.Now(), Settings: settings,
		}, &a)
		if err != nil {
			return err
		}
		members = a.Members
		bundle, err = pki.Open(a.Bundle, t.Password)
		return err
	})
	return bundle, members, err
}
