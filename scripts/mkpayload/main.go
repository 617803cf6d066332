// Command mkpayload packs the files of the payload into an archive, and attaches the
// archive to the linked program. The format is pkg/payload's.
//
// Compressing is slow, so frames are kept by the hash of what is in them.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/podo-dev/podo/pkg/payload"
)

const usage = `usage: mkpayload pack -parts FILE -cache FOLDER -out FILE
       mkpayload attach -program FILE -payload FILE -out FILE

The parts file has a line for each file of the payload, its columns separated by tabs:
name, permissions in octal, "boot" if a node needs it to start or else "later",
version, licence, source, and where the file is.
`

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mkpayload:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("mkpayload", flag.ExitOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	out := flags.String("out", "", "")
	parts := flags.String("parts", "", "")
	cache := flags.String("cache", "", "")
	program := flags.String("program", "", "")
	archive := flags.String("payload", "", "")
	if len(args) == 0 {
		flags.Usage()
		os.Exit(2)
	}
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	switch args[0] {
	case "pack":
		return pack(*parts, *cache, *out)
	case "attach":
		return attach(*program, *archive, *out)
	}
	flags.Usage()
	os.Exit(2)
	return nil
}

type part struct {
	payload.Component
	mode    os.FileMode
	later   bool
	content []byte
}

func pack(parts, cache, out string) error {
	list, err := read(parts)
	if err != nil {
		return err
	}
	frames := make([][]byte, len(list))
	errs := make([]error, len(list))
	kept := make([]string, len(list))
	turn := make(chan struct{}, runtime.NumCPU())
	var all sync.WaitGroup
	for i, p := range list {
		all.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			frames[i], kept[i], errs[i] = frame(p, cache)
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}

	var buf bytes.Buffer
	var entries []payload.Entry
	for i, p := range list {
		entries = append(entries, payload.Entry{
			Component: p.Component, Mode: p.mode, Later: p.later, Offset: int64(buf.Len()), Length: int64(len(frames[i])),
		})
		buf.Write(frames[i])
	}
	// Two empty blocks end a tar file.
	end, last, err := compress(make([]byte, 1024), cache)
	if err != nil {
		return err
	}
	buf.Write(end)
	kept = append(kept, last)
	if err := payload.WriteIndex(&buf, entries); err != nil {
		return err
	}
	if err := prune(cache, kept); err != nil {
		return err
	}
	if old, err := os.ReadFile(out); err == nil && bytes.Equal(old, buf.Bytes()) {
		return nil
	}
	return replace(out, buf.Bytes(), 0o644)
}

// read returns the parts in the order of their names, and a list of them as one more.
func read(path string) ([]part, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var list []part
	for line := range strings.Lines(string(text)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 7 || slices.Contains(f, "") || f[2] != "boot" && f[2] != "later" {
			return nil, fmt.Errorf("%s: %q is not the line of a part", path, line)
		}
		mode, err := strconv.ParseUint(f[1], 8, 32)
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", path, f[0], err)
		}
		content, err := os.ReadFile(f[6])
		if err != nil {
			return nil, err
		}
		list = append(list, part{payload.Component{
			Name: f[0], Version: f[3], License: f[4], Source: f[5],
			Size: int64(len(content)), SHA256: fmt.Sprintf("%x", sha256.Sum256(content)),
		}, os.FileMode(mode), f[2] == "later", content})
	}
	slices.SortFunc(list, func(a, b part) int { return strings.Compare(a.Name, b.Name) })

	var components []payload.Component
	for _, p := range list {
		components = append(components, p.Component)
	}
	content, err := json.MarshalIndent(components, "", "  ")
	if err != nil {
		return nil, err
	}
	content = append(content, '\n')
	return append(list, part{payload.Component{
		Name: "components.json", Version: "1", License: "Apache-2.0", Source: "podo",
		Size: int64(len(content)), SHA256: fmt.Sprintf("%x", sha256.Sum256(content)),
	}, 0o644, true, content}), nil
}

func frame(p part, cache string) (frame []byte, kept string, err error) {
	member, err := payload.Member(p.Name, p.mode, p.content)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", p.Name, err)
	}
	return compress(member, cache)
}

// compress makes one zstd frame. Higher levels and longer windows gain less than
// half a per cent on these files, and each frame is well inside one window.
func compress(content []byte, cache string) (frame []byte, kept string, err error) {
	const level = "-19"
	kept = filepath.Join(cache, fmt.Sprintf("%x%s.zst", sha256.Sum256(content), level))
	if frame, err = os.ReadFile(kept); err == nil {
		return frame, kept, nil
	}
	cmd := exec.Command("zstd", level, "--quiet", "--check", "--stdout", "--single-thread",
		"--stream-size="+strconv.Itoa(len(content)))
	cmd.Stdin, cmd.Stderr = bytes.NewReader(content), os.Stderr
	if frame, err = cmd.Output(); err != nil {
		return nil, "", fmt.Errorf("zstd: %w", err)
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, "", err
	}
	return frame, kept, replace(kept, frame, 0o644)
}

// prune removes frames that this payload did not need.
func prune(cache string, kept []string) error {
	list, err := filepath.Glob(filepath.Join(cache, "*.zst"))
	if err != nil {
		return err
	}
	for _, path := range list {
		if slices.Contains(kept, path) {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func attach(program, archive, out string) error {
	p, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	a, err := os.ReadFile(archive)
	if err != nil {
		return err
	}
	var buf bytes.Buffer
	buf.Grow(len(p) + len(a) + 4096)
	if err := payload.Attach(&buf, p, a); err != nil {
		return err
	}
	return replace(out, buf.Bytes(), 0o755)
}

// replace never writes into a file that may be running.
func replace(path string, content []byte, mode os.FileMode) error {
	next, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer os.Remove(next.Name())
	_, err = next.Write(content)
	if err := errors.Join(err, next.Chmod(mode), next.Close()); err != nil {
		return err
	}
	return os.Rename(next.Name(), path)
}
