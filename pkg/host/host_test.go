package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/pkg/config"
)

// well is a machine that nothing is wrong with.
func well() Facts {
	addr, addr6 := netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")
	f := Facts{
		Hostname: "node1", MachineID: "x", Time: time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC), CPUs: 4,
		Memory: Memory{Total: 4 << 30}, Systemd: true, SharedRoot: true, Tunable: true,
		Kernel:    Kernel{Release: "6.1.0", Major: 6, Minor: 1, Features: map[string]State{}},
		Cgroup:    Cgroup{Mode: CgroupV2, Unified: "/sys/fs/cgroup", Controllers: []string{"cpu", "cpuset", "io", "memory", "pids"}, Writable: true, Driver: "systemd"},
		Privilege: Privilege{Root: true, Caps: 1<<41 - 1},
		Network: Network{
			V4:    Route{"eth0", addr, true},
			V6:    Route{"eth0", addr6, true},
			Links: []Link{{"eth0", 2, 1500, []netip.Prefix{netip.PrefixFrom(addr, 24), netip.PrefixFrom(addr6, 64)}}},
		},
		Resolver: Resolver{File: "/etc/resolv.conf"},
		Storage:  Storage{DataDir: "/var/lib/podo", Mount: "/", FSType: "ext4", Total: 64 << 30, Free: 32 << 30, FreeInodes: 1 << 20},
		Sysctls:  map[string]string{},
	}
	for _, feature := range features() {
		f.Kernel.Features[feature.module] = Present
	}
	for _, p := range parameters() {
		f.Sysctls[p.name] = p.want
	}
	return f
}

func TestChecks(t *testing.T) {
	tests := map[string]struct {
		facts    func(*Facts)
		settings func(*Settings)
		level    Level
		name     string
		says     []string // in detail or remedy
	}{
		"clock at the epoch":     {facts: func(f *Facts) { f.Time = time.Unix(100, 0) }, level: Fail, name: "clock", says: []string{"1970-01-01", "set the clock"}},
		"called localhost":       {facts: func(f *Facts) { f.Hostname = "localhost" }, level: Warn, name: "node name", says: []string{"--node-name"}},
		"underscore in the name": {facts: func(f *Facts) { f.Hostname = "my_pc" }, level: Fail, name: "node name", says: []string{"my_pc", "--node-name"}},
		"capitals in the name":   {facts: func(f *Facts) { f.Hostname = "MyPC" }, level: OK, name: "node name", says: []string{"mypc"}},
		"old kernel":             {facts: func(f *Facts) { f.Kernel.Major, f.Kernel.Minor = 5, 12 }, level: Fail, name: "kernel", says: []string{"5.13"}},
		"oldest good kernel":     {facts: func(f *Facts) { f.Kernel.Major, f.Kernel.Minor = 5, 13 }, level: OK, name: "kernel"},
		"no address":             {facts: func(f *Facts) { f.Network = Network{} }, level: Fail, name: "node address", says: []string{"ip addr add"}},
		"no default route":       {facts: func(f *Facts) { f.Network.V4.Default = false }, level: Warn, name: "node address", says: []string{"192.0.2.10", "--node-ip"}},
		"given address": {settings: func(s *Settings) { s.NodeIP = []netip.Addr{netip.MustParseAddr("192.0.2.10")} },
			level: OK, name: "node address", says: []string{"eth0"}},
		"given address is elsewhere": {settings: func(s *Settings) { s.NodeIP = []netip.Addr{netip.MustParseAddr("198.51.100.1")} },
			level: Fail, name: "node address", says: []string{"198.51.100.1", "192.0.2.10"}},
		"range of pods overlaps": {settings: func(s *Settings) { s.Ranges = []netip.Prefix{netip.MustParsePrefix("192.0.0.0/16")} },
			level: Fail, name: "address ranges", says: []string{"192.0.0.0/16", "--cluster-cidr"}},
		"no IPv6 for an IPv6 cluster": {facts: func(f *Facts) { f.Network.V6 = Route{} }, settings: func(s *Settings) { s.IPv6 = true },
			level: Fail, name: "IPv6 address"},
		"disk read-only":       {facts: func(f *Facts) { f.Storage.ReadOnly = true }, level: Fail, name: "data directory", says: []string{"--data-dir"}},
		"disk noexec":          {facts: func(f *Facts) { f.Storage.NoExec = true }, level: Fail, name: "data directory", says: []string{"exec"}},
		"disk full":            {facts: func(f *Facts) { f.Storage.Free = 100 << 20 }, level: Fail, name: "data directory", says: []string{"100.0 MiB"}},
		"disk full, of a podo": {facts: func(f *Facts) { f.Storage.Free, f.Storage.Begun = 100<<20, true }, level: Warn, name: "data directory", says: []string{"100.0 MiB", "make room"}},
		"disk nearly full":     {facts: func(f *Facts) { f.Storage.Free = 5 << 30 }, level: Warn, name: "data directory"},
		"inodes used up":       {facts: func(f *Facts) { f.Storage.FreeInodes = 100 }, level: Warn, name: "data directory", says: []string{"inodes"}},
		"inodes not counted":   {facts: func(f *Facts) { f.Storage.FreeInodes, f.Storage.NoInodes = 0, true }, level: OK, name: "data directory"},
		"overlay on overlay":   {facts: func(f *Facts) { f.Storage.Overlay = "stacked" }, level: Fail, name: "snapshotter", says: []string{"--snapshotter=native"}},
		"overlay on overlay, native chosen": {facts: func(f *Facts) { f.Storage.Overlay = "stacked" }, settings: func(s *Settings) { s.Snapshotter = "native" },
			level: OK, name: "snapshotter"},
		"no overlayfs":      {facts: func(f *Facts) { f.Kernel.Features["overlay"] = Absent }, level: Fail, name: "snapshotter"},
		"no control groups": {facts: func(f *Facts) { f.Cgroup = Cgroup{Mode: CgroupNone} }, level: Fail, name: "control groups", says: []string{"mount -t cgroup2"}},
		"no pids controller": {facts: func(f *Facts) { f.Cgroup.Controllers = []string{"cpu", "cpuset", "io", "memory"} },
			level: Warn, name: "controllers", says: []string{"pids"}},
		"no nftables":          {facts: func(f *Facts) { f.Kernel.Features["nf_tables"] = Absent }, level: Fail, name: "kernel features", says: []string{"CONFIG_NF_TABLES"}},
		"nftables without NAT": {facts: func(f *Facts) { f.Kernel.config = map[string]string{"NF_TABLES_IPV4": "y"} }, level: Fail, name: "kernel features", says: []string{"NFT_MASQ"}},
		"no vxlan":             {facts: func(f *Facts) { f.Kernel.Features["vxlan"] = Absent }, level: Fail, name: "kernel features", says: []string{"host-gw"}},
		"no vxlan, host-gw": {facts: func(f *Facts) { f.Kernel.Features["vxlan"] = Absent }, settings: func(s *Settings) { s.FlannelBackend = "host-gw" },
			level: OK, name: "kernel features"},
		"no wireguard, wireguard-native": {facts: func(f *Facts) { f.Kernel.Features["wireguard"] = Absent }, settings: func(s *Settings) { s.FlannelBackend = "wireguard-native" },
			level: Fail, name: "kernel features", says: []string{"wireguard"}},
		"forwarding off, tunable": {facts: func(f *Facts) { f.Sysctls["net.ipv4.ip_forward"] = "0" }, level: OK, name: "kernel parameters", says: []string{"net.ipv4.ip_forward"}},
		"forwarding off, not tunable": {facts: func(f *Facts) { f.Sysctls["net.ipv4.ip_forward"], f.Tunable = "0", false },
			level: Fail, name: "kernel parameters", says: []string{"sysctl -w net.ipv4.ip_forward=1"}},
		"kernel defaults protected": {facts: func(f *Facts) { f.Sysctls["kernel.panic"] = "0" }, settings: func(s *Settings) { s.ProtectKernelDefaults = true },
			level: Fail, name: "kernel parameters", says: []string{"sysctl -w kernel.panic=10"}},
		"more watches than wanted": {facts: func(f *Facts) { f.Sysctls["fs.inotify.max_user_watches"] = "99999999" }, level: OK, name: "kernel parameters", says: []string{"as a node needs"}},
		"no resolver":              {facts: func(f *Facts) { f.Resolver = Resolver{} }, level: Warn, name: "resolver", says: []string{"--resolv-conf"}},
		"no hosts file":            {facts: func(f *Facts) { f.NoHosts = true }, level: Fail, name: "hosts file", says: []string{"no pod", "> /etc/hosts"}},
		"port taken": {facts: func(f *Facts) {
			f.Taken = []Listener{{Port{Number: 6443, Use: "Kubernetes API"}, "k3s", 77}}
		}, level: Fail, name: "ports", says: []string{"6443/TCP", "k3s (process 77)", "--https-listen-port"}},
		"port taken by podo": {facts: func(f *Facts) { f.Taken = []Listener{{Port{Number: 10250}, "podo", 77}} }, level: OK, name: "ports", says: []string{"podo itself"}},
		"vxlan port of another": {facts: func(f *Facts) {
			f.Taken = []Listener{{Port: Port{Number: 8472, UDP: true, Use: "flannel vxlan"}}}
		}, level: Warn, name: "ports", says: []string{"8472/UDP", "the kernel"}},
		"vxlan port of ours": {facts: func(f *Facts) {
			f.Taken = []Listener{{Port: Port{Number: 8472, UDP: true}}}
			f.Network.Links = append(f.Network.Links, Link{Name: "flannel.1"})
		}, level: OK, name: "ports"},
		"wireguard port of ours": {facts: func(f *Facts) {
			f.Taken = []Listener{{Port: Port{Number: 51820, UDP: true}}}
			f.Network.Links = append(f.Network.Links, Link{Name: "flannel-wg"})
		}, level: OK, name: "ports"},
		"wireguard port of another beside a vxlan of ours": {facts: func(f *Facts) {
			f.Taken = []Listener{{Port: Port{Number: 51820, UDP: true}}}
			f.Network.Links = append(f.Network.Links, Link{Name: "flannel.1"})
		}, level: Warn, name: "ports", says: []string{"51820/UDP", "the kernel"}},
		"port that can be done without": {facts: func(f *Facts) {
			f.Taken = []Listener{{Port{Number: 10249, Use: proxyMetrics}, "node_exporter", 77}}
		}, level: Warn, name: "ports", says: []string{"10249/TCP", "node_exporter (process 77)"}},
		"ufw":       {facts: func(f *Facts) { f.Security.UFW = true }, level: Warn, name: "firewall", says: []string{"ufw allow from 10.42.0.0/16"}},
		"other k3s": {facts: func(f *Facts) { f.Rivals = []Running{{"k3s-server", 5}} }, level: Warn, name: "other Kubernetes", says: []string{"k3s-server", "process 5"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f, s := well(), SettingsOf(config.Default())
			if tt.facts != nil {
				tt.facts(&f)
			}
			if tt.settings != nil {
				tt.settings(&s)
			}
			findings := Checks(f, s)
			i := slices.IndexFunc(findings, func(f Finding) bool { return f.Name == tt.name && f.Level == tt.level })
			if i < 0 {
				t.Fatalf("no %s for %q in %+v", tt.level, tt.name, findings)
			}
			for _, want := range tt.says {
				if text := findings[i].Detail + findings[i].Remedy; !strings.Contains(text, want) {
					t.Errorf("%q does not say %q", text, want)
				}
			}
			for _, f := range findings {
				if (f.Level == OK) != (f.Remedy == "") {
					t.Errorf("%+v: a remedy belongs to what is wrong", f)
				}
				if f.Level != OK && f.Name != tt.name {
					t.Errorf("also found %+v", f)
				}
			}
			if err := Err(findings); (err != nil) != (tt.level == Fail) {
				t.Errorf("Err: %v", err)
			}
		})
	}
}

// TestPodNetworkOfYourOwn: what others made in the cluster's range is theirs by right where
// podo has no pod network, and in the way where it has one.
func TestPodNetworkOfYourOwn(t *testing.T) {
	for backend, level := range map[string]Level{"none": OK, "vxlan": Fail} {
		for _, link := range []string{"cilium_host", "vxlan.calico", "tunl0", "antrea-gw0", "weave"} {
			f, cfg := well(), config.Default()
			f.Network.Links = append(f.Network.Links, Link{Name: link, Addrs: []netip.Prefix{netip.MustParsePrefix("10.42.0.1/32")}})
			cfg.Network.FlannelBackend = backend
			if err := Err(Checks(f, SettingsOf(cfg))); (err != nil) != (level == Fail) {
				t.Errorf("%s with %s: %v", backend, link, err)
			}
		}
	}
}

func TestControlPlaneAlone(t *testing.T) {
	f, cfg := well(), config.Default()
	cfg.Components.NoAgent = true
	f.Cgroup, f.Storage.Overlay, f.Kernel.Features["nf_tables"] = Cgroup{}, "stacked", Absent
	if err := Err(Checks(f, SettingsOf(cfg))); err != nil {
		t.Errorf("a control plane runs no pods, and yet: %v", err)
	}
}

// What is looked at is what docs/files.md says that podo listens on, as it was set up.
func TestSettingsOf(t *testing.T) {
	for name, tt := range map[string]struct {
		set  func(*config.Server)
		want []string
	}{
		"as it comes": {func(*config.Server) {}, []string{"6443/TCP", "10248/TCP", "10250/TCP", "10249/TCP", "10256/TCP", "8472/UDP"}},
		"other settings": {func(c *config.Server) {
			c.Listener.Port, c.Components.NoKubeProxy, c.Network.FlannelBackend = 7443, true, "host-gw"
		}, []string{"7443/TCP", "10248/TCP", "10250/TCP"}},
		"wireguard": {func(c *config.Server) {
			c.Components.NoKubeProxy, c.Network.FlannelBackend = true, "wireguard-native"
		}, []string{"6443/TCP", "10248/TCP", "10250/TCP", "51820/UDP"}},
		"wireguard of both families": {func(c *config.Server) {
			c.Components.NoKubeProxy, c.Network.FlannelBackend = true, "wireguard-native"
			c.Network.ServiceCIDR = append(c.Network.ServiceCIDR, netip.MustParsePrefix("fd00:43::/112"))
		}, []string{"6443/TCP", "10248/TCP", "10250/TCP", "51820/UDP", "51821/UDP"}},
	} {
		cfg := config.Default()
		tt.set(&cfg)
		s := SettingsOf(cfg)
		var got []string
		for _, p := range s.Ports {
			proto := "TCP"
			if p.UDP {
				proto = "UDP"
			}
			got = append(got, fmt.Sprintf("%d/%s", p.Number, proto))
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
		if v6 := name == "wireguard of both families"; s.IPv6 != v6 || len(s.Ranges) != len(cfg.Network.ClusterCIDR)+len(cfg.Network.ServiceCIDR) {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

func TestThisMachine(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := Port{Number: l.Addr().(*net.TCPAddr).Port, Use: "test"}
	free := Port{Number: taken.Number, UDP: true}
	began := time.Now()
	f, err := Discover(t.Context(), Options{DataDir: filepath.Join(t.TempDir(), "not", "yet"), Ports: []Port{taken, free}})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("took %s", time.Since(began))
	if len(f.Taken) != 1 || f.Taken[0].Number != taken.Number || f.Taken[0].PID != os.Getpid() || f.Taken[0].Program != filepath.Base(os.Args[0]) {
		t.Errorf("port held by this test: %+v", f.Taken)
	}
	if name, _ := os.Hostname(); f.Hostname != name {
		t.Errorf("host name %q, want %q", f.Hostname, name)
	}
	if f.Cgroup.Mode == CgroupNone || f.Storage.Mount == "" || f.Storage.Total == 0 || f.Memory.Total == 0 || !f.Kernel.AtLeast(3, 0) {
		t.Errorf("essentials are missing: %+v", f)
	}
	for _, r := range []Route{f.Network.V4, f.Network.V6} {
		if link, ok := f.Network.LinkOf(r.Addr); r.Addr.IsValid() && (!ok || link.Name != r.Interface || link.MTU == 0) {
			t.Errorf("address %s of %s is on %+v", r.Addr, r.Interface, link)
		}
	}
}

// TestProbe asks the kernel what files have told, and compares.
func TestProbe(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	told := root("").kernel()
	asked := Kernel{Features: map[string]State{}}
	names := []string{"bridge", "veth", "vxlan", "wireguard", "nf_tables"}
	for _, name := range names {
		asked.Features[name] = Unknown
	}
	before, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	asked.probe(t.Context())
	for _, name := range names {
		if told.Features[name] == Present && asked.Features[name] == Absent || told.Features[name] == Absent && asked.Features[name] == Present {
			t.Errorf("%s is %s to the files and %s to the kernel", name, told.Features[name], asked.Features[name])
		}
	}
	if after, err := net.Interfaces(); err != nil || len(after) != len(before) {
		t.Errorf("interfaces before %d, after %d, %v", len(before), len(after), err)
	}
}

func TestMounts(t *testing.T) {
	table := parseMounts(`27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 27 0:5 / /mnt/with\040space rw,noexec - tmpfs tmpfs rw
31 27 0:6 / /data rw - overlay overlay rw
32 27 0:7 / /data rw master:2 - xfs /dev/vdb ro
garbage
`)
	tests := map[string]struct{ path, point, fstype string }{
		"root":            {"/var/lib", "/", "ext4"},
		"white space":     {"/mnt/with space/x", "/mnt/with space", "tmpfs"},
		"later on top":    {"/data/x", "/data", "xfs"},
		"itself":          {"/data", "/data", "xfs"},
		"not just prefix": {"/database", "/", "ext4"},
	}
	for name, tt := range tests {
		if m, ok := table.of(tt.path); !ok || m.point != tt.point || m.fstype != tt.fstype {
			t.Errorf("%s: %s is on %+v, want %s %s", name, tt.path, m, tt.point, tt.fstype)
		}
	}
	if !table.shared("/") || table.shared("/data") {
		t.Error("wrong about what is shared")
	}
	if m, _ := table.at("/data"); !m.readOnly() {
		t.Error("a read-only file system mounted rw counts as writable")
	}
}

func TestParseResolv(t *testing.T) {
	tests := map[string]struct {
		text     string
		servers  int
		loopback bool
	}{
		"plain":     {"nameserver 192.0.2.1\nnameserver 2001:db8::1\n", 2, false},
		"stub":      {"nameserver 127.0.0.53", 0, true},
		"IPv6 stub": {"nameserver ::1", 0, true},
		"mixed":     {"nameserver 127.0.0.1\nnameserver 192.0.2.1", 1, true},
		"zone":      {"nameserver fe80::1%eth0", 1, false},
		"garbage":   {"nameserver\nnameserver x\n# nameserver 192.0.2.1\nsearch lan", 0, false},
		"empty":     {"", 0, false},
	}
	for name, tt := range tests {
		if servers, loopback := parseResolv(tt.text); len(servers) != tt.servers || loopback != tt.loopback {
			t.Errorf("%s: got %v, %v", name, servers, loopback)
		}
	}
}

func TestParseRelease(t *testing.T) {
	for in, want := range map[string][2]int{"6.1.0-28-amd64": {6, 1}, "5.15.167.4-microsoft-standard-WSL2": {5, 15}, "6.18.44-fc-v669": {6, 18}, "7.0-rc1": {7, 0}, "": {0, 0}} {
		if major, minor := parseRelease(in); major != want[0] || minor != want[1] {
			t.Errorf("%q is %d.%d, want %v", in, major, minor, want)
		}
	}
}

func TestOverlayRefuses(t *testing.T) {
	for fstype, want := range map[string]bool{"ext4": false, "xfs": false, "btrfs": false, "tmpfs": false, "overlay": true, "nfs4": true, "fuse.sshfs": true, "9p": true} {
		if why := overlayRefuses(mount{fstype: fstype}); (why != "") != want {
			t.Errorf("%s: %q", fstype, why)
		}
	}
}

// tree writes kernel parameters below a folder that stands for a machine.
func tree(t *testing.T, values map[string]string) root {
	t.Helper()
	r := root(t.TempDir())
	for name, v := range values {
		path := r.path(name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(v+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func TestPrepare(t *testing.T) {
	values := map[string]string{"/proc/sys/net/ipv6/conf/eth0/accept_ra": "1"}
	for _, p := range parameters() {
		if p.module == "" {
			values[sysctlPath(p.name)] = p.want
		}
	}
	values[sysctlPath("net.ipv4.ip_forward")] = "0"
	values[sysctlPath("net.ipv6.conf.all.forwarding")] = "0"
	values[sysctlPath("fs.inotify.max_user_instances")] = "128"
	values[sysctlPath("fs.inotify.max_user_watches")] = "9999999"
	values[sysctlPath("kernel.panic")] = "0"
	r := tree(t, values)

	f := well()
	f.SharedRoot = false
	f.Kernel.Features["overlay"], f.Kernel.Features["br_netfilter"], f.Kernel.Features["nf_conntrack"] = Loadable, Loadable, Present
	var loaded []string
	p := preparer{
		root: r, facts: f, settings: SettingsOf(config.Default()), ledger: Ledger{filepath.Join(t.TempDir(), "etc", "ledger"), r},
		modprobe: func(_ context.Context, m string) error {
			loaded = append(loaded, m)
			if m != "br_netfilter" {
				return nil
			}
			// The module brings its parameters with it.
			for _, name := range []string{"net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"} {
				os.MkdirAll(filepath.Dir(r.path(sysctlPath(name))), 0o755)
				os.WriteFile(r.path(sysctlPath(name)), []byte("0\n"), 0o644)
			}
			return nil
		},
		share: func() error { return nil },
	}
	p.settings.IPv6 = true
	p.run(t.Context())
	if len(p.findings) > 0 {
		t.Errorf("found %+v", p.findings)
	}
	if !slices.Equal(loaded, []string{"overlay", "br_netfilter"}) {
		t.Errorf("loaded %v", loaded)
	}
	want := []Change{
		{"kernel module overlay", "not loaded", "loaded"},
		{"kernel module br_netfilter", "not loaded", "loaded"},
		{"net.ipv4.ip_forward", "0", "1"},
		{"net.ipv6.conf.eth0.accept_ra", "1", "2"},
		{"net.ipv6.conf.all.forwarding", "0", "1"},
		{"net.bridge.bridge-nf-call-iptables", "0", "1"},
		{"net.bridge.bridge-nf-call-ip6tables", "0", "1"},
		{"fs.inotify.max_user_instances", "128", "8192"},
		{"kernel.panic", "0", "10"},
		{"propagation of mounts below /", "private", "shared"},
	}
	if !slices.Equal(p.changes, want) {
		t.Errorf("changes\n%v, want\n%v", p.changes, want)
	}
	if r.line("/proc/sys/fs/inotify/max_user_watches") != "9999999" {
		t.Error("a generous limit was lowered")
	}

	again := preparer{root: r, facts: f, settings: p.settings, ledger: p.ledger, modprobe: p.modprobe, share: p.share}
	again.facts.SharedRoot = true
	again.facts.Kernel.Features = map[string]State{}
	for _, feature := range features() {
		again.facts.Kernel.Features[feature.module] = Present
	}
	again.run(t.Context())
	if len(again.changes)+len(again.findings) > 0 {
		t.Errorf("a second time changed %v and found %v", again.changes, again.findings)
	}

	// And all of it is as before when podo is gone, but for what another kernel module brought.
	if n, err := p.ledger.PutBack(func(string) bool { return true }); err != nil || n != len(want)-3 {
		t.Errorf("put %d back, %v", n, err)
	}
	for path, was := range values {
		if now := r.line(path); now != was {
			t.Errorf("%s was %s and is %s", path, was, now)
		}
	}
}

func TestPrepareWhereNothingIsAllowed(t *testing.T) {
	values := map[string]string{}
	for _, p := range parameters() {
		values[sysctlPath(p.name)] = p.want
	}
	values[sysctlPath("kernel.panic")] = "0"
	r := tree(t, values)
	f := well()
	f.SharedRoot = false
	f.Kernel.Features["br_netfilter"] = Unknown
	os.RemoveAll(r.path("/proc/sys/net/bridge"))
	p := preparer{
		root: r, facts: f, settings: SettingsOf(config.Default()),
		modprobe: func(context.Context, string) error { return errors.New("no modprobe here") },
		share:    func() error { return os.ErrPermission },
	}
	p.settings.ProtectKernelDefaults = true
	p.run(t.Context())
	if len(p.changes) > 0 {
		t.Errorf("changed %v", p.changes)
	}
	var got []string
	for _, f := range p.findings {
		if f.Remedy == "" {
			t.Errorf("no remedy for %+v", f)
		}
		got = append(got, string(f.Level)+" "+f.Name)
	}
	want := []string{"WARN kernel features", "FAIL kernel parameters", "WARN mount propagation"}
	if !slices.Equal(got, want) {
		t.Errorf("found %v, want %v", got, want)
	}
	if r.line(sysctlPath("kernel.panic")) != "0" {
		t.Error("a protected kernel default was changed")
	}
}

func TestPrepareSaysNothingWhenNothingChanged(t *testing.T) {
	var log strings.Builder
	p := preparer{root: tree(t, nil), facts: well(), settings: SettingsOf(config.Default())}
	p.run(t.Context())
	report(p.changes, slog.New(slog.NewTextHandler(&log, nil)))
	if log.Len() > 0 {
		t.Errorf("logged %s", log.String())
	}
}
