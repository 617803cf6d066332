package guests

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/tests/hosts"
)

// Kinds of file systems with quotas for projects, and how docs/volumes.md has one made.
var quotaDisks = []struct{ kind, disk, at, make string }{
	{"ext4", "/dev/ubdb", "/var/lib/podo", "mkfs.ext4 -q /dev/ubdb && tune2fs -O quota,project -Q prjquota /dev/ubdb && mount /dev/ubdb /var/lib/podo -o prjquota"},
	{"xfs", "/dev/ubdc", "/mnt/xfs", "mkfs.xfs -q /dev/ubdc && mount -o prjquota /dev/ubdc /mnt/xfs"},
}

// TestQuotas: what is written to a volume is held to the size of its claim, which may grow.
func TestQuotas(t *testing.T) {
	s := begin(t)
	g := s.guest(Spec{Name: "box", Memory: 2048, Disks: []int64{6 << 30, 1 << 30}})
	for _, d := range quotaDisks {
		s.run(g, "sh", "-c", "mkdir -p "+d.at+" && "+d.make)
	}
	t.Run("folders", func(t *testing.T) { folders(s.in(t), g) })
	s.give(g, "busybox")
	s.install(g, older, nil, "server", "--disable=traefik")
	s.ready(g, "box")
	s.apply(g, `
apiVersion: v1
kind: ConfigMap
metadata: {name: local-path-config, namespace: kube-system}
data:
  config.json: '{"nodePathMap": [{"node": "DEFAULT_PATH_FOR_NON_LISTED_NODES", "paths": ["/var/lib/podo/storage", "/mnt/xfs"]}]}'
`)
	for i, d := range quotaDisks {
		class := fmt.Sprintf(classed, d.kind, []string{"/var/lib/podo/storage", "/mnt/xfs"}[i])
		t.Run(d.kind, func(t *testing.T) { held(s.in(t), g, d.kind, class) })
	}
}

// folders runs the tests of pkg/volumes that most kernels leave out.
func folders(s *scene, g *Guest) {
	tests := filepath.Join(s.TempDir(), "volumes.test")
	build := exec.Command("go", "test", "-c", "-tags", "netgo,osusergo", "-o", tests, "../../pkg/volumes")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		s.Fatalf("%v: %s", err, out)
	}
	if err := g.Give(tests, "volumes.test"); err != nil {
		s.Fatal(err)
	}
	out, err := g.RunCommand(hosts.Command{
		Args: []string{"/host/volumes.test", "-test.v", "-test.run", "Quota"}, Env: []string{"PODO_E2E=1"}, Timeout: 3 * time.Minute,
	})
	if err != nil || strings.Contains(out, "--- SKIP") || strings.Count(out, "--- PASS: TestQuota/") != len(quotaDisks) {
		s.Errorf("%v\n%s", err, out)
	}
}

const classed = `
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: %s}
provisioner: rancher.io/local-path
volumeBindingMode: WaitForFirstConsumer
allowVolumeExpansion: true
parameters: {nodePath: %s}
`

// held has a pod write more than it may, and then be given more.
func held(s *scene, g *Guest, kind, class string) {
	s.apply(g, class+strings.ReplaceAll(`
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: KIND}
spec:
  storageClassName: KIND
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 20Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: KIND, labels: {app: KIND}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: writer, image: $BUSYBOX, command: [sleep, infinity], volumeMounts: [{name: data, mountPath: /data}]}
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: KIND}}
`, "KIND", kind))
	s.running(g, "app="+kind, 1)
	write := func(name string, mib int) error {
		_, err := s.try(g, "", "exec", kind, "--", "dd", "if=/dev/zero", "of=/data/"+name, "bs=1M", fmt.Sprint("count=", mib))
		return err
	}
	if err := write("small", 10); err != nil {
		s.Errorf("10 MiB in a volume of 20: %v", err)
	}
	full := func() error {
		if err := write("large", 20); err == nil || !strings.Contains(err.Error(), "No space left on device") && !strings.Contains(err.Error(), "Disk quota exceeded") {
			return fmt.Errorf("30 MiB in a volume of 20: %v", err)
		}
		return nil
	}
	if err := full(); err != nil {
		s.Error(err)
	}
	s.told(g, kind, 20)
	s.run(g, "systemctl", "restart", "podo")
	s.within(time.Minute, "the limit holds after a restart", full)
	s.kubectl(g, "patch", "pvc", kind, "--type=merge", "-p", `{"spec":{"resources":{"requests":{"storage":"60Mi"}}}}`)
	s.within(time.Minute, "the volume grows", func() error { return write("large", 20) })
	if err := write("again", 40); err == nil {
		s.Error("70 MiB fit into a volume of 60")
	}
	s.told(g, kind, 60)
	s.kubectl(g, "delete", "pod", kind, "--now")
	s.kubectl(g, "delete", "pvc", kind)
}

// told waits until the kubelet tells the size of a pod's volume, of which most is used.
func (s *scene) told(g *Guest, name string, mib int64) {
	s.Helper()
	s.within(2*time.Minute, "the volume's size is told", func() error {
		out, err := s.try(g, "", "get", "--raw", "/api/v1/nodes/box/proxy/stats/summary")
		if err != nil {
			return err
		}
		var summary struct {
			Pods []struct {
				PodRef struct{ Name string }
				Volume []struct {
					Name                     string
					CapacityBytes, UsedBytes int64
				}
			}
		}
		if err := json.Unmarshal([]byte(out), &summary); err != nil {
			return err
		}
		for _, p := range summary.Pods {
			for _, v := range p.Volume {
				if p.PodRef.Name == name && v.Name == "data" && v.CapacityBytes>>20 == mib && v.UsedBytes > v.CapacityBytes/3 {
					return nil
				}
			}
		}
		return fmt.Errorf("no volume of %s bytes that is used for more than a third: %+v", strconv.FormatInt(mib<<20, 10), summary)
	})
}
