package reset

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/datadir"
	"github.com/podo-dev/podo/pkg/host"
	"github.com/podo-dev/podo/pkg/paths"
)

// The test builds a small machine: this binary plays podo, containerd, shims and
// containers, inside mount, network and cgroup namespaces of its own with empty
// folders where podo's are. The kernel objects in it are real.
const (
	roleVariable  = "PODO_RESET_ROLE"
	stageVariable = "PODO_RESET_STAGE"
	group         = "podo-reset-test"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		play(role)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// play is what the processes of the small machine do.
func play(role string) {
	os.Unsetenv(roleVariable)
	terminate := make(chan os.Signal, 1)
	switch role {
	case "podo":
		p := paths.New(paths.DefaultData)
		for _, path := range []string{p.Lock(), p.RunLock()} {
			f, err := os.Create(path)
			if err == nil {
				err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
			}
			if err != nil {
				fmt.Println(err)
				return
			}
			defer f.Close()
		}
		signal.Notify(terminate, syscall.SIGTERM)
	case "containerd":
		signal.Notify(terminate, syscall.SIGTERM)
	case "shim", "killed-shim":
		app := exec.Command(os.Getenv("APP"))
		app.Env = append(os.Environ(), roleVariable+"=app")
		app.Stdout = os.Stdout
		app.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if os.Getenv("SHOWN")+os.Getenv("ROOT") != "" {
			app.SysProcAttr.Cloneflags = syscall.CLONE_NEWNS
		}
		if err := app.Start(); err != nil {
			fmt.Println(err)
		}
		if role == "killed-shim" {
			return // leaving an orphan
		}
		signal.Ignore(syscall.SIGTERM)
		time.Sleep(time.Hour)
	case "app":
		for _, procs := range strings.Fields(os.Getenv("CGROUPS")) {
			if err := os.WriteFile(procs, []byte("0"), 0); err != nil {
				fmt.Println(err)
			}
		}
		if file := os.Getenv("SHOWN"); file != "" {
			to := os.Getenv("ROOT") + "/hostname"
			if os.Getenv("ROOT") == "" {
				to = file
			}
			err := os.WriteFile(to, nil, 0o644)
			if err == nil {
				err = unix.Mount(file, to, "", unix.MS_BIND, "")
			}
			if err != nil {
				fmt.Println(err)
			}
		}
		if root := os.Getenv("ROOT"); root != "" {
			if err := syscall.Chroot(root); err != nil {
				fmt.Println(err)
			}
		}
		signal.Ignore(syscall.SIGTERM)
		if mark := os.Getenv("MARK"); mark != "" {
			signal.Reset(syscall.SIGTERM)
			signal.Notify(terminate, syscall.SIGTERM)
			defer os.WriteFile(mark, nil, 0o644)
		}
	}
	fmt.Println("up")
	select {
	case <-terminate:
	case <-time.After(time.Hour):
	}
}

func TestSmallMachine(t *testing.T) { staged(t, smallMachine) }

// TestTwin has another node beside ours, with all paths the same.
func TestTwin(t *testing.T) { staged(t, twin) }

// staged runs a test in namespaces of its own.
func staged(t *testing.T, test func(*testing.T)) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	switch os.Getenv(stageVariable) {
	case "":
		for _, h := range hierarchies() {
			dir := filepath.Join(h.point, group)
			t.Cleanup(func() { removeGroup(dir) })
		}
		cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v=true", "-test.timeout=1m")
		cmd.Env = append(os.Environ(), stageVariable+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
		out, err := cmd.CombinedOutput()
		if err != nil || testing.Verbose() {
			t.Logf("%s", out)
		}
		if err != nil {
			t.Error(err)
		}
	case "1":
		enterGroups(t)
		runtime.LockOSThread()
		must(t, unix.Unshare(unix.CLONE_NEWCGROUP))
		must(t, os.Setenv(stageVariable, "2"))
		t.Fatal(syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
	case "2":
		test(t)
	case "twin":
		theTwin(t)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// enterGroups moves this process to a cgroup of its own, which the next stage will
// take for the top.
func enterGroups(t *testing.T) {
	for _, h := range hierarchies() {
		dir := filepath.Join(h.point, group)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Logf("no cgroup there: %v", err)
			continue
		}
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
			if all, err := os.ReadFile(filepath.Join(h.point, f)); err == nil {
				_ = os.WriteFile(filepath.Join(dir, f), all, 0)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			t.Logf("not in a cgroup: %v", err)
		}
	}
}

func removeGroup(dir string) {
	for _, sub := range subfolders(dir) {
		removeGroup(sub)
	}
	for range 100 {
		if err := os.Remove(dir); err == nil || errors.Is(err, os.ErrNotExist) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// emptyMachine has folders of its own where podo's will be. It returns what containers
// run.
func emptyMachine(t *testing.T) (app string) {
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	must(t, unix.Mount("proc", "/proc", "proc", 0, ""))
	app = filepath.Join(t.TempDir(), "app")
	copyFile(t, "/proc/self/exe", app)
	for _, dir := range []string{"/run", "/etc", "/var/lib", "/var/log", "/usr/local/bin", "/opt", "/root"} {
		must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
	}
	return app
}

func smallMachine(t *testing.T) {
	app := emptyMachine(t)
	groups := mountGroups(t)
	if got := namespacesOf(os.Getpid()); got == namespacesOf(os.Getppid()) {
		t.Fatalf("still in the machine's own namespaces: %v", got)
	}
	p := paths.New(paths.DefaultData)
	bin := filepath.Join(p.Payload(), "abc")
	for _, dir := range []string{bin, p.Run, p.Etc, p.CNIData() + "/cbr0", p.ContainerdRoot(), "/root/.kube",
		paths.KubeletRoot + "/pods", paths.ContainerLogs, "/var/log/pods/ns_pod_123", cniResults, shimSockets, netnsFolder, "/opt/containerd/bin"} {
		must(t, os.MkdirAll(dir, 0o755))
	}
	const (
		first  = "1111111111111111111111111111111111111111111111111111111111111111"
		second = "2222222222222222222222222222222222222222222222222222222222222222"
		mark   = "/root/mark"
	)

	// Processes: podo, its containerd, a pod with its shim, a pod that lost its shim,
	// and the shim of somebody else's containerd.
	copyFile(t, app, bin+"/containerd")
	copyFile(t, app, bin+"/containerd-shim-runc-v2")
	must(t, os.MkdirAll("/opt/other", 0o755))
	copyFile(t, app, "/opt/other/containerd-shim-runc-v2")
	start(t, app, "podo", nil, "server")
	podo := start(t, app, "idle", nil)
	start(t, bin+"/containerd", "containerd", nil, "--config", p.ContainerdConfig())
	shimArgs := func(id, socket string) []string {
		return []string{"-namespace", "k8s.io", "-id", id, "-address", socket}
	}
	start(t, bin+"/containerd-shim-runc-v2", "shim",
		[]string{"APP=" + app, "CGROUPS=" + groups("kubepods/burstable/pod1/"+first), "MARK=" + mark},
		shimArgs(first, p.Socket("containerd"))...)
	must(t, os.MkdirAll(filepath.Join(p.RuncState(), "k8s.io", second), 0o711))
	start(t, bin+"/containerd-shim-runc-v2", "killed-shim",
		[]string{"APP=" + app, "CGROUPS=" + groups("kubepods/besteffort/pod2/"+second)},
		shimArgs(second, p.Socket("containerd"))...)
	stranger := start(t, "/opt/other/containerd-shim-runc-v2", "shim", []string{"APP=" + app},
		shimArgs(strings.Repeat("3", 64), "/run/containerd/containerd.sock")...)

	// Mounts: podo's, and a disk and a folder that belong to people.
	mustMount := func(what, where, kind string, flags uintptr) {
		t.Helper()
		must(t, os.MkdirAll(where, 0o755))
		must(t, unix.Mount(what, where, kind, flags, ""))
	}
	mustMount("tmpfs", p.ContainerdState()+"/io.containerd.runtime.v2.task/k8s.io/"+first+"/rootfs", "tmpfs", 0)
	mustMount("tmpfs", p.ContainerdRoot()+"/tmpmounts/x y", "tmpfs", 0)
	mustMount(paths.KubeletRoot, paths.KubeletRoot, "", unix.MS_BIND)
	mustMount("tmpfs", paths.KubeletRoot+"/pods/1/volumes/secret", "tmpfs", 0)
	must(t, os.MkdirAll("/root/folder", 0o755))
	must(t, os.WriteFile("/root/folder/precious", nil, 0o644))
	mustMount("/root/folder", paths.KubeletRoot+"/pods/1/volumes/local", "", unix.MS_BIND)
	busy := exec.Command("sleep", "1000")
	busy.Dir = paths.KubeletRoot + "/pods/1/volumes/local"
	must(t, busy.Start())
	defer func() { _ = busy.Process.Kill(); _ = busy.Wait() }()
	disk := filepath.Join(p.Data, "storage", "disk")
	mustMount("tmpfs", disk, "tmpfs", 0)
	must(t, os.WriteFile(disk+"/precious", nil, 0o644))
	twin := filepath.Join(p.Data, "server", "twin") // a bind mount of the same file system
	must(t, os.MkdirAll("/var/lib/home", 0o755))
	must(t, os.WriteFile("/var/lib/home/precious", nil, 0o644))
	mustMount("/var/lib/home", twin, "", unix.MS_BIND)

	for _, path := range []string{p.ContainerdState() + "/netns/cni-1", netnsFolder + "/cni-2"} {
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, nil, 0o444))
		newNetns(t, path)
	}

	// Network.
	linkUp(t)
	tables := []tableName{{unix.NFPROTO_IPV4, "kube-proxy"}, {unix.NFPROTO_IPV6, "kube-proxy"},
		{unix.NFPROTO_INET, "cni_plugins_masquerade"}, {unix.NFPROTO_BRIDGE, "podo-netpol"}, {unix.NFPROTO_IPV4, "theirs"}}
	must(t, changeTables(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, tables))

	// Files.
	must(t, os.WriteFile(p.Layout(), []byte("1\n"), 0o644))
	must(t, os.WriteFile(p.CNIData()+"/cbr0/10.42.0.2", nil, 0o644))
	must(t, os.WriteFile(cniResults+"/cbr0-"+first+"-eth0", nil, 0o600))
	must(t, os.WriteFile(cniResults+"/theirs", nil, 0o600))
	must(t, os.Symlink("/var/log/pods/ns_pod_123/0.log", paths.ContainerLogs+"/pod.log"))
	must(t, os.WriteFile(p.ConfigFile(), nil, 0o600))
	must(t, os.WriteFile(p.Outside(), []byte(`{"/root/podo.log": "", "/dev/null": "", "/root/shared.yaml": "default", "/root/gone": ""}`), 0o644))
	must(t, os.WriteFile("/root/podo.log", nil, 0o644))
	must(t, os.WriteFile("/root/shared.yaml", []byte("kind: Config\ncontexts: [{name: default}, {name: work}]\n"), 0o600))
	must(t, os.WriteFile("/usr/local/bin/podo", nil, 0o755))
	must(t, os.Symlink("podo", "/usr/local/bin/kubectl"))
	must(t, os.Symlink("/opt/other/ctr", "/usr/local/bin/ctr"))
	must(t, os.Symlink("/root/folder", p.Data+"/agent/link"))
	staleSocket(t, shimSockets+"/aaaa")
	for _, path := range installedFiles() {
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte("# "+origin+"\n"), 0o644))
	}
	for _, path := range theirFiles() {
		must(t, os.WriteFile(path, nil, 0o644))
	}
	must(t, os.WriteFile("/root/.kube/config", []byte("apiVersion: v1\nkind: Config\nclusters: []\n"+
		"contexts:\n- name: podo\n  context: {cluster: podo, user: podo}\n- name: work\n  context: {cluster: work, user: work}\n"), 0o600))

	// The kernel sets this with forwarding, both ways.
	const redirects = "/proc/sys/net/ipv4/conf/all/accept_redirects"
	must(t, os.WriteFile(redirects, []byte("0"), 0o644))
	must(t, os.MkdirAll("/etc/sysctl.d", 0o755))
	must(t, os.WriteFile("/etc/sysctl.d/hardened.conf", []byte("net.ipv4.conf.all.accept_redirects = 0\n"), 0o644))
	const ( // of this network namespace
		forwarding = "/proc/sys/net/ipv4/ip_forward"
		localnet   = "/proc/sys/net/ipv4/conf/all/route_localnet"
	)
	is := func(path, value string) bool {
		text, err := os.ReadFile(path)
		must(t, err)
		return strings.TrimSpace(string(text)) == value
	}
	raise := func() {
		t.Helper()
		for _, path := range []string{forwarding, localnet} {
			must(t, os.WriteFile(path, []byte("0"), 0o644))
			must(t, host.NewLedger(p.Parameters()).Change([]string{path, redirects}, func() error {
				return os.WriteFile(path, []byte("1"), 0o644)
			}))
		}
	}
	raise()

	o := Options{Paths: p, Grace: 2 * time.Second, Purge: true, Executable: "/usr/local/bin/podo",
		Kubeconfigs: []string{"/root/.kube/config"}, Tell: func(s string) { t.Log(s) }}

	before := kinds(t, o)
	for _, kind := range []string{"process", "mount", "netns", "link", "table", "cgroup", "parameter", "file"} {
		if before[kind] == 0 && (kind != "cgroup" || groups("x") != "") {
			t.Errorf("Verify saw no %s on a running machine", kind)
		}
	}

	// Podo is asked first, while it can do something.
	o.EndPods = func(_ context.Context, within time.Duration) (bool, error) {
		if found := kinds(t, o); found["process"] < before["process"] {
			t.Errorf("asked when all was over: %v", found)
		}
		if within != o.Grace-o.Grace/3 {
			t.Errorf("pods have %s, want two thirds of %s", within, o.Grace)
		}
		return false, errors.New("no kubelet listens")
	}
	must(t, Kill(t.Context(), o))
	o.EndPods = nil
	if _, err := os.Stat(mark); err != nil {
		t.Errorf("the container was not given its grace: %v", err)
	}
	after := kinds(t, o)
	if delete(after, "file"); len(after) != 1 || after["parameter"] != 1 {
		left, _ := Verify(o)
		t.Errorf("after Kill: %v; want the kernel parameter", left)
	}
	for _, path := range []string{p.Layout(), p.ConfigFile(), disk + "/precious", twin + "/precious", "/root/folder/precious", "/var/lib/home/precious", cniResults + "/theirs", "/var/log/pods/ns_pod_123"} {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("Kill took too much: %v", err)
		}
	}
	for _, path := range []string{p.Run, p.CNIData() + "/cbr0", cniResults + "/cbr0-" + first + "-eth0", shimSockets + "/aaaa"} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("Kill left %s", path)
		}
	}
	if !alive(stranger) || !alive(podo) {
		t.Error("Kill killed processes that are not podo's")
	}
	var apps []int
	for _, q := range processes() {
		if q.exe == app {
			apps = append(apps, q.pid)
		}
	}
	if len(apps) != 2 { // the idle one, and the stranger's
		t.Errorf("containers left: %v", apps)
	}
	checkForeign(t)
	must(t, Kill(t.Context(), o)) // once more, on a machine where nothing runs

	// Uninstalling with disks of other people in the data directory.
	err := Uninstall(t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), disk) || !strings.Contains(err.Error(), twin) {
		t.Errorf("Uninstall = %v, want complaints about %s and %s", err, disk, twin)
	}
	for _, path := range []string{disk + "/precious", twin + "/precious", "/root/folder/precious", "/opt/other"} {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("Uninstall took too much: %v", err)
		}
	}
	if !is(localnet, "0") || !is(forwarding, "1") {
		t.Error("Uninstall did not put route_localnet back, or turned off what somebody else's bridge needs")
	}
	if left, err := Verify(o); err != nil || len(left) != 3 {
		t.Errorf("Verify = %v, %v; want layout, server and storage", left, err)
	}
	must(t, unix.Unmount(disk, 0))
	must(t, unix.Unmount(twin, 0))

	// Volumes stay, unless they are to go.
	volume := filepath.Join(p.Storage(), "pvc-1", "precious")
	must(t, os.MkdirAll(filepath.Dir(volume), 0o755))
	must(t, os.WriteFile(volume, nil, 0o644))
	o.Purge = false
	must(t, Uninstall(t.Context(), o))
	if _, err := os.Stat(volume); err != nil {
		t.Errorf("Uninstall took a volume: %v", err)
	}
	if left, err := Verify(o); err != nil || len(left) != 0 {
		t.Errorf("Verify = %v, %v; want nothing but volumes, which it does not list", left, err)
	}
	o.Purge = true
	if left, err := Verify(o); err != nil || len(left) != 1 || left[0].What != p.Storage() {
		t.Errorf("Verify = %v, %v; want the volumes", left, err)
	}
	must(t, Uninstall(t.Context(), o))
	if left, err := Verify(o); err != nil || len(left) != 0 {
		t.Errorf("Verify = %v, %v; want nothing", left, err)
	}
	for _, path := range []string{p.Data, p.Etc, p.Run, paths.KubeletRoot, paths.ContainerLogs, "/opt/containerd", "/usr/local/bin/podo", "/usr/local/bin/kubectl"} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("Uninstall left %s", path)
		}
	}
	if text, err := os.ReadFile("/root/shared.yaml"); err != nil || strings.Contains(string(text), "default") || !strings.Contains(string(text), "work") {
		t.Errorf("of a kubeconfig that is others' too, Uninstall left: %v\n%s", err, text)
	}
	if info, err := os.Lstat("/dev/null"); err != nil || info.Mode()&fs.ModeCharDevice == 0 {
		t.Errorf("what was logged to /dev/null: %v, %v", info, err)
	}
	for _, path := range append(installedFiles(), "/root/podo.log") {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("Uninstall left %s", path)
		}
	}
	for _, path := range append(theirFiles(), "/usr/local/bin/ctr", cniResults+"/theirs", "/var/lib/home/precious") {
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("Uninstall took too much: %v", err)
		}
	}
	if text, _ := os.ReadFile("/root/.kube/config"); strings.Contains(string(text), "podo") || !strings.Contains(string(text), "work") {
		t.Errorf("kubeconfig = %s", text)
	}
	checkForeign(t)
	must(t, Uninstall(t.Context(), o))

	// With data elsewhere that is to be removed later, parameters stay until then.
	raise()
	for _, name := range []string{"theirs0", "flannel-wg"} {
		link, err := netlink.LinkByName(name)
		must(t, err)
		must(t, netlink.LinkDel(link))
	}
	both := o
	both.Others = true
	must(t, Uninstall(t.Context(), both))
	if left, err := Verify(both); err != nil || len(left) != 0 || !is(forwarding, "1") {
		t.Errorf("Verify = %v, %v; ip_forward is 1: %t", left, err, is(forwarding, "1"))
	}
	o.KeepData = true // which is no reason to keep them
	must(t, Uninstall(t.Context(), o))
	if !is(redirects, "0") {
		t.Error("the last Uninstall left accept_redirects as the kernel set it with ip_forward")
	}
	if !is(forwarding, "0") || !is(localnet, "0") {
		t.Error("the last Uninstall did not put ip_forward back")
	}
	if _, err := os.Lstat(p.Parameters()); err == nil {
		t.Errorf("Uninstall left %s", p.Parameters())
	}
	o.KeepData = false

	// Another kubelet's things are left alone.
	raise()
	linkUp(t)
	must(t, os.MkdirAll(paths.KubeletRoot, 0o755))
	copyFile(t, app, "/opt/other/kubelet")
	start(t, "/opt/other/kubelet", "idle", nil)
	must(t, Uninstall(t.Context(), o))
	if links, _ := ourLinks(); len(links) == 0 {
		t.Error("another kubelet's links were removed")
	}
	if !is(forwarding, "1") {
		t.Error("another kubelet lost forwarding")
	}
	if _, err := os.Stat(paths.KubeletRoot); err != nil {
		t.Error("another kubelet's folder was removed")
	}

	// A folder that is not podo's is refused.
	for _, dir := range []string{"/opt/other", "/var", "/"} {
		o.Paths.Data = dir
		if err := Uninstall(t.Context(), o); !errors.Is(err, datadir.ErrForeign) {
			t.Errorf("Uninstall of %s = %v", dir, err)
		}
		left, err := Verify(o)
		if i := slices.IndexFunc(left, func(l Leftover) bool { return l.Kind == "file" && within(l.What, dir) && dir != "/" }); err != nil || i >= 0 {
			t.Errorf("Verify of %s = %v, %v", dir, left, err)
		}
	}
	// An empty one may be anybody's.
	o.Paths.Data = "/opt/empty"
	must(t, os.Mkdir(o.Paths.Data, 0o755))
	must(t, Uninstall(t.Context(), o))
	if _, err := os.Stat(o.Paths.Data); err != nil {
		t.Error("somebody's empty folder was removed")
	}
}

// installedFiles are those that install.sh writes, under the usual names and another.
func installedFiles() []string {
	return []string{
		"/etc/systemd/system/podo.service", "/etc/systemd/system/podo.service.env",
		"/etc/systemd/system/podo-edge.service", "/etc/systemd/system/podo-edge.service.env",
		"/etc/systemd/system/podo-shutdown.service", "/etc/systemd/system/multi-user.target.wants/podo.service",
		"/etc/init.d/podo-agent", "/etc/runlevels/default/podo-agent", "/etc/logrotate.d/podo-agent",
		"/var/log/podo-agent.log", "/var/log/podo-agent.log.1.gz",
		shutdownDelay,
		"/usr/local/bin/podo-killall.sh", "/usr/local/bin/podo-uninstall.sh",
	}
}

// theirFiles only have names like those.
func theirFiles() []string {
	return []string{
		"/etc/systemd/system/podo-backup.service", "/etc/init.d/podo-backup", "/etc/logrotate.d/podo-backup",
		"/var/log/podo-backup.log", "/usr/local/bin/podo-backup.sh",
	}
}

func twin(t *testing.T) {
	app := emptyMachine(t)
	groups := mountGroups(t)
	p := paths.New(paths.DefaultData)
	ours := node(t, app, 0, groups("kubepods/burstable/pod1/"+id(1)), groups("kubepods/besteffort/pod2/"+id(2)))

	cmd := exec.Command("/proc/self/exe", "-test.run=^TestTwin$", "-test.timeout=1m")
	cmd.Env = append(os.Environ(), stageVariable+"=twin", "APP="+app,
		"GROUPS1="+groups("kubepods/burstable/pod3/"+id(3)), "GROUPS2="+groups("kubepods/besteffort/pod4/"+id(4)))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	launch(t, cmd)
	place, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", cmd.Process.Pid))
	must(t, err)
	var theirs []process
	for _, q := range processes() {
		if ns, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", q.pid)); ns == place {
			theirs = append(theirs, q)
		}
	}
	if len(ours) != 5 || len(theirs) != 6 { // and what holds the namespace
		t.Fatalf("ours %+v\ntheirs %+v", ours, theirs)
	}

	o := Options{Paths: p, Tell: func(s string) { t.Log(s) }}
	left, err := Verify(o)
	must(t, err)
	listed := fmt.Sprint(left)
	for _, q := range ours {
		if !strings.Contains(listed, fmt.Sprintf("process %d ", q.pid)) {
			t.Errorf("Verify does not list our %v: %s", q.args, listed)
		}
	}
	for _, q := range theirs {
		if strings.Contains(listed, fmt.Sprintf("process %d ", q.pid)) {
			t.Errorf("Verify lists the twin's %v", q.args)
		}
	}
	must(t, Kill(t.Context(), o))
	must(t, Uninstall(t.Context(), o))
	for _, q := range ours {
		if q.lives() {
			t.Errorf("our %v lives", q.args)
		}
	}
	for _, q := range theirs {
		if !q.lives() {
			t.Errorf("the twin's %v was killed", q.args)
		}
	}
	if left, err := Verify(o); err != nil || len(left) > 0 {
		t.Errorf("Verify = %v, %v; want nothing", left, err)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/root%s", cmd.Process.Pid, p.Layout())); err != nil {
		t.Error(err)
	}
}

// theTwin is the first process of the other node.
func theTwin(t *testing.T) {
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	must(t, unix.Mount("proc", "/proc", "proc", 0, ""))
	for _, dir := range []string{paths.DefaultData, paths.DefaultRun} {
		must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
	}
	node(t, os.Getenv("APP"), syscall.CLONE_NEWNS, os.Getenv("GROUPS1"), os.Getenv("GROUPS2"))
	fmt.Println("up")
	time.Sleep(time.Hour)
}

func id(n int) string { return strings.Repeat(fmt.Sprint(n), 64) }

// node starts podo, containerd, a pod, and a container that neither a shim nor the
// runtime knows any more, whose root is an overlay as containerd mounts it. podo is in
// another mount namespace, as a service manager may have it.
func node(t *testing.T, app string, flags uintptr, pod, lost string) (all []process) {
	p := paths.New(paths.DefaultData)
	bin, root, shown := filepath.Join(p.Payload(), "abc"), filepath.Join(p.Run, "root"), filepath.Join(p.ContainerdRoot(), "sandboxes", "hostname")
	for _, dir := range []string{bin, root, filepath.Dir(shown), p.Data + "/agent/lower", p.Data + "/agent/upper", p.Data + "/agent/work"} {
		must(t, os.MkdirAll(dir, 0o755))
	}
	must(t, os.WriteFile(p.Layout(), []byte("1\n"), 0o644))
	must(t, os.WriteFile(shown, nil, 0o644))
	for _, name := range []string{"containerd", "containerd-shim-runc-v2"} {
		copyFile(t, app, filepath.Join(bin, name))
	}
	podo := "/usr/local/bin/podo"
	if flags == 0 {
		copyFile(t, app, podo)
	}
	options := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", p.Data+"/agent")
	if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
		t.Logf("no overlay here: %v", err)
		root = ""
	}
	before := processes()
	cmd := exec.Command(podo, "server")
	cmd.Env = append(os.Environ(), roleVariable+"=podo")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	launch(t, cmd)
	start(t, bin+"/containerd", "containerd", nil, "--config", p.ContainerdConfig())
	shim := bin + "/containerd-shim-runc-v2"
	start(t, shim, "shim", []string{"APP=" + app, "CGROUPS=" + pod}, "-namespace", "k8s.io", "-id", id(1), "-address", p.Socket("containerd"))
	start(t, shim, "killed-shim", []string{"APP=" + app, "CGROUPS=" + lost, "SHOWN=" + shown, "ROOT=" + root}, "-id", id(2))
	for _, q := range processes() {
		if q.name() != "reset.test" && !slices.ContainsFunc(before, func(b process) bool { return b.pid == q.pid }) {
			all = append(all, q)
		}
	}
	return all
}

func kinds(t *testing.T, o Options) map[string]int {
	t.Helper()
	left, err := Verify(o)
	must(t, err)
	out := map[string]int{}
	for _, l := range left {
		out[l.Kind]++
	}
	return out
}

func checkForeign(t *testing.T) {
	t.Helper()
	if _, err := netlink.LinkByName("theirs0"); err != nil {
		t.Error("somebody else's link was removed")
	}
	if _, err := netlink.LinkByName("flannel-wg"); err != nil {
		t.Error("a link of another kind was removed for its name")
	}
	tables, err := listTables()
	if err != nil || !slices.Contains(tables, tableName{unix.NFPROTO_IPV4, "theirs"}) {
		t.Errorf("tables = %v, %v; somebody else's is gone", tables, err)
	}
}

func linkUp(t *testing.T) {
	t.Helper()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "cni0"}}
	must(t, netlink.LinkAdd(bridge))
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth1234", MasterIndex: bridge.Index}, PeerName: "peer"}))
	for _, name := range []string{"theirs0", "flannel-wg"} {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}); err != nil && !errors.Is(err, unix.EEXIST) {
			t.Fatal(err)
		}
	}
	if err := netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "flannel.1"}, VxlanId: 1, Port: 8472}); err != nil {
		t.Logf("no vxlan here: %v", err)
	}
}

// start runs a role and returns once it is up.
func start(t *testing.T, exe, role string, env []string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(exe, args...)
	cmd.Env = append(append(os.Environ(), roleVariable+"="+role), env...)
	launch(t, cmd)
	return cmd
}

func launch(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	out, in, err := os.Pipe() // which outlives cmd, as its children may
	must(t, err)
	t.Cleanup(func() { out.Close(); in.Close() })
	cmd.Stdout = in
	must(t, cmd.Start())
	done := make(chan struct{})
	go func() { defer close(done); _ = cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-done })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "up\n" {
		t.Fatalf("%v: %q, %v", cmd.Args, line, err)
	}
}

func alive(cmd *exec.Cmd) bool {
	p, ok := readProcess(cmd.Process.Pid)
	return ok && p.state != 'Z'
}

// mountGroups shows the cgroups as the namespace has them, and returns a function
// that makes one in each hierarchy and lists their cgroup.procs.
func mountGroups(t *testing.T) func(path string) string {
	was := hierarchies()
	if len(was) == 1 && was[0].v2 {
		must(t, unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""))
	} else {
		must(t, unix.Mount("tmpfs", "/sys/fs/cgroup", "tmpfs", 0, ""))
		must(t, os.MkdirAll("/sys/fs/cgroup/pids", 0o755))
		must(t, unix.Mount("cgroup", "/sys/fs/cgroup/pids", "cgroup", 0, "pids"))
		must(t, os.MkdirAll("/sys/fs/cgroup/unified", 0o755))
		must(t, unix.Mount("cgroup2", "/sys/fs/cgroup/unified", "cgroup2", 0, ""))
	}
	return func(path string) string {
		var out []string
		for _, h := range hierarchies() {
			dir := filepath.Join(h.point, path)
			if _, err := os.Stat(filepath.Join(h.point, "cgroup.procs")); err == nil && os.MkdirAll(dir, 0o755) == nil {
				out = append(out, filepath.Join(dir, "cgroup.procs"))
			}
		}
		return strings.Join(out, " ")
	}
}

// newNetns makes a network namespace that only a mount keeps alive.
func newNetns(t *testing.T, path string) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread is not fit for anything else
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
		}
		done <- err
	}()
	must(t, <-done)
}

func staleSocket(t *testing.T, path string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	must(t, err)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	must(t, err)
	must(t, os.WriteFile(to, text, 0o755))
}

// TestEndPods: what podo took to end pods is off the grace of those that are left, unless it
// never began.
func TestEndPods(t *testing.T) {
	const took = 20 * time.Millisecond
	cut, stop := context.WithCancel(t.Context())
	stop()
	tests := map[string]struct {
		ctx   context.Context
		began bool
		err   error
		want  error
		says  string
	}{
		"ended":       {t.Context(), true, nil, nil, "hooks included"},
		"cut off":     {t.Context(), true, errors.New("in time"), nil, "in time"},
		"not begun":   {t.Context(), false, errors.New("nobody listens"), nil, "nobody listens"},
		"interrupted": {cut, true, cut.Err(), context.Canceled, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var says string
			m := &machine{Options: Options{Grace: time.Minute, Tell: func(s string) { says += s }}}
			m.EndPods = func(_ context.Context, within time.Duration) (bool, error) {
				if within != 55*time.Second {
					t.Errorf("pods have %s of a minute", within)
				}
				time.Sleep(took)
				return tt.began, tt.err
			}
			if err := m.endPods(tt.ctx); !errors.Is(err, tt.want) || !strings.Contains(says, tt.says) {
				t.Errorf("%v, and says %q", err, says)
			}
			if less := m.Grace <= time.Minute-took; tt.want == nil && less != tt.began {
				t.Errorf("%s of a minute are left", m.Grace)
			}
		})
	}
}

func TestParseMounts(t *testing.T) {
	got := parseMounts(`22 27 0:21 / /proc rw,relatime - proc proc rw
31 22 0:28 /a\040b /mnt/c\134d rw shared:5 master:2 - tmpfs none rw,mode=755
broken line
`)
	want := []mount{
		{id: 22, parent: 27, device: "0:21", root: "/", point: "/proc", fstype: "proc", super: "rw"},
		{id: 31, parent: 22, device: "0:28", root: "/a b", point: `/mnt/c\d`, fstype: "tmpfs", super: "rw,mode=755"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v", got)
	}
}

func TestOurMountsKeepsDisks(t *testing.T) {
	m, err := look(Options{Paths: paths.Paths{Etc: "/none/etc", Data: "/none/data", Run: "/none/run"}})
	must(t, err)
	all := []mount{
		{id: 1, device: "8:1", point: "/"},
		{id: 2, parent: 1, device: "8:2", point: "/none/data"},
		{id: 3, parent: 1, device: "8:3", point: "/var/lib/kubelet"},
		{id: 4, parent: 3, device: "8:3", point: "/var/lib/kubelet"},
		{id: 5, parent: 4, device: "0:9", point: "/var/lib/kubelet/pods/x"},
		{id: 6, parent: 2, device: "8:4", point: "/none/data/storage"},
		{id: 7, parent: 2, device: "8:2", point: "/none/data/agent/containerd/tmpmounts/1"},
		{id: 8, parent: 1, device: "0:4", point: "/none/run/containerd/netns/cni-1"},
		{id: 9, parent: 1, device: "0:4", point: "/none/running"},
	}
	var got []int
	for _, t := range m.ourMounts(all, false) {
		got = append(got, t.id)
	}
	if !slices.Equal(got, []int{4, 5, 7, 8}) {
		t.Errorf("ours = %v", got)
	}
	if shared := m.ourMounts(all, true); len(shared) != 2 {
		t.Errorf("ours beside another kubelet = %v", shared)
	}
}

func TestContainerOf(t *testing.T) {
	for in, want := range map[string]string{"abc": "abc", "cri-containerd-abc.scope": "abc", "kubepods.slice": "kubepods.slice"} {
		if got := containerOf(in); got != want {
			t.Errorf("containerOf(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestUndoIPTables(t *testing.T) {
	const save = `# a comment
*nat
:PREROUTING ACCEPT [1:2]
:KUBE-SERVICES - [0:0]
:DOCKER - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -j DOCKER
-A KUBE-SERVICES -d 10.43.0.1/32 -j KUBE-SVC-1
COMMIT
*filter
:INPUT ACCEPT [0:0]
-A INPUT -j ACCEPT
COMMIT
`
	const want = `*nat
-F KUBE-SERVICES
-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-X KUBE-SERVICES
COMMIT
`
	if got, n := undoIPTables(save); got != want || n != 1 {
		t.Errorf("undo of %d chains = %s", n, got)
	}
}

func TestHoldNamesTheRemedy(t *testing.T) {
	dir := t.TempDir()
	m, err := look(Options{Paths: paths.Paths{Etc: dir, Data: dir, Run: dir}})
	must(t, err)
	release, err := m.hold(t.Context())
	must(t, err)
	release()
	f, err := os.Create(m.Paths.Lock())
	must(t, err)
	defer f.Close()
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	ctx, stop := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer stop()
	if _, err := m.hold(ctx); !errors.Is(err, ErrHeld) {
		t.Errorf("hold = %v", err)
	}
	if got := lockHolders(m.Paths.Lock()); !slices.Contains(got, os.Getpid()) {
		t.Errorf("holders = %v, want %d", got, os.Getpid())
	}
}
