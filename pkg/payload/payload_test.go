package payload

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/podo-dev/podo/pkg/lifecycle/lifecycletest"
)

// parts is a small payload: a program, a program in a folder, and an image.
func parts(seed string) map[string][]byte {
	random := make([]byte, 300_000)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte(seed))).Read(random)
	return map[string][]byte{
		"containerd":       append([]byte("program "+seed), bytes.Repeat([]byte("x"), 100_000)...),
		"lib/nft":          random,
		"images/pause.tar": []byte(strings.Repeat("layer", 1000)),
		"empty":            {},
	}
}

// archive packs parts as the build does. edit may spoil the index.
func archive(t *testing.T, parts map[string][]byte, edit func(*Entry)) []byte {
	t.Helper()
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	var entries []Entry
	for name, content := range parts {
		mode := os.FileMode(0o755)
		if strings.HasPrefix(name, "images/") {
			mode = 0o644
		}
		member, err := Member(name, mode, content)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(content)
		frame := enc.EncodeAll(member, nil)
		e := Entry{
			Component: Component{Name: name, Version: "1.0", Size: int64(len(content)), SHA256: hex.EncodeToString(sum[:])},
			Mode:      mode, Later: name == "empty", Offset: int64(out.Len()), Length: int64(len(frame)),
		}
		if edit != nil {
			edit(&e)
		}
		entries = append(entries, e)
		out.Write(frame)
	}
	if err := WriteIndex(&out, entries); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// program writes a binary that carries an archive.
func program(t *testing.T, archive []byte) string {
	t.Helper()
	var out bytes.Buffer
	if err := Attach(&out, []byte("\x7fELF and so on"), archive); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "podo")
	if err := os.WriteFile(path, out.Bytes(), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func mustUnpack(t *testing.T, exe, dir string) string {
	t.Helper()
	bin, err := Unpack(t.Context(), exe, dir)
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// holds checks that a folder has the parts, with their modes, and nothing else.
func holds(t *testing.T, bin string, want map[string][]byte) {
	t.Helper()
	home, err := filepath.EvalSymlinks(bin)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	err = filepath.WalkDir(home, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, _ := filepath.Rel(home, path)
		if name == marker {
			return nil
		}
		found++
		got, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		content, ok := want[name]
		if !ok || !bytes.Equal(got, content) {
			t.Errorf("%s: unexpected, or with other content (%d bytes)", name, len(got))
		}
		mode := os.FileMode(0o755)
		if strings.HasPrefix(name, "images/") {
			mode = 0o644
		}
		if info, _ := d.Info(); info.Mode() != mode {
			t.Errorf("%s: mode %v, want %v", name, info.Mode(), mode)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found != len(want) {
		t.Errorf("%s holds %d files, want %d", bin, found, len(want))
	}
}

func TestUnpack(t *testing.T) {
	want := parts("a")
	exe, dir := program(t, archive(t, want, nil)), filepath.Join(t.TempDir(), "bin")
	bin := mustUnpack(t, exe, dir)
	if bin != filepath.Join(dir, "current") {
		t.Errorf("unpacked into %s, want %s/current", bin, dir)
	}
	holds(t, bin, want)

	before, _ := os.Stat(filepath.Join(bin, "containerd"))
	mustUnpack(t, exe, dir)
	after, _ := os.Stat(filepath.Join(bin, "containerd"))
	if !os.SameFile(before, after) {
		t.Error("a second Unpack wrote the files again")
	}
}

func TestUnpackRepairs(t *testing.T) {
	want := parts("a")
	exe := program(t, archive(t, want, nil))
	tests := map[string]func(home string) error{
		"a file is gone":      func(home string) error { return os.Remove(filepath.Join(home, "lib/nft")) },
		"a file is cut short": func(home string) error { return os.Truncate(filepath.Join(home, "containerd"), 10) },
		"a mode has changed":  func(home string) error { return os.Chmod(filepath.Join(home, "containerd"), 0o600) },
		"it was killed before the disk had everything": func(home string) error {
			return errors.Join(os.Remove(filepath.Join(home, marker)),
				os.WriteFile(filepath.Join(home, "containerd"), bytes.Repeat([]byte{0}, len(want["containerd"])), 0o755))
		},
		"it was killed while it wrote a file": func(home string) error {
			return errors.Join(os.Remove(filepath.Join(home, marker)), os.Remove(filepath.Join(home, "lib/nft")),
				os.WriteFile(filepath.Join(home, "lib/nft"+partial), []byte("ha"), 0o600))
		},
		"it was killed before the link": func(home string) error { return os.Remove(filepath.Join(home, "..", current)) },
		"it was killed while it linked": func(home string) error {
			return errors.Join(os.Remove(filepath.Join(home, "..", current)), os.Symlink("nowhere", filepath.Join(home, "..", current+partial)))
		},
		"everything is gone": func(home string) error { return os.RemoveAll(home) },
	}
	for name, harm := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			home, err := filepath.EvalSymlinks(mustUnpack(t, exe, dir))
			if err != nil {
				t.Fatal(err)
			}
			if err := harm(home); err != nil {
				t.Fatal(err)
			}
			holds(t, mustUnpack(t, exe, dir), want)
		})
	}
}

func TestPlaceIsUsableBeforeItIsSettled(t *testing.T) {
	want := parts("a")
	p, err := Open(program(t, archive(t, want, nil)))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := p.Place(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, current, "empty")); err == nil {
		t.Error("Place unpacked what is for later")
	}
	now := parts("a")
	delete(now, "empty")
	holds(t, filepath.Join(dir, current), now)
	if p.complete(dir) {
		t.Error("it counts as complete before it is settled")
	}
	if err := p.Settle(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	holds(t, filepath.Join(dir, current), want)
	if !p.placed(dir) {
		t.Error("it does not count as placed once it is settled")
	}
}

func TestUnpackStops(t *testing.T) {
	exe, dir := program(t, archive(t, parts("a"), nil)), t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Unpack(ctx, exe, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("Unpack with an ended context returned %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, current)); err == nil {
		t.Error("half a payload was made current")
	}
}

func TestUpgradeKeepsOneBefore(t *testing.T) {
	dir := t.TempDir()
	var sums []string
	for _, seed := range []string{"a", "b", "c"} {
		want := parts(seed)
		holds(t, mustUnpack(t, program(t, archive(t, want, nil)), dir), want)
		sum, _ := os.Readlink(filepath.Join(dir, current))
		sums = append(sums, sum)
	}
	var left []string
	list, _ := os.ReadDir(dir)
	for _, e := range list {
		left = append(left, e.Name())
	}
	want := []string{current, sums[1], sums[2]}
	slices.Sort(left)
	slices.Sort(want)
	if !slices.Equal(left, want) {
		t.Errorf("after two upgrades %v is left, want %v", left, want)
	}
}

func TestUnpackTwiceAtOnce(t *testing.T) {
	want := parts("a")
	exe, dir := program(t, archive(t, want, nil)), t.TempDir()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if _, err := Unpack(t.Context(), exe, dir); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	holds(t, filepath.Join(dir, current), want)
}

// TestShare: those that share a folder at once get the files of their own binary, all of
// them, and what was current stays so.
func TestShare(t *testing.T) {
	dir := t.TempDir()
	mustUnpack(t, program(t, archive(t, parts("own"), nil)), dir)
	before, _ := os.Readlink(filepath.Join(dir, current))
	var all sync.WaitGroup
	type place struct{ seed, to, sum string }
	var places []place
	for _, seed := range []string{"a", "b", "c"} {
		exe := program(t, archive(t, parts(seed), nil))
		p, err := Open(exe)
		if err != nil {
			t.Fatal(err)
		}
		for range 6 {
			to := t.TempDir()
			places = append(places, place{seed, to, p.Sum()})
			all.Go(func() {
				if err := Share(t.Context(), exe, dir, to); err != nil {
					t.Error(err)
				}
			})
		}
	}
	all.Wait()
	for _, p := range places {
		home := filepath.Join(p.to, p.sum)
		holds(t, home, parts(p.seed))
		ours, err := os.Stat(filepath.Join(home, "lib/nft"))
		if err != nil {
			t.Fatal(err)
		}
		if theirs, err := os.Stat(filepath.Join(dir, p.sum, "lib/nft")); err != nil || !os.SameFile(ours, theirs) {
			t.Errorf("%s is no link: %v", home, err)
		}
	}
	if now, _ := os.Readlink(filepath.Join(dir, current)); now != before {
		t.Errorf("current is %s, want %s", now, before)
	}
}

func TestNoPayload(t *testing.T) {
	path := filepath.Join(t.TempDir(), "podo")
	for name, content := range map[string]string{"empty": "", "plain": strings.Repeat("program", 100)} {
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := Components(path); !errors.Is(err, ErrNone) {
			t.Errorf("%s: Components returned %v, want ErrNone", name, err)
		}
	}
}

func TestRefusesDamage(t *testing.T) {
	good := archive(t, parts("a"), nil)
	cut := program(t, good)
	content, _ := os.ReadFile(cut)
	// A footer that fits nothing before it.
	if err := os.WriteFile(cut, append(content[:1000:1000], content[len(content)-footerSize:]...), 0o755); err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(good)
	for i := range 20 {
		flipped[len(flipped)/3+i*1000] ^= 0xff
	}
	tests := map[string]string{
		"cut short":    cut,
		"bit rot":      program(t, flipped),
		"climbs out":   program(t, archive(t, parts("a"), func(e *Entry) { e.Name = "../" + e.Name })),
		"absolute":     program(t, archive(t, parts("a"), func(e *Entry) { e.Name = "/" + e.Name })),
		"setuid":       program(t, archive(t, parts("a"), func(e *Entry) { e.Mode |= os.ModeSetuid })),
		"out of file":  program(t, archive(t, parts("a"), func(e *Entry) { e.Length = 1 << 40 })),
		"overflows":    program(t, archive(t, parts("a"), func(e *Entry) { e.Offset, e.Length = 1<<62, 1<<62 })),
		"size is less": program(t, archive(t, parts("a"), func(e *Entry) { e.Size /= 2 })),
		"size is more": program(t, archive(t, parts("a"), func(e *Entry) { e.Size += block })),
		"own marker":   program(t, archive(t, parts("a"), func(e *Entry) { e.Name = marker })),
	}
	for name, exe := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if _, err := Unpack(t.Context(), exe, dir); err == nil {
				t.Error("Unpack accepted it")
			}
			if _, err := os.Lstat(filepath.Join(dir, current)); err == nil {
				t.Error("it was made current")
			}
		})
	}
}

func TestExtract(t *testing.T) {
	want := parts("a")
	p, err := Open(program(t, archive(t, want, nil)))
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := p.Extract(&got, "lib/nft"); err != nil || !bytes.Equal(got.Bytes(), want["lib/nft"]) {
		t.Errorf("Extract gave %d bytes, %v", got.Len(), err)
	}
	if err := p.Extract(&got, "absent"); err == nil {
		t.Error("Extract of an absent file succeeded")
	}
}

func TestContract(t *testing.T) {
	lifecycletest.Check(t, Unpacked(program(t, archive(t, parts("a"), nil)), t.TempDir()))
}
