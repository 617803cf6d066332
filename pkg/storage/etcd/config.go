package etcd

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/podo-dev/podo/pkg/paths"
)

// Half of the file and this much must be free before it is worth rewriting it.
const fragmented = 64 << 20

// config is how etcd runs here, with the user's flags laid over it.
func (s *Store) config(name string) (*embed.Config, error) {
	ec, c := embed.NewConfig(), s.cfg
	fs := flag.NewFlagSet("etcd", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	if len(c.Args) > 0 {
		ec.AddFlags(fs) // now, since it sets defaults, those of the whole process too
	}
	ec.Name, ec.Dir = name, c.Dir
	ec.ListenPeerUrls = urls("https", c.Peer)
	ec.AdvertisePeerUrls = ec.ListenPeerUrls
	ec.AdvertiseClientUrls = urls("https", c.Client)
	ec.ListenClientUrls = slices.Clone(ec.AdvertiseClientUrls)
	if own := netip.AddrPortFrom(loopback(c.Client.Addr()), c.Client.Port()); own != c.Client {
		ec.ListenClientUrls = append(ec.ListenClientUrls, urls("https", own)...)
	}
	// The API server of this machine comes by a socket: no port, no TLS to pay for.
	// Plain HTTP gets one of its own, since a listener that speaks both lets lists and
	// watches of many clients wait for each other (etcd 3.6).
	ec.ListenClientUrls = append(ec.ListenClientUrls, url.URL{Scheme: "unix", Path: c.Socket})
	ec.ListenClientHttpUrls = []url.URL{{Scheme: "unix", Path: httpSocket(c.Socket)}}
	ec.ListenMetricsUrls = urls("http", c.Metrics...)
	ec.ClientTLSInfo = info(c.CA, c.Server)
	ec.PeerTLSInfo = info(c.CA, c.Member)
	ec.InitialCluster = name + "=" + s.peerURL()
	// Two clusters that were begun on one address must not take each other for one.
	ec.InitialClusterToken = name
	ec.EnableGRPCGateway = false

	ec.TickMs, ec.ElectionMs = 100, 1000
	ec.QuotaBackendBytes = 2 << 30
	// What a follower that was away for a moment can still be sent is kept in memory;
	// one that was away for longer is sent the whole file.
	ec.SnapshotCount, ec.SnapshotCatchUpEntries = 5000, 2500
	ec.WarningApplyDuration, ec.WarningUnaryRequestDuration = time.Second, time.Second
	ec.BootstrapDefragThresholdMegabytes = uint(s.worthwhile() >> 20)
	return ec, lay(ec, fs, "etcd-arg", c.Args)
}

// worthwhile is how many bytes of the file must be free to rewrite it at a start,
// when nobody waits for it yet.
func (s *Store) worthwhile() int64 {
	info, err := os.Stat(filepath.Join(s.cfg.Dir, "member", "snap", "db"))
	if err != nil {
		return fragmented
	}
	return max(fragmented, info.Size()/2)
}

// CheckArgs judges flags that a user wrote as NAME=VALUE. All mistakes are returned
// together, and name the podo setting that they came by.
func CheckArgs(setting string, args []string) error {
	ec := embed.NewConfig()
	fs := flag.NewFlagSet("etcd", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	ec.AddFlags(fs)
	return lay(ec, fs, setting, args)
}

// lay lays a user's flags over ec.
func lay(ec *embed.Config, fs *flag.FlagSet, setting string, args []string) error {
	var errs []error
	for _, text := range args {
		name, value, ok := strings.Cut(strings.TrimLeft(text, "-"), "=")
		if !ok {
			value = "true"
		}
		name = strings.ReplaceAll(name, "_", "-")
		if remedy := denied(name); remedy != "" {
			errs = append(errs, fmt.Errorf("%s: %s: podo sets this itself; %s", setting, name, remedy))
			continue
		}
		f := fs.Lookup(name)
		if f == nil {
			errs = append(errs, fmt.Errorf("%s: etcd has no flag %q; https://etcd.io/docs/v3.6/op-guide/configuration/ lists them", setting, name))
			continue
		}
		if err := f.Value.Set(value); err != nil {
			errs = append(errs, fmt.Errorf("%s: %s: %q is not a value for it: %w", setting, name, value, err))
			continue
		}
		ec.FlagsExplicitlySet[name] = true
		// Flags of a type of etcd's own do not reach the configuration by themselves.
		switch name {
		case "cipher-suites":
			ec.CipherSuites = strings.Split(value, ",")
		case "max-concurrent-streams":
			n, _ := strconv.ParseUint(value, 10, 32)
			ec.MaxConcurrentStreams = uint32(n)
		}
	}
	return errors.Join(errs...)
}

// denied says what to do instead of setting a flag of etcd, or nothing if it may be
// set.
func denied(name string) string {
	has := func(parts ...string) bool {
		return slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(name, p) })
	}
	switch {
	case strings.HasPrefix(name, "experimental-"):
		return "use the flag without experimental-"
	case strings.HasPrefix(name, "discovery"), strings.HasPrefix(name, "initial-cluster"):
		return "--cluster-init begins a cluster, --server joins one"
	case name == "force-new-cluster":
		return "use --cluster-reset"
	case name == "unsafe-no-fsync":
		return "a power cut would damage the cluster"
	case name == "strict-reconfig-check", name == "max-learners":
		return "it keeps members that join from costing the quorum"
	case name == "data-dir", name == "wal-dir":
		return "use --data-dir"
	case name == "name":
		return "it is made of the node's name; use --node-name"
	case name == "listen-metrics-urls":
		return "use --etcd-expose-metrics"
	case strings.HasSuffix(name, "-urls"):
		return "it follows the node's address; use --node-ip"
	case has("san-verification", "cert", "key-file", "trusted-ca", "crl-file", "auto-tls"), name == "self-signed-cert-validity":
		return "members know each other by certificates of the cluster"
	case name == "cors", name == "host-whitelist", name == "enable-grpc-gateway":
		return "etcd serves no web pages here"
	case strings.HasPrefix(name, "auth-token"), name == "bcrypt-cost":
		return "callers are known by certificate, not by password"
	case strings.HasPrefix(name, "log-"), name == "logger", name == "enable-log-rotation":
		return "use --debug and --log"
	}
	return ""
}

func urls(scheme string, at ...netip.AddrPort) []url.URL {
	var out []url.URL
	for _, a := range at {
		out = append(out, url.URL{Scheme: scheme, Host: a.String()})
	}
	return out
}

func loopback(like netip.Addr) netip.Addr {
	if like.Unmap().Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

// info demands a certificate of the cluster's own authority. That signs for members
// and their callers alone, so what address a connection seems to come from, which
// changes with the machine's, adds nothing.
func info(ca string, files paths.Pair) transport.TLSInfo {
	return transport.TLSInfo{CertFile: files.Cert, KeyFile: files.Key, TrustedCAFile: ca, ClientCertAuth: true, SkipClientSANVerify: true}
}

func httpSocket(socket string) string { return strings.TrimSuffix(socket, ".sock") + "-http.sock" }
