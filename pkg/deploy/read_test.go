package deploy

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation"
)

func TestRead(t *testing.T) {
	tests := map[string]struct {
		text string
		want string // kind/name@document:line of each
		err  string
	}{
		"nothing":           {},
		"one":               {text: "apiVersion: v1\nkind: A\nmetadata: {name: x}\n", want: "A/x@1:1"},
		"several":           {text: "apiVersion: v1\nkind: A\nmetadata: {name: x}\n---\napiVersion: v1\nkind: B\nmetadata: {name: z}", want: "A/x@1:1 B/z@2:5"},
		"empty documents":   {text: "---\n# nothing\n---\n\napiVersion: v1\nkind: A\nmetadata: {name: x}\n---\n", want: "A/x@1:5"},
		"Windows":           {text: "\ufeffapiVersion: v1\r\nkind: A\r\nmetadata: {name: x}\r\n---\r\napiVersion: v1\r\nkind: B\r\nmetadata: {name: z}\r\n", want: "A/x@1:1 B/z@2:5"},
		"dashes in text":    {text: "apiVersion: v1\nkind: A\nmetadata: {name: x}\ndata: |\n  ---\n  ----\n", want: "A/x@1:1"},
		"JSON":              {text: `{"apiVersion": "v1", "kind": "A", "metadata": {"name": "x"}}`, want: "A/x@1:1"},
		"JSON with tabs":    {text: "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"A\",\n\t\"metadata\": {\"name\": \"x\", \"a\": \"\\ud83c\\udf47\"}\n}\n", want: "A/x@1:1"},
		"JSON after JSON":   {text: "{\"apiVersion\": \"v1\", \"kind\": \"A\",\n \"metadata\": {\"name\": \"x\"}}\n\n{\"apiVersion\": \"v1\", \"kind\": \"B\",\n\"metadata\": {\"name\": \"z\"}}\n---\napiVersion: v1\nkind: C\nmetadata: {name: w}\n", want: "A/x@1:1 B/z@2:4 C/w@3:7"},
		"flow style":        {text: "{apiVersion: v1, kind: A, metadata: {name: x}}", want: "A/x@1:1"},
		"a list":            {text: "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: A, metadata: {name: x}}\n- {apiVersion: v1, kind: B, metadata: {name: z}}\n", want: "A/x@1:1 B/z@1:1"},
		"numbers":           {text: "apiVersion: v1\nkind: A\nmetadata: {name: x}\nmode: 0644\nbig: 9007199254740993\n", want: "A/x@1:1"},
		"values stay":       {text: "apiVersion: v1\nkind: A\nmetadata: {name: \"${X}\"}\n", want: "A/${X}@1:1"},
		"broken second":     {text: "apiVersion: v1\nkind: A\nmetadata: {name: x}\n---\nkind: B\nmetadata: [}\n", err: "document 2, line 6: "},
		"broken JSON":       {text: "\n{\"apiVersion\": \"v1\",\n \"kind\" \"A\"}\n", err: "document 1, line 3: "},
		"indented":          {text: "apiVersion: v1\nkind: A\n  name: x\n", err: "document 1, line 3: mapping values are not allowed"},
		"outdented":         {text: "apiVersion: v1\nkind: A\nmetadata:\n  name: x\n bad: z\n", err: "document 1, line 5: did not find expected key"},
		"a key twice":       {text: "\napiVersion: v1\nkind: A\nkind: B\nmetadata: {name: x}\n", err: "document 1, line 4: key \"kind\" already set"},
		"tabs":              {text: "apiVersion: v1\nkind: A\nmetadata:\n\tname: x\n", err: "document 1, line 4: found character that cannot start any token"},
		"no kind":           {text: "apiVersion: v1\nmetadata: {name: x}\n", err: "document 1, line 1: an object needs kind"},
		"no version":        {text: "#\n---\nkind: A\nmetadata: {name: x}\n", err: "document 1, line 3: an object needs apiVersion"},
		"no name":           {text: "apiVersion: v1\nkind: A\nmetadata: {generateName: x-}\n", err: "an object needs metadata.name"},
		"a number for name": {text: "apiVersion: v1\nkind: A\nmetadata: {name: 7}\n", err: "an object needs metadata.name, and that as text"},
		"a list's item":     {text: "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: A}\n", err: "document 1, line 1: an object needs metadata.name"},
		"prose":             {text: "hello\n", err: "document 1, line 1: this is not an object"},
		"the same twice":    {text: "apiVersion: v1\nkind: A\nmetadata: {name: x}\n---\napiVersion: v1\nkind: A\nmetadata: {name: x}\n", err: "document 2, line 5: A x is in document 1 already"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			objects, err := read([]byte(tt.text))
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("err = %v, want %q in it", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, o := range objects {
				got = append(got, o.GetKind()+"/"+o.GetName()+"@"+strings.NewReplacer("document ", "", ", line ", ":").Replace(o.place.String()))
				if mode, ok := o.Object["mode"]; ok && (mode != int64(0o644) || o.Object["big"] != int64(9007199254740993)) {
					t.Errorf("numbers: %v", o.Object)
				}
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("objects = %s, want %s", s, tt.want)
			}
		})
	}
}

func TestExpand(t *testing.T) {
	values := map[string]string{"ONE": "1", "TWO": "2", "RAW": "a${ONE}", "NONE": ""}
	for in, want := range map[string]string{
		"${ONE}-${TWO}${ONE}": "1-21",
		"${RAW}":              "a${ONE}",
		"x${NONE}":            "x",
		"$x$ {ONE}":           "$x$ {ONE}",
		"kind: ${WHO}":        "no value for ${WHO}",
		"kind: ${ONE":         "no value for ${ONE}",
	} {
		got, err := expand([]byte(in), values)
		if err != nil {
			got = []byte(err.Error())
		}
		if string(got) != want {
			t.Errorf("%s became %s, want %s", in, got, want)
		}
	}
}

func TestOrder(t *testing.T) {
	objects, err := read([]byte(`{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingWebhookConfiguration, metadata: {name: a}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: b}}
---
{apiVersion: example.com/v1, kind: Wine, metadata: {name: c}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: d}}
---
{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: e}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: f}}
---
{apiVersion: v1, kind: Secret, metadata: {name: g}}
`))
	if err != nil {
		t.Fatal(err)
	}
	order(objects)
	got := ""
	for _, o := range objects {
		got += o.GetName()
	}
	if got != "fedgbca" {
		t.Errorf("order %s, want fedgbca: what others need first, in the file's order within a rank", got)
	}
}

func TestWithout(t *testing.T) {
	a := reference{"apps/v1", "Deployment", "default", "a"}
	for name, tt := range map[string]struct {
		other reference
		same  bool
	}{
		"itself":            {a, true},
		"another version":   {reference{"apps/v1beta1", "Deployment", "default", "a"}, true},
		"no namespace":      {reference{"apps/v1", "Deployment", "", "a"}, true},
		"another namespace": {reference{"apps/v1", "Deployment", "x", "a"}, false},
		"another group":     {reference{"v1", "Deployment", "default", "a"}, false},
		"another kind":      {reference{"apps/v1", "DaemonSet", "default", "a"}, false},
		"another name":      {reference{"apps/v1", "Deployment", "default", "b"}, false},
	} {
		if got := len(without([]reference{a}, []reference{tt.other})) == 0; got != tt.same {
			t.Errorf("%s: same %v, want %v", name, got, tt.same)
		}
	}
}

func TestAddonName(t *testing.T) {
	seen := map[string]string{}
	for _, path := range []string{"web.yaml", "web.yml", "web.json", "apps/web.yaml", "apps.web.yaml", "Web.yaml", "a b.yaml", "a_b.yaml", "ünï.yaml",
		"-.yaml", "..x.yaml", "coredns.yaml", strings.Repeat("x", 240) + ".yaml", strings.Repeat("d/", 120) + "x.yaml", "Ω.yaml"} {
		name := addonName(path, []string{"coredns"})
		if errs := validation.IsDNS1123Subdomain(name); len(errs) > 0 {
			t.Errorf("%s is called %s: %v", path, name, errs)
		}
		if other, taken := seen[name]; taken {
			t.Errorf("%s and %s are both called %s", path, other, name)
		}
		seen[name] = path
	}
	for want, path := range map[string]string{"web": "web.yaml", "web.yml": "web.yml", "apps.web": "apps.web.yaml"} {
		if seen[want] != path {
			t.Errorf("%s is not called %s", path, want)
		}
	}
}
