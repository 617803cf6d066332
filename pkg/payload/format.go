package payload

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// footer ends a binary that carries a payload. Numbers are little endian.
type footer struct {
	Offset uint64 // of the archive, from the start of the file
	Length uint64 // of the archive; the footer follows it
	Sum    [sha256.Size]byte
	Format uint64
	Magic  [8]byte
}

const (
	footerSize = 64
	format     = 1
	magic      = "podoload"
	// An index is a few kilobytes; more is damage.
	maxIndex = 1 << 20
	// block is the unit that tar files are made of.
	block = 512
	// skippable starts a zstd frame that decoders pass over.
	skippable = 0x184D2A50
)

// readFooter finds the archive in a file of the given size.
func readFooter(r io.ReaderAt, size int64) (footer, error) {
	var foot footer
	if size < footerSize {
		return foot, ErrNone
	}
	if err := binary.Read(io.NewSectionReader(r, size-footerSize, footerSize), binary.LittleEndian, &foot); err != nil {
		return foot, err
	}
	if string(foot.Magic[:]) != magic {
		return foot, ErrNone
	}
	if foot.Format != format {
		return foot, fmt.Errorf("format %d is not known to this podo, which reads format %d", foot.Format, format)
	}
	if body := uint64(size - footerSize); foot.Offset > body || foot.Length != body-foot.Offset {
		return foot, errCut
	}
	return foot, nil
}

// errCut means that what the binary says of itself is not so.
var errCut = errors.New("the file is damaged or cut short")

// readIndex reads what WriteIndex wrote at the end of an archive.
func readIndex(r io.ReaderAt, end, length int64) ([]Entry, error) {
	var tail [4]byte
	if length < int64(len(tail)) {
		return nil, errCut
	}
	if _, err := r.ReadAt(tail[:], end-4); err != nil {
		return nil, err
	}
	size := int64(binary.LittleEndian.Uint32(tail[:]))
	if size > maxIndex || size > length-4 {
		return nil, errCut
	}
	var entries []Entry
	if err := json.NewDecoder(io.NewSectionReader(r, end-4-size, size)).Decode(&entries); err != nil {
		return nil, fmt.Errorf("read the index: %w", err)
	}
	return entries, nil
}

// WriteIndex ends an archive of frames with its index: a frame that zstd skips,
// whose last four bytes say how long the index before them is.
func WriteIndex(w io.Writer, entries []Entry) error {
	index, err := json.Marshal(entries)
	if err != nil {
		return err
	}
	frame := binary.LittleEndian.AppendUint32(nil, skippable)
	frame = binary.LittleEndian.AppendUint32(frame, uint32(len(index)+4))
	frame = append(frame, index...)
	frame = binary.LittleEndian.AppendUint32(frame, uint32(len(index)))
	_, err = w.Write(frame)
	return err
}

// Member returns what one frame holds once it is unpacked: the tar header, the
// content, and the padding after it.
func Member(name string, mode os.FileMode, content []byte) ([]byte, error) {
	var buf bytes.Buffer
	buf.Grow(len(content) + 2*block)
	w := tar.NewWriter(&buf)
	err := w.WriteHeader(&tar.Header{
		Format: tar.FormatUSTAR, Typeflag: tar.TypeReg, Name: name, Size: int64(len(content)), Mode: int64(mode),
	})
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(content); err != nil {
		return nil, err
	}
	if err := w.Flush(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// Attach writes a program followed by an archive and the footer that finds it.
func Attach(w io.Writer, program, archive []byte) error {
	foot := footer{
		Offset: uint64(len(program)), Length: uint64(len(archive)),
		Sum: sha256.Sum256(archive), Format: format,
	}
	copy(foot.Magic[:], magic)
	end, err := binary.Append(nil, binary.LittleEndian, foot)
	if err != nil {
		return err
	}
	for _, part := range [][]byte{program, archive, end} {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return nil
}
