package payload

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/lifecycle"
)

const (
	// current links to the folder in use.
	current = "current"
	// marker is written into a folder when all of it is known to be on disk.
	marker = ".complete"
	// partial ends the name of a file that is being written.
	partial = ".partial"
)

// Unpack lays the payload of a binary into dir/<hash>, links dir/current to it and
// returns dir/current. Where that is done already it does nothing. It waits until
// the files are on disk.
//
// The folder that was current before stays, because the shims of running pods
// execute from it; older ones go. Whatever moment it is killed at, or the power
// fails, the next call completes or repairs. Concurrent calls wait for each other.
func Unpack(ctx context.Context, exe, dir string) (string, error) {
	p, err := Open(exe)
	if err != nil {
		return "", err
	}
	if err := p.Place(ctx, dir); err != nil {
		return "", err
	}
	return filepath.Join(dir, current), p.Settle(ctx, dir)
}

// Unpacked is Unpack as a part of a node: ready once the files that a node needs
// to start can be used, while the rest follows.
func Unpacked(exe, dir string) lifecycle.Component {
	return lifecycle.Func("payload", func(ctx context.Context, ready func()) error {
		p, err := Open(exe)
		if err != nil {
			return err
		}
		err = p.Place(ctx, dir)
		if err == nil {
			ready()
			err = p.Settle(ctx, dir)
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
		<-ctx.Done()
		return nil
	})
}

// Place unpacks and makes current what a node needs to start, and returns before
// it has reached the disk. Settle must follow: until it has, the next Place
// unpacks once more, over what is there.
func (p *Payload) Place(ctx context.Context, dir string) error {
	if p.placed(dir) {
		return nil
	}
	unlock, err := claim(dir)
	if err != nil {
		return err
	}
	defer unlock()
	if p.placed(dir) {
		return nil
	}
	if err := p.begin(ctx, dir); err != nil {
		return err
	}
	before, err := p.switchTo(dir)
	if err != nil {
		return err
	}
	return p.prune(dir, before)
}

// Share lays the payload of a binary into dir/<hash>, as Unpack does, and links its files
// into to/<hash>: whoever replaces a file there parts with it. What is current stays so, and
// no other call takes anything away before all is linked.
func Share(ctx context.Context, exe, dir, to string) error {
	p, err := Open(exe)
	if err != nil {
		return err
	}
	unlock, err := claim(dir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := p.begin(ctx, dir); err != nil {
		return err
	}
	if err := p.settle(ctx, dir); err != nil {
		return err
	}
	from, to := filepath.Join(dir, p.Sum()), filepath.Join(to, p.Sum())
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		at := filepath.Join(to, strings.TrimPrefix(path, from))
		if d.IsDir() {
			return os.MkdirAll(at, 0o755)
		}
		if err := os.Link(path, at); !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	})
}

// begin unpacks what a node needs to start, unless all is there.
func (p *Payload) begin(ctx context.Context, dir string) error {
	if p.complete(dir) {
		return nil
	}
	if err := p.write(ctx, dir, false, runtime.GOMAXPROCS(0)); err != nil {
		return fmt.Errorf("unpack the payload: %w", err)
	}
	return nil
}

// Settle unpacks what Place left for later, waits until all is on disk, and notes
// that it is.
func (p *Payload) Settle(ctx context.Context, dir string) error {
	if p.complete(dir) {
		return nil
	}
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	return p.settle(ctx, dir)
}

// settle is Settle for whoever has the lock.
func (p *Payload) settle(ctx context.Context, dir string) error {
	if p.complete(dir) {
		return nil
	}
	// One at a time: the node is starting meanwhile.
	if err := p.write(ctx, dir, true, 1); err != nil {
		return fmt.Errorf("unpack the payload: %w", err)
	}
	root, err := os.OpenRoot(filepath.Join(dir, p.Sum()))
	if err != nil {
		return err
	}
	defer root.Close()
	folders := map[string]bool{".": true}
	for _, e := range p.entries {
		if err := syncFile(root, e.Name); err != nil {
			return err
		}
		folders[filepath.Dir(e.Name)] = true
	}
	for name := range folders {
		if err := syncFile(root, name); err != nil {
			return err
		}
	}
	done, err := root.OpenFile(marker, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	if err := errors.Join(done.Sync(), done.Close()); err != nil {
		return err
	}
	return errors.Join(syncFile(root, "."), syncPath(dir))
}

// placed says whether the payload is complete and current.
func (p *Payload) placed(dir string) bool {
	to, err := os.Readlink(filepath.Join(dir, current))
	return err == nil && to == p.Sum() && p.complete(dir)
}

// complete says whether the folder was once wholly on disk, and whether its files
// still look as they should: it compares sizes and modes, not contents.
func (p *Payload) complete(dir string) bool {
	home := filepath.Join(dir, p.Sum())
	if _, err := os.Lstat(filepath.Join(home, marker)); err != nil {
		return false
	}
	for _, e := range p.entries {
		info, err := os.Lstat(filepath.Join(home, e.Name))
		if err != nil || info.Size() != e.Size || info.Mode() != e.Mode {
			return false
		}
	}
	return true
}

// write unpacks the files that a node needs at once, or those for later, over what
// may be there. Each file appears whole or not at all, so that a folder in use
// stays usable while it is repaired.
func (p *Payload) write(ctx context.Context, dir string, later bool, parallel int) error {
	home := filepath.Join(dir, p.Sum())
	// Whatever the umask is, people who are not root may run what is here.
	if err := errors.Join(os.MkdirAll(home, 0o755), os.Chmod(home, 0o755)); err != nil {
		return err
	}
	root, err := os.OpenRoot(home)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.Remove(marker); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	exe, err := os.Open(p.path)
	if err != nil {
		return err
	}
	defer exe.Close()

	// The longest first: the last to finish is then a short one.
	entries := slices.SortedFunc(slices.Values(p.entries), func(a, b Entry) int { return cmp.Compare(b.Size, a.Size) })
	work := make(chan Entry, len(entries))
	for _, e := range entries {
		if e.Later != later {
			continue
		}
		folder := filepath.Dir(e.Name)
		if err := errors.Join(root.MkdirAll(folder, 0o755), root.Chmod(folder, 0o755)); err != nil {
			return err
		}
		work <- e
	}
	close(work)

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var workers sync.WaitGroup
	for range min(parallel, len(work)) {
		workers.Go(func() {
			if err := p.drain(ctx, work, root, exe); err != nil {
				cancel(err)
			}
		})
	}
	workers.Wait()
	return context.Cause(ctx)
}

// drain unpacks what it finds in work.
func (p *Payload) drain(ctx context.Context, work <-chan Entry, root *os.Root, exe *os.File) error {
	d, err := newDecoder()
	if err != nil {
		return err
	}
	defer d.Close()
	for e := range work {
		if ctx.Err() != nil {
			return nil // the cause is known to whoever ended it
		}
		if err := d.file(root, exe, int64(p.foot.Offset), e); err != nil {
			return err
		}
	}
	return nil
}

// switchTo makes the payload current and returns the folder that was, if any.
func (p *Payload) switchTo(dir string) (before string, err error) {
	link := filepath.Join(dir, current)
	before, err = os.Readlink(link)
	if err == nil && before == p.Sum() {
		return "", nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	next := link + partial
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	if err := os.Symlink(p.Sum(), next); err != nil {
		return "", err
	}
	return before, os.Rename(next, link)
}

// prune removes payloads that are neither current nor the one before. Without one
// before, nothing has been superseded and everything stays.
func (p *Payload) prune(dir, before string) error {
	if before == "" {
		return nil
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		if e.IsDir() && len(e.Name()) == len(p.Sum()) && e.Name() != p.Sum() && e.Name() != before {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// claim makes dir and locks it.
func claim(dir string) (unlock func(), err error) {
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.Chmod(dir, 0o755)); err != nil {
		return nil, err
	}
	return lock(dir)
}

// lock keeps other processes from unpacking into dir. The kernel drops it with the process.
func lock(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
	}
}

func syncFile(root *os.Root, name string) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// decoder unpacks one frame after another with the same buffers.
type decoder struct{ zstd *zstd.Decoder }

func newDecoder() (*decoder, error) {
	// One goroutine a decoder: the files are what is parallel.
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	return &decoder{z}, err
}

func (d *decoder) Close() { d.zstd.Close() }

// file unpacks an entry under a temporary name and then gives it its own.
func (d *decoder) file(root *os.Root, archive io.ReaderAt, base int64, e Entry) error {
	next := e.Name + partial
	if err := root.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := root.OpenFile(next, os.O_CREATE|os.O_EXCL|os.O_WRONLY, e.Mode)
	if err != nil {
		return err
	}
	err = d.copy(f, archive, base, e)
	// The mode again, because the process may have a umask.
	err = errors.Join(err, f.Chmod(e.Mode), f.Close())
	if err != nil {
		return fmt.Errorf("%s: %w", e.Name, errors.Join(err, root.Remove(next)))
	}
	return root.Rename(next, e.Name)
}

// copy writes the content of an entry. The frame carries a checksum of its own,
// which is verified once the frame has been read to its end.
func (d *decoder) copy(w io.Writer, archive io.ReaderAt, base int64, e Entry) error {
	if err := d.zstd.Reset(io.NewSectionReader(archive, base+e.Offset, e.Length)); err != nil {
		return err
	}
	c := &content{w: w, skip: block, left: e.Size}
	if _, err := d.zstd.WriteTo(c); err != nil {
		return err
	}
	if c.left != 0 {
		return fmt.Errorf("the frame is %d bytes short", c.left)
	}
	return nil
}

// content passes on the part of a tar member that is the file itself.
type content struct {
	w    io.Writer
	skip int64
	left int64
}

func (c *content) Write(b []byte) (int, error) {
	n := len(b)
	head := min(c.skip, int64(len(b)))
	c.skip -= head
	b = b[head:]
	body := min(c.left, int64(len(b)))
	c.left -= body
	if rest := int64(len(b)) - body; rest >= block {
		return 0, fmt.Errorf("the frame is longer than its file")
	}
	if body > 0 {
		if _, err := c.w.Write(b[:body]); err != nil {
			return 0, err
		}
	}
	return n, nil
}
