package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/podo-dev/podo/pkg/gate"
	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/paths"
	"github.com/podo-dev/podo/pkg/plan"
)

// cluster is an API server that has one node, called box, and its lease.
type cluster struct {
	mu        sync.Mutex
	condition corev1.ConditionStatus // empty: none reported; "absent": no node
	renewed   time.Time              // zero: no lease
	ranges    []string
	asked     int
}

func (c *cluster) set(condition corev1.ConditionStatus, renewed time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.condition, c.renewed = condition, renewed
}

func (c *cluster) requests() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked
}

func (c *cluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	var reply any
	switch r.URL.Path {
	case "/api/v1/nodes/box":
		n := corev1.Node{TypeMeta: metav1.TypeMeta{Kind: "Node", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{Name: "box"}, Spec: corev1.NodeSpec{PodCIDRs: c.ranges}}
		if c.condition != "" {
			n.Status.Conditions = []corev1.NodeCondition{
				{Type: corev1.NodeMemoryPressure, Status: corev1.ConditionTrue, Reason: "other"},
				{Type: corev1.NodeReady, Status: c.condition, Reason: "KubeletNotReady", Message: "no network"},
			}
		}
		if c.condition != "absent" {
			reply = n
		}
	case "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/box":
		if !c.renewed.IsZero() {
			at := metav1.NewMicroTime(c.renewed)
			reply = coordinationv1.Lease{TypeMeta: metav1.TypeMeta{Kind: "Lease", APIVersion: "coordination.k8s.io/v1"}, Spec: coordinationv1.LeaseSpec{RenewTime: &at}}
		}
	}
	w.Header().Set("Content-Type", "application/json")
	if reply == nil {
		w.WriteHeader(http.StatusNotFound)
		reply = metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: metav1.StatusReasonNotFound, Message: r.URL.Path + " not found", Code: 404}
	}
	json.NewEncoder(w).Encode(reply)
}

func serve(t *testing.T, c *cluster) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(c)
	t.Cleanup(s.Close)
	return s
}

func TestReady(t *testing.T) {
	c := &cluster{condition: corev1.ConditionTrue, renewed: time.Now().Add(-time.Hour)}
	s := serve(t, c)
	p := plan.Node{Name: "box", Paths: paths.Paths{Data: t.TempDir()}}
	if err := kubeconfig.Write(p.Paths.AgentKubeconfig("kubelet"), kubeconfig.Config{Name: "podo", Server: s.URL}, kubeconfig.DefaultMode); err != nil {
		t.Fatal(err)
	}
	doors := gate.New()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- Ready(p, 110, doors, slog.New(slog.DiscardHandler)).Run(ctx, func() { close(ready) }) }()
	isReady := func(within time.Duration) bool {
		select {
		case <-ready:
			return true
		case err := <-done:
			t.Fatalf("ended: %v", err)
		case <-time.After(within):
		}
		return false
	}

	// What it waits for, one after the other.
	if isReady(100 * time.Millisecond) {
		t.Fatal("ready behind a shut gate")
	}
	if n := c.requests(); n > 0 {
		t.Errorf("asked %d times through a shut gate", n)
	}
	doors.Open()
	steps := []struct {
		name      string
		condition corev1.ConditionStatus
		renewed   time.Time
	}{
		{"a Ready left over from before the start", corev1.ConditionTrue, time.Now().Add(-time.Hour)},
		{"no lease", corev1.ConditionTrue, time.Time{}},
		{"not Ready", corev1.ConditionFalse, time.Now()},
		{"nothing reported", "", time.Now()},
		{"no node", "absent", time.Now()},
	}
	for _, step := range steps {
		c.set(step.condition, step.renewed)
		if isReady(200 * time.Millisecond) {
			t.Fatalf("%s: taken for ready", step.name)
		}
	}
	c.set(corev1.ConditionTrue, time.Now())
	if !isReady(10 * time.Second) {
		t.Fatal("never ready")
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("stop: %v", err)
	}
}

func TestReadyStopsWhileWaiting(t *testing.T) {
	s := serve(t, &cluster{})
	p := plan.Node{Name: "box", Paths: paths.Paths{Data: t.TempDir()}}
	if err := kubeconfig.Write(p.Paths.AgentKubeconfig("kubelet"), kubeconfig.Config{Name: "podo", Server: s.URL}, kubeconfig.DefaultMode); err != nil {
		t.Fatal(err)
	}
	for name, open := range map[string]bool{"gate open": true, "gate shut": false} {
		doors := gate.New()
		if open {
			doors.Open()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
		began := time.Now()
		if err := Ready(p, 110, doors, slog.New(slog.DiscardHandler)).Run(ctx, func() {}); err != nil {
			t.Errorf("%s: err = %v, want nil", name, err)
		}
		if lasted := time.Since(began); lasted > 5*time.Second {
			t.Errorf("%s: stop took %s", name, lasted)
		}
		cancel()
	}
}

func TestCondition(t *testing.T) {
	c := &cluster{}
	client, err := kubernetes.NewForConfig(&rest.Config{Host: serve(t, c).URL})
	if err != nil {
		t.Fatal(err)
	}
	for condition, want := range map[corev1.ConditionStatus]string{
		corev1.ConditionTrue:    "",
		corev1.ConditionFalse:   "KubeletNotReady: no network",
		corev1.ConditionUnknown: "KubeletNotReady: no network",
		"":                      "node box has not reported yet",
		"absent":                "knows no node",
	} {
		c.set(condition, time.Time{})
		err := Condition(t.Context(), client, "box")
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("condition %q: err = %v, want %q", condition, err, want)
		}
	}
}

// The last pods of a node that takes more than it has addresses for would never start.
func TestWarnsOfMorePodsThanAddresses(t *testing.T) {
	for _, tt := range []struct {
		ranges  []string
		maxPods int
		warned  string
	}{
		{[]string{"10.42.0.0/24"}, 110, ""},
		{[]string{"10.42.0.0/24"}, 253, ""},
		{[]string{"10.42.0.0/24"}, 254, "max-pods=254 pod-cidr=10.42.0.0/24 addresses=253"},
		{[]string{"10.42.0.0/23"}, 500, ""},
		{[]string{"fd42::/64"}, 1000, ""},
		{[]string{"fd42::/64", "10.42.7.0/25"}, 250, "max-pods=250 pod-cidr=10.42.7.0/25 addresses=125"},
	} {
		s := serve(t, &cluster{condition: corev1.ConditionTrue, ranges: tt.ranges})
		client := kubernetes.NewForConfigOrDie(&rest.Config{Host: s.URL})
		var out strings.Builder
		warnOfCrowd(t.Context(), client, "box", tt.maxPods, slog.New(slog.NewTextHandler(&out, nil)))
		if !strings.Contains(out.String(), tt.warned) || (tt.warned == "") != (out.Len() == 0) {
			t.Errorf("%s: %q, want %q", fmt.Sprint(tt.ranges, tt.maxPods), out.String(), tt.warned)
		}
	}
}
