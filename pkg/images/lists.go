package images

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"

	"github.com/podo-dev/podo/pkg/inbox"
)

const (
	listEnding = ".txt"
	// maxList is how long a list may be. One of a thousand images has some 100 KB.
	maxList = 1 << 20
)

// Lists are files that name images. They need no note: what they name is there and
// pinned, or not.
type lists struct {
	store  Store
	engine engine
	folder string
	log    *slog.Logger
	faults faults
}

// pass has the engine fetch what lists name and it lacks, and pins that.
func (l *lists) pass(ctx context.Context) (next time.Duration, err error) {
	found, busy, err := scan(l.folder, []string{listEnding})
	if err != nil {
		return 0, err
	}
	l.faults.forget(func(path string) bool {
		return busy || slices.ContainsFunc(found, func(s source) bool { return s.path == path })
	})
	have, err := l.engine.images(ctx)
	if err != nil {
		return 0, err
	}
	for _, s := range found {
		// Lines that name no image are no reason to let go of what others name.
		if !l.faults.due(s, 0) && !errors.Is(l.faults.known[s.path].err, errBad) {
			continue
		}
		err := l.supply(ctx, s.path, have)
		if ctx.Err() != nil {
			return 0, nil
		}
		l.faults.note(s, 0, err)
	}
	if next = l.faults.next(); busy && (next == 0 || next > inbox.Settle) {
		next = inbox.Settle
	}
	return next, nil
}

// supply fetches the images of one list. Each gets its chance, whatever became of others.
func (l *lists) supply(ctx context.Context, path string, have map[string]*imagesapi.Image) error {
	names, wrong, err := readList(path)
	if err != nil {
		return err
	}
	var failed []error
	for _, name := range names {
		i := have[name]
		if i != nil && i.Labels[pinnedLabel] == pinned {
			continue
		}
		if err := l.fetch(ctx, name, i == nil); err != nil {
			failed = append(failed, fmt.Errorf("pull %s: %w", name, err))
		} else if i == nil {
			l.log.Info("image pulled", "image", name, "list", path)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if failed == nil && wrong == nil {
		return nil
	}
	var told []string // on one line
	for _, err := range append(failed, wrong...) {
		told = append(told, err.Error())
	}
	if failed == nil {
		return bad("%s", strings.Join(told, "; "))
	}
	return errors.New(strings.Join(told, "; "))
}

// fetch brings one image, if it is absent, and pins it.
func (l *lists) fetch(ctx context.Context, name string, absent bool) error {
	if absent {
		if _, err := l.store.Pull(ctx, name); err != nil {
			return err
		}
	}
	return l.store.Pin(ctx, name)
}

// readList reads the names of images, one a line. Lines that are empty or begin with # do
// not count; those that name no image are wrong.
func readList(path string) (names []string, wrong []error, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	number := 0
	r := &io.LimitedReader{R: f, N: maxList + 1}
	for lines := bufio.NewScanner(r); ; {
		if !lines.Scan() {
			if err := lines.Err(); err != nil {
				return nil, nil, fmt.Errorf("read %s: %w", path, err)
			}
			break
		}
		number++
		text := strings.TrimSpace(lines.Text())
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		name, err := fullName(text)
		if err != nil {
			wrong = append(wrong, fmt.Errorf("line %d: %w", number, err))
			continue
		}
		names = append(names, name)
	}
	if r.N == 0 {
		return nil, nil, bad("it has more than %d bytes; a list has the name of one image a line", maxList)
	}
	return names, wrong, nil
}
