package helm

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// A chart is a HelmChart.
type chart struct {
	Metadata metav1.ObjectMeta `json:"metadata"`
	Spec     spec              `json:"spec"`
	Status   status            `json:"status"`
}

// A config is a HelmChartConfig: what people say on top of somebody else's HelmChart.
type config struct {
	Metadata metav1.ObjectMeta `json:"metadata"`
	Spec     configSpec        `json:"spec"`
}

type spec struct {
	TargetNamespace       string                        `json:"targetNamespace"`
	CreateNamespace       bool                          `json:"createNamespace"`
	Chart                 string                        `json:"chart"`
	Version               string                        `json:"version"`
	Repo                  string                        `json:"repo"`
	RepoCA                string                        `json:"repoCA"`
	RepoCAConfigMap       *name                         `json:"repoCAConfigMap"`
	Set                   map[string]intstr.IntOrString `json:"set"`
	Values                json.RawMessage               `json:"values"`
	ValuesContent         string                        `json:"valuesContent"`
	ValuesSecrets         []valuesSecret                `json:"valuesSecrets"`
	HelmVersion           string                        `json:"helmVersion"`
	Bootstrap             bool                          `json:"bootstrap"`
	TakeOwnership         bool                          `json:"takeOwnership"`
	ServerSide            string                        `json:"serverSide"`
	ForceConflicts        *bool                         `json:"forceConflicts"`
	ChartContent          string                        `json:"chartContent"`
	JobImage              string                        `json:"jobImage"`
	BackOffLimit          *int                          `json:"backOffLimit"`
	Timeout               string                        `json:"timeout"`
	FailurePolicy         string                        `json:"failurePolicy"`
	AuthSecret            *name                         `json:"authSecret"`
	AuthPassCredentials   bool                          `json:"authPassCredentials"`
	InsecureSkipTLSVerify bool                          `json:"insecureSkipTLSVerify"`
	PlainHTTP             bool                          `json:"plainHTTP"`
	DockerRegistrySecret  *name                         `json:"dockerRegistrySecret"`
	PodSecurityContext    json.RawMessage               `json:"podSecurityContext"`
	SecurityContext       json.RawMessage               `json:"securityContext"`
	Driver                string                        `json:"driver"`
}

type configSpec struct {
	Values         json.RawMessage `json:"values"`
	ValuesContent  string          `json:"valuesContent"`
	ValuesSecrets  []valuesSecret  `json:"valuesSecrets"`
	FailurePolicy  string          `json:"failurePolicy"`
	ServerSide     string          `json:"serverSide"`
	ForceConflicts *bool           `json:"forceConflicts"`
}

type name struct {
	Name string `json:"name"`
}

type valuesSecret struct {
	Name          string   `json:"name"`
	Keys          []string `json:"keys"`
	IgnoreUpdates bool     `json:"ignoreUpdates"`
}

type status struct {
	ObservedGeneration int64       `json:"observedGeneration,omitempty"`
	Release            *released   `json:"release,omitempty"`
	Conditions         []condition `json:"conditions,omitempty"`
}

// released is the release that a HelmChart last became. As long as it has not, there is
// only the namespace where that is being tried.
type released struct {
	Namespace  string `json:"namespace"`
	Revision   int    `json:"revision,omitempty"`
	Chart      string `json:"chart,omitempty"`
	AppVersion string `json:"appVersion,omitempty"`
}

type condition struct {
	Type               string      `json:"type"`
	Status             string      `json:"status"`
	Reason             string      `json:"reason"`
	Message            string      `json:"message"`
	LastTransitionTime metav1.Time `json:"lastTransitionTime"`
}

// What becomes of a release that failed.
const (
	reinstalls = "reinstall" // uninstall it, and install it anew
	aborts     = "abort"     // leave it until the HelmChart changes
	retries    = "retry"     // upgrade it again
	rollsBack  = "rollback"  // go back to the revision before, and stay there until the HelmChart changes
)

// retryAnnotation on a HelmChart has podo try again what it gave up, when its value changes.
const retryAnnotation = "podo.dev/retry"

// errFinal is in errors that no other try mends, but only a change of an object.
var errFinal = errors.New("")

// yields reports whether fields that others manage are to stay as they set them.
func (s spec) yields() bool { return s.ForceConflicts != nil && !*s.ForceConflicts }

// overlay is the HelmChart with what its HelmChartConfig says on top, values apart.
func (s spec) overlay(c *config) spec {
	if c == nil {
		return s
	}
	if c.Spec.FailurePolicy != "" {
		s.FailurePolicy = c.Spec.FailurePolicy
	}
	if c.Spec.ServerSide != "" {
		s.ServerSide = c.Spec.ServerSide
	}
	if c.Spec.ForceConflicts != nil {
		s.ForceConflicts = c.Spec.ForceConflicts
	}
	return s
}

// check returns all that cannot be done, by the names of the fields, in one line.
func (s spec) check() error {
	var wrong []string
	bad := func(field, format string, args ...any) {
		wrong = append(wrong, fmt.Sprintf("spec.%s: "+format, append([]any{field}, args...)...))
	}
	for _, f := range []struct {
		name  string
		given bool
	}{
		{"jobImage", s.JobImage != ""},
		{"podSecurityContext", len(s.PodSecurityContext) > 0},
		{"securityContext", len(s.SecurityContext) > 0},
	} {
		if f.given {
			bad(f.name, "is about the pod of a job, and podo runs Helm itself; remove it")
		}
	}
	if s.HelmVersion != "" && s.HelmVersion != "v3" {
		bad("helmVersion", "%q is not supported; remove it", s.HelmVersion)
	}
	switch oci := strings.HasPrefix(s.Chart, ociScheme) || strings.HasPrefix(s.Repo, ociScheme); {
	case s.ChartContent != "":
	case s.Chart == "":
		bad("chart", "is missing; name a chart of the repository in repo, or give its URL, or the chart itself in chartContent")
	case !strings.Contains(s.Chart, "://") && s.Repo == "":
		bad("repo", "is missing: the chart %q is in some repository; give its URL", s.Chart)
	case s.DockerRegistrySecret != nil && !oci:
		bad("dockerRegistrySecret", "is for charts from OCI registries (oci://); use authSecret for a repository")
	}
	if _, err := s.timeout(); err != nil {
		wrong = append(wrong, err.Error())
	}
	if wrong == nil {
		return nil
	}
	return fmt.Errorf("%w%s", errFinal, strings.Join(wrong, "; "))
}

// timeout is how long each operation may take.
func (s spec) timeout() (time.Duration, error) {
	if s.Timeout == "" {
		return 5 * time.Minute, nil
	}
	d, err := time.ParseDuration(s.Timeout)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%wspec.timeout: %q is no time to wait; give one such as 10m", errFinal, s.Timeout)
	}
	return d, nil
}

// namespace is where the release goes.
func (c *chart) namespace() string {
	if c.Spec.TargetNamespace != "" {
		return c.Spec.TargetNamespace
	}
	return c.Metadata.Namespace
}

// Annotations by which HelmCharts are kept for, or from, one of several controllers.
const (
	managedBy = "helmcharts.cattle.io/managed-by"
	unmanaged = "helmcharts.helm.cattle.io/unmanaged"
	myName    = "podo"
)

// finalizer keeps a HelmChart until its release is uninstalled.
const finalizer = "podo.dev/helm-release"

// mine reports whether a HelmChart is podo's to install. One that was k3s's is.
func mine(annotations map[string]string) bool {
	if _, ok := annotations[unmanaged]; ok {
		return false
	}
	switch annotations[managedBy] {
	case "", myName, "k3s":
		return true
	}
	return false
}
