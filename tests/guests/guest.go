// Package guests boots machines with a kernel of their own, for what namespaces cannot
// show: systemd as the first process, control groups of version 2 alone, quotas, wireguard,
// a reboot, a power cut.
//
// A guest is a process, User-Mode Linux, on the switch of a hosts.Network; its programs run
// on the processor as they are, so no virtualisation is needed. It has one processor, and a
// system call takes it some 50 microseconds: figures of a guest say little. What it knows of
// the machine that runs the tests is one folder, which it can only read.
//
// scripts/build-guest makes the kernel and the disk, and make test-guests runs the tests.
package guests

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

// A Spec says what a guest is like.
type Spec struct {
	Name   string
	Memory int      // MiB
	Disks  []int64  // sizes of empty disks beside its own: /dev/ubdb and so on
	Share  []string // files of this machine that the guest sees in /host
}

// A Guest is a machine, on or off.
type Guest struct {
	t     testing.TB
	net   *hosts.Network
	spec  Spec
	index int
	dir   string
	share string
	made  string // folder of the kernel and the disk
	cmd   *exec.Cmd
	off   chan struct{} // closed when it is
}

// patience is how long a guest may take to boot or to go off, where two of them and other
// tests want this machine's processors.
const patience = 3 * time.Minute

// New makes a guest and boots it. It is the network's index-th, and ends with the test.
func New(t testing.TB, n *hosts.Network, index int, spec Spec) *Guest {
	t.Helper()
	g := &Guest{t: t, net: n, spec: spec, index: index}
	if err := g.make(); err != nil {
		t.Fatalf("make the guest %s: %v", spec.Name, err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			g.lastWords()
		}
		g.Cut()
	})
	g.On()
	return g
}

// Name is the guest's host name.
func (g *Guest) Name() string { return g.spec.Name }

// IP is the guest's address.
func (g *Guest) IP() string { return fmt.Sprint("10.99.0.", 100+g.index) }

func (g *Guest) tap() string { return fmt.Sprint("tap", g.index) }

// make lays out what the guest consists of.
func (g *Guest) make() error {
	root, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	g.made = filepath.Join(root, "dist/guest")
	if g.dir, err = g.net.Dir(g.spec.Name); err != nil {
		return err
	}
	g.share = filepath.Join(g.dir, "share")
	if err := os.Mkdir(g.share, 0o755); err != nil {
		return err
	}
	if err := g.Give("/proc/self/exe", "inside"); err != nil {
		return err
	}
	for _, from := range g.spec.Share {
		if err := g.Give(from, filepath.Base(from)); err != nil {
			return err
		}
	}
	if err := copied(filepath.Join(g.made, "root.ext4"), filepath.Join(g.dir, "disk")); err != nil {
		return err
	}
	for i, size := range g.spec.Disks {
		f, err := os.Create(filepath.Join(g.dir, fmt.Sprint("disk", i+1)))
		if err != nil {
			return err
		}
		if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
			return err
		}
	}
	return g.net.Tap(g.tap())
}

// Give puts a copy of a file or a folder of this machine into the guest's /host.
func (g *Guest) Give(from, name string) error { return copied(from, filepath.Join(g.share, name)) }

// copied copies a file or a folder, with its holes left as holes.
func copied(from, to string) error {
	from, err := filepath.EvalSymlinks(from)
	if err != nil {
		return err
	}
	out, err := exec.Command("cp", "--recursive", "--sparse=always", "--reflink=auto", from, to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// On boots the guest, and returns when all that starts with it has.
func (g *Guest) On() {
	g.t.Helper()
	began := time.Now()
	if err := g.boot(); err != nil {
		g.t.Fatalf("start %s: %v", g.spec.Name, err)
	}
	state := ""
	for state != "running" {
		if time.Since(began) > patience {
			failed, _ := g.Run("systemctl", "--failed", "--no-legend", "--plain")
			g.t.Fatalf("%s does not come up: %q %s", g.spec.Name, state, failed)
		}
		select {
		case <-g.off:
			g.t.Fatalf("%s has gone off; its console is above", g.spec.Name)
		case <-time.After(200 * time.Millisecond):
		}
		out, _ := g.RunCommand(hosts.Command{Args: []string{"systemctl", "is-system-running"}, Timeout: 5 * time.Second})
		state = strings.TrimSpace(out)
	}
	g.t.Logf("%s is up after %.1fs", g.spec.Name, time.Since(began).Seconds())
}

func (g *Guest) boot() error {
	// What the kernel leaves there if it does not end by itself.
	if err := os.RemoveAll(filepath.Join(g.dir, "uml")); err != nil {
		return err
	}
	console, err := os.OpenFile(filepath.Join(g.dir, "console"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	args := []string{
		// All that it starts ends with it: so a kill is a power cut.
		"unshare", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc",
		"env", "LD_PRELOAD=" + filepath.Join(g.made, "xstate.so"), filepath.Join(g.made, "linux"),
		"umid=uml", "uml_dir=" + g.dir, fmt.Sprintf("mem=%dM", g.spec.Memory),
		"ubd0=disk", "root=/dev/ubda", "rw", "hostfs=" + g.share,
		"con=null", "ssl=null", "con0=null,fd:1",
		fmt.Sprintf("vec0:transport=tap,ifname=%s,depth=128,gro=1,mac=02:99:00:00:01:%02x", g.tap(), g.index),
		fmt.Sprintf("ip=%s::10.99.0.1:255.255.255.0:%s:vec0:off", g.IP(), g.spec.Name),
		"systemd.hostname=" + g.spec.Name, "quiet",
	}
	for i := range g.spec.Disks {
		args = append(args, fmt.Sprintf("ubd%d=disk%d", i+1, i+1))
	}
	g.cmd = &exec.Cmd{Args: args, Dir: g.dir, SysProcAttr: &syscall.SysProcAttr{Setsid: true}}
	g.cmd.Env = append(os.Environ(), "TMPDIR=/dev/shm") // it keeps its memory in a file there
	// Through a pipe: it waits for events of its console, and files have none.
	g.cmd.Stdout = struct{ io.Writer }{console}
	g.cmd.Stderr = g.cmd.Stdout
	if err := g.net.Beside(g.spec.Name, g.cmd); err != nil {
		return errors.Join(err, console.Close())
	}
	g.off = make(chan struct{})
	go func(cmd *exec.Cmd, off chan struct{}) {
		defer console.Close()
		defer close(off)
		_ = cmd.Wait()
	}(g.cmd, g.off)
	return nil
}

// Cut is a power cut: what the guest had not written to its disk is lost.
func (g *Guest) Cut() {
	if g.cmd == nil {
		return
	}
	_ = g.cmd.Process.Kill()
	<-g.off
	g.cmd = nil
}

// Off shuts the guest down as an administrator does, and says how long that took.
func (g *Guest) Off() time.Duration {
	g.t.Helper()
	began := time.Now()
	// It may be gone before it answers.
	_, _ = g.RunCommand(hosts.Command{Args: []string{"systemctl", "poweroff"}, Timeout: patience})
	select {
	case <-g.off:
	case <-time.After(patience):
		g.t.Fatalf("%s does not go off", g.spec.Name)
	}
	g.cmd = nil
	return time.Since(began)
}

// Reboot is Off and On.
func (g *Guest) Reboot() {
	g.t.Helper()
	g.Off()
	g.On()
}

// Run runs a program in the guest to its end and returns what it printed. An error is a
// hosts.ExitError if the program ran.
func (g *Guest) Run(args ...string) (string, error) {
	return g.RunCommand(hosts.Command{Args: args})
}

// RunCommand is Run with more to say. The default timeout is two minutes.
func (g *Guest) RunCommand(c hosts.Command) (string, error) {
	if c.Timeout == 0 {
		c.Timeout = 2 * time.Minute
	}
	line, err := g.Dial(port, 2*time.Second)
	if err != nil {
		return "", err
	}
	defer line.Close()
	if err := line.SetDeadline(time.Now().Add(c.Timeout)); err != nil {
		return "", err
	}
	var a answer
	if err := errors.Join(json.NewEncoder(line).Encode(c), json.NewDecoder(line).Decode(&a)); err != nil {
		return "", fmt.Errorf("%s on %s: %w", strings.Join(c.Args, " "), g.spec.Name, err)
	}
	if a.Problem != "" {
		return "", errors.New(a.Problem)
	}
	if a.Code != 0 {
		return a.Out, &hosts.ExitError{Args: c.Args, Code: a.Code, Stderr: a.Errs}
	}
	return a.Out, nil
}

// Dial connects from the switch to a port of the guest.
func (g *Guest) Dial(port string, patience time.Duration) (net.Conn, error) {
	var c net.Conn
	err := g.net.In(func() (err error) {
		c, err = net.DialTimeout("tcp", net.JoinHostPort(g.IP(), port), patience)
		return err
	})
	return c, err
}

// lastWords shows what may tell why a test failed.
func (g *Guest) lastWords() {
	console, _ := os.ReadFile(filepath.Join(g.dir, "console"))
	if len(console) > 4000 {
		console = console[len(console)-4000:]
	}
	g.t.Logf("the console of %s ends with:\n%s", g.spec.Name, bytes.ToValidUTF8(console, nil))
	if g.cmd == nil {
		return
	}
	journal, err := g.Run("journalctl", "--no-pager", "-n", "60", "-u", "podo*")
	g.t.Logf("the journal of podo on %s ends with: %v\n%s", g.spec.Name, err, journal)
}
