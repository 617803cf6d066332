package atomicfile

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestWriteGivesExactlyTheMode(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	path := filepath.Join(t.TempDir(), "f")
	for _, mode := range []fs.FileMode{0o600, 0o644, 0o660} {
		if err := Write(path, []byte("x"), mode); err != nil {
			t.Fatal(err)
		}
		if info, _ := os.Stat(path); info.Mode() != mode {
			t.Errorf("mode %v, want %v", info.Mode(), mode)
		}
	}
}

func TestReadersNeverMeetHalfAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	a, b := bytes.Repeat([]byte("a"), 1<<16), bytes.Repeat([]byte("b"), 1<<15)
	if err := Write(path, a, 0o600); err != nil {
		t.Fatal(err)
	}
	var writers sync.WaitGroup
	for _, data := range [][]byte{a, b} {
		writers.Go(func() {
			for range 20 {
				if err := Write(path, data, 0o600); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { writers.Wait(); close(done) }()
	for {
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, a) && !bytes.Equal(got, b) {
			t.Fatalf("read %d bytes, %v: neither the one file nor the other", len(got), err)
		}
		select {
		case <-done:
			if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
				t.Errorf("%d files left, want 1", len(left))
			}
			return
		default:
		}
	}
}

func TestWriteFailsWithoutATrace(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "f")
	if err := os.MkdirAll(filepath.Join(target, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Write(target, []byte("x"), 0o600); err == nil {
		t.Error("a folder was overwritten")
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left %v", left)
	}
	if err := Write(filepath.Join(dir, "no", "f"), nil, 0o600); err == nil {
		t.Error("wrote into a folder that does not exist")
	}
}

func TestWriteSweepsWhatAKilledWriterLeft(t *testing.T) {
	dir := t.TempDir()
	abandoned, recent, other := filepath.Join(dir, ".f.1.tmp"), filepath.Join(dir, ".f.2.tmp"), filepath.Join(dir, ".g.1.tmp")
	for _, path := range []string{abandoned, recent, other} {
		if err := os.WriteFile(path, []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	long := time.Now().Add(-time.Hour)
	os.Chtimes(abandoned, long, long)
	os.Chtimes(other, long, long)
	if err := Write(filepath.Join(dir, "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{abandoned: false, recent: true, other: true} {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s exists: %v, want %v", filepath.Base(path), err == nil, want)
		}
	}
}

func TestWriteIfChanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	steps := []struct {
		name string
		data string
		mode fs.FileMode
		want bool
	}{
		{"missing", "a", 0o600, true},
		{"the same", "a", 0o600, false},
		{"other content", "b", 0o600, true},
		{"other mode", "b", 0o640, true},
		{"the same again", "b", 0o640, false},
		{"empty", "", 0o640, true},
	}
	for _, s := range steps {
		got, err := WriteIfChanged(path, []byte(s.data), s.mode)
		if err != nil || got != s.want {
			t.Errorf("%s: wrote %v, %v; want %v", s.name, got, err, s.want)
		}
	}
}

func TestOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	path := filepath.Join(t.TempDir(), "f")
	owner := func() (int, int) {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		st := info.Sys().(*syscall.Stat_t)
		return int(st.Uid), int(st.Gid)
	}
	if err := Write(path, nil, 0o640, Group(1234), Owner(4321)); err != nil {
		t.Fatal(err)
	}
	if uid, gid := owner(); uid != 4321 || gid != 1234 {
		t.Errorf("owner %d:%d, want 4321:1234", uid, gid)
	}
	if err := Write(path, []byte("x"), 0o640, KeepOwner()); err != nil {
		t.Fatal(err)
	}
	if uid, gid := owner(); uid != 4321 || gid != 1234 {
		t.Errorf("owner %d:%d after KeepOwner, want 4321:1234", uid, gid)
	}
	if wrote, err := WriteIfChanged(path, []byte("x"), 0o640, Group(5)); err != nil || !wrote {
		t.Errorf("another group: wrote %v, %v; want true", wrote, err)
	}
	if err := Write(path, nil, 0o600, Group(-1)); err != nil {
		t.Fatal(err)
	}
	if uid, gid := owner(); uid != 0 || gid != 0 {
		t.Errorf("owner %d:%d without an option, want the writer's", uid, gid)
	}
}

func TestEnsureDir(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	top := t.TempDir()
	deep := filepath.Join(top, "a", "b")
	for range 2 {
		if err := EnsureDir(deep, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]fs.FileMode{deep: 0o700, filepath.Dir(deep): 0o711} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
	file := filepath.Join(top, "file")
	os.WriteFile(file, nil, 0o600)
	for _, path := range []string{file, filepath.Join(file, "below")} {
		if err := EnsureDir(path, 0o700); err == nil {
			t.Errorf("EnsureDir(%s) took a file for a folder", path)
		}
	}
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	file, pipe := filepath.Join(dir, "file"), filepath.Join(dir, "pipe")
	if err := os.WriteFile(file, []byte("grape"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if text, err := Read(file, 5); err != nil || string(text) != "grape" {
		t.Errorf("%q, %v", text, err)
	}
	for path, want := range map[string]string{file: "has 5 bytes, and may have 4", pipe: "not a regular file", dir: "a folder", "/dev/zero": "not a regular file", dir + "/none": "no such file"} {
		if _, err := Read(path, 4); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}
