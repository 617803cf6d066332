package host

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// A Change is something about the machine that Prepare altered. It lasts until the
// machine reboots, unless it is in a Ledger and put back.
type Change struct {
	What string `json:"what"`
	Old  string `json:"old"`
	New  string `json:"new"`
}

// Prepare makes the machine fit for a node where it may: it loads kernel modules,
// sets kernel parameters, which go into the ledger, and shares the mounts below /. It
// returns what it changed, and a finding for each thing that is wrong and that it could not
// change.
func Prepare(ctx context.Context, f Facts, s Settings, ledger Ledger, log *slog.Logger) ([]Change, []Finding) {
	p := preparer{
		root:     "",
		facts:    f,
		settings: s,
		ledger:   ledger,
		modprobe: modprobe,
		share:    func() error { return syscall.Mount("", "/", "", syscall.MS_SHARED|syscall.MS_REC, "") },
	}
	p.run(ctx)
	report(p.changes, log)
	return p.changes, p.findings
}

func report(changes []Change, log *slog.Logger) {
	for _, c := range changes {
		log.Debug("machine changed", "what", c.What, "old", c.Old, "new", c.New)
	}
	if len(changes) > 0 {
		log.Info("machine prepared", "changes", len(changes))
	}
}

type preparer struct {
	root     root
	facts    Facts
	settings Settings
	ledger   Ledger
	modprobe func(context.Context, string) error
	share    func() error

	changes  []Change
	findings []Finding
	unnoted  error // why the ledger lacks some of the changes
}

func (p *preparer) run(ctx context.Context) {
	// Modules first: some parameters exist only once they are loaded.
	for _, m := range []string{"overlay", "nf_conntrack", "br_netfilter"} {
		p.load(ctx, m)
	}
	for _, want := range parameters() {
		if want.ipv6 && !p.settings.IPv6 {
			continue
		}
		if want.name == "net.ipv6.conf.all.forwarding" {
			p.keepRouterAdvertisements(want)
		}
		p.set(want)
	}
	if p.unnoted != nil {
		p.findings = append(p.findings, Finding{"kernel parameters", Warn, p.unnoted.Error(), "make that file writable, or note their values yourself"})
	}
	p.shareMounts()
}

func (p *preparer) load(ctx context.Context, module string) {
	switch p.facts.Kernel.Features[module] {
	case Present, Absent:
		return
	}
	err := p.modprobe(ctx, module)
	if err == nil {
		p.changes = append(p.changes, Change{"kernel module " + module, "not loaded", "loaded"})
		return
	}
	// The kernel loads the others by itself when they are used.
	if module == "br_netfilter" && !p.root.working(module) {
		p.findings = append(p.findings, Finding{"kernel features", Warn,
			"br_netfilter is not loaded (" + err.Error() + "): a pod cannot reach a service whose pod is on the same node",
			"on the machine: modprobe br_netfilter, and put its name in a file in /etc/modules-load.d"})
	}
}

func (p *preparer) set(want parameter) {
	have := p.root.line(sysctlPath(want.name))
	if have == "" || want.met(have) {
		return
	}
	if want.kubelet && p.settings.ProtectKernelDefaults {
		p.findings = append(p.findings, p.facts.unmet(want, have))
		return
	}
	if err := p.change(want.want, p.root.besides(want.name)...); err != nil {
		p.findings = append(p.findings, p.facts.unmet(want, have))
		return
	}
	// The kernel may take a value and cap it.
	now := p.root.line(sysctlPath(want.name))
	p.changes = append(p.changes, Change{want.name, have, now})
	if !want.met(now) {
		p.findings = append(p.findings, p.facts.unmet(want, now))
	}
}

// change sets the first of files, and notes what all of them were.
func (p *preparer) change(to string, files ...string) error {
	var failed error
	if err := p.ledger.Change(files, func() error {
		failed = os.WriteFile(p.root.path(files[0]), []byte(to), 0o644)
		return nil
	}); err != nil {
		p.unnoted = err
	}
	return failed
}

// keepRouterAdvertisements lets the machine keep a default route that it learned
// from its router: turning forwarding on drops such routes unless accept_ra is 2
// (kernel docs, ip-sysctl.rst).
func (p *preparer) keepRouterAdvertisements(forwarding parameter) {
	if forwarding.met(p.root.line(sysctlPath(forwarding.name))) {
		return
	}
	link := p.facts.Network.V6.Interface
	if link == "" || !p.facts.Network.V6.Default {
		return
	}
	// A file, not a dotted name: interface names may have dots.
	file := "/proc/sys/net/ipv6/conf/" + link + "/accept_ra"
	if p.root.line(file) != "1" {
		return
	}
	if err := p.change("2", file); err != nil {
		p.findings = append(p.findings, Finding{"kernel parameters", Warn,
			"net.ipv6.conf." + link + ".accept_ra is 1: the IPv6 default route is lost when forwarding is turned on", "on the machine: sysctl -w net.ipv6.conf." + link + ".accept_ra=2"})
		return
	}
	p.changes = append(p.changes, Change{"net.ipv6.conf." + link + ".accept_ra", "1", "2"})
}

func (p *preparer) shareMounts() {
	if p.facts.SharedRoot || p.settings.ControlPlaneOnly {
		return
	}
	if err := p.share(); err != nil {
		f := p.facts
		f.Privilege.Caps = 0 // it was tried
		p.findings = append(p.findings, f.checkPropagation())
		return
	}
	p.changes = append(p.changes, Change{"propagation of mounts below /", "private", "shared"})
}

// modprobe runs the machine's own, which knows how its modules are packed.
func modprobe(ctx context.Context, module string) error {
	for _, program := range []string{"/sbin/modprobe", "/usr/sbin/modprobe", "/bin/modprobe", "/usr/bin/modprobe"} {
		if info, err := os.Stat(program); err != nil || info.Mode()&0o111 == 0 {
			continue
		}
		cmd := exec.CommandContext(ctx, program, "--", module)
		cmd.Env = []string{}
		if said, err := cmd.CombinedOutput(); err != nil {
			first, _, _ := strings.Cut(strings.TrimSpace(string(said)), "\n")
			return fmt.Errorf("%s: %w: %s", program, err, first)
		}
		return nil
	}
	return fmt.Errorf("no modprobe here")
}
