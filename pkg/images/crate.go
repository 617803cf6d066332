package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/datadir"
	"github.com/podo-dev/podo/pkg/inbox"
)

// archiveEndings are those of files that are archives, the last two so that somebody
// is told why such a one is of no use.
func archiveEndings() []string {
	return []string{".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.lz4", ".tar.bz2", ".tar.xz"}
}

// A source is a file that images come from.
type source struct {
	path string
	stamp
}

// A stamp changes when a file does.
type stamp struct {
	Size     int64 `json:"size"`
	Modified int64 `json:"modified"` // in nanoseconds, as is the next
	Changed  int64 `json:"changed"`  // which no program can set
}

func stampOf(info fs.FileInfo) stamp {
	return stamp{info.Size(), info.ModTime().UnixNano(), inbox.Changed(info).UnixNano()}
}

// scan lists the files of a folder with one of these endings, by name, links to files
// included. Those that are still written are busy. A folder that is not there has none.
func scan(dir string, endings []string) (found []source, busy bool, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || !slices.ContainsFunc(endings, func(end string) bool { return strings.HasSuffix(e.Name(), end) }) {
			continue
		}
		path := filepath.Join(dir, e.Name())
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			found = append(found, source{path: path}) // whoever opens it is told what is wrong
			continue
		}
		switch {
		case !info.Mode().IsRegular():
		case inbox.Unsettled(info) || written(path):
			busy = true
		default:
			found = append(found, source{path: path, stamp: stampOf(info)})
		}
	}
	return found, busy, nil
}

func written(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return inbox.Written(f)
}

// A crate is the archives of a node, and what became of each.
type crate struct {
	engine engine
	root   string // where the engine keeps what it has
	from   Sources
	log    *slog.Logger

	faults faults
	noted  map[string]outcome // by path
}

// An outcome is what is noted of an archive. One without a digest was being imported.
type outcome struct {
	stamp
	Digest string   `json:"digest,omitempty"`
	Images []string `json:"images,omitempty"`
}

// readNote takes what was noted before. Without that, every archive is read again.
func (c *crate) readNote() {
	c.noted = map[string]outcome{}
	text, err := os.ReadFile(c.from.Note)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil {
		err = json.Unmarshal(text, &c.noted)
	}
	if err == nil && c.noted == nil {
		err = errors.New("it says nothing")
	}
	if err != nil {
		c.log.Warn("not known what was imported, reading every archive", "path", c.from.Note, "err", err)
		c.noted = map[string]outcome{}
	}
}

// writeNote does not wait for the disk: whatever a power cut takes is only read again.
func (c *crate) writeNote() error {
	text, err := json.Marshal(c.noted)
	if err != nil {
		return err
	}
	_, err = atomicfile.WriteIfChanged(c.from.Note, text, 0o600, atomicfile.Unsynced())
	return err
}

// patience is how long a start waits for files that are still written.
const patience = 5 * time.Second

// pass returns what brings the engine what it lacks. It calls ready once all is done that
// there was to do at first.
func (c *crate) pass(ready func()) func(context.Context) (time.Duration, error) {
	began := time.Now()
	return func(ctx context.Context) (next time.Duration, err error) {
		found, busy, err := scan(c.from.Folder, archiveEndings())
		if err != nil {
			ready() // a folder that cannot be read is no reason to hold up a start
			return 0, err
		}
		c.forget(found)
		if err := c.supply(ctx, found); err != nil {
			return 0, err
		}
		if !busy || time.Since(began) > patience {
			ready()
		}
		if next = c.faults.next(); busy && (next == 0 || next > inbox.Settle) {
			next = inbox.Settle
		}
		return next, c.writeNote()
	}
}

// forget drops what is known of archives that are gone. Their images stay.
func (c *crate) forget(present []source) {
	isThere := func(path string) bool {
		if slices.ContainsFunc(present, func(s source) bool { return s.path == path }) {
			return true
		}
		_, err := os.Lstat(path)
		return !errors.Is(err, fs.ErrNotExist)
	}
	for path := range c.noted {
		if !isThere(path) {
			delete(c.noted, path)
		}
	}
	c.faults.forget(isThere)
}

// supply imports those of the archives that are new, or have changed, or whose images
// are no longer all there. The error is of the engine as a whole.
func (c *crate) supply(ctx context.Context, files []source) error {
	have, err := c.engine.images(ctx)
	if err != nil {
		return err
	}
	room, _, err := datadir.Room(c.root)
	if err != nil {
		return err
	}
	var lacking []source
	fresh := map[string]bool{} // that have never been begun
	for _, f := range files {
		r, known := c.noted[f.path]
		if r.stamp == f.stamp && r.held(have) || !c.faults.due(f, room) {
			continue
		}
		lacking = append(lacking, f)
		if fresh[f.path] = !known; !known {
			c.noted[f.path] = outcome{}
		}
	}
	if lacking == nil {
		return nil
	}
	if err := c.writeNote(); err != nil {
		return err
	}
	done := map[string]outcome{}
	for _, f := range lacking {
		r, err := c.take(ctx, f, have, fresh[f.path])
		if ctx.Err() != nil {
			return nil
		}
		if c.faults.note(f, room, err); err == nil {
			done[f.path] = r
		}
	}
	// What is noted as imported must be on disk.
	if err := settle(c.root); err != nil {
		return err
	}
	for path, r := range done {
		c.noted[path] = r
	}
	return c.writeNote()
}

// held reports whether the engine has all images of an archive, and keeps them.
func (o outcome) held(have map[string]*imagesapi.Image) bool {
	for _, name := range o.Images {
		if i := have[name]; i == nil || i.Labels[pinnedLabel] != pinned {
			return false
		}
	}
	return len(o.Images) > 0
}

// take imports one archive, unless the engine turns out to have it.
func (c *crate) take(ctx context.Context, s source, have map[string]*imagesapi.Image, fresh bool) (outcome, error) {
	f, err := os.Open(s.path)
	if err != nil {
		return outcome{}, err
	}
	defer f.Close()
	r := outcome{stamp: s.stamp}
	if r.Digest, err = inspectFile(ctx, f, c.root); err != nil {
		return outcome{}, err
	}
	if old := c.noted[s.path]; old.Digest == r.Digest && old.held(have) {
		r.Images = old.Images // a file that was only touched
		return r, nil
	}
	if fresh {
		// Somebody may have brought it, as podo images import does.
		if r.Images = namesOf(r.Digest, have); r.held(have) {
			return r, nil
		}
	}
	began := time.Now()
	if r.Images, err = c.engine.persist(ctx, f, r.Digest); err != nil {
		return outcome{}, err
	}
	c.log.Info("images imported", "path", s.path, "images", len(r.Images), "took", time.Since(began).Round(time.Millisecond))
	info, err := f.Stat()
	if err == nil && stampOf(info) != s.stamp {
		err = fmt.Errorf("%s changed meanwhile", s.path)
	}
	return r, err
}

// judge says of the engine's error whether the archive is to blame.
func judge(err error) error {
	switch {
	case strings.Contains(err.Error(), images.ErrEmptyWalk.Error()):
		return bad("it has no image for this machine, which is %s; save one of that platform", platforms.DefaultString())
	case errdefs.IsInvalidArgument(err), errdefs.IsFailedPrecondition(err):
		return bad("the container engine cannot use it: %v", err)
	}
	return err
}

// namesOf are those of the images that came from an archive.
func namesOf(id string, have map[string]*imagesapi.Image) []string {
	var out []string
	for name, i := range have {
		if i.Labels[archiveLabel] == id {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}
