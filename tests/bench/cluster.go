package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/podo-dev/podo/pkg/config"
	"github.com/podo-dev/podo/pkg/kubeconfig"
)

// tick is how often something that cannot be watched is asked for.
const tick = 20 * time.Millisecond

// A cluster is a product that runs, seen through its API.
type cluster struct{ client kubernetes.Interface }

func newCluster(path string) (cluster, error) {
	rc, err := kubeconfig.Client(path, nil)
	if err != nil {
		return cluster{}, err
	}
	client, err := kubernetes.NewForConfig(rc)
	return cluster{client}, err
}

// answers returns when the API server that a kubeconfig names is ready.
func answers(ctx context.Context, path string) error {
	var client *http.Client
	var url string
	last := errors.New("no answer yet")
	for {
		if client == nil {
			// The file may have yet to be written.
			if rc, err := kubeconfig.Client(path, nil); err != nil {
				last = err
			} else if transport, err := rest.TransportFor(rc); err != nil {
				last = err
			} else {
				client, url = &http.Client{Transport: transport, Timeout: time.Second}, rc.Host+"/readyz"
			}
		}
		if client != nil {
			if last = get(ctx, client, url); last == nil {
				return nil
			}
		}
		if err := sleep(ctx, tick); err != nil {
			return fmt.Errorf("%w: %w", err, last)
		}
	}
}

func get(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body) // so that the connection is used again
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, res.Status)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// until watches objects until one is as wanted. A watch that ends is begun again.
func until[T any](ctx context.Context, what string, open func(context.Context, metav1.ListOptions) (watch.Interface, error),
	o metav1.ListOptions, met func(T) bool) error {
	o.ResourceVersion = "0" // begin with what the API server remembers
	for {
		w, err := open(ctx, o)
		if err == nil {
			for e := range w.ResultChan() {
				if object, ok := e.Object.(T); ok && e.Type != watch.Deleted && met(object) {
					w.Stop()
					return nil
				}
			}
		}
		if cause := sleep(ctx, tick); cause != nil {
			return fmt.Errorf("waiting for %s: %w", what, errors.Join(cause, err))
		}
	}
}

func named(name string) metav1.ListOptions {
	return metav1.ListOptions{FieldSelector: "metadata.name=" + name}
}

// nodeReady waits for the first node, and returns its name.
func (c cluster) nodeReady(ctx context.Context) (name string, err error) {
	err = until(ctx, "a ready node", c.client.CoreV1().Nodes().Watch, metav1.ListOptions{}, func(n *corev1.Node) bool {
		for _, condition := range n.Status.Conditions {
			if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue {
				name = n.Name
				return true
			}
		}
		return false
	})
	return name, err
}

// leaseRenewed waits until the kubelet reported after a moment. The node's status
// says nothing at that time: it is from before.
func (c cluster) leaseRenewed(ctx context.Context, node string, after time.Time) error {
	leases := c.client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	return until(ctx, "the lease of "+node, leases.Watch, named(node), func(l *coordinationv1.Lease) bool {
		return l.Spec.RenewTime != nil && l.Spec.RenewTime.After(after)
	})
}

func (c cluster) available(ctx context.Context, namespace, name string) error {
	deployments := c.client.AppsV1().Deployments(namespace)
	return until(ctx, "deployment "+name, deployments.Watch, named(name), func(d *appsv1.Deployment) bool {
		return d.Status.AvailableReplicas > 0
	})
}

// load is what the measured pods do: nothing.
const load = "bench"

func idle() corev1.PodSpec {
	return corev1.PodSpec{
		TerminationGracePeriodSeconds: ptr.To[int64](0),
		Containers: []corev1.Container{{
			Name: "idle", Image: config.Default().PauseImage, ImagePullPolicy: corev1.PullIfNotPresent,
		}},
	}
}

// firstPod creates a pod as soon as the API takes it, which needs the namespace's
// service account, and waits until it runs.
func (c cluster) firstPod(ctx context.Context) error {
	pods := c.client.CoreV1().Pods(metav1.NamespaceDefault)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "first"}, Spec: idle()}
	for {
		_, err := pods.Create(ctx, pod, metav1.CreateOptions{})
		if err == nil {
			break
		}
		if cause := sleep(ctx, tick); cause != nil {
			return fmt.Errorf("create a pod: %w", errors.Join(cause, err))
		}
	}
	return until(ctx, "the first pod", pods.Watch, named(pod.Name), func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodRunning
	})
}

// container is the first pod's, and how often it was restarted.
func (c cluster) container(ctx context.Context) (string, error) {
	pod, err := c.client.CoreV1().Pods(metav1.NamespaceDefault).Get(ctx, "first", metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	var out []string
	for _, s := range pod.Status.ContainerStatuses {
		out = append(out, fmt.Sprintf("%s restarted %d times", s.ContainerID, s.RestartCount))
	}
	return strings.Join(out, ", "), nil
}

// scaleUp takes a deployment from no pods to n and says how long that took.
func (c cluster) scaleUp(ctx context.Context, n int) (time.Duration, error) {
	labels := map[string]string{"app": load}
	deployments := c.client.AppsV1().Deployments(metav1.NamespaceDefault)
	_, err := deployments.Create(ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: load},
		Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To[int32](0),
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: idle()},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return 0, err
	}
	err = until(ctx, "an empty deployment", deployments.Watch, named(load), func(d *appsv1.Deployment) bool {
		return d.Status.ObservedGeneration > 0
	})
	if err != nil {
		return 0, err
	}
	began := time.Now()
	patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, n)
	if _, err := deployments.Patch(ctx, load, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return 0, err
	}
	running := map[string]bool{}
	pods := c.client.CoreV1().Pods(metav1.NamespaceDefault)
	err = until(ctx, fmt.Sprintf("%d pods", n), pods.Watch, metav1.ListOptions{LabelSelector: "app=" + load}, func(p *corev1.Pod) bool {
		if p.Status.Phase == corev1.PodRunning {
			running[p.Name] = true
		}
		return len(running) == n
	})
	return time.Since(began), err
}
