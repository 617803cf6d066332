package helm

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"
)

func TestApplies(t *testing.T) {
	for name, tt := range map[string]struct {
		given  string
		force  *bool
		before string
		want   string
	}{
		"as it was installed":         {before: "ssa", want: "true true"},
		"as Helm 3 did":               {before: "", want: "false false"},
		"as Helm 3 did, and to win":   {force: ptr.To(true), before: "csa", want: "false false"},
		"by itself":                   {given: "auto", before: "ssa", want: "true true"},
		"on the server's side now":    {given: "true", before: "csa", want: "true true"},
		"on the client's side now":    {given: "false", before: "ssa", want: "false false"},
		"yields to others":            {force: ptr.To(false), before: "ssa", want: "true false"},
		"wins over others in so many": {force: ptr.To(true), before: "ssa", want: "true true"},
	} {
		how, force := spec{ServerSide: tt.given, ForceConflicts: tt.force}.applies(tt.before)
		if got := fmt.Sprint(how, " ", force); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

// TestQuiet: Helm logs why an object was not deleted, and returns that one was not.
func TestQuiet(t *testing.T) {
	q := quiet{slog.DiscardHandler, &atomic.Pointer[string]{}}
	slog.New(q).With("a", 1).Error("uninstall: Failed to delete release", slog.Any("error", []error{errors.New("a webhook said no")}))
	slog.New(q).Debug("purge requested", "release", "x")
	if why := q.last.Load(); why == nil || *why != "a webhook said no" {
		t.Errorf("the last error is %v", why)
	}
}

// cluster has records of one release, in the namespace cellar. It takes patches, and notes
// whose.
func cluster(t *testing.T, records ...map[string]string) (w *worker, patched func() []string) {
	t.Helper()
	var patches []string
	api := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		out.Header().Set("Content-Type", "application/json")
		switch {
		case r.Method == http.MethodPatch:
			patches = append(patches, path.Base(r.URL.Path))
			_ = json.NewEncoder(out).Encode(chart{Metadata: metav1.ObjectMeta{Namespace: "kube-system", Name: "wine", Finalizers: []string{finalizer}}})
		case r.Method == http.MethodGet && path.Base(r.URL.Path) == "secrets":
			list := metav1.PartialObjectMetadataList{TypeMeta: metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadataList"}}
			for _, labels := range records {
				if strings.Contains(r.URL.Path, "/namespaces/cellar/") {
					list.Items = append(list.Items, metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: "r", Labels: labels}})
				}
			}
			_ = json.NewEncoder(out).Encode(list)
		default:
			out.WriteHeader(http.StatusNotFound)
			_ = json.NewEncoder(out).Encode(metav1.Status{Status: metav1.StatusFailure, Reason: metav1.StatusReasonNotFound, Code: http.StatusNotFound})
		}
	}))
	t.Cleanup(api.Close)
	w, err := newWorker(t.Context(), New(t.TempDir(), nil, slog.New(slog.DiscardHandler)), &rest.Config{Host: api.URL})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.queue.ShutDown)
	w.events = record.NewFakeRecorder(10)
	return w, func() []string { return patches }
}

func wine() *chart {
	return &chart{Metadata: metav1.ObjectMeta{Namespace: "kube-system", Name: "wine", Finalizers: []string{finalizer}}, Spec: spec{TargetNamespace: "cellar", ChartContent: "no chart"}}
}

// TestRemoveOnlyWhatWasMade: a HelmChart that never came to anything takes no release of
// its name with it.
func TestRemoveOnlyWhatWasMade(t *testing.T) {
	theirs := map[string]string{"version": "1", "status": "deployed"}
	ours := map[string]string{"version": "2", "status": "failed", checksumLabel: "x"}
	for name, tt := range map[string]struct {
		records []map[string]string
		at      *released
		want    string // first patched: the HelmChart, to let it go, or its status
	}{
		"never tried, and somebody else's": {records: []map[string]string{theirs}, want: "wine"},
		"never tried, and nothing there":   {want: "wine"},
		"taken over":                       {records: []map[string]string{theirs}, at: &released{Namespace: "cellar"}, want: "status"},
		"made, and the status lost":        {records: []map[string]string{theirs, ours}, want: "status"},
	} {
		w, patched := cluster(t, tt.records...)
		c := wine()
		c.Status.Release = tt.at
		err := w.remove(t.Context(), c.key(), c)
		if got := patched(); len(got) == 0 || got[0] != tt.want || tt.want == "wine" && (err != nil || len(got) > 1) {
			t.Errorf("%s: patched %v, want %s first; %v", name, got, tt.want, err)
		}
	}
}

// TestMistypedNamespace: a namespace that nothing came to be in can be corrected.
func TestMistypedNamespace(t *testing.T) {
	for namespace, stays := range map[string]bool{"cellar": true, "celar": false} {
		w, _ := cluster(t, map[string]string{"version": "1", "status": "deployed"})
		c := wine()
		c.Spec.TargetNamespace = "vineyard"
		c.Status.Release = &released{Namespace: namespace}
		err := w.ensure(t.Context(), c.key(), c)
		if err == nil || strings.Contains(err.Error(), "targetNamespace") != stays {
			t.Errorf("from %s: %v", namespace, err)
		}
	}
}

// TestDeletedWhileAtWork: the turn that a change queues is not the one that it stops.
func TestDeletedWhileAtWork(t *testing.T) {
	w, _ := cluster(t)
	c := wine()
	var before []int
	w.ongoing[c.key()] = func() { before = append(before, w.queue.Len()) }
	now := metav1.NewTime(time.Now())
	w.changed(&metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "wine", DeletionTimestamp: &now}})
	if !slices.Equal(before, []int{0}) || w.queue.Len() != 1 {
		t.Errorf("stopped with %v turns queued, and %d now", before, w.queue.Len())
	}
}
