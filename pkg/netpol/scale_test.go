package netpol

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/knftables"
)

// big is a cluster of 5,000 pods in 50 namespaces with ten policies each, and 110 of
// the pods.
func big() (cluster, []pod) {
	c := cluster{Namespaces: map[string]labels.Set{}}
	addr := netip.MustParseAddr("10.42.0.0")
	for n := range 50 {
		ns := fmt.Sprint("n", n)
		c.Namespaces[ns] = labels.Set{"team": fmt.Sprint(n % 5)}
		for p := range 100 {
			addr = addr.Next()
			c.Pods = append(c.Pods, pod{Namespace: ns, Name: fmt.Sprint(p), UID: fmt.Sprint(n, "-", p), Labels: labels.Set{"app": fmt.Sprint(p % 10)}, Addrs: []netip.Addr{addr}})
		}
		for p := range 10 {
			app := func(i int) *metav1.LabelSelector {
				return &metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprint(i)}}
			}
			c.Policies = append(c.Policies, &networkingv1.NetworkPolicy{
				ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: fmt.Sprint("p", p)},
				Spec: networkingv1.NetworkPolicySpec{PodSelector: *app(p), Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{
					{PodSelector: app((p + 1) % 10)}, {NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": fmt.Sprint(p % 5)}}},
				}}}},
			})
		}
	}
	var own []pod
	for i := range 110 {
		own = append(own, c.Pods[i*45])
	}
	return c, own
}

func BenchmarkCompile(b *testing.B) {
	c, own := big()
	at := place{"cni0", []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}}
	for b.Loop() {
		compile(c, own, at, false)
	}
}

// BenchmarkKernel has the kernel take the whole table, and then a pod more and less.
func BenchmarkKernel(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root to make a network namespace")
	}
	program(b)
	runtime.LockOSThread() // for good: the thread is not fit for anything else
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		b.Fatal(err)
	}
	nft, err := knftables.New(knftables.InetFamily, Table)
	if err != nil {
		b.Fatal(err)
	}
	c, own := big()
	at := place{"cni0", []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}}
	whole, less := compile(c, own, at, false), compile(c, own[1:], at, false)
	put := func(next, last *ruleset) {
		if err := nft.Run(b.Context(), next.transaction(nft, last)); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("whole", func(b *testing.B) {
		for b.Loop() {
			put(whole, nil)
		}
	})
	put(whole, nil)
	b.Run("a pod less and more", func(b *testing.B) {
		for b.Loop() {
			put(less, whole)
			put(whole, less)
		}
	})
}
