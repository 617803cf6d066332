package images

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/podo-dev/podo/pkg/datadir"
)

const (
	// maxEntries is how many files an archive may have. Each becomes one of the engine's.
	maxEntries = 1 << 16
	// maxWindow is the memory that an archive's compression may ask for: zstd's --long=27.
	maxWindow = 1 << 27
)

var (
	// errBad is in errors that only a change of the file mends.
	errBad = errors.New("")
	// errFull means that an archive takes more than the disk has room for.
	errFull = errors.New("it takes more room than there is")
)

func bad(format string, args ...any) error {
	return fmt.Errorf("%w"+format, append([]any{errBad}, args...)...)
}

// inspect reads an archive to its end, before any of it reaches the engine, and returns
// the hash of the file. It refuses what is damaged or cut short, what leads out of the
// archive, and what would take more than room when it is unpacked.
func inspect(ctx context.Context, f io.Reader, room int64) (id string, err error) {
	sum := sha256.New()
	raw := io.TeeReader(f, sum)
	plain, err := inflated(raw)
	if err != nil {
		return "", blame(err)
	}
	defer plain.Close()
	i := &inspection{ctx: ctx, left: room}
	m := meter{i, plain}
	err = i.archive(tar.NewReader(m))
	// Sums of compression come last, behind the end of the archive.
	for _, rest := range []io.Reader{m, raw} {
		if err == nil {
			_, err = io.Copy(io.Discard, rest)
		}
	}
	if errors.Is(err, errFull) {
		return "", fmt.Errorf("%w: %s are free", errFull, humanize.Bytes(uint64(max(room, 0))))
	}
	return hex.EncodeToString(sum.Sum(nil)), blame(err)
}

// blame says of an error in reading an archive whether that is at fault.
func blame(err error) error {
	var device *fs.PathError
	switch {
	case err == nil, errors.Is(err, errBad), errors.Is(err, errFull), errors.Is(err, context.Canceled), errors.As(err, &device):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return bad("it is cut short")
	case errors.Is(err, tar.ErrHeader):
		return bad("it is no archive, or damaged: %w", err)
	}
	return bad("it is damaged: %w", err)
}

// An inspection reads an archive.
type inspection struct {
	ctx     context.Context
	left    int64 // of the room
	entries int
}

// A meter counts what is read of an archive, and of what is packed in it, as room taken.
type meter struct {
	i *inspection
	r io.Reader
}

func (m meter) Read(p []byte) (int, error) {
	if err := m.i.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := m.r.Read(p)
	if m.i.left -= int64(n); m.i.left < 0 {
		return 0, errFull
	}
	return n, err
}

func (i *inspection) archive(entries *tar.Reader) error {
	var found []string
	for {
		h, err := entries.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if errors.Is(err, io.ErrUnexpectedEOF) && i.entries == 0 {
			return bad("it is no archive: it ends before its first entry")
		}
		if err != nil {
			return err
		}
		if i.entries++; i.entries > maxEntries {
			return bad("it has more than %d entries", maxEntries)
		}
		if err := i.entry(h, entries); err != nil {
			return err
		}
		found = append(found, path.Clean(h.Name))
	}
	isLayout := slices.Contains(found, "oci-layout") && slices.Contains(found, "index.json")
	if !isLayout && !slices.Contains(found, "manifest.json") {
		return bad("it holds no images: there is neither index.json with oci-layout, nor manifest.json in it")
	}
	return nil
}

// entry looks at one file of an archive.
func (i *inspection) entry(h *tar.Header, content io.Reader) error {
	name := path.Clean(h.Name)
	if !filepath.IsLocal(name) {
		return bad("its entry %q leads out of it", h.Name)
	}
	switch h.Typeflag {
	case tar.TypeReg:
	case tar.TypeDir, tar.TypeXGlobalHeader:
		return nil
	case tar.TypeSymlink:
		if to := path.Join(path.Dir(name), h.Linkname); path.IsAbs(h.Linkname) || !filepath.IsLocal(to) {
			return bad("its entry %q links to %q, which leads out of it", h.Name, h.Linkname)
		}
		return nil
	default:
		return bad("its entry %q is neither a file, a folder nor a symbolic link", h.Name)
	}
	if h.Size > i.left {
		return errFull
	}
	sum := sha256.New()
	content = io.TeeReader(content, sum)
	if err := i.layer(content); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, content); err != nil {
		return err
	}
	if want, ok := strings.CutPrefix(name, "blobs/sha256/"); ok && want != hex.EncodeToString(sum.Sum(nil)) {
		return bad("it is damaged: the content of %s is not what its name says", name)
	}
	return nil
}

// layer counts what a file of an archive unpacks to, if it is itself an archive.
func (i *inspection) layer(packed io.Reader) error {
	r, err := inflated(packed)
	if err != nil {
		return err
	}
	defer r.Close()
	room, total := i.left, int64(0)
	m := meter{i, r}
	files := tar.NewReader(m)
	for first := true; ; first = false {
		h, err := files.Next()
		if errors.Is(err, io.EOF) || first && (errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF)) {
			break // of the layer, or what is none
		}
		if err != nil {
			return err
		}
		// Holes of a file count as well: the engine fills them.
		if total += h.Size; total > room || total < 0 {
			return errFull
		}
	}
	_, err = io.Copy(io.Discard, m)
	return err
}

// inflated reads what is compressed as if it were not.
func inflated(in io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReader(in)
	magic, _ := b.Peek(6)
	starts := func(with ...byte) bool { return bytes.HasPrefix(magic, with) }
	switch {
	case starts(0x1f, 0x8b):
		return gzip.NewReader(b)
	case starts(0x28, 0xb5, 0x2f, 0xfd), len(magic) > 3 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:4], []byte{0x2a, 0x4d, 0x18}):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case starts(0x04, 0x22, 0x4d, 0x18):
		return io.NopCloser(lz4.NewReader(b)), nil
	case starts('B', 'Z', 'h'), starts(0xfd, '7', 'z', 'X', 'Z', 0):
		return nil, bad("it is compressed with bzip2 or xz, and podo reads gzip, zstd and lz4")
	}
	return io.NopCloser(b), nil
}

// inspectFile is inspect for a file that is open. It leaves the file at its begin.
func inspectFile(ctx context.Context, f *os.File, root string) (id string, err error) {
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", errors.Join(err, errors.New("it is no regular file, and is read twice; write the archive to a file first"))
	}
	room, _, err := datadir.Room(root)
	if err != nil {
		return "", err
	}
	if id, err = inspect(ctx, f, room); err != nil {
		return "", err
	}
	_, err = f.Seek(0, io.SeekStart)
	return id, err
}
