package kubelet

import (
	"context"
	"errors"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/kubelet/lifecycle"
	"k8s.io/kubernetes/pkg/kubelet/nodeshutdown"
	"k8s.io/kubernetes/pkg/kubelet/volumemanager"
)

// TestEnding has upstream's own manager listen.
func TestEnding(t *testing.T) {
	e := &Ending{}
	if err := e.End(t.Context()); !errors.Is(err, ErrDeaf) {
		t.Errorf("before a kubelet listens: %v", err)
	}
	before := systemBus
	systemBus = func() (logind, error) { return inhibitor{e}, nil }
	t.Cleanup(func() { systemBus = before })

	killed, dead := make(chan int64, 8), make(chan struct{})
	seconds := int64(7)
	pod := &corev1.Pod{Spec: corev1.PodSpec{TerminationGracePeriodSeconds: &seconds}}
	manager := nodeshutdown.NewManager(&nodeshutdown.Config{
		Logger: klog.Background(), Recorder: record.NewFakeRecorder(64), NodeRef: &corev1.ObjectReference{},
		VolumeManager: volumemanager.NewFakeVolumeManager(nil, 0, nil, false),
		GetPodsFunc:   func() []*corev1.Pod { return []*corev1.Pod{pod} },
		KillPodFunc: func(_ *corev1.Pod, _ bool, grace *int64, _ func(*corev1.PodStatus)) error {
			killed <- *grace
			<-dead
			return nil
		},
		SyncNodeStatusFunc:           func(context.Context) {},
		ShutdownGracePeriodRequested: 45 * time.Second, ShutdownGracePeriodCriticalPods: 15 * time.Second,
		StateDirectory: t.TempDir(),
	})
	if err := manager.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	admits := func(want bool) {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); manager.Admit(&lifecycle.PodAdmitAttributes{Pod: pod}).Admit != want; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("takes pods: %t, want %t", !want, want)
			}
		}
	}
	admits(true)

	// Time that is over does not stop it, and who asks again waits for the same end.
	short, end := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer end()
	if err := e.End(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a pod that does not end: %v", err)
	}
	if grace := <-killed; grace != seconds {
		t.Errorf("the pod has %d s, want %d", grace, seconds)
	}
	admits(false)
	time.AfterFunc(20*time.Millisecond, func() { close(dead) })
	if err := e.End(t.Context()); err != nil {
		t.Error(err)
	}
	if len(killed) > 0 {
		t.Error("the pod was killed twice")
	}
	admits(false)

	// Somebody who thinks better of it has the node back, and can ask anew.
	dead = make(chan struct{})
	asked, stop := context.WithCancel(t.Context())
	back := make(chan error, 1)
	go func() { back <- e.End(asked) }()
	<-killed
	stop()
	if err := <-back; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	close(dead)
	admits(true)
	if err := e.End(t.Context()); err != nil {
		t.Error(err)
	}
	admits(false)

	// So he can while the pods have not ended yet.
	dead = make(chan struct{})
	asked, stop = context.WithCancel(t.Context())
	go func() { back <- e.End(asked) }()
	<-killed
	stop()
	<-back
	again := make(chan error, 1)
	go func() { again <- e.End(t.Context()) }()
	for e.waits() < 2 { // for the kubelet to hear
		time.Sleep(time.Millisecond)
	}
	close(dead)
	if err := <-again; err != nil {
		t.Error(err)
	}
	for e.waits() > 0 {
		time.Sleep(time.Millisecond)
	}
	admits(false)
}

// waits is how much was said and not heard yet.
func (e *Ending) waits() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.events)
}
