package etcd

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/wal"

	"github.com/podo-dev/podo/pkg/atomicfile"
)

// identity is what a member keeps about itself beside etcd's data. It is written
// before the cluster hears of the member, so a start that was killed halfway knows
// its own traces.
type identity struct {
	Name    string   `json:"name"`             // the node's, and a suffix no other member ever had
	Started bool     `json:"started"`          // it was a full member: the data is the cluster's
	Removed bool     `json:"removed"`          // it is a member no more
	Peer    string   `json:"peer"`             // URL that the others know
	Others  []string `json:"others,omitempty"` // client URLs of the others
}

func identityFile(dir string) string { return filepath.Join(dir, "member.json") }

// suffix is the length of what follows the node's name in a member's.
const suffix = len("-01234567")

func newIdentity(node string) *identity {
	random := make([]byte, suffix/2)
	rand.Read(random)
	return &identity{Name: node + "-" + hex.EncodeToString(random)}
}

// nodeOf is the node of a member.
func nodeOf(name string) string {
	if len(name) <= suffix || name[len(name)-suffix] != '-' {
		return name
	}
	return name[:len(name)-suffix]
}

func loadIdentity(dir string) (*identity, error) {
	text, err := os.ReadFile(identityFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	id := &identity{}
	if err := json.Unmarshal(text, id); err != nil || id.Name == "" {
		return nil, fmt.Errorf("%w: %s does not say which member this is: put it back from a backup, or delete it to let the member take a new name", ErrDamaged, identityFile(dir))
	}
	return id, nil
}

func (id *identity) save(dir string) error {
	text, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	_, err = atomicfile.WriteIfChanged(identityFile(dir), append(text, '\n'), 0o600)
	return err
}

// note takes down whom to ask when this member cannot answer by itself.
func (id *identity) note(e *embed.Etcd) {
	id.Others = nil
	for _, m := range e.Server.Cluster().Members() {
		if m.ID != e.Server.MemberID() {
			id.Others = append(id.Others, m.ClientURLs...)
		}
	}
	slices.Sort(id.Others)
}

// keep notes the other members on the disk if they have changed.
func (id *identity) keep(e *embed.Etcd, dir string) error {
	before := id.Others
	if id.note(e); slices.Equal(before, id.Others) {
		return nil
	}
	return id.save(dir)
}

// marker lies beside the folder of all datastores, and says which one the server has.
func marker(dir string) string { return filepath.Dir(dir) + ".kind" }

const kind = "etcd\n"

func remember(dir string) error {
	_, err := atomicfile.WriteIfChanged(marker(dir), []byte(kind), 0o600)
	return err
}

func remembered(dir string) bool {
	text, err := os.ReadFile(marker(dir))
	return err == nil && string(text) == kind
}

func hasData(dir string) bool { return wal.Exist(filepath.Join(dir, "member", "wal")) }

// prepare finds out what this start is, and does what the cluster must hear of first.
func (s *Store) prepare(ctx context.Context) (*identity, *embed.Config, error) {
	dir := s.cfg.Dir
	if err := atomicfile.EnsureDir(dir, 0o700); err != nil {
		return nil, nil, err
	}
	if err := os.MkdirAll(filepath.Dir(s.cfg.Socket), 0o711); err != nil {
		return nil, nil, err
	}
	id, err := loadIdentity(dir)
	if err != nil {
		return nil, nil, err
	}
	if hasData(dir) {
		if id == nil {
			id = newIdentity(s.cfg.Node)
		}
		if !id.Removed {
			if err := s.readdress(ctx, id); err != nil {
				return id, nil, err
			}
		}
		if !id.Removed {
			if err := id.save(dir); err != nil {
				return id, nil, err
			}
			ec, err := s.config(id.Name)
			return id, ec, err
		}
		if len(s.cfg.Join) == 0 {
			return id, nil, s.removed()
		}
		kept, err := setAside(dir)
		if err != nil {
			return id, nil, err
		}
		s.log.Info("datastore of a removed member set aside", "path", kept)
		if err := atomicfile.EnsureDir(dir, 0o700); err != nil {
			return nil, nil, err
		}
		id = nil
	}
	return s.enter(ctx, id)
}

// enter begins a cluster or joins one, on a disk without data.
func (s *Store) enter(ctx context.Context, id *identity) (*identity, *embed.Config, error) {
	dir := s.cfg.Dir
	lost := id != nil && id.Started || remembered(dir)
	switch {
	case len(s.cfg.Join) > 0:
		if lost {
			id = nil // what it was known by belongs to the data
		}
	case lost:
		return id, nil, fmt.Errorf("%w: %s is missing, but this server has a cluster: put the folder back from a backup, or join the cluster's other servers with --server; "+
			"to give the cluster up and start an empty one, run podo uninstall first", ErrDamaged, filepath.Join(dir, "member"))
	case !s.cfg.Init:
		return id, nil, fmt.Errorf("no etcd cluster in %s: begin one with --cluster-init, or join one with --server", dir)
	}
	again := id != nil
	if !again {
		id = newIdentity(s.cfg.Node)
	}
	if err := id.save(dir); err != nil {
		return id, nil, err
	}
	// A start that was killed before its log existed may have left half a file.
	if err := os.RemoveAll(filepath.Join(dir, "member")); err != nil {
		return id, nil, err
	}
	ec, err := s.config(id.Name)
	if err != nil || len(s.cfg.Join) == 0 {
		return id, ec, err
	}
	ec.InitialCluster, err = s.join(ctx, id, again)
	ec.ClusterState = embed.ClusterStateFlagExisting
	return id, ec, err
}

// readdress tells the others before the start that this member has moved, so that
// they find it at once, and learns from them if it was removed meanwhile. If none
// can be asked now, the member starts as it is: it reaches them even if they do not
// reach it, and announces its address then.
func (s *Store) readdress(ctx context.Context, id *identity) error {
	if id.Peer == "" || id.Peer == s.peerURL() || len(id.Others) == 0 {
		return nil
	}
	c, err := s.dial(ctx, id.Others)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	list, err := c.MemberList(ctx)
	if err != nil {
		s.log.Debug("no other etcd member can be told the new address yet", "err", err)
		return nil
	}
	for _, m := range list.Members {
		if m.Name != id.Name {
			continue
		}
		if _, err := c.MemberUpdate(ctx, m.ID, []string{s.peerURL()}); err != nil {
			s.log.Debug("no other etcd member can be told the new address yet", "err", err)
			return nil
		}
		s.log.Info("etcd member has a new address", "member", id.Name, "addr", s.peerURL())
		id.Peer = s.peerURL()
		return nil
	}
	id.Removed = true
	return id.save(s.cfg.Dir)
}

// expelled reports whether the others took this member out. They are asked, since a
// member that was away when it happened cannot know.
func (s *Store) expelled(ctx context.Context, e *embed.Etcd, id *identity) bool {
	me := e.Server.MemberID()
	if e.Server.IsIDRemoved(uint64(me)) {
		return true
	}
	others := slices.Concat(id.Others, s.cfg.Join)
	if len(others) == 0 {
		return false
	}
	c, err := s.dial(context.WithoutCancel(ctx), others)
	if err != nil {
		return false
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	list, err := c.MemberList(ctx)
	if err != nil {
		return false
	}
	for _, m := range list.Members {
		if m.ID == uint64(me) {
			return false
		}
	}
	return true
}

func (s *Store) removed() error {
	return fmt.Errorf("%w: this server's member is in it no more, and its data in %s is out of date: start it with --server https://OTHER:6443 to join anew (the data is kept aside), "+
		"or with --cluster-reset if this is the only server left", ErrRemoved, s.cfg.Dir)
}

// setAside moves a folder of data out of the way and returns where to.
func setAside(dir string) (string, error) {
	to, err := asideName(dir)
	if err != nil {
		return "", err
	}
	if err := os.Rename(dir, to); err != nil {
		return "", fmt.Errorf("set aside %s: %w", dir, err)
	}
	return to, atomicfile.SyncDir(filepath.Dir(dir))
}

// asideName is where old data goes: beside the folder, with the time in its name.
func asideName(dir string) (string, error) {
	base := strings.TrimSuffix(dir, "/") + "-old-" + time.Now().UTC().Format("20060102T150405Z")
	for i := range 100 {
		name := base
		if i > 0 {
			name = fmt.Sprintf("%s-%d", base, i)
		}
		if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) {
			return name, nil
		}
	}
	return "", fmt.Errorf("set aside %s: %s and a hundred like it exist", dir, base)
}

// Outside reports whether the data in dir, if there is any, is of no cluster any more:
// the member must be let in, by members that the plan names, before it can start.
func Outside(dir string) (bool, error) {
	id, err := loadIdentity(dir)
	return err == nil && (!hasData(dir) || id != nil && id.Removed), err
}
