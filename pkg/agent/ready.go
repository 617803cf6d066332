package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/podo-dev/podo/pkg/gate"
	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/plan"
)

// Ready is a component that is ready once the cluster says that this node is. A
// node object that is left over from before a restart still says so, which is why
// this process must have made the node or renewed its lease first.
func Ready(p plan.Node, maxPods int, g *gate.Gate, log *slog.Logger) lifecycle.Component {
	began := time.Now()
	return lifecycle.Task("node", func(ctx context.Context) error {
		client, err := kubeconfig.Clientset(p.Paths.AgentKubeconfig("kubelet"), g.Dial)
		if err != nil {
			return err
		}
		for !fresh(ctx, client, p.Name, began) || Condition(ctx, client, p.Name) != nil {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(pause(time.Since(began))):
			}
		}
		if p.Network != nil { // a network of somebody else's may have other ranges
			warnOfCrowd(ctx, client, p.Name, maxPods, log)
		}
		return nil
	})
}

// warnOfCrowd tells when the kubelet takes more pods than the node has addresses for: the
// last of them would never start. A pod may be on the host's network, so it is no mistake.
func warnOfCrowd(ctx context.Context, client kubernetes.Interface, name string, maxPods int, log *slog.Logger) {
	node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return
	}
	for _, text := range node.Spec.PodCIDRs {
		cidr, err := netip.ParsePrefix(text)
		if err != nil {
			continue
		}
		if room := addresses(cidr); room < maxPods {
			log.Warn("the kubelet takes more pods than the node has addresses for", "component", "node", "max-pods", maxPods, "pod-cidr", cidr, "addresses", room,
				"remedy", "lower max-pods, or begin a cluster whose nodes have wider ranges: --kube-controller-manager-arg node-cidr-mask-size")
		}
	}
}

// addresses is how many pods a node's range has room for: the first of it stands for the
// range, the second is the bridge's, and the last is for broadcasts.
func addresses(cidr netip.Prefix) int {
	return max(1<<min(cidr.Addr().BitLen()-cidr.Bits(), 16)-3, 0)
}

// pause is how long a node is left alone that was not Ready after so long: who waits
// for a start wants to hear soon, and a day without a server is to cost nothing.
func pause(waited time.Duration) time.Duration {
	if waited > time.Minute {
		return time.Second
	}
	return 50 * time.Millisecond
}

// The kubelet makes the lease after the node, and when it was too early, ten seconds
// after that (Kubernetes 1.36).
func fresh(ctx context.Context, client kubernetes.Interface, name string, since time.Time) bool {
	node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err == nil && !node.CreationTimestamp.Time.Before(since.Truncate(time.Second)) {
		return true
	}
	lease, err := client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, name, metav1.GetOptions{})
	return err == nil && lease.Spec.RenewTime != nil && !lease.Spec.RenewTime.Time.Before(since.Add(-time.Second))
}

// Condition asks the cluster about a node and returns nil if it is Ready, or why
// it is not.
func Condition(ctx context.Context, client kubernetes.Interface, name string) error {
	node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("the cluster knows no node %s: it was not added yet, or deleted; podo adds it when it is started again", name)
	}
	if err != nil {
		return err
	}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			if c.Status == corev1.ConditionTrue {
				return nil
			}
			return fmt.Errorf("%s: %s", c.Reason, c.Message)
		}
	}
	return fmt.Errorf("node %s has not reported yet", name)
}
