package sqlite

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
)

// A write-ahead log is a header and frames. A frame is a header and a page, and carries
// the sum of all up to it; https://www.sqlite.org/fileformat.html#the_write_ahead_log
// has the fields.
const (
	logHeader   = 32
	frameHeader = 24
	frameSums   = 16 // where a frame's sums are; what is before the salts counts into them
	headerSums  = 24
	sector      = 512 // of a disk, at least: what is written as a whole
)

// brokenAt is brokenIn of the log at path, if there is one.
func brokenAt(path string, page int64) (int64, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return -1, nil
	}
	if err != nil {
		return -1, err
	}
	defer f.Close()
	return brokenIn(bufio.NewReaderSize(f, 1<<20), page)
}

// brokenIn looks for damage in the middle of a log, and returns where it is, or -1. SQLite
// goes no further than to the first frame that does not check, and says nothing of those
// behind it.
//
// A log is like that when the power has gone, too: of the last transaction any part may be on
// the disk. But none is begun before the one before it is on the disk as a whole. So a
// transaction behind the one that does not check was begun after that was acknowledged. One
// that is written over the beginning of another that was cut off is followed by the end of
// that, which checks in itself, but not as what follows.
func brokenIn(r io.Reader, page int64) (int64, error) {
	header := make([]byte, logHeader)
	if _, err := io.ReadFull(r, header); err != nil {
		return -1, unlessCut(err)
	}
	var order binary.ByteOrder = binary.LittleEndian
	if binary.BigEndian.Uint32(header) == 0x377f0683 {
		order = binary.BigEndian // the file comes from such a machine
	}
	last, salts := sumsAt(header, headerSums), [8]byte(header[16:])
	broken, over := int64(-1), false // over: the transaction that does not check is
	follows := true                  // all of the transaction behind it so far
	if (sums{}).add(order, header[:headerSums]) != last {
		broken, over = 0, true
	}
	frame := make([]byte, frameHeader+page)
	for at := int64(logHeader); ; at += int64(len(frame)) {
		if _, err := io.ReadFull(r, frame); err != nil {
			return -1, unlessCut(err)
		}
		if at == logHeader && broken == 0 {
			salts = [8]byte(frame[8:])
		}
		stored := sumsAt(frame, frameSums)
		ours := [8]byte(frame[8:]) == salts // others are left from an earlier use of the file
		ends := ours && binary.BigEndian.Uint32(frame[4:]) != 0
		checks := ours && binary.BigEndian.Uint32(frame) != 0 && last.add(order, frame[:8]).add(order, frame[frameHeader:]) == stored
		if !checks && (at+8)%sector == 0 {
			ends = false // that was there before: the salts alone were written
		}
		switch {
		case broken < 0 && !checks:
			broken, over = at, ends
		case broken >= 0 && over:
			follows = follows && checks
			if ends && follows {
				return broken, nil
			}
			follows = follows || ends
		case broken >= 0:
			over = ends
		}
		last = stored
	}
}

// unlessCut is nothing for a file that ends, be it in a frame.
func unlessCut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// sums is SQLite's sum of a log.
type sums [2]uint32

func sumsAt(b []byte, at int) sums {
	return sums{binary.BigEndian.Uint32(b[at:]), binary.BigEndian.Uint32(b[at+4:])}
}

// add is the sum of what s is the sum of and b, whose length is a multiple of eight.
func (s sums) add(order binary.ByteOrder, b []byte) sums {
	for ; len(b) > 0; b = b[8:] {
		s[0] += order.Uint32(b) + s[1]
		s[1] += order.Uint32(b[4:]) + s[0]
	}
	return s
}
