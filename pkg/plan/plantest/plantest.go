// Package plantest makes plans for tests out of text, and compares outcomes with it.
//
// A case is a txtar archive. Its file "settings" holds lines of "name: value", as
// a configuration file would; "host" is JSON in the shape of host.Facts, laid over
// an ordinary machine, where "Lacks" names capabilities that podo does not have
// there. What is expected comes last, in "want", and is rewritten by -update.
package plantest

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/host"
	"github.com/podo-dev/podo/pkg/plan"
)

// updateFlag is the flag that makes Golden write what it got.
const updateFlag = "update"

// Flags defines -update. A test binary calls it from TestMain.
func Flags() { flag.Bool(updateFlag, false, "rewrite what golden files want") }

// A Case is one archive.
type Case struct {
	t       *testing.T
	file    string
	archive *txtar.Archive
}

// Each runs test for every archive that matches pattern, under the archive's name.
func Each(t *testing.T, pattern string, test func(t *testing.T, c Case)) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: no cases (%v)", pattern, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			test(t, Case{t, file, archive})
		})
	}
}

// Plan is what the settings come to on the host of the case.
func (c Case) Plan() (plan.Plan, error) {
	c.t.Helper()
	cfg := config.Default()
	if _, err := config.Resolve(&cfg, c.settings()); err != nil {
		return plan.Plan{}, err
	}
	return plan.New(cfg, c.facts(), c.known(), strings.Fields(c.text("environment")))
}

// known reads the file "known": the kind of the datastore, then members to join.
func (c Case) known() plan.Known {
	words := strings.Fields(c.text("known"))
	if len(words) == 0 {
		return plan.Known{}
	}
	return plan.Known{Datastore: strings.TrimPrefix(words[0], "none"), Members: words[1:]}
}

// Got compares text with the file "want", line by line.
func (c Case) Got(text string) {
	c.t.Helper()
	if len(c.archive.Files) == 0 || c.archive.Files[len(c.archive.Files)-1].Name != "want" {
		c.t.Fatalf("%s: its last file is not want", c.file)
	}
	want := &c.archive.Files[len(c.archive.Files)-1]
	if text == string(want.Data) {
		return
	}
	if f := flag.Lookup(updateFlag); f == nil || f.Value.String() != "true" {
		c.t.Errorf("%s: want and got differ; if got is right, run this test with -update\n%s", c.file, Difference(strings.Split(string(want.Data), "\n"), strings.Split(text, "\n")))
		return
	}
	if os.Getenv("CI") != "" {
		c.t.Fatalf("%s: golden files are not written in CI", c.file)
	}
	want.Data = []byte(text)
	if err := os.WriteFile(c.file, txtar.Format(c.archive), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

func (c Case) text(name string) string {
	for _, f := range c.archive.Files {
		if f.Name == name {
			return string(f.Data)
		}
	}
	return ""
}

func (c Case) settings() []config.Setting {
	c.t.Helper()
	var out []config.Setting
	seen := map[string]bool{}
	for i, line := range strings.Split(c.text("settings"), "\n") {
		if strings.TrimSpace(line) == "" {
			continue
		}
		name, value, ok := strings.Cut(line, ": ")
		if !ok {
			c.t.Fatalf("%s: setting %q is not name: value", c.file, line)
		}
		if seen[name] {
			name += "+"
		}
		seen[name] = true
		out = append(out, config.Setting{Name: name, Values: []string{strings.TrimSpace(value)}, Origin: fmt.Sprintf("settings:%d", i+1)})
	}
	return out
}

func (c Case) facts() host.Facts {
	c.t.Helper()
	f := Machine()
	over := struct {
		*host.Facts
		Lacks []string
	}{Facts: &f}
	if text := c.text("host"); text != "" {
		d := json.NewDecoder(bytes.NewReader([]byte(text)))
		d.DisallowUnknownFields()
		if err := d.Decode(&over); err != nil {
			c.t.Fatalf("%s: host: %v", c.file, err)
		}
	}
	for _, name := range over.Lacks {
		number, known := map[string]int{"CAP_SYS_RESOURCE": host.CapSysResource, "CAP_SYS_ADMIN": host.CapSysAdmin}[name]
		if !known {
			c.t.Fatalf("%s: host: no capability %q", c.file, name)
		}
		f.Privilege.Caps &^= 1 << number
	}
	return f
}

// Machine is an ordinary one: a recent kernel with systemd and one network card.
func Machine() host.Facts {
	addr := netip.MustParseAddr("192.0.2.10")
	return host.Facts{
		Hostname:  "box",
		Systemd:   true,
		Kernel:    host.Kernel{Release: "6.12.0", Major: 6, Minor: 12},
		Cgroup:    host.Cgroup{Mode: host.CgroupV2, Unified: "/sys/fs/cgroup", Writable: true, Driver: "systemd"},
		Privilege: host.Privilege{Root: true, Caps: 1<<41 - 1},
		Network: host.Network{
			V4:    host.Route{Interface: "eth0", Addr: addr, Default: true},
			Links: []host.Link{{Name: "eth0", Index: 2, MTU: 1500, Addrs: []netip.Prefix{netip.PrefixFrom(addr, 24)}}},
		},
		Resolver: host.Resolver{File: "/etc/resolv.conf", Servers: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
		Security: host.Security{AppArmor: true},
	}
}

// Difference lists the lines that only want has, behind a minus sign, and those
// that only got has, behind a plus sign.
func Difference(want, got []string) string {
	// common[i][j] is how many lines want[i:] and got[j:] share, in order.
	common := make([][]int, len(want)+1)
	for i := range common {
		common[i] = make([]int, len(got)+1)
	}
	for i := len(want) - 1; i >= 0; i-- {
		for j := len(got) - 1; j >= 0; j-- {
			if want[i] == got[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var out strings.Builder
	for i, j := 0, 0; i < len(want) || j < len(got); {
		switch {
		case i < len(want) && j < len(got) && want[i] == got[j]:
			i, j = i+1, j+1
		case j == len(got) || i < len(want) && common[i+1][j] >= common[i][j+1]:
			fmt.Fprintf(&out, "- %s\n", want[i])
			i++
		default:
			fmt.Fprintf(&out, "+ %s\n", got[j])
			j++
		}
	}
	return out.String()
}
