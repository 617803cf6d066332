package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// cgroups finds the control group of a container by its first process: the folder
// for each controller, or for "" on cgroup v2.
func (s *scene) cgroups(pod, container string) map[string]string {
	s.Helper()
	id := ""
	for _, c := range s.pod(pod).Status.ContainerStatuses {
		if c.Name == container {
			_, id, _ = strings.Cut(c.ContainerID, "://")
		}
	}
	if id == "" {
		s.Fatalf("container %s of %s has no ID yet", container, pod)
	}
	for _, p := range contained() {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.pid))
		if !strings.Contains(string(text), id) {
			continue
		}
		out := map[string]string{}
		for line := range strings.Lines(string(text)) {
			f := strings.SplitN(strings.TrimSpace(line), ":", 3)
			for c := range strings.SplitSeq(f[1], ",") {
				out[c] = f[2]
			}
		}
		return out
	}
	s.Fatalf("no process runs in container %s", id)
	return nil
}

// limit reads what the kernel enforces: of CPU the microseconds in each period, of
// memory the bytes, of a request the share of CPU when there is too little.
func (s *scene) limit(pod, container, what string) (string, error) {
	s.Helper()
	groups := s.cgroups(pod, container)
	read := func(controller, file string) (string, error) {
		for _, root := range []string{"/sys/fs/cgroup/" + controller, "/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
			text, err := os.ReadFile(filepath.Join(root, groups[controller], file))
			if err == nil {
				return strings.TrimSpace(string(text)), nil
			}
		}
		return "", fmt.Errorf("no %s for %s of %s in %v", file, controller, pod, groups)
	}
	_, v1 := groups["memory"]
	switch {
	case what == "memory" && v1:
		return read("memory", "memory.limit_in_bytes")
	case what == "memory":
		return read("", "memory.max")
	case what == "request" && v1:
		return read("cpu", "cpu.shares")
	case what == "request":
		return read("", "cpu.weight")
	case v1:
		quota, err1 := read("cpu", "cpu.cfs_quota_us")
		period, err2 := read("cpu", "cpu.cfs_period_us")
		return quota + " " + period, errors.Join(err1, err2)
	}
	return read("", "cpu.max")
}

func (s *scene) limited(pod, container, what, want string) {
	s.Helper()
	s.within(30*time.Second, fmt.Sprintf("the kernel holds %s to %s of %s", pod, want, what), func() error {
		got, err := s.limit(pod, container, what)
		if err == nil && got != want {
			err = fmt.Errorf("it is %q", got)
		}
		return err
	})
}

func limits(t *testing.T) {
	s := scenario(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: held}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: $BUSYBOX
    command: [sleep, "100000"]
    resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 250m, memory: 64Mi}}
  - name: burner
    image: $BUSYBOX
    command: [sh, -c, "while :; do :; done"]
    resources: {limits: {cpu: 100m, memory: 32Mi}}
`)
	s.podReady("held")
	s.limited("held", "main", "cpu", "25000 100000")
	s.limited("held", "main", "memory", fmt.Sprint(64<<20))
	s.limited("held", "burner", "cpu", "10000 100000")
	// A core is 1024 shares on cgroup v1; on v2 the scale depends on the version of runc,
	// and 1 is what a container without a request gets.
	_, v1 := s.cgroups("held", "main")["cpu"]
	if got, err := s.limit("held", "main", "request"); err != nil || v1 && got != "102" || !v1 && got == "1" {
		t.Errorf("a request of 100m is a share of %q (%v)", got, err)
	}
	if q := s.pod("held").Status.QOSClass; q != corev1.PodQOSBurstable {
		t.Errorf("the pod's class is %s", q)
	}

	// What burns gets its tenth of a core and no more.
	groups := s.cgroups("held", "burner")
	used := func() time.Duration {
		var ns int64
		if text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/cpuacct", groups["cpuacct"], "cpuacct.usage")); err == nil && groups["cpuacct"] != "" {
			_, _ = fmt.Sscan(string(text), &ns)
			return time.Duration(ns)
		}
		text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", groups[""], "cpu.stat"))
		s.ok(err)
		_, _ = fmt.Sscanf(string(text), "usage_usec %d", &ns)
		return time.Duration(ns) * time.Microsecond
	}
	before, began := used(), time.Now()
	<-time.After(3 * time.Second)
	if share := float64(used()-before) / float64(time.Since(began)); share > 0.2 {
		t.Errorf("a container limited to 0.1 CPU used %.2f", share)
	}
}

func outOfMemory(t *testing.T) {
	s := scenario(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: neighbour}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: $BUSYBOX, command: [sleep, "100000"], resources: {limits: {memory: 64Mi}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: mixed}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - name: hog
    image: $BUSYBOX
    command: [dd, if=/dev/zero, of=/dev/null, bs=200M, count=1]
    resources: {limits: {memory: 64Mi}}
  - name: modest
    image: $BUSYBOX
    command: [sleep, "100000"]
    resources: {limits: {memory: 64Mi}}
`)
	s.podReady("neighbour")
	s.within(60*time.Second, "the hog is killed", func() error {
		for _, c := range s.pod("mixed").Status.ContainerStatuses {
			if st := c.State.Terminated; c.Name == "hog" && st != nil {
				if st.Reason != "OOMKilled" || st.ExitCode != 137 {
					t.Fatalf("the hog ended with %s, exit code %d", st.Reason, st.ExitCode)
				}
				return nil
			}
		}
		return errors.New(describe(s.pod("mixed")))
	})
	for _, c := range s.pod("mixed").Status.ContainerStatuses {
		if c.Name == "modest" && c.State.Running == nil {
			t.Errorf("the modest container beside it is %+v", c.State)
		}
	}
	s.podReady("neighbour")
	if n := restarts(s.pod("neighbour"), "main"); n != 0 {
		t.Errorf("the neighbour was restarted %d times", n)
	}
}

func resizes(t *testing.T) {
	s := scenario(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: grower}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: $BUSYBOX
    command: [sleep, "100000"]
    resources: {requests: {cpu: 50m, memory: 32Mi}, limits: {cpu: 100m, memory: 64Mi}}
`)
	s.podReady("grower")
	s.limited("grower", "main", "cpu", "10000 100000")
	id := s.pod("grower").Status.ContainerStatuses[0].ContainerID

	s.kubectl("patch", "pod", "grower", "--subresource", "resize", "-p",
		`{"spec":{"containers":[{"name":"main","resources":{"requests":{"cpu":"100m","memory":"64Mi"},"limits":{"cpu":"300m","memory":"128Mi"}}}]}}`)
	s.limited("grower", "main", "cpu", "30000 100000")
	s.limited("grower", "main", "memory", fmt.Sprint(128<<20))
	s.within(30*time.Second, "the pod's status shows its new size", func() error {
		c := s.pod("grower").Status.ContainerStatuses[0]
		if c.Resources == nil || c.Resources.Limits.Cpu().MilliValue() != 300 {
			return fmt.Errorf("it shows %+v", c.Resources)
		}
		return nil
	})
	if c := s.pod("grower").Status.ContainerStatuses[0]; c.RestartCount != 0 || c.ContainerID != id {
		t.Errorf("the container was restarted (%d times)", c.RestartCount)
	}
}
