package reset

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A process is one process at one moment. Its pid may be reused later; its start
// time tells.
type process struct {
	pid, parent int
	state       byte
	start       string // in clock ticks since boot
	exe         string // without the mark of a deleted file
	args        []string
}

func (p process) name() string {
	if p.exe != "" {
		return filepath.Base(p.exe)
	}
	if len(p.args) > 0 {
		return filepath.Base(p.args[0])
	}
	return ""
}

// option is the value after -name or --name, or joined to it by an equals sign.
func (p process) option(name string) string {
	for i, a := range p.args {
		a = strings.TrimPrefix(strings.TrimPrefix(a, "-"), "-")
		if v, ok := strings.CutPrefix(a, name+"="); ok {
			return v
		}
		if a == name && i+1 < len(p.args) {
			return p.args[i+1]
		}
	}
	return ""
}

// processes lists every process that is not a zombie or a kernel thread.
func processes() []process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var out []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if p, ok := readProcess(pid); ok && p.state != 'Z' && p.state != 'X' && (p.exe != "" || len(p.args) > 0) {
			out = append(out, p)
		}
	}
	return out
}

func readProcess(pid int) (process, bool) {
	dir := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return process{}, false
	}
	// The command between parentheses may hold anything, parentheses included.
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return process{}, false
	}
	f := strings.Fields(string(stat[end+1:]))
	if len(f) < 20 {
		return process{}, false
	}
	p := process{pid: pid, state: f[0][0], start: f[19]}
	p.parent, _ = strconv.Atoi(f[1])
	p.exe, _ = os.Readlink(dir + "/exe")
	p.exe = strings.TrimSuffix(p.exe, " (deleted)")
	if line, err := os.ReadFile(dir + "/cmdline"); err == nil && len(line) > 0 {
		p.args = strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
	}
	return p, true
}

// lives reports whether p, and not a later process with its pid, still runs.
func (p process) lives() bool {
	now, ok := readProcess(p.pid)
	return ok && now.start == p.start && now.state != 'Z' && now.state != 'X'
}

// ancestors is this process and those that started it, which must survive.
func ancestors() map[int]bool {
	out := map[int]bool{}
	for pid := os.Getpid(); pid > 0 && !out[pid]; {
		out[pid] = true
		p, ok := readProcess(pid)
		if !ok {
			break
		}
		pid = p.parent
	}
	return out
}

// namespaces are the identities of a process's mount, network and cgroup namespace.
type namespaces struct{ mnt, net, cgroup string }

func namespacesOf(pid int) namespaces {
	link := func(name string) string {
		s, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, name))
		return s
	}
	return namespaces{link("mnt"), link("net"), link("cgroup")}
}

// near reports whether a process sees podo's folders where we see them, and the same
// ones: in our mount namespace, or in another one that was given both.
func (m *machine) near(pid int) bool {
	if namespacesOf(pid).mnt == m.ns.mnt {
		return true
	}
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(root)
	for _, dir := range []string{m.Paths.Data, m.Paths.Run} {
		if !sameFolder(root, dir) {
			return false
		}
	}
	return true
}

// sameFolder reports whether dir below root is what dir is for us. Links in it lead
// where they lead for processes that have this root.
func sameFolder(root int, dir string) bool {
	var ours, theirs unix.Stat_t
	if unix.Stat(dir, &ours) != nil {
		return false
	}
	fd, err := unix.Openat2(root, dir, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.Fstat(fd, &theirs) == nil && ours.Dev == theirs.Dev && ours.Ino == theirs.Ino
}

func within(path, dir string) bool { return strings.HasPrefix(path, dir+"/") }

// fromPayload reports whether p runs a program that podo unpacked.
func (m *machine) fromPayload(p process) bool {
	return within(p.exe, m.Paths.Payload()) || within(p.exe, m.real.Payload())
}

// isShim reports whether p looks after a pod for our containerd.
func (m *machine) isShim(p process) bool {
	if !strings.HasPrefix(p.name(), "containerd-shim") {
		return false
	}
	return m.fromPayload(p) || within(p.option("address"), m.Paths.Run)
}

// isEngine reports whether p is our containerd or one of its helpers. People's own
// kubectl, crictl and ctr are not.
func (m *machine) isEngine(p process) bool {
	switch p.name() {
	case "kubectl", "crictl", "ctr":
		return false
	case "containerd":
		return m.fromPayload(p) || p.option("config") == m.Paths.ContainerdConfig()
	}
	return m.fromPayload(p)
}

// podoProcesses finds podo itself: whoever holds its locks or serves its sockets.
func (m *machine) podoProcesses() []process {
	pids := map[int]bool{}
	for _, path := range []string{m.Paths.Lock(), m.Paths.RunLock()} {
		for _, pid := range lockHolders(path) {
			pids[pid] = true
		}
	}
	if pid := socketOwner(m.Paths.Socket("podo")); pid > 0 {
		pids[pid] = true
	}
	var out []process
	for pid := range pids {
		if p, ok := readProcess(pid); ok && !m.self[pid] && p.state != 'Z' && m.near(pid) {
			out = append(out, p)
		}
	}
	return out
}

// lockHolders asks the kernel who holds a lock on the file, of whichever kind.
func lockHolders(path string) []int {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return nil
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return nil
	}
	want := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	var out []int
	for line := range strings.Lines(string(locks)) {
		f := strings.Fields(line)
		// Those who wait for a lock have an arrow as their second word.
		if len(f) < 8 || f[1] == "->" || f[5] != want {
			continue
		}
		if pid, err := strconv.Atoi(f[4]); err == nil && pid > 0 {
			out = append(out, pid)
		}
	}
	return out
}

// socketOwner is the process that listens on a unix socket, or 0.
func socketOwner(path string) int {
	c, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return 0
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}

// stopPodo ends podo and then its containerd, gently at first.
func (m *machine) stopPodo(ctx context.Context) error {
	if err := m.stopService(ctx); err != nil {
		return err
	}
	for _, p := range m.podoProcesses() {
		how, err := end(ctx, []process{p}, 15*time.Second)
		if err != nil {
			return fmt.Errorf("stop podo: %w", err)
		}
		m.tell("%s podo (pid %d)", how, p.pid)
	}
	engine := m.engineProcesses()
	if len(engine) == 0 {
		return nil
	}
	if _, err := end(ctx, engine, 5*time.Second); err != nil {
		return fmt.Errorf("stop containerd: %w", err)
	}
	m.tell("stopped containerd")
	return nil
}

func (m *machine) engineProcesses() []process {
	var out []process
	for _, p := range processes() {
		if !m.self[p.pid] && m.isEngine(p) && !m.isShim(p) && m.near(p.pid) {
			out = append(out, p)
		}
	}
	return out
}

// end asks ps to stop, waits and then insists. It says which of the two it took.
func end(ctx context.Context, ps []process, grace time.Duration) (how string, err error) {
	send(ps, unix.SIGTERM)
	if gone(ctx, ps, grace) {
		return "stopped", nil
	}
	send(ps, unix.SIGKILL)
	if !gone(ctx, ps, 10*time.Second) {
		return "", fmt.Errorf("process %d does not end, not even when killed", ps[0].pid)
	}
	return "killed", nil
}

func send(ps []process, s unix.Signal) {
	for _, p := range ps {
		if p.lives() {
			_ = unix.Kill(p.pid, s)
		}
	}
}

func gone(ctx context.Context, ps []process, patience time.Duration) bool {
	for deadline := time.Now().Add(patience); ; pause(ctx, 20*time.Millisecond) {
		if !slices.ContainsFunc(ps, process.lives) {
			return true
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return false
		}
	}
}

// podProcesses lists the shims and everything that runs in the pods.
func (m *machine) podProcesses() (shims, all []process) {
	every := processes()
	children := map[int][]process{}
	for _, p := range every {
		children[p.parent] = append(children[p.parent], p)
	}
	seen := map[int]bool{}
	var take func(p process)
	take = func(p process) {
		if seen[p.pid] || m.self[p.pid] {
			return
		}
		seen[p.pid] = true
		all = append(all, p)
		for _, c := range children[p.pid] {
			take(c)
		}
	}
	for _, p := range every {
		if m.isShim(p) && m.near(p.pid) {
			if id := p.option("id"); id != "" {
				m.ids[id] = true
			}
			shims = append(shims, p)
			take(p)
		}
	}
	// A container outlives a shim that was killed: it is told by its cgroup.
	for _, p := range every {
		if !seen[p.pid] && m.inContainer(p.pid) {
			take(p)
		}
	}
	return shims, all
}

// stopPods ends every process of every pod. Processes that fork while they are being
// killed are caught by looking again until none is left.
func (m *machine) stopPods(ctx context.Context) error {
	shims, all := m.podProcesses()
	if len(all) == 0 {
		return nil
	}
	if m.Grace > 0 {
		workload := slices.DeleteFunc(slices.Clone(all), func(p process) bool {
			return m.isShim(p) || !catchesTerm(p.pid)
		})
		send(workload, unix.SIGTERM)
		gone(ctx, workload, m.Grace)
	}
	total := 0
	for deadline := time.Now().Add(10 * time.Second); len(all) > 0; _, all = m.podProcesses() {
		if time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("kill pods: %s do not end, %d among them", plural(len(all), "process", "processes"), all[0].pid)
		}
		total = max(total, len(all))
		send(all, unix.SIGKILL)
		gone(ctx, all, time.Second)
	}
	m.tell("killed %s (%s)", plural(len(shims), "pod", "pods"), plural(total, "process", "processes"))
	return nil
}

// endPods has pods end while podo is there to run their hooks. The time that they had is
// taken from their grace. Of that, atLast is left for what is told to end only then:
// critical pods, such as DNS, if others took too long. An error is ctx's.
func (m *machine) endPods(ctx context.Context) error {
	if m.Grace <= 0 || m.EndPods == nil {
		return nil
	}
	start := time.Now()
	began, err := m.EndPods(ctx, m.Grace-atLast(m.Grace))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if began {
		m.Grace -= time.Since(start)
	}
	if err != nil {
		m.tell("not all pods ended in good order: %v", err)
		return nil
	}
	m.tell("pods ended, hooks included")
	return nil
}

// atLast is a third of grace, and at most 5 seconds: to write down what is in memory.
func atLast(grace time.Duration) time.Duration { return min(grace/3, 5*time.Second) }

// catchesTerm reports whether a process would act on SIGTERM. Waiting for the others
// would be waiting in vain: the first process of a pod ignores what it does not catch.
func catchesTerm(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		if hex, ok := strings.CutPrefix(line, "SigCgt:"); ok {
			mask, _ := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			return mask&(1<<(unix.SIGTERM-1)) != 0
		}
	}
	return false
}

// scope is how much a kubelet must share with us to be in our way.
type scope func(ours, theirs namespaces) bool

func sameHost(a, b namespaces) bool { return a.mnt == b.mnt || a.net == b.net }

func sameCgroups(a, b namespaces) bool { return sameHost(a, b) || a.cgroup == b.cgroup }

func anywhere(_, _ namespaces) bool { return true }

// otherKubelet names a running kubelet that is not podo's, if there is one. The names
// below only ever cause things to be left alone.
func (m *machine) otherKubelet(near scope) string {
	ours := map[int]bool{}
	for _, p := range m.podoProcesses() {
		ours[p.pid] = true
	}
	for _, p := range processes() {
		if m.self[p.pid] || ours[p.pid] {
			continue
		}
		switch p.name() {
		case "kubelet", "k3s", "rke2", "k0s", "kubelite", "kubesolo":
		case "podo":
			if len(p.args) < 2 || p.args[1] != "server" && p.args[1] != "agent" {
				continue
			}
		default:
			continue
		}
		if near(m.ns, namespacesOf(p.pid)) {
			return fmt.Sprintf("%s (pid %d)", p.name(), p.pid)
		}
	}
	return ""
}

func (m *machine) systemd() bool {
	if !m.near(1) {
		return false // that of the machine around ours
	}
	info, err := os.Stat("/run/systemd/system")
	if err != nil || !info.IsDir() {
		return false
	}
	if comm, err := os.ReadFile("/proc/1/comm"); err != nil || strings.TrimSpace(string(comm)) != "systemd" {
		return false
	}
	_, err = exec.LookPath("systemctl")
	return err == nil
}

func run(ctx context.Context, argv []string) error {
	if len(argv) == 0 {
		return nil
	}
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
