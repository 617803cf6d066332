// Package install tests install.sh as people use it: piped into each shell that it is
// for, on machines of their own, from mirrors that are good and from ones that are not.
//
// They need PODO_E2E=1, which make test sets. OpenRC runs there as it does elsewhere;
// systemd, which would have to be a machine's first process, is played: tests/guests has it.
package install

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

func TestMain(m *testing.M) {
	hosts.Main()
	os.Exit(m.Run())
}

// The mirror has two versions: podo as it is built, and before that podo without its
// payload, which is another file that runs.
const (
	older = "0.1.0"
	newer = "0.2.0+test1"
)

// A mirror serves what install.sh downloads below /good/, and the newer version in a
// damaged way below other names.
type mirror struct {
	programs map[string]string // files, by version
	sums     map[string]string
	key      *ecdsa.PrivateKey
}

func newMirror(t *testing.T, root string) *mirror {
	m := &mirror{
		programs: map[string]string{older: filepath.Join(root, "dist/cache/podo"), newer: filepath.Join(root, "dist/podo")},
		sums:     map[string]string{},
	}
	for version, file := range m.programs {
		m.sums[version] = sum(t, file)
	}
	var err error
	if m.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	return m
}

func sum(t *testing.T, file string) string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// What is served as a program and is none: a text, and a program of a machine that podo is
// not built for.
var foreign = map[string][]byte{"foreign": []byte("no program\n"), "alien": alien()}

// alien is the beginning of an ELF file for RISC-V.
func alien() []byte {
	header := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_RISCV), Version: 1, Ehsize: 64, Phentsize: 56}
	copy(header.Ident[:], elf.ELFMAG+"\x02\x01\x01")
	var out bytes.Buffer
	_ = binary.Write(&out, binary.LittleEndian, header)
	return append(out.Bytes(), "\n>/opt/ran\n"...) // should a shell take it for a script
}

func (m *mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	part := strings.Split(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if len(part) != 3 {
		http.NotFound(w, r)
		return
	}
	how, version, name := part[0], part[1], part[2]
	if version == "channels" {
		if how == "portal" {
			fmt.Fprintln(w, "<html>Please log in</html>")
			return
		}
		fmt.Fprintln(w, map[string]string{"stable": newer}[name])
		return
	}
	program := m.programs[version]
	sums := fmt.Sprintf("%s  podo\n%064x  podo-arm64\n", m.sums[version], 1)
	switch how {
	case "damaged":
		sums = fmt.Sprintf("%064x  podo\n", 7)
	case "foreign", "alien":
		sums = fmt.Sprintf("%x  podo\n", sha256.Sum256(foreign[how]))
	case "unlisted":
		sums = "<html>Not here</html>"
	}
	switch {
	case program == "" || how == "missing" && name == "podo":
		http.NotFound(w, r)
	case how == "loop":
		http.Redirect(w, r, r.URL.Path, http.StatusFound)
	case name == "podo" && how == "truncated":
		w.Header().Set("Content-Length", "200000000")
		_, _ = w.Write(make([]byte, 1<<20))
	case name == "podo" && how == "slow":
		w.Header().Set("Content-Length", "200000000")
		_, _ = w.Write(make([]byte, 1<<10))
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	case name == "podo" && foreign[how] != nil:
		_, _ = w.Write(foreign[how])
	case name == "podo":
		http.ServeFile(w, r, program)
	case strings.HasSuffix(name, ".txt"):
		fmt.Fprint(w, sums)
	case strings.HasSuffix(name, ".sig"):
		digest := sha256.Sum256([]byte(sums))
		sig, err := ecdsa.SignASN1(rand.Reader, m.key, digest[:])
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = w.Write(sig)
	}
}

// A place is a machine, and a shell on it.
type place struct {
	*testing.T
	host  *hosts.Host
	shell []string // reads its script from standard input
	url   string
}

// run runs install.sh, and returns what it said and its exit code.
func (p *place) run(env []string, args ...string) (string, int) {
	p.Helper()
	script, err := os.ReadFile("../../install.sh")
	if err != nil {
		p.Fatal(err)
	}
	return p.sh(env, "exec 2>&1\n"+string(script), append([]string{"-s", "-"}, args...)...)
}

func (p *place) sh(env []string, script string, args ...string) (string, int) {
	p.Helper()
	out, err := p.host.RunCommand(hosts.Command{
		Args: slices.Concat(p.shell, args), Env: env, Stdin: script, Timeout: 5 * time.Minute,
	})
	var exit *hosts.ExitError
	switch {
	case errors.As(err, &exit):
		return out + exit.Stderr, exit.Code
	case err != nil:
		p.Fatal(err)
	}
	return out, 0
}

// from says where to install from: a way of the mirror's, or file://.
func (p *place) from(how, version string, more ...string) []string {
	return append([]string{"INSTALL_PODO_ARTIFACT_URL=" + p.url + "/" + how, "INSTALL_PODO_VERSION=" + version}, more...)
}

func (p *place) must(want string, env []string, args ...string) {
	p.Helper()
	if out, code := p.run(env, args...); code != 0 || !strings.Contains(out, want) {
		p.Fatalf("install.sh with %q: exit code %d, want 0 and %q:\n%s", env, code, want, out)
	}
}

// refused has install.sh end with a code and a word, and leave everything as it was.
func (p *place) refused(code int, word string, env []string, args ...string) {
	p.Helper()
	before := p.files()
	began := time.Now()
	out, got := p.run(env, args...)
	if got != code || !strings.Contains(out, word) {
		p.Errorf("install.sh with %q %q: exit code %d, want %d and %q:\n%s", env, args, got, code, word, out)
	}
	if strings.Count(out, "\n") > 24 {
		p.Errorf("it says too much:\n%s", out)
	}
	if took := time.Since(began); took > 3*time.Minute {
		p.Errorf("it took %s", took)
	}
	after := p.files()
	if !maps.Equal(before, after) {
		p.Errorf("install.sh with %q changed something:\n%s", env, difference(before, after))
	}
}

// difference names what two looks at the files have not in common.
func difference(before, after map[string]string) string {
	var out strings.Builder
	for path, was := range before {
		if after[path] != was {
			fmt.Fprintf(&out, "- %s %s\n", path, was)
		}
	}
	for path, is := range after {
		if before[path] != is {
			fmt.Fprintf(&out, "+ %s %s\n", path, is)
		}
	}
	return out.String()
}

// files are all that install.sh could have touched: modes, times, sizes and i-nodes.
func (p *place) files() map[string]string {
	p.Helper()
	out := map[string]string{}
	for _, top := range []string{"/usr/local/bin", "/opt", "/etc/podo", "/etc/systemd", "/etc/init.d", "/etc/logrotate.d", "/tmp"} {
		root := p.host.Path(top)
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) && path == root {
				return fs.SkipAll
			}
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			what := fmt.Sprint(info.Mode())
			if !d.IsDir() && d.Name() != "kernel-parameters" { // which each start of podo writes anew
				what = fmt.Sprint(info.Mode(), info.Size(), info.ModTime(), info.Sys().(*syscall.Stat_t).Ino)
			}
			out[top+strings.TrimPrefix(path, root)] = what
			return nil
		})
		if err != nil {
			p.Fatal(err)
		}
	}
	return out
}

func (p *place) has(path, want string) {
	p.Helper()
	if got := sum(p.T, p.host.Path(path)); got != want {
		p.Errorf("%s is another file", path)
	}
}

func TestInstall(t *testing.T) {
	t.Parallel()
	if os.Getenv("PODO_E2E") != "1" {
		t.Skip("makes machines on this one; set PODO_E2E=1 to allow that")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	busybox := userland(t, root)
	m := newMirror(t, root)
	for name, where := range map[string]struct {
		shell []string
		lacks []string
	}{
		"bash": {shell: []string{"bash"}},
		"dash": {shell: []string{"dash"}, lacks: []string{"/usr/bin/curl", "/usr/bin/systemctl"}}, // so it is wget that downloads
		"ash":  {shell: []string{busybox + "/env", "PATH=" + busybox, "ash"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := hosts.NewNetwork(t, hosts.Options{Share: []string{busybox}, Logs: os.Getenv("PODO_E2E_LOGS")})
			p := &place{T: t, host: n.Host(name), shell: where.shell, url: "http://10.99.0.1"}
			var l net.Listener
			if err := n.In(func() (err error) { l, err = net.Listen("tcp", "10.99.0.1:80"); return err }); err != nil {
				t.Fatal(err)
			}
			served := make(chan struct{})
			go func() { defer close(served); _ = http.Serve(l, m) }()
			t.Cleanup(func() { l.Close(); <-served })
			if _, err := p.host.Run(append([]string{"rm", "-f", "/usr/local/bin/podo"}, where.lacks...)...); err != nil {
				t.Fatal(err)
			}
			// busybox is static, and could not load what the machine may look up names with.
			if err := os.WriteFile(p.host.Path("/etc/nsswitch.conf"), []byte("hosts: files dns\nservices: files\nprotocols: files\npasswd: files\ngroup: files\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			inputs(p)
			if name == "bash" {
				signed(p, m)
			}
			together(p, m)
			cycle(p, m)
			full(p, m)
			readOnly(p, m)
			words(p)
		})
	}
}

// userland is a folder with nothing but busybox and its links.
func userland(t *testing.T, root string) string {
	t.Helper()
	dir := filepath.Join(root, "dist/cache/tmp/install-busybox")
	t.Cleanup(func() { os.RemoveAll(dir) })
	unpack := exec.Command(filepath.Join(root, "scripts/debian"), "unpack", dir, "busybox-static")
	if out, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	bin := filepath.Join(dir, "bin")
	if out, err := exec.Command(filepath.Join(bin, "busybox"), "--install", "-s", bin).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return bin
}

// inputs are refused on a machine without podo, and leave it so.
func inputs(p *place) {
	good := p.from("good", newer)
	p.refused(2, "INSTALL_PODO_ARTIFACT_URL is not set", nil)
	p.refused(2, "ftp://mirror", []string{"INSTALL_PODO_ARTIFACT_URL=ftp://mirror", "INSTALL_PODO_VERSION=1"})
	p.refused(2, "INSTALL_PODO_VERSON", append(good, "INSTALL_PODO_VERSON=1"))
	p.refused(2, "pull requests", append(good, "INSTALL_PODO_PR=1"))
	p.refused(2, "INSTALL_PODO_SYMLINK", append(good, "INSTALL_PODO_SYMLINK=perhaps"))
	p.refused(2, "INSTALL_PODO_SKIP_START", append(good, "INSTALL_PODO_SKIP_START=1"))
	p.refused(2, "INSTALL_PODO_BIN_DIR", append(good, "INSTALL_PODO_BIN_DIR=bin"))
	p.refused(2, "INSTALL_PODO_BIN_DIR", append(good, "INSTALL_PODO_BIN_DIR=/opt/a b"))
	p.refused(2, "INSTALL_PODO_SYSTEMD_DIR", append(good, "INSTALL_PODO_SYSTEMD_DIR=/opt"))
	p.refused(2, `"cluster"`, append(good, "INSTALL_PODO_EXEC=cluster create"))
	p.refused(2, "quote", append(good, `INSTALL_PODO_EXEC=server --node-label "a=b`))
	p.refused(2, "token", good, "agent", "--server", "https://10.0.0.1:6443")
	p.refused(2, "warning: UNINSTALL_K3S_SH is k3s's", append(good, "UNINSTALL_K3S_SH=/root/away.sh", "INSTALL_PODO_TYPE=a b"))
	p.refused(2, "warning: GITHUB_URL is k3s's", append(good, "GITHUB_URL=http://10.99.0.1", "INSTALL_PODO_TYPE=a b"))
	p.refused(2, "token", append(good, "K3S_URL=https://10.0.0.1:6443"))
	p.refused(2, "PODO_NODE_NAME", append(good, "PODO_NODE_NAME=a\nb"))
	p.refused(2, "/usr/local/bin/podo", append(good, "INSTALL_PODO_SKIP_DOWNLOAD=true"))
	p.refused(1, "does not hold a version", []string{"INSTALL_PODO_ARTIFACT_URL=" + p.url + "/portal"})
	p.refused(1, "404", []string{"INSTALL_PODO_ARTIFACT_URL=" + p.url + "/good", "INSTALL_PODO_VERSION=9.9.9"})
	p.refused(1, "could not download", []string{"INSTALL_PODO_ARTIFACT_URL=http://10.99.0.1:81", "INSTALL_PODO_VERSION=1"})
	p.refused(1, "could not download", []string{"INSTALL_PODO_ARTIFACT_URL=file:///nowhere", "INSTALL_PODO_VERSION=1"})
	p.refused(1, "/proc/podo", append(good, "INSTALL_PODO_BIN_DIR=/proc/podo"))
}

// signed wants a signature of the right key.
func signed(p *place, m *mirror) {
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.Fatal(err)
	}
	for name, key := range map[string]*ecdsa.PrivateKey{"right": m.key, "wrong": other} {
		der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
		if err != nil {
			p.Fatal(err)
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
		if err := os.WriteFile(p.host.Path("/root/"+name), text, 0o644); err != nil {
			p.Fatal(err)
		}
	}
	p.refused(1, "is not signed", p.from("good", older, "INSTALL_PODO_PUBLIC_KEY=/root/wrong"))
	p.must("is installed", p.from("good", older, "INSTALL_PODO_PUBLIC_KEY=/root/right"))
	if out, err := p.host.Run("podo-uninstall.sh"); err != nil {
		p.Errorf("podo-uninstall.sh: %v\n%s", err, out)
	}
}

// cycle installs, meets bad mirrors, installs again, upgrades and uninstalls.
func cycle(p *place, m *mirror) {
	empty := p.files()
	p.must("is installed", p.from("good", older, "INSTALL_PODO_SYMLINK=force")) // whatever the machine has already
	p.has("/usr/local/bin/podo", m.sums[older])
	if to, err := os.Readlink(p.host.Path("/usr/local/bin/kubectl")); to != "podo" {
		p.Errorf("kubectl leads to %q, %v", to, err)
	}
	bad := map[string]string{
		"missing": "could not download", "truncated": "could not download", "slow": "could not download", "loop": "could not download",
		"damaged": "is damaged", "foreign": "does not run on this machine", "alien": "does not run on this machine", "unlisted": "has no checksum",
	}
	for how, word := range bad {
		p.refused(1, word, p.from(how, newer))
	}
	if out, err := p.host.Run("podo", "version"); err != nil {
		p.Errorf("the podo from before: %v\n%s", err, out)
	}

	before := p.files()
	p.must("already", p.from("good", older))
	if after := p.files(); !maps.Equal(before, after) {
		p.Errorf("a second run changed something:\n%s", difference(before, after))
	}
	p.must("is installed", []string{"INSTALL_PODO_ARTIFACT_URL=" + p.url + "/good/"}) // of the stable channel
	p.has("/usr/local/bin/podo", m.sums[newer])

	if out, err := p.host.Run("podo-uninstall.sh"); err != nil || !strings.Contains(out, "nothing is left of podo") {
		p.Errorf("podo-uninstall.sh: %v\n%s", err, out)
	}
	after := p.files()
	for path := range empty {
		delete(after, path)
	}
	if len(after) > 0 {
		p.Errorf("uninstalling left %q", slices.Sorted(maps.Keys(after)))
	}
}

// together has one run wait for another, and go on when that one is killed.
func together(p *place, m *mirror) {
	script, err := os.ReadFile("../../install.sh")
	if err != nil {
		p.Fatal(err)
	}
	const staged = "/usr/local/bin/podo.podo-new"
	first := p.host.StartCommand(hosts.Command{Args: append(p.shell, "-s", "-"), Env: p.from("slow", newer), Stdin: string(script)})
	for tries := 0; ; tries++ {
		if _, err := os.Stat(p.host.Path(staged)); err == nil {
			break
		}
		if tries > 200 {
			p.Fatalf("the first run downloads nothing:\n%s", first.Log())
		}
		time.Sleep(100 * time.Millisecond)
	}
	second := p.host.StartCommand(hosts.Command{Args: append(p.shell, "-s", "-"), Env: p.from("good", older), Stdin: string(script)})
	for tries := 0; !strings.Contains(second.Log(), "waiting for another install.sh"); tries++ {
		if tries > 200 {
			p.Fatalf("the second run does not wait:\n%s", second.Log())
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err := first.Signal(syscall.SIGKILL); err != nil {
		p.Fatal(err)
	}
	if code, err := second.Wait(time.Minute); code != 0 || err != nil {
		p.Fatalf("the second run: exit code %d, %v\n%s", code, err, second.Log())
	}
	p.has("/usr/local/bin/podo", m.sums[older])
	for _, path := range []string{staged, "/run/podo-install.lock"} {
		if _, err := os.Lstat(p.host.Path(path)); !errors.Is(err, fs.ErrNotExist) {
			p.Errorf("%s is left: %v", path, err)
		}
	}
	if out, err := p.host.Run("podo-uninstall.sh"); err != nil {
		p.Errorf("podo-uninstall.sh: %v\n%s", err, out)
	}
	// What the killed run downloaded with may write there yet.
	if out, err := p.host.Run("sh", "-c", "rm -rf /tmp/tmp.*"); err != nil {
		p.Fatal(err, out)
	}
}

// full upgrades on a disk that the newer podo does not fit on beside the older one.
func full(p *place, m *mirror) {
	const dir = "/opt/small"
	if out, err := p.host.Run("mkdir", "-p", dir); err != nil {
		p.Fatal(err, out)
	}
	if out, err := p.host.Run("mount", "-t", "tmpfs", "-o", "size=250m", "tmpfs", dir); err != nil {
		p.Fatal(err, out)
	}
	p.must("is installed", p.from("good", older, "INSTALL_PODO_BIN_DIR="+dir))
	p.refused(1, "could not download", p.from("good", newer, "INSTALL_PODO_BIN_DIR="+dir))
	p.has(dir+"/podo", m.sums[older])
	if out, err := p.host.Run(dir + "/podo-uninstall.sh"); err != nil {
		p.Errorf("podo-uninstall.sh: %v\n%s", err, out)
	}
	left, err := os.ReadDir(p.host.Path(dir))
	if err != nil || len(left) > 0 {
		p.Errorf("%s holds %v, %v", dir, left, err)
	}
}

// readOnly installs where /usr/local is part of an image.
func readOnly(p *place, m *mirror) {
	if out, err := p.host.Run("mount", "-t", "tmpfs", "-o", "ro", "tmpfs", "/usr/local/bin"); err != nil {
		p.Fatal(err, out)
	}
	p.must("is installed", p.from("good", older))
	p.has("/opt/bin/podo", m.sums[older])
	if out, err := p.host.Run("/opt/bin/podo-uninstall.sh"); err != nil {
		p.Errorf("podo-uninstall.sh: %v\n%s", err, out)
	}
	if _, err := os.Lstat(p.host.Path("/opt/bin/podo")); err == nil {
		p.Error("uninstalling left /opt/bin/podo")
	}
	if out, err := p.host.Run("umount", "/usr/local/bin"); err != nil {
		p.Fatal(err, out)
	}
}

// words come through as they were given: to podo, and to its environment.
func words(p *place) {
	const name = "a \"quoted\" $HOME `id` \\ 'word' 100%"
	env := p.from("good", newer, "PODO_NODE_NAME="+name, "K3S_TOKEN=secret", "CONTAINERD_LOG_LEVEL=debug", "HTTPS_PROXY=http://proxy:3128", "HOME_PAGE=no",
		`INSTALL_PODO_EXEC=--node-label 'a=b c' --kubelet-arg "x=$(id);y"`, "INSTALL_PODO_NAME=edge", "INSTALL_PODO_SKIP_ENABLE=true")
	out, code := p.run(env, "--tls-san", "it's")
	if code != 0 {
		p.Fatalf("exit code %d:\n%s", code, out)
	}
	file, command := "/etc/podo/podo-edge.env", out
	if text, err := os.ReadFile(p.host.Path("/etc/systemd/system/podo-edge.service")); err == nil {
		file, command = "/etc/systemd/system/podo-edge.service.env", string(text)
		p.contains(command, `/usr/local/bin/podo server --node-label "a=b c" --kubelet-arg "x=$$(id);y" --tls-san "it's"`+"\n")
	} else {
		p.contains(command, `/usr/local/bin/podo server --node-label 'a=b c' --kubelet-arg 'x=$(id);y' --tls-san 'it'\''s'`+"\n")
	}
	got, code := p.sh(nil, `. `+file+`; printf '%s|%s|%s|%s|%s' "$PODO_NODE_NAME" "$K3S_TOKEN" "$CONTAINERD_LOG_LEVEL" "$HTTPS_PROXY" "${HOME_PAGE-none}"`)
	if want := name + "|secret|debug|http://proxy:3128|none"; got != want || code != 0 {
		p.Errorf("the environment is %s, want %s", got, want)
	}
	if info, err := os.Stat(p.host.Path(file)); err != nil || info.Mode().Perm() != 0o600 {
		p.Errorf("%s: %v, %v; want 0600: it holds tokens", file, info, err)
	}
	if out, err := p.host.Run("podo-uninstall.sh"); err != nil {
		p.Errorf("podo-uninstall.sh: %v\n%s", err, out)
	}
}

func (p *place) contains(text, want string) {
	p.Helper()
	if !strings.Contains(text, want) {
		p.Errorf("no %q in:\n%s", want, text)
	}
}
