package volumes

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
)

func rootOf(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := openRoot(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func nothing(*os.File) error { return nil }

func TestFolder(t *testing.T) {
	for _, rel := range []string{"pvc-1_shop_data", "shop/data", "a/b/c/d"} {
		t.Run(rel, func(t *testing.T) {
			dir := t.TempDir()
			root, path := rootOf(t, dir), filepath.Join(dir, rel)
			fresh, err := create(root, rel, "pvc-1", nothing)
			if !fresh || err != nil {
				t.Fatalf("create: %t, %v", fresh, err)
			}
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o777 {
				t.Errorf("%v, %v", info.Mode(), err)
			}
			if up := filepath.Dir(path); up != dir {
				if info, err := os.Stat(up); err != nil || info.Mode().Perm() != 0o700 {
					t.Errorf("%s: %v, %v", up, info.Mode(), err)
				}
			}
			if err := os.WriteFile(path+"/kept", nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if fresh, err := create(root, rel, "pvc-1", nothing); fresh || err != nil {
				t.Errorf("create again: %t, %v", fresh, err)
			}
			if _, err := os.Stat(path + "/kept"); err != nil {
				t.Error(err)
			}
			for range 2 {
				if err := destroy(root, rel, "pvc-1", nil); err != nil {
					t.Errorf("destroy: %v", err)
				}
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("left %v, %v", left, err)
			}
		})
	}
}

// TestFolderCutShort: what a killed podo left half-made is made, or removed, by the next.
func TestFolderCutShort(t *testing.T) {
	dir := t.TempDir()
	root := rootOf(t, dir)
	broken := errors.New("killed")
	if _, err := create(root, "shop/data", "pvc-1", func(*os.File) error { return broken }); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir + "/shop/data"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("it is seen before it is ready: %v", err)
	}
	if fresh, err := create(root, "shop/data", "pvc-1", nothing); !fresh || err != nil {
		t.Errorf("create: %t, %v", fresh, err)
	}
	if left, _ := os.ReadDir(dir + "/shop"); len(left) != 1 {
		t.Errorf("left %v", left)
	}
	if _, err := create(root, "shop/other", "pvc-2", func(*os.File) error { return broken }); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	for rel, volume := range map[string]string{"shop/other": "pvc-2", "shop/data": "pvc-1"} {
		if err := destroy(root, rel, volume, nil); err != nil {
			t.Error(err)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

// TestRename: a file system that cannot promise to replace nothing renames without.
func TestRename(t *testing.T) {
	dir := t.TempDir()
	root := rootOf(t, dir)
	for _, missing := range []error{unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP, nil} {
		if err := os.Mkdir(dir+"/early", 0o700); err != nil {
			t.Fatal(err)
		}
		err := rename(int(root.Fd()), "early", "late", func(from int, old string, to int, name string, flags uint) error {
			if flags != 0 && missing != nil {
				return missing
			}
			return unix.Renameat2(from, old, to, name, flags)
		})
		if err != nil {
			t.Errorf("%v: %v", missing, err)
		}
		if err := os.Remove(dir + "/late"); err != nil {
			t.Error(err)
		}
	}
	full := func(int, string, int, string, uint) error { return unix.EEXIST }
	if err := rename(int(root.Fd()), "early", "late", full); !errors.Is(err, unix.EEXIST) {
		t.Errorf("a name that is taken: %v", err)
	}
}

// TestFolderStaysInRoot: a link on the way is refused, whoever put it there.
func TestFolderStaysInRoot(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(dir, "outside")
	for _, d := range []string{outside + "/data", dir + "/root"} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	root := rootOf(t, dir+"/root")
	for _, link := range []string{"shop", "data"} {
		if err := os.Symlink(outside, dir+"/root/"+link); err != nil {
			t.Fatal(err)
		}
	}
	for _, rel := range []string{"shop/data", "data", "../outside/data"} {
		if _, err := create(root, rel, "pvc-1", nothing); err == nil {
			t.Errorf("%s is made", rel)
		}
	}
	for _, rel := range []string{"shop/data", "../outside/data"} {
		if err := destroy(root, rel, "pvc-1", nil); err == nil {
			t.Errorf("%s is removed", rel)
		}
	}
	if err := destroy(root, "data", "pvc-1", nil); err != nil { // the link alone
		t.Error(err)
	}
	if _, err := os.Stat(outside + "/data"); err != nil {
		t.Error(err)
	}
}

func TestLook(t *testing.T) {
	dir := t.TempDir()
	r := look(dir + "/new/storage")
	if r.Problem != "" || r.Bytes == 0 {
		t.Errorf("%+v", r)
	}
	if info, err := os.Stat(dir + "/new/storage"); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}
	if err := os.WriteFile(dir+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir + "/file", dir + "/file/storage"} {
		if r := look(path); r.Problem == "" {
			t.Errorf("%s: %+v", path, r)
		}
	}
}

func TestProjectsDiffer(t *testing.T) {
	a := project("one", func(uint32) bool { return false })
	if b := project("one", func(uint32) bool { return false }); a != b || a < firstProject {
		t.Errorf("%d, then %d", a, b)
	}
	if b := project("one", func(id uint32) bool { return id == a }); b == a {
		t.Errorf("%d is taken", b)
	}
}

// quotaDisk is a file system with project quotas, mounted for the test.
func quotaDisk(t *testing.T, mkfs ...string) string {
	t.Helper()
	if os.Getenv("PODO_E2E") != "1" {
		t.Skip("mounts a file system; set PODO_E2E=1 to allow that")
	}
	if os.Geteuid() != 0 {
		t.Fatal("mounting a file system needs root")
	}
	if _, err := exec.LookPath(mkfs[0]); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	image, at := dir+"/image", dir+"/disk"
	for _, args := range [][]string{{"truncate", "-s", "400M", image}, append(mkfs, image), {"mkdir", at}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v %s", args, err, out)
		}
	}
	if out, err := exec.Command("mount", "-o", "loop,prjquota", image, at).CombinedOutput(); err != nil {
		t.Skipf("this kernel mounts no file system with project quotas: %v %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
			t.Errorf("umount: %v %s", err, out)
		}
	})
	return at
}

// TestQuota: a folder takes as much as it may, and no more; its size is what statfs
// tells, and can change.
func TestQuota(t *testing.T) {
	t.Run("ext4", func(t *testing.T) {
		testQuota(t, quotaDisk(t, "mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota"))
	})
	t.Run("xfs", func(t *testing.T) { testQuota(t, quotaDisk(t, "mkfs.xfs", "-q")) })
}

func testQuota(t *testing.T, disk string) {
	if r := look(disk + "/storage"); !r.Quota || r.Problem != "" {
		t.Fatalf("%+v", r)
	}
	root := rootOf(t, disk+"/storage")
	id := project("uid", func(uint32) bool { return false })
	set := func(bytes int64) func(*os.File) error {
		return func(dir *os.File) error { return errors.Join(assign(dir, id), restrict(dir, id, bytes)) }
	}
	if fresh, err := create(root, "v", "pvc-1", set(8<<20)); !fresh || err != nil {
		t.Fatal(fresh, err)
	}
	if got := projectOfPath(root, "v"); got != id {
		t.Errorf("project %d, want %d", got, id)
	}
	// As in a container: quotas do not hold whoever has CAP_SYS_RESOURCE.
	for _, dir := range []string{disk + "/storage", filepath.Dir(disk), filepath.Dir(filepath.Dir(disk))} {
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	fill := func(name string, mib int) error {
		c := exec.Command("sh", "-c", fmt.Sprintf("mkdir -p sub && head -c %d /dev/zero > sub/%s", mib<<20, name))
		c.Dir, c.SysProcAttr = disk+"/storage/v", &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
		out, err := c.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	if err := fill("a", 4); err != nil {
		t.Fatal(err)
	}
	if err := fill("b", 8); err == nil || !strings.Contains(err.Error(), "quota") && !strings.Contains(err.Error(), "space") {
		t.Errorf("more than it may: %v", err)
	}
	if err := os.Remove(disk + "/storage/v/sub/b"); err != nil {
		t.Fatal(err)
	}
	tells := func(want string) {
		t.Helper()
		for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
			var st unix.Statfs_t
			if err := errors.Join(unix.Syncfs(int(root.Fd())), unix.Statfs(disk+"/storage/v", &st)); err != nil {
				t.Fatal(err)
			}
			got := fmt.Sprintf("%d of %d MiB", (int64(st.Blocks)-int64(st.Bfree))*int64(st.Bsize)>>20, int64(st.Blocks)*int64(st.Bsize)>>20)
			if got == want {
				return
			}
			if time.Since(began) > 10*time.Second { // XFS takes a moment to give space back
				t.Errorf("statfs tells %s, want %s", got, want)
				return
			}
		}
	}
	tells("4 of 8 MiB")
	if err := restrict(root, id, 32<<20); err != nil {
		t.Fatal(err)
	}
	if err := fill("b", 16); err != nil {
		t.Errorf("after it has grown: %v", err)
	}
	tells("20 of 32 MiB")
	if err := os.WriteFile(disk+"/storage/other", bytes.Repeat([]byte{1}, 40<<20), 0o600); err != nil {
		t.Errorf("others are held to it too: %v", err)
	}
	if err := destroy(root, "v", "pvc-1", nil); err != nil {
		t.Fatal(err)
	}
	if err := restrict(root, id, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := create(root, "v", "pvc-2", func(dir *os.File) error { return assign(dir, id) }); err != nil {
		t.Fatal(err)
	}
	if err := fill("c", 40); err != nil {
		t.Errorf("the limit outlives the volume: %v", err)
	}
}

// TestQuotaOfFolderTakenOver: the limit of a retained folder's earlier volume gives way to that
// of its new one, but that of a volume in use stays.
func TestQuotaOfFolderTakenOver(t *testing.T) {
	disk := quotaDisk(t, "mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota")
	root := rootOf(t, disk)
	const id = firstProject + 7
	if _, err := create(root, "v", "pvc-old", func(dir *os.File) error { return errors.Join(assign(dir, id), restrict(dir, id, 8<<20)) }); err != nil {
		t.Fatal(err)
	}
	for phase, want := range map[corev1.PersistentVolumePhase]quota{corev1.VolumeReleased: {Limit: 32 << 20, Project: id}, corev1.VolumeBound: {}} {
		old := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-old", Annotations: map[string]string{quotaKey: fmt.Sprintf(`{"limit":8388608,"project":%d}`, id)}}}
		old.Status.Phase = phase
		pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-new", UID: "new"}}
		pv.Spec.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("32Mi")}
		n := &node{client: fake.NewClientset(old, pv), log: slog.New(slog.DiscardHandler), unheld: map[string]bool{}}
		f := informers.NewSharedInformerFactory(n.client, 0)
		n.volumes = f.Core().V1().PersistentVolumes().Lister()
		f.StartWithContext(t.Context())
		t.Cleanup(f.Shutdown)
		f.WaitForCacheSync(t.Context().Done())
		if q, err := n.make(t.Context(), root, "v", pv); err != nil || q != want {
			t.Errorf("%s: %+v, %v; want %+v", phase, q, err, want)
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(disk+"/v", &st); err != nil || int64(st.Blocks)*int64(st.Bsize) != 32<<20 {
		t.Errorf("statfs: %d blocks of %d, %v", st.Blocks, st.Bsize, err)
	}
}

// TestQuotasAreMissed: a file system without them says so.
func TestQuotasAreMissed(t *testing.T) {
	if err := quotas(rootOf(t, "/proc")); err == nil {
		t.Error("/proc has project quotas")
	}
}
