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

	agreed  map[string]string    // sums by path
	missing map[string]time.Time // files that are waited for, since when
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
	helpers.Go(func() { inbox.Watch(ctx, string(s.folder), 0o700, tell, s.log) })
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

// pass compares both sides once. The channel it returns fires when files that were
// being written should be looked at again.
func (s *sharer) pass(ctx context.Context) (look <-chan time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	here, busy, err := s.folder.scan()
	if errors.Is(err, fs.ErrNotExist) {
		s.agreed = map[string]string{} // a folder that was lost is not one that was emptied
	} else if err != nil {
		return nil, err
	}
	there, err := s.shared.list(ctx)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, path := range paths(here, there) {
		_, whole := here[path]
		if busy[path] || s.held(path, !whole && len(busy) > 0) {
			continue
		}
		if err := s.settle(ctx, path, here[path], there[key(path)]); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", path, err))
		}
	}
	if err := s.writeNote(); err != nil {
		errs = append(errs, err)
	}
	if len(busy) > 0 {
		look = time.After(inbox.Settle)
	}
	return look, errors.Join(errs...)
}

// held reports whether to wait with a file that is missing while others are written: it
// may be one of them, under another name.
func (s *sharer) held(path string, maybe bool) bool {
	since, known := s.missing[path]
	switch {
	case !maybe:
		delete(s.missing, path)
		return false
	case !known:
		s.missing[path] = time.Now()
		return true
	}
	return time.Since(since) < 4*inbox.Settle
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

// settle makes both sides of a path say the same.
func (s *sharer) settle(ctx context.Context, path string, here, there file) error {
	sum := there.sum()
	action := decide(here.sum(), sum, s.agreed[path], there.path != "")
	if there.problem != "" && action != same && action != push {
		// There is nothing to take. Only an edit changes what the cluster says.
		if here.path == "" || here.sum() == s.agreed[path] {
			return nil
		}
		action = push
	}
	switch action {
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
	same action = iota
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
