package hosts

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// victim is set for a process that makes a host only to be killed.
const victim = "PODO_TEST_VICTIM"

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

// onlyEndToEnd skips a test where hosts cannot or should not be made, and sees to it
// that the test leaves nothing.
func onlyEndToEnd(t *testing.T) {
	t.Helper()
	if os.Getenv("PODO_E2E") != "1" {
		t.Skip("makes machines on this one; set PODO_E2E=1 to allow that")
	}
	if os.Geteuid() != 0 {
		t.Fatal("making machines needs root")
	}
	if os.Getenv(victim) != "" {
		return
	}
	if err := Sweep(); err != nil {
		t.Fatal(err)
	}
	before := traces(t)
	t.Cleanup(func() {
		var left []string
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			after := traces(t)
			maps.DeleteFunc(after, func(what string, _ bool) bool { return before[what] })
			if left = slices.Sorted(maps.Keys(after)); len(left) == 0 {
				return
			}
		}
		t.Errorf("left on this machine:\n%s", strings.Join(left, "\n"))
	})
}

// traces lists what hosts could leave on this machine.
func traces(t *testing.T) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		out["mount "+strings.Fields(line)[4]] = true
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		out["link "+l.Name] = true
	}
	for _, pattern := range []string{rooms + "/" + prefix + "*", "/sys/fs/cgroup/*/" + prefix + "*", "/sys/fs/cgroup/" + prefix + "*"} {
		files, _ := filepath.Glob(pattern)
		for _, f := range files {
			if !others(filepath.Base(f)) {
				out["file "+f] = true
			}
		}
	}
	for _, pid := range allPIDs() {
		its, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		_, id, found := strings.Cut(string(its), "/"+prefix)
		id, _, _ = strings.Cut(id, "/")
		if found && !others(prefix+id) {
			out[fmt.Sprint("process ", pid)] = true
		}
	}
	// Of the first thread, which /proc/self/net describes.
	mine, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	out["own network "+mine] = true
	return out
}

// others tells the network of another test that runs at the same time.
func others(id string) bool {
	_, pid, alive := owner(id)
	return alive && pid != os.Getpid()
}

// reaches connects from one host to a listener on another.
func reaches(a, b *Host, ip string, patience time.Duration) error {
	var l net.Listener
	if err := b.In(func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(ip, "0"))
		return err
	}); err != nil {
		return err
	}
	defer l.Close()
	c, err := a.Dial("tcp", l.Addr().String(), patience)
	if err != nil {
		return err
	}
	return c.Close()
}

func TestNetwork(t *testing.T) {
	onlyEndToEnd(t)
	n := NewNetwork(t, Options{Ranges: []string{IPv4, IPv6}})
	began := time.Now()
	a, b, c := n.Host("alpha"), n.Host("beta"), n.Host("gamma")
	t.Logf("three hosts in %s", time.Since(began).Round(time.Millisecond))

	want := func(from, to *Host, open bool) {
		t.Helper()
		for _, ip := range to.IPs() {
			patience := 3 * time.Second
			if !open {
				patience = 150 * time.Millisecond
			}
			err := reaches(from, to, ip, patience)
			var timeout net.Error
			switch {
			case open && err != nil:
				t.Errorf("%s does not reach %s: %v", from.Name(), to.Name(), err)
			case !open && (!errors.As(err, &timeout) || !timeout.Timeout()):
				t.Errorf("%s to %s at %s should wait for nothing, got %v", from.Name(), to.Name(), ip, err)
			}
		}
	}
	all := func(open bool, pairs ...[2]*Host) {
		t.Helper()
		for _, p := range pairs {
			want(p[0], p[1], open)
			want(p[1], p[0], open)
		}
	}
	ab, ac, bc := [2]*Host{a, b}, [2]*Host{a, c}, [2]*Host{b, c}
	all(true, ab, ac, bc)

	n.Cut(a, b)
	all(false, ab)
	all(true, ac, bc)
	b.Reboot()
	all(false, ab)
	all(true, bc)
	b.SetIP("10.99.0.77")
	if b.IP() != "10.99.0.77" {
		t.Errorf("beta has %s", b.IP())
	}
	all(false, ab)
	all(true, bc)
	n.Heal()
	all(true, ab, ac, bc)

	n.Isolate(c)
	all(false, ac, bc)
	all(true, ab)
	c.Reboot()
	all(false, ac, bc)
	n.Heal()
	all(true, ab, ac, bc)

	n.CutOneWay(a, b)
	if err := tells(a, b); err == nil {
		t.Error("alpha tells beta something although it is cut off")
	}
	if err := tells(b, a); err != nil {
		t.Errorf("beta tells alpha nothing although only the other direction is cut: %v", err)
	}
	n.Heal()
	if err := tells(a, b); err != nil {
		t.Errorf("alpha tells beta nothing: %v", err)
	}

	for _, h := range []*Host{a, b, c} {
		for _, ip := range []string{"198.51.100.1", "2001:db8::1"} {
			if err := h.In(func() error {
				_, err := netlink.RouteGet(net.ParseIP(ip))
				return err
			}); err != nil {
				t.Errorf("%s has no route to %s: %v", h.Name(), ip, err)
			}
		}
	}
}

// tells sends a datagram from one host to another.
func tells(a, b *Host) error {
	var l net.PacketConn
	if err := b.In(func() (err error) {
		l, err = net.ListenPacket("udp", net.JoinHostPort(b.IP(), "0"))
		return err
	}); err != nil {
		return err
	}
	defer l.Close()
	c, err := a.Dial("udp", l.LocalAddr().String(), time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte("word")); err != nil {
		return err
	}
	if err := l.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		return err
	}
	_, _, err = l.ReadFrom(make([]byte, 16))
	return err
}

func TestHost(t *testing.T) {
	onlyEndToEnd(t)
	shared := t.TempDir()
	if err := os.WriteFile(filepath.Join(shared, "text"), []byte("shared"), 0o644); err != nil {
		t.Fatal(err)
	}
	n := NewNetwork(t, Options{Share: []string{shared}})
	h := n.Host("alpha")
	said := func(script string) string {
		t.Helper()
		out, err := h.Run("sh", "-c", script)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	for script, want := range map[string]string{
		"uname -n": "alpha",
		"echo $$; readlink /proc/1/exe | grep -c hosts.test": "1",
		"ls /var/lib":                "",
		"cat " + shared + "/text":    "shared",
		"echo no > /dev/null; id -u": "0",
		"grep -c podo-t- /proc/self/mountinfo; grep podo-t- /proc/self/cgroup || echo none": "none",
	} {
		if out := said(script); !strings.HasSuffix(out, want) {
			t.Errorf("%s: %q, want %q", script, out, want)
		}
	}
	if _, err := h.Run("sh", "-c", "echo x > "+shared+"/text"); err == nil {
		t.Error("a shared folder can be written to")
	}
	var failed *ExitError
	if _, err := h.Run("sh", "-c", "echo why >&2; exit 7"); !errors.As(err, &failed) || failed.Code != 7 || failed.Stderr != "why\n" {
		t.Errorf("a failing command: %v", err)
	}
	if _, err := h.Run("no-such-program"); err == nil {
		t.Errorf("a missing program: %v", err)
	}
	if _, err := h.RunCommand(Command{Args: []string{"sleep", "60"}, Timeout: 100 * time.Millisecond}); !errors.As(err, &failed) || failed.Code != 137 {
		t.Errorf("a slow command: %v", err)
	}
	if out, err := h.RunCommand(Command{Args: []string{"sh", "-c", "cat; echo $WORD"}, Stdin: "in ", Env: []string{"WORD=out"}}); err != nil || out != "in out\n" {
		t.Errorf("input and environment: %q, %v", out, err)
	}

	// Groups made on the host are below the host's, with limits of their own.
	said(`for d in /sys/fs/cgroup/memory /sys/fs/cgroup/pids; do [ -d $d ] || d=/sys/fs/cgroup; mkdir -p $d/kubepods/pod1; done`)

	first, id := said("cat /proc/sys/kernel/random/boot_id"), said("cat /etc/machine-id")
	said("echo kept > /etc/kept; echo kept > /var/lib/kept; echo lost > /run/lost; echo lost > /tmp/lost")
	p := h.Start("sh", "-c", "trap 'echo told; exit 3' TERM; echo begun; while :; do sleep 0.05; done")
	for deadline := time.Now().Add(5 * time.Second); p.Log() == "" && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
	}
	if cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID())); !strings.Contains(string(cmdline), "begun") {
		t.Errorf("process %d here is %q", p.PID(), cmdline)
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code, err := p.Wait(5 * time.Second); err != nil || code != 3 || p.Tail(1) != "told" {
		t.Errorf("the process ended with %d, %v, %q", code, err, p.Log())
	}
	p = h.Start("sleep", "1000")
	outside := p.PID()
	h.Reboot()
	if code, err := p.Wait(0); err != nil || code != -1 {
		t.Errorf("a process on a host that went down: %d, %v", code, err)
	}
	if _, err := os.Stat(fmt.Sprint("/proc/", outside)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("process %d outlives its host", outside)
	}
	if out := said("cat /etc/kept /var/lib/kept; ls /run/lost /tmp/lost 2>/dev/null; find /sys/fs/cgroup -name 'kubepods*'"); out != "kept\nkept" {
		t.Errorf("after a reboot there is %q", out)
	}
	if text, err := os.ReadFile(h.Path("/etc/kept")); err != nil || string(text) != "kept\n" {
		t.Errorf("seen from here: %q, %v", text, err)
	}
	if again := said("cat /proc/sys/kernel/random/boot_id"); again == first || said("cat /etc/machine-id") != id {
		t.Error("a reboot is not told by the boot id alone")
	}
	h.Wipe()
	if out := said("ls /etc/kept /var/lib/kept 2>/dev/null; uname -n"); out != "alpha" {
		t.Errorf("after a wipe there is %q", out)
	}
	if said("cat /etc/machine-id") == id {
		t.Error("a wiped machine has the old machine's id")
	}
}

// TestTwoNetworks has two networks with the same addresses and names.
func TestTwoNetworks(t *testing.T) {
	onlyEndToEnd(t)
	one, two := NewNetwork(t, Options{}), NewNetwork(t, Options{})
	a, b, c := one.Host("alpha"), one.Host("beta"), two.Host("alpha")
	if err := reaches(a, b, b.IP(), 3*time.Second); err != nil {
		t.Error(err)
	}
	if err := reaches(c, b, b.IP(), 150*time.Millisecond); err == nil {
		t.Error("hosts of two networks reach each other")
	}
	three := NewNetwork(t, Options{Ranges: []string{IPv6}})
	if d, e := three.Host("delta"), three.Host("epsilon"); reaches(d, e, e.IP(), 3*time.Second) != nil {
		t.Errorf("%s does not reach %s", d.IP(), e.IP())
	}
}

// TestKilled kills a process that has hosts, and looks at what the next one finds.
func TestKilled(t *testing.T) {
	onlyEndToEnd(t)
	if os.Getenv(victim) != "" {
		h := NewNetwork(t, Options{}).Host("alpha")
		h.Start("sleep", "1000")
		if _, err := h.Run("sh", "-c", "mkdir /sys/fs/cgroup/*/kubepods 2>/dev/null; true"); err != nil {
			t.Fatal(err)
		}
		fmt.Println("made", filepath.Base(filepath.Dir(h.dir(""))), h.first.Process.Pid)
		select {}
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestKilled$")
	cmd.Env = append(os.Environ(), victim+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var id string
	var first int
	if _, err := fmt.Fscanf(out, "made %s %d\n", &id, &first); err != nil {
		t.Error(err)
	}
	if err := Sweep(); err != nil { // of a network that is in use
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(rooms, id, "alpha")); err != nil {
		t.Errorf("a network in use was removed: %v", err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if _, err := os.Stat(filepath.Join(rooms, id)); err != nil {
		t.Errorf("expected a folder to remove: %v", err)
	}
	if err := Sweep(); err != nil {
		t.Error(err)
	}
}

// TestPodo runs a server on a host, as the tests do that use this package.
func TestPodo(t *testing.T) {
	onlyEndToEnd(t)
	binary := os.Getenv("PODO_BINARY")
	if binary == "" {
		binary = "../../dist/podo"
	}
	binary, err := filepath.Abs(binary)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(binary); err != nil {
		t.Fatalf("%v; build it with make build, or name another in PODO_BINARY", err)
	}
	h := NewNetwork(t, Options{Binary: binary}).Host("alpha")
	for _, life := range []string{"first boot", "after a reboot"} {
		began := time.Now()
		p := h.Start("podo", "server")
		for {
			_, err := h.Run("podo", "status", "--wait=3s")
			if err == nil {
				break
			}
			if !p.Running() || time.Since(began) > 90*time.Second {
				t.Fatalf("%s: the server is not ready: %v", life, err)
			}
		}
		t.Logf("%s: ready %s after the start", life, time.Since(began).Round(10*time.Millisecond))
		out, err := h.Kubectl("get", "nodes", "-o", "jsonpath={.items[*].metadata.name} {.items[*].status.addresses[?(@.type=='InternalIP')].address}")
		if err != nil || out != "alpha "+h.IP() {
			t.Errorf("%s: nodes: %q, %v", life, out, err)
		}
		for {
			out, err := h.Kubectl("-n", "kube-system", "get", "pods", "--no-headers")
			if err == nil && strings.Contains(out, "1/1") {
				break
			}
			if time.Since(began) > 2*time.Minute {
				t.Fatalf("%s: no pod became ready: %s%v", life, out, err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Logf("%s: DNS ready %s after the start", life, time.Since(began).Round(10*time.Millisecond))
		h.Reboot()
	}
}
