package helm

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// stored are Secrets by their names.
func stored(all map[string]map[string]string) secrets {
	return func(_ context.Context, name string) (*corev1.Secret, error) {
		found, ok := all[name]
		if !ok {
			return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, name)
		}
		s := &corev1.Secret{Data: map[string][]byte{}}
		for k, v := range found {
			s.Data[k] = []byte(v)
		}
		return s, nil
	}
}

func TestValues(t *testing.T) {
	some := stored(map[string]map[string]string{"one": {"a": "x: 3", "b": "x: 4\nw: 4"}})
	tests := map[string]struct {
		spec spec
		over *configSpec
		want string // JSON, or the beginning of an error
	}{
		"nothing":                        {want: `{}`},
		"content":                        {spec: spec{ValuesContent: "a: {b: 1, c: two}"}, want: `{"a":{"b":1,"c":"two"}}`},
		"an object wins over content":    {spec: spec{ValuesContent: "x: 1\nw: 1", Values: json.RawMessage(`{"x":2}`)}, want: `{"w":1,"x":2}`},
		"a Secret wins over both":        {spec: spec{Values: json.RawMessage(`{"x":2,"z":2}`), ValuesSecrets: []valuesSecret{{Name: "one", Keys: []string{"a"}}}}, want: `{"x":3,"z":2}`},
		"keys come in their order":       {spec: spec{ValuesSecrets: []valuesSecret{{Name: "one", Keys: []string{"b", "a"}}}}, want: `{"w":4,"x":3}`},
		"a Secret without keys":          {spec: spec{ValuesSecrets: []valuesSecret{{Name: "none"}}}, want: `{}`},
		"a Secret that is missing":       {spec: spec{ValuesSecrets: []valuesSecret{{Name: "none", Keys: []string{"a"}}}}, want: `HelmChart, spec.valuesSecrets: secrets "none" not found`},
		"one that may be missing":        {spec: spec{ValuesSecrets: []valuesSecret{{Name: "none", Keys: []string{"a"}, IgnoreUpdates: true}}}, want: `{}`},
		"a key that is missing":          {spec: spec{ValuesSecrets: []valuesSecret{{Name: "one", Keys: []string{"q"}}}}, want: `HelmChart, spec.valuesSecrets: Secret one has no key "q"`},
		"a HelmChartConfig wins":         {spec: spec{Values: json.RawMessage(`{"x":2,"y":2}`)}, over: &configSpec{ValuesContent: "x: 9"}, want: `{"x":9,"y":2}`},
		"its Secrets win over its own":   {over: &configSpec{ValuesContent: "x: 9", ValuesSecrets: []valuesSecret{{Name: "one", Keys: []string{"a"}}}}, want: `{"x":3}`},
		"what is set wins over all":      {spec: spec{Set: map[string]intstr.IntOrString{"x": intstr.FromInt32(7)}}, over: &configSpec{ValuesContent: "x: 9"}, want: `{"x":7}`},
		"a number that is set as string": {spec: spec{Set: map[string]intstr.IntOrString{"x": intstr.FromString("7")}}, want: `{"x":"7"}`},
		"a boolean":                      {spec: spec{Set: map[string]intstr.IntOrString{"a.b": intstr.FromString("true")}}, want: `{"a":{"b":true}}`},
		"commas":                         {spec: spec{Set: map[string]intstr.IntOrString{"x": intstr.FromString(`a,b\,c`)}}, want: `{"x":"a,b,c"}`},
		"a list":                         {spec: spec{Set: map[string]intstr.IntOrString{"x[0].name": intstr.FromString("a")}}, want: `{"x":[{"name":"a"}]}`},
		"null takes a default away":      {spec: spec{ValuesContent: "x: null"}, want: `{"x":null}`},
		"no YAML":                        {spec: spec{ValuesContent: "a: [\n"}, want: "HelmChart, spec.valuesContent: these are no values: "},
		"no object":                      {spec: spec{Values: json.RawMessage(`["a"]`)}, want: "HelmChart, spec.values: these are no values: "},
		"no name of a value":             {spec: spec{Set: map[string]intstr.IntOrString{"x[-1]": intstr.FromString("a")}}, want: "HelmChart, spec.set, x[-1]: "},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := &chart{Spec: tt.spec}
			var over *config
			if tt.over != nil {
				over = &config{Spec: *tt.over}
			}
			parts, err := layers(t.Context(), c, over, some)
			var got map[string]any
			if err == nil {
				got, err = merge(parts, tt.spec.Set)
			}
			if err != nil {
				if !strings.HasPrefix(err.Error(), tt.want) {
					t.Errorf("error %q, want %q", err, tt.want)
				}
				return
			}
			var want map[string]any
			if err := json.Unmarshal([]byte(tt.want), &want); err != nil {
				t.Fatalf("values %v, want the error %q", got, tt.want)
			}
			text, _ := json.Marshal(got)
			var same map[string]any
			if err := json.Unmarshal(text, &same); err != nil || !reflect.DeepEqual(same, want) {
				t.Errorf("values %s, want %s", text, tt.want)
			}
		})
	}
}

func TestChecksum(t *testing.T) {
	base := func() (*chart, []layer) {
		return &chart{Spec: spec{Chart: "web", Version: "1", Repo: "https://a.example", Timeout: "5m"}}, []layer{{text: []byte("x: 1")}, {text: []byte("s: 1"), quiet: true}}
	}
	sum := func(change func(*chart, []layer) []layer) string {
		c, parts := base()
		if change != nil {
			parts = change(c, parts)
		}
		out, err := checksum(c, c.Spec, parts)
		if err != nil || len(out) > 63 {
			t.Fatalf("%q, %v", out, err)
		}
		return out
	}
	was := sum(nil)
	for name, tt := range map[string]struct {
		change func(*chart, []layer) []layer
		same   bool
	}{
		"nothing":        {func(_ *chart, l []layer) []layer { return l }, true},
		"a timeout":      {func(c *chart, l []layer) []layer { c.Spec.Timeout = "9m"; return l }, true},
		"a policy":       {func(c *chart, l []layer) []layer { c.Spec.FailurePolicy = aborts; return l }, true},
		"a quiet Secret": {func(_ *chart, l []layer) []layer { l[1].text = []byte("s: 2"); return l }, true},
		"values":         {func(_ *chart, l []layer) []layer { l[0].text = []byte("x: 2"); return l }, false},
		"a version":      {func(c *chart, l []layer) []layer { c.Spec.Version = "2"; return l }, false},
		"a value set":    {func(c *chart, l []layer) []layer { c.Spec.Set = map[string]intstr.IntOrString{"a": {}}; return l }, false},
		"the wish to retry": {func(c *chart, l []layer) []layer {
			c.Metadata.Annotations = map[string]string{retryAnnotation: "now"}
			return l
		}, false},
	} {
		if now := sum(tt.change); (now == was) != tt.same {
			t.Errorf("%s changed: same checksum %v, want %v", name, now == was, tt.same)
		}
	}
}

func TestRefused(t *testing.T) {
	five := 5
	for name, tt := range map[string]struct {
		spec spec
		want []string
	}{
		"a chart of a repository": {spec{Chart: "web", Repo: "https://a.example", BackOffLimit: &five, HelmVersion: "v3", Bootstrap: true}, nil},
		"a chart in a registry":   {spec{Chart: "oci://a.example/web", DockerRegistrySecret: &name{Name: "login"}}, nil},
		"the chart itself":        {spec{ChartContent: "aGVsbG8="}, nil},
		"the pod of a job": {
			spec{Chart: "https://a.example/web.tgz", JobImage: "x", SecurityContext: json.RawMessage(`{}`), PodSecurityContext: json.RawMessage(`{}`)},
			[]string{"spec.jobImage: is about the pod of a job", "spec.securityContext: ", "spec.podSecurityContext: "},
		},
		"another Helm":             {spec{Chart: "https://a.example/web.tgz", HelmVersion: "v2"}, []string{`spec.helmVersion: "v2" is not supported`}},
		"no chart":                 {spec{Repo: "https://a.example"}, []string{"spec.chart: is missing"}},
		"a chart of no repository": {spec{Chart: "web"}, []string{"spec.repo: is missing"}},
		"a login for nothing":      {spec{Chart: "web", Repo: "https://a.example", DockerRegistrySecret: &name{Name: "login"}}, []string{"spec.dockerRegistrySecret: "}},
		"no time":                  {spec{ChartContent: "aGVsbG8=", Timeout: "soon"}, []string{`spec.timeout: "soon" is no time to wait`}},
	} {
		t.Run(name, func(t *testing.T) {
			err := tt.spec.check()
			if (err == nil) != (tt.want == nil) || err != nil && !errors.Is(err, errFinal) {
				t.Fatalf("error %v, want %q", err, tt.want)
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %v, want %q in it", err, w)
				}
			}
		})
	}
}
