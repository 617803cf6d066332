package offline

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/atomicfile"
)

// A journal keeps values by key in one file that is only appended to: a change costs
// the disk its own size, whatever else is kept. What a crash left of the last entry
// is dropped when the file is opened. When more than half of the file has been
// overtaken, it is written anew.
//
// Each entry is three numbers of four bytes, big-endian, and then key and value: the
// checksum of all that follows it, the key's length, and the value's length plus one,
// or zero if the key is forgotten.
type journal struct {
	path string
	log  *slog.Logger

	writing sync.Mutex // one flush at a time; taken before mu

	mu      sync.Mutex
	file    *os.File
	size    int64 // of the file
	live    int64 // of the entries in it that count
	index   map[string]place
	pending map[string][]byte // not yet in the file; nil is forgotten
	flying  map[string][]byte // being written
	timer   *time.Timer       // nil if nothing is due
	before  func()            // called before a flush
	closed  bool
	failing bool
}

// A place is where the file has a value.
type place struct {
	at   int64
	size int
}

const (
	magic   = "podo offline 1\n"
	head    = 12
	largest = 64 << 20 // no entry is larger, so a length beyond it is damage

	soon     = time.Second      // until changes are written
	later    = 30 * time.Second // until they are tried again
	allowing = 1 << 20          // bytes overtaken that are not worth a new file
)

// openJournal reads the file at path, or begins one. One that is not a journal is
// begun anew: what it knew can be learned again.
func openJournal(path string, log *slog.Logger, before func()) (*journal, error) {
	j := &journal{path: path, log: log, before: before, index: map[string]place{}, pending: map[string][]byte{}}
	f, err := os.OpenFile(path, os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err := atomicfile.Write(path, []byte(magic), 0o600); err != nil {
			return nil, err
		}
		f, err = os.OpenFile(path, os.O_RDWR, 0o600)
	}
	if err != nil {
		return nil, err
	}
	if err := j.load(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return j, nil
}

func (j *journal) load(f *os.File) error {
	in := bufio.NewReaderSize(f, 64<<10)
	first := make([]byte, len(magic))
	if _, err := io.ReadFull(in, first); err != nil || string(first) != magic {
		if err := f.Truncate(0); err != nil {
			return err
		}
		if _, err := f.WriteAt([]byte(magic), 0); err != nil {
			return err
		}
		in.Reset(bytes.NewReader(nil))
	}
	at := int64(len(magic))
	var header [head]byte
	for {
		if _, err := io.ReadFull(in, header[:]); err != nil {
			break
		}
		keySize, valueSize := binary.BigEndian.Uint32(header[4:]), binary.BigEndian.Uint32(header[8:])
		if keySize > largest || valueSize > largest {
			break
		}
		body := make([]byte, keySize+max(valueSize, 1)-1)
		if _, err := io.ReadFull(in, body); err != nil {
			break
		}
		sum := crc32.ChecksumIEEE(header[4:])
		if crc32.Update(sum, crc32.IEEETable, body) != binary.BigEndian.Uint32(header[:]) {
			break
		}
		key := string(body[:keySize])
		j.place(key, at, len(body)-int(keySize), valueSize > 0)
		at += head + int64(len(body))
	}
	j.file, j.size = f, at
	return f.Truncate(at)
}

// place enters what the file has at an offset.
func (j *journal) place(key string, at int64, size int, kept bool) {
	if old, ok := j.index[key]; ok {
		j.live -= entrySize(key, old.size)
		delete(j.index, key)
	}
	if kept {
		j.index[key] = place{at: at + head + int64(len(key)), size: size}
		j.live += entrySize(key, size)
	}
}

func entrySize(key string, value int) int64 { return int64(head + len(key) + value) }

func entry(buf []byte, key string, value []byte) []byte {
	start := len(buf)
	n := uint32(0)
	if value != nil {
		n = uint32(len(value)) + 1
	}
	buf = binary.BigEndian.AppendUint32(buf, 0)
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(key)))
	buf = binary.BigEndian.AppendUint32(buf, n)
	buf = append(append(buf, key...), value...)
	binary.BigEndian.PutUint32(buf[start:], crc32.ChecksumIEEE(buf[start+4:]))
	return buf
}

// get returns the value of a key, or nil. It must not be changed.
func (j *journal) get(key string) []byte {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.read(key)
}

func (j *journal) read(key string) []byte {
	for _, m := range []map[string][]byte{j.pending, j.flying} {
		if v, ok := m[key]; ok {
			return v
		}
	}
	p, ok := j.index[key]
	if !ok || j.closed {
		return nil
	}
	v := make([]byte, p.size)
	if _, err := j.file.ReadAt(v, p.at); err != nil {
		j.log.Warn("remembered object not readable", "path", j.path, "err", err)
		return nil
	}
	return v
}

// put keeps value, which the journal then owns, under key. What is kept already
// costs nothing.
func (j *journal) put(key string, value []byte) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(key)+len(value) >= largest {
		value = nil
	}
	if old := j.read(key); value == nil && old == nil || value != nil && old != nil && bytes.Equal(old, value) {
		return
	}
	j.pending[key] = value
	j.due(soon)
}

func (j *journal) forget(key string) { j.put(key, nil) }

// due has a flush happen after d, unless one is about to. mu is held.
func (j *journal) due(d time.Duration) {
	if j.timer == nil && !j.closed {
		j.timer = time.AfterFunc(d, j.flush)
	}
}

// keys are those that begin with prefix, sorted.
func (j *journal) keys(prefix string) []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	found := map[string]bool{}
	add := func(key string, kept bool) {
		if !strings.HasPrefix(key, prefix) {
			return
		}
		if kept {
			found[key] = true
		} else {
			delete(found, key)
		}
	}
	for key := range j.index {
		add(key, true)
	}
	for _, m := range []map[string][]byte{j.flying, j.pending} {
		for key, v := range m {
			add(key, v != nil)
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// flush writes what is pending.
func (j *journal) flush() {
	j.before()
	j.writing.Lock()
	defer j.writing.Unlock()
	j.mu.Lock()
	j.timer = nil
	j.flying, j.pending = j.pending, map[string][]byte{}
	var buf []byte
	for key, value := range j.flying {
		buf = entry(buf, key, value)
	}
	file, at, shut := j.file, j.size, j.closed
	j.mu.Unlock()
	if shut || len(buf) == 0 {
		return
	}
	_, err := file.WriteAt(buf, at)
	if err == nil {
		err = unix.Fdatasync(int(file.Fd()))
	}

	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil {
		if !j.failing {
			j.log.Warn("what this node needs to start without a server is not remembered", "path", j.path, "err", err)
		}
		j.failing = true
		for key, value := range j.flying {
			if _, newer := j.pending[key]; !newer {
				j.pending[key] = value
			}
		}
		j.flying = nil
		j.due(later)
		return
	}
	j.failing = false
	j.enter(buf)
	j.flying = nil
	if garbage := j.size - j.live; garbage > j.live && garbage > allowing {
		if err := j.compact(); err != nil {
			j.log.Warn("record not made smaller", "path", j.path, "err", err)
		}
	}
}

// enter takes note of entries that have been appended.
func (j *journal) enter(buf []byte) {
	for rest := buf; len(rest) > 0; {
		keySize, valueSize := int(binary.BigEndian.Uint32(rest[4:])), int(binary.BigEndian.Uint32(rest[8:]))
		size := max(valueSize, 1) - 1
		j.place(string(rest[head:head+keySize]), j.size, size, valueSize > 0)
		j.size += int64(head + keySize + size)
		rest = rest[head+keySize+size:]
	}
}

// compact writes a file of what counts in place of this one.
func (j *journal) compact() error {
	buf := []byte(magic)
	for key, p := range j.all() {
		value := make([]byte, p.size)
		if _, err := j.file.ReadAt(value, p.at); err != nil {
			return err
		}
		buf = entry(buf, key, value)
	}
	if err := atomicfile.Write(j.path, buf, 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(j.path, os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	j.file.Close()
	j.file, j.size, j.live, j.index = f, int64(len(magic)), 0, map[string]place{}
	j.enter(buf[len(magic):])
	return nil
}

func (j *journal) all() iter.Seq2[string, place] { return maps.All(j.index) }

// close writes what is pending and ends the journal.
func (j *journal) close() {
	j.flush()
	j.writing.Lock()
	defer j.writing.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.timer != nil {
		j.timer.Stop()
	}
	j.closed = true
	j.file.Close()
}
