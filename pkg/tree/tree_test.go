package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// remove removes DIR/victim.
func remove(t *testing.T, dir string) error {
	t.Helper()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	return Remove(d, "victim", nil)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestRemove: whatever a pod may leave in a folder goes with it, and nothing beside it.
func TestRemove(t *testing.T) {
	tests := map[string]func(t *testing.T, victim, outside string){
		"nothing": func(t *testing.T, victim, _ string) { must(t, os.Remove(victim)) },
		"a file": func(t *testing.T, victim, _ string) {
			must(t, os.Remove(victim))
			must(t, os.WriteFile(victim, nil, 0o000))
		},
		"a folder": func(*testing.T, string, string) {},
		"files and folders": func(t *testing.T, victim, _ string) {
			must(t, os.MkdirAll(victim+"/a/b/c", 0o700))
			must(t, os.WriteFile(victim+"/a/b/file", []byte("x"), 0o600))
			must(t, os.Chmod(victim+"/a/b", 0o000))
		},
		"links out": func(t *testing.T, victim, outside string) {
			must(t, os.Symlink(outside, victim+"/absolute"))
			must(t, os.Symlink("../outside", victim+"/relative"))
			must(t, os.Symlink(outside+"/kept", victim+"/file"))
			must(t, os.Symlink("/", victim+"/all"))
			must(t, os.Symlink("nowhere", victim+"/dangling"))
			must(t, os.Link(outside+"/kept", victim+"/hard"))
		},
		"a link itself": func(t *testing.T, victim, outside string) {
			must(t, os.Remove(victim))
			must(t, os.Symlink(outside, victim))
		},
		"hostile names": func(t *testing.T, victim, _ string) {
			for _, name := range []string{"new\nline", "-rf", "..\n", "...", " ", "\xff\xfe", "*", "$(x)", strings.Repeat("n", 255)} {
				must(t, os.Mkdir(filepath.Join(victim, name), 0o700))
				must(t, os.WriteFile(filepath.Join(victim, name, name), nil, 0o600))
			}
		},
		"pipes, sockets and devices": func(t *testing.T, victim, _ string) {
			must(t, unix.Mkfifo(victim+"/pipe", 0o600))
			if err := unix.Mknod(victim+"/device", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil && !errors.Is(err, unix.EPERM) {
				t.Fatal(err)
			}
		},
		"many files": func(t *testing.T, victim, _ string) {
			for i := range 5000 {
				must(t, os.WriteFile(fmt.Sprintf("%s/%d", victim, i), nil, 0o600))
			}
		},
		"a deep tree": func(t *testing.T, victim, _ string) { dig(t, victim, 5000) },
		"several deep trees": func(t *testing.T, victim, _ string) {
			for _, part := range []string{"a", "b"} {
				must(t, os.Mkdir(victim+"/"+part, 0o700))
				dig(t, victim+"/"+part, 300)
			}
		},
	}
	for name, plant := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			outside := filepath.Join(dir, "outside")
			must(t, os.Mkdir(outside, 0o700))
			must(t, os.WriteFile(outside+"/kept", []byte("kept"), 0o600))
			must(t, os.Mkdir(filepath.Join(dir, "victim"), 0o700))
			plant(t, filepath.Join(dir, "victim"), outside)
			must(t, remove(t, dir))
			left, err := os.ReadDir(dir)
			if err != nil || len(left) != 1 || left[0].Name() != "outside" {
				t.Errorf("left %v, %v", left, err)
			}
			if text, err := os.ReadFile(outside + "/kept"); string(text) != "kept" {
				t.Errorf("outside there is %q, %v", text, err)
			}
		})
	}
}

// dig makes folders in folders, deeper than any path can be written.
func dig(t *testing.T, dir string, depth int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_DIRECTORY, 0)
	must(t, err)
	const part = "a-name-of-some-length"
	for range depth {
		must(t, unix.Mkdirat(fd, part, 0o700))
		must(t, unix.Mknodat(fd, "file", unix.S_IFREG|0o600, 0))
		next, err := unix.Openat(fd, part, unix.O_DIRECTORY, 0)
		must(t, err)
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
}

// TestRemoveHoldsFewFiles: a tree of any depth is removed with few descriptors.
func TestRemoveHoldsFewFiles(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(dir+"/victim", 0o700))
	dig(t, dir+"/victim", 1000)
	var before unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &before))
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: deepest + 60, Max: before.Max}))
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &before)
	must(t, remove(t, dir))
}

// TestMountsAreNotEntered: a file system or a folder that is mounted inside stays
// mounted and whole, and the rest goes.
func TestMountsAreNotEntered(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("PODO_E2E") == "1" {
			t.Fatal("mounting needs root")
		}
		t.Skip("mounts: needs root")
	}
	for name, mount := range map[string]func(outside, at string) error{
		"a bind mount of a folder": func(outside, at string) error {
			return errors.Join(os.Mkdir(at, 0o700), unix.Mount(outside, at, "", unix.MS_BIND, ""))
		},
		"a bind mount of a file": func(outside, at string) error {
			return errors.Join(os.WriteFile(at, nil, 0o600), unix.Mount(outside+"/kept", at, "", unix.MS_BIND, ""))
		},
		"a file system": func(_, at string) error {
			return errors.Join(os.Mkdir(at, 0o700), unix.Mount("tmpfs", at, "tmpfs", 0, ""), os.WriteFile(at+"/kept", []byte("kept"), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, os.MkdirAll(dir+"/outside", 0o700))
			must(t, os.WriteFile(dir+"/outside/kept", []byte("kept"), 0o600))
			must(t, os.MkdirAll(dir+"/victim/deep", 0o700))
			must(t, os.WriteFile(dir+"/victim/other", nil, 0o600))
			at := dir + "/victim/deep/mounted"
			done := make(chan error)
			go func() {
				runtime.LockOSThread() // the mounts end with the thread
				done <- func() error {
					if err := errors.Join(unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), mount(dir+"/outside", at)); err != nil {
						return err
					}
					d, err := os.Open(dir)
					if err != nil {
						return err
					}
					defer d.Close()
					if err := Remove(d, "victim", nil); err == nil || !strings.Contains(err.Error(), "unmount it first") || !strings.Contains(err.Error(), at) {
						return fmt.Errorf("err = %w, want %s in it", err, at)
					}
					if _, err := os.Stat(dir + "/victim/other"); !errors.Is(err, fs.ErrNotExist) {
						return fmt.Errorf("what lies beside the mount is left: %w", err)
					}
					kept := at
					if info, err := os.Stat(at); err == nil && info.IsDir() {
						kept += "/kept"
					}
					if text, err := os.ReadFile(kept); string(text) != "kept" {
						return fmt.Errorf("on the mount there is %q: %w", text, err)
					}
					if err := unix.Unmount(at, 0); err != nil {
						return err
					}
					return Remove(d, "victim", nil)
				}()
			}()
			must(t, <-done)
			if _, err := os.Lstat(dir + "/victim"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("it is left: %v", err)
			}
		})
	}
}

// TestImmutableFilesGo: flags that forbid to remove a file are no obstacle.
func TestImmutableFilesGo(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(dir+"/victim/folder", 0o700))
	for _, path := range []string{"/victim/folder/file", "/victim/log"} {
		must(t, os.WriteFile(dir+path, nil, 0o600))
	}
	for path, flag := range map[string]int{"/victim/folder/file": immutable, "/victim/log": appendOnly, "/victim/folder": immutable} {
		fd, err := unix.Open(dir+path, unix.O_RDONLY, 0)
		must(t, err)
		flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
		if err == nil {
			err = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags|flag)
		}
		unix.Close(fd)
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) {
			t.Skip("this user or file system sets no such flags:", err)
		}
		must(t, err)
	}
	must(t, remove(t, dir))
	if _, err := os.Lstat(dir + "/victim"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is left: %v", err)
	}
}

// TestStop: a removal that is cut short is gone on with by the next.
func TestStop(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(dir+"/victim/a", 0o700))
	d, err := os.Open(dir)
	must(t, err)
	defer d.Close()
	stop := make(chan struct{})
	close(stop)
	if err := Remove(d, "victim", stop); !errors.Is(err, ErrStopped) {
		t.Errorf("err = %v, want ErrStopped", err)
	}
	must(t, Remove(d, "victim", nil))
}

func TestEmptyCounts(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(dir+"/deep", 0o700))
	dig(t, dir+"/deep", 200)
	must(t, os.WriteFile(dir+"/file", nil, 0o600))
	if n, err := Empty(dir); n != 2 || err != nil {
		t.Errorf("Empty = %d, %v; want 2", n, err)
	}
	if n, err := Empty(dir + "/none"); n != 0 || err != nil {
		t.Errorf("Empty of nothing = %d, %v", n, err)
	}
}

// TestOpenStaysInside: neither links nor steps upwards lead out.
func TestOpenStaysInside(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(dir+"/root/a/b", 0o700))
	must(t, os.Symlink(dir, dir+"/root/out"))
	must(t, os.Symlink("a", dir+"/root/in"))
	root, err := os.Open(dir + "/root")
	must(t, err)
	defer root.Close()
	for path, ok := range map[string]bool{"a/b": true, ".": true, "..": false, "a/../..": false, "out": false, "in/b": false, "/etc": false} {
		f, err := Open(root, path)
		if (err == nil) != ok {
			t.Errorf("%s: %v", path, err)
		}
		if f != nil {
			f.Close()
		}
	}
}
