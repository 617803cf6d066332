package netpol

import (
	"flag"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/knftables"

	"github.com/podo-dev/podo/pkg/plan/plantest"
)

func TestMain(m *testing.M) {
	plantest.Flags()
	flag.Parse()
	os.Exit(m.Run())
}

// compiled is what the case called name comes to.
func compiled(t *testing.T, name string, ranges []netip.Prefix) *ruleset {
	t.Helper()
	archive, err := txtar.ParseFile(filepath.Join("testdata", name+".txtar"))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, f := range archive.Files {
		files[f.Name] = string(f.Data)
	}
	c := objects(t, files["objects"])
	var own []pod
	for _, uid := range strings.Fields(files["here"]) {
		i := slices.IndexFunc(c.Pods, func(p pod) bool { return p.UID == uid })
		if i < 0 {
			t.Fatalf("no pod %s", uid)
		}
		p := c.Pods[i]
		p.Labels, p.Ports = labels.Set{"as": "the-engine-knew-it"}, nil
		own = append(own, p)
	}
	return compile(c, own, place{"cni0", ranges}, false)
}

// objects is the cluster that a manifest describes.
func objects(t *testing.T, manifest string) cluster {
	t.Helper()
	c := cluster{Namespaces: map[string]labels.Set{}}
	for _, text := range strings.Split(manifest, "---\n") {
		o, _, err := scheme.Codecs.UniversalDeserializer().Decode([]byte(text), nil, nil)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		kept, err := essence(o)
		if err != nil {
			t.Fatal(err)
		}
		switch o := kept.(type) {
		case *networkingv1.NetworkPolicy:
			c.Policies = append(c.Policies, o)
		case *corev1.Namespace:
			c.Namespaces[o.Name] = o.Labels
		case *corev1.Pod:
			c.Pods = append(c.Pods, podOf(o))
		}
	}
	return c
}

// dump is the table that a ruleset makes of an empty kernel, or of last.
func dump(t *testing.T, steps ...*ruleset) string {
	t.Helper()
	nft := knftables.NewFake(knftables.InetFamily, Table)
	var last *ruleset
	for _, next := range steps {
		if err := nft.Run(t.Context(), next.transaction(nft, last)); err != nil {
			t.Fatal(err)
		}
		last = next
	}
	if nft.Table == nil {
		return "no table\n"
	}
	lines := strings.SplitAfter(nft.Dump(), "\n") // of rules, the order matters and is kept
	slices.SortStableFunc(lines, func(a, b string) int {
		if strings.HasPrefix(a, "add element") && strings.HasPrefix(b, "add element") {
			return strings.Compare(a, b)
		}
		return 0
	})
	return strings.Join(lines, "")
}

func TestCompile(t *testing.T) {
	plantest.Each(t, "testdata/*.txtar", func(t *testing.T, c plantest.Case) {
		p, err := c.Plan()
		if err != nil {
			t.Fatal(err)
		}
		c.Got(dump(t, compiled(t, filepath.Base(t.Name()), p.Node.Policy.PodCIDR)))
	})
}

// TestHold: before the policies are known, only pods that were there are.
func TestHold(t *testing.T) {
	there := pod{UID: "old", Addrs: []netip.Addr{netip.MustParseAddr("10.42.0.9")}}
	got := dump(t, compile(cluster{}, []pod{there}, place{"cni0", ranges(t)[:1]}, true))
	for _, want := range []string{"pods4 { 10.42.0.9 }", "ip daddr 10.42.0.0/16 ip daddr != @pods4 drop", "iifname cni0 ip saddr != @pods4 drop", "iifname cni0 meta nfproto ipv6 drop"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "element inet podo-netpol ingress4") {
		t.Errorf("a policy without policies:\n%s", got)
	}
}

func ranges(t *testing.T) []netip.Prefix {
	t.Helper()
	return []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/56")}
}

// cases are all rulesets of testdata, in dual stack.
func cases(t *testing.T) map[string]*ruleset {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) < 2 {
		t.Fatal("no cases", err)
	}
	out := map[string]*ruleset{}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".txtar")
		out[name] = compiled(t, name, ranges(t))
	}
	return out
}

// TestChangesComeToTheSame: a table that was changed from one state to another is like
// one made afresh.
func TestChangesComeToTheSame(t *testing.T) {
	all := cases(t)
	for from, a := range all {
		for to, b := range all {
			if got, want := dump(t, a, b), dump(t, b); got != want {
				t.Errorf("from %s to %s:\n%s\nwant\n%s", from, to, got, want)
			}
			nft := knftables.NewFake(knftables.InetFamily, Table)
			if tx := b.transaction(nft, b); tx.NumOperations() != 0 {
				t.Errorf("%s: nothing changed, but:\n%s", to, tx)
			}
		}
	}
}

// TestKernelTakesEveryChange has the kernel itself take them, in a network namespace.
func TestKernelTakesEveryChange(t *testing.T) {
	if os.Geteuid() != 0 {
		skip(t, "needs root to make a network namespace")
	}
	program(t)
	runtime.LockOSThread() // for good: the thread is not fit for anything else
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	nft, err := knftables.New(knftables.InetFamily, Table)
	if err != nil {
		t.Fatal(err)
	}
	all := cases(t)
	var last *ruleset
	for _, a := range all {
		for to, b := range all {
			for _, next := range []*ruleset{a, b} {
				tx := next.transaction(nft, last)
				if tx.NumOperations() == 0 {
					continue
				}
				if err := nft.Run(t.Context(), tx); err != nil {
					t.Fatalf("%s: %v\n%s", to, err, tx)
				}
				last = next
			}
		}
	}
}

// skip leaves a test out, but not where it was asked for.
func skip(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("PODO_E2E") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// program finds nft: that of the machine, or of a payload that was built here.
func program(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("nft"); err == nil {
		return
	}
	dir, err := filepath.Abs("../../dist/payload")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "nft")); err != nil {
		skip(t, "needs nft, or a payload built by scripts/build-payload")
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}
