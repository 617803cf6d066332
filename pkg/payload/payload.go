// Package payload carries the programs and images that podo ships inside itself.
//
// The finished binary is the linked program, then an archive, then a fixed footer
// that says where the archive is. The archive is a tar file in zstd frames, one
// frame for each file, so that any zstd and tar can read it and so that files
// unpack in parallel; its last, skippable frame is the index that this package
// reads. Nothing here trusts a name in the archive, and nothing is held in memory.
//
// The package owns one folder: an unpacked payload per content hash, and the link
// "current" to the one in use.
package payload

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// ErrNone means that a binary carries no payload, as one does that came straight
// from "go build". Callers say how to get one that does: make build.
var ErrNone = errors.New("this podo carries no payload (programs and images): build one that does with: make build")

// A Component is one file of the payload.
type Component struct {
	Name    string `json:"name"` // path below the unpacked payload
	Version string `json:"version"`
	License string `json:"license"` // SPDX expression
	Source  string `json:"source"`
	Size    int64  `json:"size"`
	SHA256  string `json:"sha256"`
}

// An Entry is a Component and where its frame lies in the archive.
type Entry struct {
	Component
	Mode os.FileMode `json:"mode"`
	// Later marks what a node does not need to start, such as kubectl.
	Later  bool  `json:"later,omitempty"`
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// A Payload is the archive inside one file.
type Payload struct {
	path    string
	foot    footer
	entries []Entry
}

// Open finds the payload of a binary; the error is ErrNone if it has none. A running
// podo names itself /proc/self/exe, which stays the same file while a newer one is
// put in its place.
func Open(exe string) (*Payload, error) {
	f, err := os.Open(exe)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	foot, err := readFooter(f, info.Size())
	if err != nil {
		return nil, fmt.Errorf("payload of %s: %w", exe, err)
	}
	p := &Payload{path: exe, foot: foot}
	p.entries, err = readIndex(f, int64(foot.Offset+foot.Length), int64(foot.Length))
	if err != nil {
		return nil, fmt.Errorf("payload of %s: %w", exe, err)
	}
	for _, e := range p.entries {
		if err := e.check(int64(foot.Length)); err != nil {
			return nil, fmt.Errorf("payload of %s: %w", exe, err)
		}
	}
	return p, nil
}

// check refuses an entry that would write outside its folder or read outside the archive.
func (e Entry) check(archive int64) error {
	if !filepath.IsLocal(e.Name) || filepath.Clean(e.Name) != e.Name || e.Name == "." || e.Name == marker {
		return fmt.Errorf("%q is not a name for a file", e.Name)
	}
	if e.Mode&^os.ModePerm != 0 {
		return fmt.Errorf("%s: mode %v is more than permissions", e.Name, e.Mode)
	}
	if e.Size < 0 || e.Offset < 0 || e.Length < 0 || e.Offset > archive || e.Length > archive-e.Offset {
		return fmt.Errorf("%s: lies outside the archive", e.Name)
	}
	return nil
}

// Sum is the hash of the archive, in hexadecimal; it names the unpacked folder.
func (p *Payload) Sum() string { return fmt.Sprintf("%x", p.foot.Sum) }

// Components lists the files of the payload.
func (p *Payload) Components() []Component {
	list := make([]Component, len(p.entries))
	for i, e := range p.entries {
		list[i] = e.Component
	}
	return list
}

// Components lists the files of a binary's payload.
func Components(exe string) ([]Component, error) {
	p, err := Open(exe)
	if err != nil {
		return nil, err
	}
	return p.Components(), nil
}

// Extract writes one file of the payload to w, for a caller that needs no more.
func (p *Payload) Extract(w io.Writer, name string) error {
	for _, e := range p.entries {
		if e.Name != name {
			continue
		}
		f, err := os.Open(p.path)
		if err != nil {
			return err
		}
		defer f.Close()
		d, err := newDecoder()
		if err != nil {
			return err
		}
		defer d.Close()
		return d.copy(w, f, int64(p.foot.Offset), e)
	}
	return fmt.Errorf("payload of %s: holds no %s", p.path, name)
}
