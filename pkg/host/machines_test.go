package host

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/podo-dev/podo/pkg/config"
)

// machine unpacks a recorded machine and discovers it. What a recording cannot
// hold is the same for all of them.
func machine(t *testing.T, archive *txtar.Archive) Facts {
	t.Helper()
	dir := t.TempDir()
	for _, f := range archive.Files {
		path := filepath.Join(dir, f.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f.Data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f, err := Discover(t.Context(), Options{Root: dir, DataDir: "/var/lib/podo"})
	if err != nil {
		t.Fatal(err)
	}
	f.Time, f.CPUs = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), 4
	f.Storage.Total, f.Storage.Free, f.Storage.FreeInodes = 64<<30, 32<<30, 1<<20
	addr := netip.MustParseAddr("192.0.2.10")
	f.Network = Network{
		V4:    Route{Interface: "eth0", Addr: addr, Default: true},
		Links: []Link{{Name: "eth0", Index: 2, MTU: 1500, Addrs: []netip.Prefix{netip.PrefixFrom(addr, 24)}}},
	}
	return f
}

// TestMachines compares what is said about each recorded machine with the last
// file of its recording.
func TestMachines(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no recordings", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			last := &archive.Files[len(archive.Files)-1]
			if last.Name != "want" {
				t.Fatalf("last file is %s, want want", last.Name)
			}
			f := machine(t, archive)
			var got strings.Builder
			fmt.Fprintf(&got, "cgroup %s driver=%s controllers=%s\n", f.Cgroup.Mode, f.Cgroup.Driver, strings.Join(f.Cgroup.Controllers, ","))
			fmt.Fprintf(&got, "systemd=%v container=%q userns=%v tunable=%v snapshotter=%s\n\n", f.Systemd, f.Privilege.Container, f.Privilege.UserNamespace, f.Tunable, f.Storage.Snapshotter())
			for _, finding := range Checks(f, SettingsOf(config.Default())) {
				fmt.Fprintf(&got, "%-4s %s: %s\n", finding.Level, finding.Name, finding.Detail)
				if finding.Remedy != "" {
					fmt.Fprintf(&got, "     -> %s\n", finding.Remedy)
				}
			}
			if flag.Lookup("update").Value.String() == "true" {
				if os.Getenv("CI") != "" {
					t.Fatal("recordings are not updated in CI")
				}
				last.Data = []byte(got.String())
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got.String() != string(last.Data) {
				t.Errorf("got\n%s\nwant\n%s", got.String(), last.Data)
			}
		})
	}
}

func TestMain(m *testing.M) {
	flag.Bool("update", false, "rewrite what recordings want")
	flag.Parse()
	os.Exit(m.Run())
}
