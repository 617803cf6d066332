package deploy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/inbox"
	"github.com/podo-dev/podo/pkg/lifecycle"
)

// A sharer keeps a server's folder and the cluster's copy the same.
type sharer struct {
	folder folder
	note   string // file with what both said when they last agreed
	server string
	shared shared
	log    *slog.Logger

	missing map[string]time.Time // files that are waited for, since when
	told    map[string]bool      // files that cannot be read, and of which somebody was told
	waits   int                  // passes in a row that met files being written

	mu     sync.Mutex        // held by a pass, and while the folder is made
	agreed map[string]string // sums by path
}

// Files returns a component that makes a server's folder of manifests one with those
// of the cluster's other servers. It notes in a file what they last agreed upon. It is
// ready once all of the folder is shared.
func Files(dir, note, server string, client func() (*rest.Config, error), log *slog.Logger) lifecycle.Component {
	return lifecycle.Func("manifests", func(ctx context.Context, ready func()) error {
		rc, err := client()
		if err != nil {
			return err
		}
		kept, err := newShared(rc)
		if err != nil {
			return err
		}
		s := &sharer{folder: folder(dir), note: note, server: server, shared: kept, missing: map[string]time.Time{}, log: log.With("component", "manifests")}
		if s.agreed, err = readNote(note); err != nil {
			s.log.Warn("not known what servers agreed upon, every manifest counts as new", "err", err)
			s.agreed = map[string]string{}
		}
		return s.run(ctx, ready)
	})
}

func (s *sharer) run(ctx context.Context, ready func()) error {
	changed := make(chan struct{}, 1)
	tell := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	var helpers sync.WaitGroup
	defer helpers.Wait()
	helpers.Go(func() { s.shared.follow(ctx, tell) })
	helpers.Go(func() {
		inbox.Watch(ctx, string(s.folder), func() error {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.prepare()
		}, tell, s.log)
	})
	for pause := time.Second; ; {
		look, err := s.pass(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			s.log.Warn("manifests not shared, trying again", "in", pause, "err", err)
			look, pause = time.After(pause), min(2*pause, 30*time.Second)
		default:
			ready()
			pause = time.Second
		}
		select {
		case <-ctx.Done():
			return nil
		case <-look:
		case <-changed:
			pauseFor(ctx, inbox.Settle/5) // changes come in swarms
		}
	}
}

// pass compares both sides once. The channel it returns fires when files that were being
// written, or whose links led nowhere, should be looked at again.
func (s *sharer) pass(ctx context.Context) (look <-chan time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.prepare(); err != nil {
		return nil, err
	}
	here, err := s.folder.scan()
	if err != nil {
		return nil, err
	}
	there, err := s.shared.list(ctx)
	if err != nil {
		return nil, err
	}
	all := paths(here.files, there)
	s.tell(here, all)
	var errs []error
	unshared := map[string]bool{} // what is here and cannot be put into the cluster, by its sum
	fresh := false                // whether one that is being written is new to the cluster
	for path := range here.busy {
		fresh = fresh || there[key(path)].path == ""
	}
	for _, path := range all {
		f, whole := here.files[path]
		if here.busy[path] || here.blocked(path) != nil || s.held(path, !whole && len(here.busy) > 0, fresh) {
			continue
		}
		copied := there[key(path)]
		do := s.choose(path, f, copied)
		if do == push && !whole && unshared[s.agreed[path]] {
			continue // it is here under another name
		}
		if err := s.settle(ctx, path, do, f, copied); err != nil {
			unshared[f.sum()] = true
			errs = append(errs, fmt.Errorf("%s: %w", path, err))
		}
	}
	if err := s.writeNote(); err != nil {
		errs = append(errs, err)
	}
	if len(here.busy) == 0 {
		s.waits = 0
	}
	switch {
	case len(here.busy) > 0:
		look = time.After(inbox.Settle << min(s.waits, 3))
		if s.waits++; s.waits == 6 {
			s.log.Info("manifests wait until nobody has them open to write", "paths", slices.Sorted(maps.Keys(here.busy)))
		}
	case len(s.told) > 0:
		look = time.After(time.Minute) // no event tells that a file system was mounted
	}
	return look, errors.Join(errs...)
}

// prepare makes the folder if there is none. One that was lost is not one that was
// emptied: before it is made, the note forgets what was in it.
func (s *sharer) prepare() error {
	if _, err := os.Stat(string(s.folder)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.agreed = map[string]string{}
	if err := s.writeNote(); err != nil {
		return err
	}
	return atomicfile.EnsureDir(string(s.folder), 0o700)
}

// tell logs, once each, what cannot be read: that stays as it is on all servers.
func (s *sharer) tell(here view, all []string) {
	now := map[string]bool{}
	for _, path := range slices.Concat(all, slices.Sorted(maps.Keys(here.away))) {
		err := here.blocked(path)
		if err == nil || !accepted(path) {
			continue
		}
		now[path] = true
		if !s.told[path] {
			s.log.Warn("manifest not to be read, it stays as it is in the cluster", "path", path, "err", err)
		}
	}
	s.told = now
}

// held reports whether to wait with a file that is missing while others are written: it
// may be one of them, under another name. So long as one of those is fresh, which the cluster
// does not know, it very well may.
func (s *sharer) held(path string, maybe, fresh bool) bool {
	since, known := s.missing[path]
	switch {
	case !maybe:
		delete(s.missing, path)
		return false
	case !known:
		s.missing[path] = time.Now()
		return true
	}
	return fresh || time.Since(since) < 4*inbox.Settle
}

// paths are those of both sides, first the ones that are here.
func paths(here, there map[string]file) []string {
	out := slices.Sorted(maps.Keys(here))
	var missing []string
	for _, f := range there {
		if _, ok := here[f.path]; !ok && accepted(f.path) {
			missing = append(missing, f.path)
		}
	}
	slices.Sort(missing)
	return append(out, missing...)
}

// choose says what makes both sides of a path say the same.
func (s *sharer) choose(path string, here, there file) action {
	do := decide(here.sum(), there.sum(), s.agreed[path], there.path != "")
	if there.problem == "" || do == same || do == push {
		return do
	}
	// There is nothing to take. Only an edit changes what the cluster says.
	if here.path == "" || here.sum() == s.agreed[path] {
		return none
	}
	return push
}

// settle makes both sides of a path say the same.
func (s *sharer) settle(ctx context.Context, path string, do action, here, there file) error {
	sum := there.sum()
	switch do {
	case none:
		return nil
	case same:
	case push:
		here.path, here.server, here.gone = path, s.server, here.path == ""
		err := s.shared.put(ctx, here, there.secret)
		if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
			return nil // another server was faster, which is an event of its own
		}
		if err != nil {
			return err
		}
		sum = here.sum()
		s.log.Info("manifest shared", "path", path, "deleted", here.gone)
	case clash:
		if err := s.folder.setAside(path); err != nil {
			return err
		}
		s.log.Warn("manifest changed on two servers, the other's stands", "path", path, "server", there.server, "kept", path+replacedSuffix)
		fallthrough
	case pull:
		if err := s.folder.take(there); err != nil {
			return err
		}
		s.log.Info("manifest taken over", "path", path, "server", there.server, "deleted", there.gone)
	}
	if s.agreed[path] = sum; sum == "" {
		delete(s.agreed, path)
	}
	return nil
}

// An action is what makes both sides the same.
type action int

const (
	none action = iota // they stay as they are
	same
	push
	pull
	clash
)

// decide compares the sums of a path here, in the cluster, and of when they last
// agreed; an empty one means that there is no file. Known is whether the cluster knows
// the path at all, if only as one that was deleted.
func decide(here, there, agreed string, known bool) action {
	switch {
	case !known && here == "", known && here == there:
		return same
	case !known, there == agreed:
		return push
	case here == agreed, here == "":
		return pull
	case there == "":
		return push
	}
	return clash
}

func readNote(path string) (map[string]string, error) {
	out := map[string]string{}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &out)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return out, nil
}

func (s *sharer) writeNote() error {
	text, err := json.Marshal(s.agreed)
	if err != nil {
		return err
	}
	_, err = atomicfile.WriteIfChanged(s.note, text, 0o600)
	return err
}
