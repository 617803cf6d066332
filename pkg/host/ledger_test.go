package host

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func all(string) bool { return true }

// A small kernel: turning forwarding on or off does so for each link, as Linux' does.
type kernel struct {
	*testing.T
	Ledger
}

const (
	forwarding = "/proc/sys/net/ipv4/ip_forward"
	redirects  = "/proc/sys/net/ipv4/conf/all/accept_redirects"
	ofCard     = "/proc/sys/net/ipv4/conf/eth0.7/forwarding"
	ofTunnel   = "/proc/sys/net/ipv4/conf/tun0/forwarding"
	watches    = "/proc/sys/fs/inotify/max_user_watches"
)

func aKernel(t *testing.T) kernel {
	r := tree(t, map[string]string{
		forwarding: "0", redirects: "1", ofCard: "0", ofTunnel: "1", watches: "8192", "/proc/sys/kernel/random/boot_id": "first",
	})
	return kernel{t, Ledger{filepath.Join(t.TempDir(), "podo", "kernel-parameters"), r}}
}

func (k kernel) set(path, to string) {
	k.Helper()
	if err := os.WriteFile(k.root.path(path), []byte(to+"\n"), 0o644); err != nil {
		k.Fatal(err)
	}
}

func (k kernel) forward(to string) {
	k.set(forwarding, to)
	k.set(ofCard, to)
	k.set(ofTunnel, to)
	k.set(redirects, map[string]string{"0": "1", "1": "0"}[to])
}

// start is what podo does to it.
func (k kernel) start() {
	k.Helper()
	if k.root.line(forwarding) != "1" {
		if err := k.Change(k.root.besides("net.ipv4.ip_forward"), func() error { k.forward("1"); return nil }); err != nil {
			k.Fatal(err)
		}
	}
	if err := k.Change([]string{watches}, func() error { k.set(watches, "524288"); return nil }); err != nil {
		k.Fatal(err)
	}
}

func (k kernel) stands(want map[string]string) {
	k.Helper()
	got := map[string]string{}
	for path := range want {
		got[path] = k.root.line(path)
	}
	if !maps.Equal(got, want) {
		k.Errorf("got %v, want %v", got, want)
	}
}

// changed is what an uninstall would find.
func (k kernel) changed(want ...string) {
	k.Helper()
	found, err := k.Changed(all)
	var got []string
	for _, c := range found {
		got = append(got, c.What)
	}
	slices.Sort(got)
	slices.Sort(want)
	if err != nil || !slices.Equal(got, want) {
		k.Errorf("changed: %v, %v; want %v", got, err, want)
	}
}

func (k kernel) putBack() {
	k.Helper()
	if _, err := k.PutBack(all); err != nil {
		k.Fatal(err)
	}
	if _, err := os.Lstat(k.file); !errors.Is(err, os.ErrNotExist) {
		k.Errorf("the ledger is left: %v", err)
	}
}

func TestLedgerPutsBack(t *testing.T) {
	before := map[string]string{forwarding: "0", redirects: "1", ofCard: "0", ofTunnel: "1", watches: "8192"}
	k := aKernel(t)
	k.changed()
	k.start()
	k.start() // what it was at first stays
	k.changed(forwarding, redirects, ofCard, watches)
	k.putBack()
	k.stands(before)
	k.changed()
	k.putBack() // where nothing is
}

// A start may be killed before it knows what its change came to.
func TestLedgerOfAKilledStart(t *testing.T) {
	k := aKernel(t)
	var then []byte
	if err := k.Change([]string{watches}, func() (err error) {
		k.set(watches, "524288")
		then, err = os.ReadFile(k.file)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(k.file, then, 0o644); err != nil {
		t.Fatal(err)
	}
	k.changed(watches)
	k.start()
	k.putBack()
	k.stands(map[string]string{forwarding: "0", watches: "8192"})
}

// What somebody else set is theirs, before podo and after.
func TestLedgerKnowsWhoseItIs(t *testing.T) {
	k := aKernel(t)
	k.start()
	k.set(watches, "9000000")
	k.forward("0")
	k.changed()
	k.start() // podo raises what is too low, once more
	k.changed(forwarding, redirects, ofCard, ofTunnel, watches)
	k.putBack()
	k.stands(map[string]string{forwarding: "0", redirects: "1", ofCard: "0", ofTunnel: "0", watches: "9000000"})

	k.start()
	k.set(watches, "1")
	k.putBack()
	k.stands(map[string]string{forwarding: "0", watches: "1"})
}

// A boot sets all of them anew, be it to what podo would set.
func TestLedgerLastsForABoot(t *testing.T) {
	k := aKernel(t)
	k.start()
	k.set("/proc/sys/kernel/random/boot_id", "second")
	k.changed()
	k.start() // watches are as podo wants them
	k.changed()
	k.putBack()
	k.stands(map[string]string{forwarding: "1", watches: "524288"})
}

func TestLedgerLeavesWhatItMayNot(t *testing.T) {
	k := aKernel(t)
	k.start()
	if n, err := k.PutBack(OfNetwork); err != nil || n == 0 {
		t.Errorf("put %d back, %v", n, err)
	}
	k.stands(map[string]string{forwarding: "0", watches: "524288"})
}

// What the machine's own files say, in whichever spelling, would be so again after a boot.
func TestLedgerLeavesWhatFilesSay(t *testing.T) {
	for name, text := range map[string]string{
		"etc/sysctl.conf":              "# for virtual machines\nnet.ipv4.ip_forward=1\n",
		"etc/sysctl.d/60-libvirt.conf": "-net/ipv4/ip_forward = 1",
		"usr/lib/sysctl.d/all.conf":    "\n;none\nnet.ipv4.ip_*=1\n",
		"etc/ufw/sysctl.conf":          "net/ipv4/ip_forward=1\n",
	} {
		t.Run(name, func(t *testing.T) {
			k := aKernel(t)
			k.start()
			path := k.root.path(name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
				t.Fatal(err)
			}
			k.changed(watches)
			k.putBack()
			k.stands(map[string]string{forwarding: "1", redirects: "0", ofCard: "1", ofTunnel: "1", watches: "8192"})
		})
	}
	k := aKernel(t)
	k.start()
	if err := errors.Join(os.MkdirAll(k.root.path("etc"), 0o755), os.WriteFile(k.root.path("etc/sysctl.conf"), []byte("net.ipv4.ip_forward=0\n#fs.inotify.max_user_watches=524288\nnonsense\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	k.putBack()
	k.stands(map[string]string{forwarding: "0", watches: "8192"})
}

func TestLedgerThatCannotBeWritten(t *testing.T) {
	k := aKernel(t)
	if err := os.WriteFile(filepath.Dir(k.file), nil, 0o644); err != nil { // a file where the folder would be
		t.Fatal(err)
	}
	did := false
	err := k.Change([]string{watches}, func() error { did = true; k.set(watches, "1"); return nil })
	if !did || !errors.Is(err, ErrUnnoted) {
		t.Errorf("changed: %t, err = %v", did, err)
	}
}
