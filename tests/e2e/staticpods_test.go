package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func staticPods(t *testing.T) {
	s := scenario(t)
	file := filepath.Join(theCluster.dir.StaticPods(), "e2e-static.yaml")
	t.Cleanup(func() { _ = os.Remove(file) })
	write(t, file, images(`
apiVersion: v1
kind: Pod
metadata: {name: e2e-static, namespace: `+s.ns+`}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: $BUSYBOX, command: [sleep, "77345"]}]
`))
	name := "e2e-static-" + s.node().Name
	s.within(30*time.Second, "the pod of the file shows in the cluster", func() error {
		_, err := s.CoreV1().Pods(s.ns).Get(s.ctx, name, metav1.GetOptions{})
		return err
	})
	s.podReady(name)
	if s.pod(name).Annotations["kubernetes.io/config.mirror"] == "" {
		t.Error("it is no mirror pod")
	}
	// Deleting the mirror does not stop what the file asks for.
	old := s.pod(name)
	s.kubectl("delete", "pod", name, "--wait=false")
	s.within(30*time.Second, "the mirror comes back", func() error {
		pod, err := s.CoreV1().Pods(s.ns).Get(s.ctx, name, metav1.GetOptions{})
		if err == nil && pod.UID == old.UID {
			err = errors.New("it is the old one")
		}
		return err
	})
	s.podReady(name)
	if now := s.pod(name).Status.ContainerStatuses[0].ContainerID; now != old.Status.ContainerStatuses[0].ContainerID {
		t.Errorf("the container was replaced")
	}
	s.ok(os.Remove(file))
	s.podGone(name, 40*time.Second)
	for _, p := range contained() {
		if p.cmdline == "sleep 77345" {
			t.Errorf("its process runs on: %d", p.pid)
		}
	}
}
