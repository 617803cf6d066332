package volumes

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/podo-dev/podo/pkg/paths"
)

func TestUnenforcedSizesAreToldOnceForEachRoot(t *testing.T) {
	var log bytes.Buffer
	n := &node{log: slog.New(slog.NewTextHandler(&log, nil)), unheld: map[string]bool{}}
	why := errors.New("its file system is not mounted with project quotas")
	n.tellUnheld("/held", nil)
	for range 3 {
		n.tellUnheld("/mnt/a", why)
	}
	n.tellUnheld("/mnt/b", why)
	if got := log.String(); strings.Count(got, "\n") != 2 || !strings.Contains(got, "path=/mnt/a") || !strings.Contains(got, "path=/mnt/b") || !strings.Contains(got, why.Error()) {
		t.Errorf("the log has\n%s", got)
	}
}

// TestRemovalDoesWithoutLimits: the folder of a volume that had a quota goes, though its disk
// is mounted without quotas now.
func TestRemovalDoesWithoutLimits(t *testing.T) {
	dir := t.TempDir()
	if quotas(rootOf(t, dir)) == nil {
		t.Skip("this file system has project quotas")
	}
	if err := os.Mkdir(dir+"/v", 0o700); err != nil {
		t.Fatal(err)
	}
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-1", Annotations: map[string]string{quotaKey: `{"limit":1024,"project":1073741825}`}}}
	n := &node{log: slog.New(slog.DiscardHandler), client: fake.NewClientset(pv)}
	if err := n.remove(t.Context(), dir, "v", pv); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir + "/v"); !os.IsNotExist(err) {
		t.Errorf("the folder is there: %v", err)
	}
}

// TestRemovalSparesOthers: a folder that a volume has which podo did not make is not removed.
func TestRemovalSparesOthers(t *testing.T) {
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-1", Labels: map[string]string{nodeLabel: "box"}, Annotations: map[string]string{provisionedBy: Driver}}}
	pv.Spec.Local = &corev1.LocalVolumeSource{Path: "/data/a/shop/data"}
	for path, want := range map[string]string{"/data/a/shop/data": "theirs", "/data/a/shop/data/x": "theirs", "/data/a/shop/other": "", "/data/a": ""} {
		n := &node{name: "box", standard: "/data/a", own: paths.New("/var/lib/podo"), client: fake.NewClientset(nodeOf(twoRoots), pv, foreign(path, "box.local"))}
		n.settings = informers.NewSharedInformerFactory(n.client, 0).Core().V1().ConfigMaps().Lister()
		if got, err := n.stranger(t.Context(), pv); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", path, got, err, want)
		}
	}
}

func TestInherits(t *testing.T) {
	of := func(phases ...corev1.PersistentVolumePhase) (out []*corev1.PersistentVolume) {
		for _, p := range phases {
			out = append(out, &corev1.PersistentVolume{Status: corev1.PersistentVolumeStatus{Phase: p}})
		}
		return out
	}
	tests := map[string]struct {
		project uint32
		others  []*corev1.PersistentVolume
		want    bool
	}{
		"none":                    {0, nil, false},
		"somebody's own":          {7, nil, false},
		"of one that is no more":  {firstProject, nil, true},
		"of one that is retained": {firstProject, of(corev1.VolumeReleased), true},
		"of one in use":           {firstProject, of(corev1.VolumeReleased, corev1.VolumeBound), false},
		"of one to be used":       {firstProject, of(corev1.VolumeAvailable), false},
	}
	for name, tt := range tests {
		if got := inherits(tt.project, tt.others); got != tt.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// TestRemovalWaitsForItsDisk: a folder that is missing is not removed, unless its removal was begun.
func TestRemovalWaitsForItsDisk(t *testing.T) {
	for _, said := range []string{none + "no quotas", `{"limit":1024,"project":1073741825}`, ""} {
		dir := t.TempDir()
		pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-1", Annotations: map[string]string{}}}
		if said != "" {
			pv.Annotations[quotaKey] = said
		}
		n := &node{log: slog.New(slog.DiscardHandler), client: fake.NewClientset(pv)}
		err := n.remove(t.Context(), dir, "v", pv)
		if said == "" { // it was never made
			if err != nil {
				t.Error(err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), "bring its disk back") {
			t.Errorf("%s: a folder on a disk that is not there: %v", said, err)
		}
		if err := os.Mkdir(dir+"/v", 0o700); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time as after an end in between
			if err := n.remove(t.Context(), dir, "v", pv); err != nil {
				t.Errorf("%s: %v", said, err)
			}
			if pv, err = n.client.CoreV1().PersistentVolumes().Get(t.Context(), "pvc-1", metav1.GetOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if q, _ := quotaOf(pv); !q.Removing || (q.Project != 0) == strings.HasPrefix(said, none) {
			t.Errorf("%s: noted %+v", said, q)
		}
		if text := pv.Annotations[quotaKey]; !json.Valid([]byte(text)) {
			t.Errorf("%s: noted %s, which is no JSON", said, text)
		}
	}
}
