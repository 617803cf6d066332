package install

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

// machine makes a host with a podo, or without one if program is empty.
func machine(t *testing.T, program string, share ...string) *place {
	t.Helper()
	if os.Getenv("PODO_E2E") != "1" {
		t.Skip("makes machines on this one; set PODO_E2E=1 to allow that")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if program != "" {
		program = filepath.Join(root, program)
	}
	n := hosts.NewNetwork(t, hosts.Options{Binary: program, Share: share, Logs: os.Getenv("PODO_E2E_LOGS")})
	return &place{T: t, host: n.Host("box"), shell: []string{"sh"}}
}

func (p *place) do(script string) string {
	p.Helper()
	out, code := p.sh(nil, script)
	if code != 0 {
		p.Fatalf("%s: exit code %d\n%s", script, code, out)
	}
	return out
}

// program puts a script where it comes before the machine's own program of that name.
func (p *place) program(name, text string) {
	p.Helper()
	if err := os.WriteFile(p.host.Path("/usr/local/sbin/"+name), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		p.Fatal(err)
	}
}

func (p *place) text(path string) string {
	p.Helper()
	text, err := os.ReadFile(p.host.Path(path))
	if err != nil {
		p.Fatal(err)
	}
	return string(text)
}

// TestSystemd tells what install.sh asks of systemd, which itself runs only as the first
// process of a machine, and so is played by a script. A start there is a server's where
// that is refused, and otherwise no more than the look at the machine that it begins with.
func TestSystemd(t *testing.T) {
	t.Parallel()
	p := machine(t, "dist/cache/podo")
	p.program("systemctl", `
case $1 in
is-active) exec test -e /run/active ;;
show) exit ;;
esac
echo "$*" >>/run/told
if [ "$1 $2" = 'restart podo' ]; then
	rm -f /run/active
	flags=$(sed -n 's/^ExecStart=.* server//p' /etc/systemd/system/podo.service)
	podo check-config $flags >/dev/null 2>&1 || { timeout 20 podo server $flags >/run/journal 2>&1; exit 1; }
	touch /run/active
fi
`)
	p.program("journalctl", "exec tail -n 8 /run/journal\n")
	p.do("mkdir -p /run/systemd/system")
	had := []string{"INSTALL_PODO_SKIP_DOWNLOAD=true"}
	told := func(want ...string) {
		t.Helper()
		got := strings.Split(strings.TrimSpace(p.do("cat /run/told; rm /run/told")), "\n")
		if want = append([]string{"daemon-reload", "enable -q podo podo-shutdown"}, want...); !slices.Equal(got, want) {
			t.Errorf("systemd was told %q, want %q", got, want)
		}
	}
	restart := []string{"restart podo", "start podo-shutdown"}

	p.must("install: service podo is enabled, and not started", append(had, "INSTALL_PODO_SKIP_START=true"))
	told()
	p.must("install: starting service podo", had)
	told(restart...)
	const unit = "/etc/systemd/system/podo.service"
	p.contains(p.text(unit), "\nType=notify\n")
	p.must("nothing differs", had)
	told()
	p.must("install: restarting service podo", append(had, "INSTALL_PODO_FORCE_RESTART=true"))
	told(restart...)
	p.must("install: restarting service podo", append(had, "INSTALL_PODO_TYPE=simple"))
	told(restart...)
	p.contains(p.text(unit), "\nType=simple\n")

	// What does not start gives way to what did.
	p.refused(1, "the one before it is in place again, and runs", append(had, "INSTALL_PODO_TYPE=simple"), "--clustr-cidr", "10.1.0.0/16")
	told(append([]string{"restart podo", "daemon-reload", "enable -q podo podo-shutdown"}, restart...)...)

	// A kernel that cannot do it: podo says so, and the next run may find another.
	p.do("rm /etc/systemd/system/podo* /run/active; umount --recursive --lazy /sys/fs/cgroup")
	out, code := p.run(had)
	if code != 1 || !strings.Contains(out, "podo is installed, and did not start") || !strings.Contains(out, "control groups") {
		t.Errorf("without control groups: exit code %d\n%s", code, out)
	}

	p.do("rm -rf /run/told /usr/local/lib/systemd")
	p.must("neither enabled nor started", append(had, "INSTALL_PODO_SKIP_ENABLE=true", "INSTALL_PODO_SYSTEMD_DIR=/usr/local/lib/systemd/system"))
	for _, name := range []string{"podo.service", "podo-shutdown.service"} {
		p.contains(p.text("/usr/local/lib/systemd/system/"+name), "EnvironmentFile=-/usr/local/lib/systemd/system/podo.service.env\n")
	}
}

// folder makes a mirror of files: versions of a program that is no more than a script.
func folder(t *testing.T, versions ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, version := range versions {
		text := "#!/bin/sh\necho podo " + version + "\n"
		for name, text := range map[string]string{"podo": text, "sha256sum-amd64.txt": fmt.Sprintf("%x  podo\n", sha256.Sum256([]byte(text)))} {
			path := filepath.Join(dir, version, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

// TestWhere: what a folder has is found by version, commit and channel, and put where it
// can be.
func TestWhere(t *testing.T) {
	t.Parallel()
	dir := folder(t, "1.0.0", "2.0.0", "abc1234")
	if err := os.WriteFile(filepath.Join(dir, "latest"), []byte("2.0.0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := machine(t, "", dir)
	from := []string{"INSTALL_PODO_ARTIFACT_URL=file://" + dir, "INSTALL_PODO_SKIP_ENABLE=true"}
	v1 := append(from, "INSTALL_PODO_VERSION=1.0.0")
	p.do("rm -f /usr/local/bin/podo /usr/local/bin/kubectl /usr/local/bin/crictl /usr/local/bin/ctr")

	p.must("podo 1.0.0 is installed", append(v1, "INSTALL_PODO_SYMLINK=skip"))
	p.do("for name in kubectl crictl ctr; do [ ! -e /usr/local/bin/$name ] || exit 1; done")
	p.must("podo 2.0.0 is installed", append(from, "INSTALL_PODO_CHANNEL_URL=file://"+dir, "INSTALL_PODO_CHANNEL=latest"))
	p.must("podo abc1234 is installed", append(from, "INSTALL_PODO_COMMIT=abc1234"))

	p.do("mount --bind /etc /etc && mount -o remount,bind,ro /etc")
	p.refused(1, "nothing was changed", v1, "--tls-san", "elsewhere")
	p.do("umount /etc; rm -rf /etc/podo /etc/systemd/system/podo*")

	p.do("mount --bind /usr /usr && mount -o remount,bind,ro /usr")
	p.must("podo 1.0.0 is installed", v1)
	p.contains(p.text("/opt/bin/podo"), "echo podo 1.0.0")
	p.contains(p.text("/opt/bin/podo-uninstall.sh"), "exec /opt/bin/podo uninstall --yes")

	// The one there is what runs.
	before := p.files()
	p.must("podo abc1234 is installed", []string{"INSTALL_PODO_SKIP_ENABLE=true", "INSTALL_PODO_BIN_DIR=/usr/local/bin", "INSTALL_PODO_BIN_DIR_READ_ONLY=true"})
	after := p.files()
	for path := range after {
		if strings.HasPrefix(path, "/etc/") {
			delete(after, path)
			delete(before, path)
		}
	}
	if d := difference(before, after); d != "" {
		t.Errorf("a folder for programs that is read-only was written to:\n%s", d)
	}
	p.refused(1, "/usr/local/bin cannot be written to", append(v1, "INSTALL_PODO_BIN_DIR=/usr/local/bin"))
}

// TestOtherMachines are refused before anything is fetched.
func TestOtherMachines(t *testing.T) {
	t.Parallel()
	p := machine(t, "")
	from := []string{"INSTALL_PODO_ARTIFACT_URL=file:///nowhere", "INSTALL_PODO_VERSION=1.0.0"}
	for says, word := range map[string]string{
		"-m) echo riscv64": "this machine is riscv64",
		"-m) echo i686":    "this machine is i686",
		"-s) echo FreeBSD": "this is FreeBSD",
	} {
		p.program("uname", "case $1 in\n"+says+" ;;\n*) exec /usr/bin/uname \"$@\" ;;\nesac\n")
		p.refused(2, word, from)
	}
	p.program("uname", "[ \"$1\" != -m ] || exec echo aarch64\nexec /usr/bin/uname \"$@\"\n")
	p.refused(1, "sha256sum-arm64.txt", from)
}

// TestSELinux plays a machine with it: what is downloaded gets the type by which container
// engines may work, or the script says what is missing.
func TestSELinux(t *testing.T) {
	t.Parallel()
	dir := folder(t, "1.0.0")
	p := machine(t, "", dir)
	from := []string{"INSTALL_PODO_ARTIFACT_URL=file://" + dir, "INSTALL_PODO_VERSION=1.0.0", "INSTALL_PODO_SKIP_ENABLE=true"}
	p.do("rm -f /usr/local/bin/podo")
	selinux := func(state, chcon string) {
		p.program("getenforce", "echo "+state+"\n")
		p.program("chcon", chcon+"\n")
		p.do("rm -f /usr/local/bin/podo /run/labelled")
	}
	const notes = `echo "$*" >/run/labelled`

	selinux("Enforcing", "exit 1")
	p.refused(1, "install the package container-selinux", from)
	p.must("warning: SELinux does not know container_runtime_exec_t", append(from, "INSTALL_PODO_SELINUX_WARN=true"))
	selinux("Permissive", "exit 1")
	p.must("warning: SELinux does not know container_runtime_exec_t", from)
	selinux("Enforcing", notes)
	p.must("podo 1.0.0 is installed", from)
	if got, want := p.do("cat /run/labelled"), "-u system_u -r object_r -t container_runtime_exec_t /usr/local/bin/podo.podo-new\n"; got != want {
		t.Errorf("chcon %s, want %s", got, want)
	}
	selinux("Disabled", notes)
	p.must("podo 1.0.0 is installed", from)
	p.do("[ ! -e /run/labelled ]")
}

// TestOpenRC has OpenRC itself, as Debian has it, run a podo.
func TestOpenRC(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "openrc")
	p := machine(t, "dist/podo", filepath.Dir(dir))
	unpack := exec.Command("../../scripts/debian", "unpack", dir, "openrc", "librc1", "libeinfo1")
	if out, err := unpack.CombinedOutput(); err != nil && strings.Contains(string(out), "the archive no longer has") {
		t.Skipf("Debian's archive cannot be reached: %s", out)
	} else if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// Debian's reads the scripts for other inits as well.
	p.do("rm -f /etc/init.d/*; for part in etc bin sbin lib; do cp -a " + dir + "/$part/. /$part/; done; ldconfig; mkdir -p /etc/insserv.conf.d; touch /etc/insserv.conf; openrc default 2>&1")
	had := []string{"INSTALL_PODO_SKIP_DOWNLOAD=true"}
	before := p.files()

	p.must("install: starting service podo", had, "--disable", "traefik")
	p.contains(p.do("rc-update show default"), "podo")
	p.contains(p.do("podo kubectl get nodes"), " Ready ")
	p.contains(p.text("/etc/logrotate.d/podo"), "/var/log/podo.log {")
	p.contains(p.text("/var/log/podo.log"), "node box is Ready")
	p.must("nothing differs", had, "--disable", "traefik")

	// The supervisor is the parent of podo.
	pid := func() int {
		supervisor := strings.TrimSpace(p.text("/run/podo.pid"))
		out, _ := p.sh(nil, "cat /proc/"+supervisor+"/task/*/children")
		n, _ := strconv.Atoi(strings.TrimSpace(out))
		return n
	}
	first := pid()
	p.do("kill -9 " + strconv.Itoa(first))
	for end := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		if now := pid(); now != 0 && now != first {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("podo was killed, and is not started again:\n%s", p.text("/var/log/podo.log"))
		}
	}
	p.refused(1, "the one before it is in place again, and runs", had, "--clustr-cidr", "10.1.0.0/16")

	p.do("rc-service podo stop")
	p.do("! rc-service podo status && ! pgrep -x podo && pgrep -f containerd-shim") // pods outlive podo
	p.do("rc-service podo start && openrc shutdown 2>&1")
	p.do("! pgrep -x podo && ! pgrep -f containerd-shim") // but not the machine

	p.contains(p.do("podo-uninstall.sh"), "nothing is left of podo")
	after := p.files()
	for path := range before {
		delete(after, path)
	}
	if len(after) > 0 {
		t.Errorf("uninstalling left %v", after)
	}
	p.do("[ ! -e /var/log/podo.log ] && ! rc-update show default | grep podo")
}
