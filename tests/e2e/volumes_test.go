package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func volumes(t *testing.T) {
	s := scenario(t)
	dir := s.hostFolder()
	write(t, filepath.Join(dir, "from-host"), "hello from the host")
	s.apply(`
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: blue, app.conf: "speed = 3"}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {password: hunter2}
---
apiVersion: v1
kind: Pod
metadata: {name: reader, labels: {app: reader}}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {fsGroup: 4242}
  containers:
  - name: main
    image: $BUSYBOX
    command: [sleep, "100000"]
    env:
    - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: keys, key: password}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    volumeMounts:
    - {name: settings, mountPath: /settings}
    - {name: settings, mountPath: /one/app.conf, subPath: app.conf}
    - {name: keys, mountPath: /keys}
    - {name: projected, mountPath: /projected}
    - {name: scratch, mountPath: /scratch}
    - {name: memory, mountPath: /memory}
    - {name: host, mountPath: /host}
    - {name: host, mountPath: /host-ro, readOnly: true}
  - name: other
    image: $BUSYBOX
    command: [sleep, "100000"]
    volumeMounts: [{name: scratch, mountPath: /shared}]
  volumes:
  - {name: settings, configMap: {name: settings}}
  - {name: keys, secret: {secretName: keys, defaultMode: 0440}}
  - name: projected
    projected:
      sources:
      - configMap: {name: settings, items: [{key: colour, path: c/colour}]}
      - secret: {name: keys}
      - downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}
      - serviceAccountToken: {path: token, audience: e2e, expirationSeconds: 3600}
  - {name: scratch, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 16Mi}}
  - {name: host, hostPath: {path: ` + dir + `, type: Directory}}
`)
	s.podReady("reader")
	for line, want := range map[string]string{
		"cat /settings/colour":                                       "blue",
		"cat /one/app.conf":                                          "speed = 3",
		"echo $COLOUR $PASSWORD":                                     "blue hunter2",
		"echo $NODE":                                                 s.node().Name,
		"cat /keys/password":                                         "hunter2",
		"stat -L -c '%a %g' /keys/password":                          "440 4242",
		"cat /projected/c/colour /projected/password":                "bluehunter2",
		"cat /projected/labels":                                      `app="reader"`,
		"cut -d. -f1 /projected/token | wc -l":                       "1",
		"stat -f -c %T /memory; df -m /memory | awk 'END{print $2}'": "tmpfs\n16",
		"cat /host/from-host":                                        "hello from the host",
		"echo written > /host/from-pod && echo done":                 "done",
		"touch /host-ro/x 2>&1 | grep -c Read-only":                  "1",
		"stat -c %g /scratch":                                        "4242",
	} {
		if got := strings.TrimSpace(s.sh("reader", line)); got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
	s.sh("reader", "echo shared > /scratch/file")
	if out := s.kubectl("exec", "reader", "-c", "other", "--", "cat", "/shared/file"); out != "shared\n" {
		t.Errorf("the other container reads %q", out)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "from-pod")); string(text) != "written\n" {
		t.Errorf("on the host the pod's file holds %q (%v)", text, err)
	}
	uid := string(s.pod("reader").UID)
	s.kubectl("delete", "pod", "reader")
	s.within(20*time.Second, "the pod's volumes are unmounted", func() error {
		points, err := mountPoints()
		if err != nil {
			return err
		}
		for _, p := range points {
			if strings.Contains(p, uid) {
				return errors.New(p + " is still mounted")
			}
		}
		return nil
	})
}

func changedConfigMaps(t *testing.T) {
	s := scenario(t)
	s.apply(`
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: blue}
---
apiVersion: v1
kind: Pod
metadata: {name: reader}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: $BUSYBOX
    command: [sleep, "100000"]
    volumeMounts: [{name: settings, mountPath: /settings}]
  volumes: [{name: settings, configMap: {name: settings}}]
`)
	s.podReady("reader")
	s.kubectl("patch", "configmap", "settings", "-p", `{"data":{"colour":"green"}}`)
	s.kubectl("annotate", "pod", "reader", "e2e/look=now") // else it takes the kubelet a minute
	s.within(90*time.Second, "the pod reads the new value", func() error {
		return contains(s.sh("reader", "cat /settings/colour"), "green")
	})
}
