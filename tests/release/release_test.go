package release

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/pkg/payload"
	"github.com/podo-dev/podo/tests/hosts"
)

// made is dist/release and the version that it has others install.
func made(t *testing.T) (dir, version string) {
	t.Helper()
	if os.Getenv("PODO_RELEASE") != "1" {
		t.Skip("needs what make release makes; set PODO_RELEASE=1 if that is there")
	}
	dir = filepath.Join(checkout(t), "dist/release")
	channel, err := os.ReadFile(filepath.Join(dir, "channels/stable"))
	if err != nil {
		t.Fatalf("make release comes first: %v", err)
	}
	version = strings.TrimSpace(string(channel))
	return filepath.Join(dir, version), version
}

// programs are the release's, by Debian's names of their architectures.
func programs(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for arch, name := range map[string]string{"amd64": "podo", "arm64": "podo-arm64", "armhf": "podo-armhf"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			out[arch] = filepath.Join(dir, name)
		}
	}
	if len(out) == 0 {
		t.Fatalf("%s holds no podo", dir)
	}
	return out
}

// TestChecksums compares every file that is listed, and misses none.
func TestChecksums(t *testing.T) {
	dir, _ := made(t)
	listed := map[string]bool{}
	for arch := range programs(t, dir) {
		list := "sha256sum-" + arch + ".txt"
		listed[list], listed[list+".sig"] = true, true
		cmd := exec.Command("sha256sum", "--check", "--strict", list)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%v: %s", err, out)
		}
		for line := range strings.Lines(string(out)) {
			name, _, _ := strings.Cut(line, ": ")
			listed[name] = true
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !listed[f.Name()] {
			t.Errorf("%s has no checksum", f.Name())
		}
	}
}

// publicKey is a file with what verifies the key that KEY names, if it names one and the
// release is signed.
func publicKey(t *testing.T, mirror string) (file string, signed bool) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(mirror, "install.sh.sig")); err != nil {
		return "", false
	}
	key := os.Getenv("KEY")
	if key == "" {
		return "", true
	}
	file = filepath.Join(t.TempDir(), "podo.pub")
	if out, err := exec.Command("openssl", "pkey", "-in", key, "-pubout", "-out", file).CombinedOutput(); err != nil {
		t.Fatalf("KEY: %v: %s", err, out)
	}
	return file, true
}

// TestSignatures has all that is to be signed verified, or nothing signed at all.
func TestSignatures(t *testing.T) {
	dir, _ := made(t)
	mirror := filepath.Dir(dir)
	key, signed := publicKey(t, mirror)
	if signed && key == "" {
		t.Skip("the release is signed; KEY=FILE says with what")
	}
	files := []string{filepath.Join(mirror, "install.sh")}
	for arch := range programs(t, dir) {
		files = append(files, filepath.Join(dir, "sha256sum-"+arch+".txt"))
	}
	for _, file := range files {
		_, err := os.Stat(file + ".sig")
		if !signed {
			if err == nil {
				t.Errorf("%s is signed, and the rest is not", file)
			}
			continue
		}
		if out, err := exec.Command("openssl", "dgst", "-sha256", "-verify", key, "-signature", file+".sig", file).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", file, err, out)
		}
	}
}

// TestAirgap reads the archive of podo's own images for what its list names.
func TestAirgap(t *testing.T) {
	dir, _ := made(t)
	for arch := range programs(t, dir) {
		name := filepath.Join(dir, "podo-airgap-images-"+arch)
		index, err := exec.Command("tar", "--zstd", "-xOf", name+".tar.zst", "index.json").Output()
		if err != nil {
			t.Fatalf("%s.tar.zst: %v", name, err)
		}
		list, err := os.ReadFile(name + ".txt")
		if err != nil {
			t.Fatal(err)
		}
		images := strings.Fields(string(list))
		if len(images) < 3 {
			t.Errorf("%s.txt names %q", name, images)
		}
		for _, image := range images {
			if !strings.Contains(string(index), `"`+image+`"`) {
				t.Errorf("%s.tar.zst: no %s in %s", name, image, index)
			}
		}
	}
}

// A document is what the test reads of one of SPDX.
type document struct {
	ID       string `json:"SPDXID"`
	Packages []struct {
		ID   string `json:"SPDXID"`
		Refs []struct {
			Locator string `json:"referenceLocator"`
		} `json:"externalRefs"`
	} `json:"packages"`
	Relationships []struct {
		From string `json:"spdxElementId"`
		To   string `json:"relatedSpdxElement"`
	} `json:"relationships"`
}

// TestBillOfMaterials holds the SPDX document against what the program says of itself.
func TestBillOfMaterials(t *testing.T) {
	dir, _ := made(t)
	for arch, program := range programs(t, dir) {
		text, err := os.ReadFile(filepath.Join(dir, "podo-"+arch+".spdx.json"))
		if err != nil {
			t.Fatal(err)
		}
		var doc document
		if err := json.Unmarshal(text, &doc); err != nil {
			t.Fatal(err)
		}
		ids := map[string]bool{doc.ID: true}
		packages := map[string]bool{}
		for _, p := range doc.Packages {
			if ids[p.ID] {
				t.Errorf("%s: two are called %s", arch, p.ID)
			}
			ids[p.ID] = true
			for _, r := range p.Refs {
				name, _, _ := strings.Cut(r.Locator, "@")
				packages[name] = true
			}
		}
		for _, r := range doc.Relationships {
			if !ids[r.From] || !ids[r.To] {
				t.Errorf("%s: nothing is called %s or %s", arch, r.From, r.To)
			}
		}
		info, err := buildinfo.ReadFile(program)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range info.Deps {
			if d.Replace != nil {
				d = d.Replace
			}
			if !packages["pkg:golang/"+d.Path] {
				t.Errorf("%s: %s is linked in and not listed", arch, d.Path)
			}
		}
		parts, err := payload.Components(program)
		if err != nil {
			t.Fatal(err)
		}
		notices, err := os.ReadFile(filepath.Join(dir, "podo-"+arch+"-licenses.txt"))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range parts {
			name, isDebian := strings.CutPrefix(p.Source, "debian:")
			if isDebian && (!packages["pkg:deb/debian/"+name] || !strings.Contains(string(notices), "Debian's "+name+" ")) {
				t.Errorf("%s: %s is inside and not listed", arch, name)
			}
			if !isDebian && strings.Contains(p.Source, ".") && !strings.Contains(p.Source, ":") && !packages["pkg:golang/"+p.Source] {
				t.Errorf("%s: %s, from %s, is inside and not listed", arch, p.Name, p.Source)
			}
		}
	}
}

// TestInstalls has install.sh install from the folder, on a machine without a network.
func TestInstalls(t *testing.T) {
	dir, version := made(t)
	mirror := filepath.Dir(dir)
	n := hosts.NewNetwork(t, hosts.Options{Share: []string{mirror}, Logs: os.Getenv("PODO_E2E_LOGS")})
	h := n.Host("box")
	env := []string{"INSTALL_PODO_ARTIFACT_URL=file://" + mirror, "INSTALL_PODO_SKIP_ENABLE=true"}
	if key, _ := publicKey(t, mirror); key != "" {
		text, err := os.ReadFile(key)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(h.Path("/root/podo.pub"), text, 0o644); err != nil {
			t.Fatal(err)
		}
		env = append(env, "INSTALL_PODO_PUBLIC_KEY=/root/podo.pub")
	}
	out, err := h.RunCommand(hosts.Command{Args: []string{"sh", filepath.Join(mirror, "install.sh")}, Env: env})
	if err != nil || !strings.Contains(out, "podo "+version) {
		t.Errorf("install.sh: %v\n%s", err, out)
	}
}

// TestOtherArchitectures runs those programs under QEMU: podo as a server until it has
// unpacked its payload, and then what can be run of that. QEMU does not follow a program
// into one that it executes, so the server gets no further.
func TestOtherArchitectures(t *testing.T) {
	dir, version := made(t)
	emulators := map[string]string{"arm64": "qemu-aarch64-static", "armhf": "qemu-arm-static"}
	loaders := map[string]string{"arm64": "ld-linux-aarch64.so.1", "armhf": "ld-linux-armhf.so.3"}
	for arch, program := range programs(t, dir) {
		if arch == runtime.GOARCH {
			continue
		}
		t.Run(arch, func(t *testing.T) {
			n := hosts.NewNetwork(t, hosts.Options{Binary: program, Logs: os.Getenv("PODO_E2E_LOGS")})
			h := n.Host("box")
			says := func(want string, args ...string) {
				t.Helper()
				out, err := h.Run(append([]string{emulators[arch]}, args...)...)
				var exit *hosts.ExitError
				if errors.As(err, &exit) {
					out += exit.Stderr
				}
				if err != nil || !strings.Contains(out, want) {
					t.Errorf("%s: %v, want %q in:\n%s", strings.Join(args, " "), err, want, out)
				}
			}
			says(version, "/usr/local/bin/podo", "version")

			server := h.Start(emulators[arch], "/usr/local/bin/podo", "server")
			const current = "/var/lib/podo/bin/current"
			for end := time.Now().Add(2 * time.Minute); !strings.Contains(server.Log(), "programs unpacked"); time.Sleep(time.Second) {
				if time.Now().After(end) {
					t.Fatalf("podo has not unpacked its payload; it says:\n%s", server.Tail(20))
				}
			}
			compare(t, h, program)
			for _, p := range []struct{ name, flag, want string }{
				{"containerd", "--version", "containerd"}, {"containerd-shim-runc-v2", "-v", "containerd"}, {"runc", "--version", "libseccomp"},
			} {
				says(p.want, current+"/"+p.name, p.flag)
			}
			// QEMU has no netlink of the kind that nft opens, so its libraries must do.
			lib := current + "/lib"
			says("libnftables.so.1 => "+lib, lib+"/"+loaders[arch], "--inhibit-cache", "--library-path", lib, "--preload", lib+"/libnames.so", "--list", lib+"/nft")
		})
	}
}

// compare holds what a host's podo has unpacked against what the program is to hold. The
// rest follows once the node is up, which under QEMU it never is.
func compare(t *testing.T, h *hosts.Host, program string) {
	t.Helper()
	parts, err := payload.Components(program)
	if err != nil {
		t.Fatal(err)
	}
	bin := h.Path("/var/lib/podo/bin")
	folder, err := os.Readlink(filepath.Join(bin, "current"))
	if err != nil {
		t.Fatal(err)
	}
	there := 0
	for _, p := range parts {
		content, err := os.ReadFile(filepath.Join(bin, folder, p.Name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil || fmt.Sprintf("%x", sha256.Sum256(content)) != p.SHA256 {
			t.Errorf("%s was not unpacked as it is: %v", p.Name, err)
		}
		there++
	}
	if least := len(parts) / 2; there < least {
		t.Errorf("%d of %d files were unpacked, want more than half", there, len(parts))
	}
	t.Logf("%d of %d files were unpacked", there, len(parts))
}
