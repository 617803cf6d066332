package helm

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/podo-dev/podo/manifests"
)

// TestKinds holds the kinds against what is read of them: a field that one knows, the
// other does too.
func TestKinds(t *testing.T) {
	text, err := manifests.FS.ReadFile("podo-helm.yaml")
	if err != nil {
		t.Fatal(err)
	}
	documents := strings.Split(string(text), "\n---\n")
	for i, read := range []any{spec{}, configSpec{}} {
		var kind struct {
			Spec struct {
				Versions []struct {
					Schema struct {
						OpenAPIV3Schema struct {
							Properties struct {
								Spec struct{ Properties map[string]json.RawMessage }
							}
						} `json:"openAPIV3Schema"`
					}
				}
			}
		}
		if err := yaml.Unmarshal([]byte(documents[i]), &kind); err != nil {
			t.Fatal(err)
		}
		known := kind.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties.Spec.Properties
		var fields []string
		for _, f := range reflect.VisibleFields(reflect.TypeOf(read)) {
			fields = append(fields, f.Tag.Get("json"))
			if known[f.Tag.Get("json")] == nil {
				t.Errorf("%T reads %s, which the kind does not have", read, f.Tag.Get("json"))
			}
		}
		for name := range known {
			if !slices.Contains(fields, name) {
				t.Errorf("the kind has %s, which %T does not read", name, read)
			}
		}
	}
}

// TestFieldsOfK3s lists what users of k3s may write.
func TestFieldsOfK3s(t *testing.T) {
	fields := strings.Fields(`targetNamespace createNamespace chart version repo repoCA repoCAConfigMap set values valuesContent
		valuesSecrets helmVersion bootstrap takeOwnership serverSide forceConflicts chartContent jobImage backOffLimit timeout
		failurePolicy authSecret authPassCredentials insecureSkipTLSVerify plainHTTP dockerRegistrySecret podSecurityContext
		securityContext driver`)
	var read []string
	for _, f := range reflect.VisibleFields(reflect.TypeOf(spec{})) {
		read = append(read, f.Tag.Get("json"))
	}
	slices.Sort(fields)
	slices.Sort(read)
	if !slices.Equal(fields, read) {
		t.Errorf("fields %v, want those of k3s: %v", read, fields)
	}
}
