package deploy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/yaml"
)

// An object is one that a manifest asks for.
type object struct {
	*unstructured.Unstructured
	place place
}

// A place is a document of a manifest, counted from 1, and a line of the file.
type place struct{ document, line int }

func (p place) String() string { return fmt.Sprintf("document %d, line %d", p.document, p.line) }

// read decodes every document of a manifest. Its error says where the mistake is.
func read(text []byte) ([]object, error) {
	var out []object
	for _, d := range split(text) {
		found, err := d.objects()
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	seen := map[reference]place{}
	for _, o := range out {
		if first, ok := seen[refer(o)]; ok {
			return nil, fmt.Errorf("%s: %s is in document %d already", o.place, refer(o), first.document)
		}
		seen[refer(o)] = o.place
	}
	return out, nil
}

// A document is a part of a manifest that holds something.
type document struct {
	place
	text []byte
	json bool
}

// split cuts a manifest at its lines of three dashes, and JSON where a value ends.
func split(text []byte) []document {
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	var out []document
	var part []byte
	begins, line := 0, 0 // of part: where its content begins
	flush := func() {
		if begins == 0 {
			return
		}
		d := document{place: place{len(out) + 1, begins}, text: part}
		if values := d.values(); values != nil {
			out = append(out, values...)
		} else {
			out = append(out, d)
		}
	}
	for l := range bytes.Lines(text) {
		line++
		rest, cut := bytes.CutPrefix(l, []byte("---"))
		if cut && (len(rest) == 0 || bytes.ContainsAny(rest[:1], " \t\r\n")) {
			flush()
			part, begins, l = nil, 0, rest
		}
		if content := bytes.TrimSpace(l); begins == 0 && len(content) > 0 && content[0] != '#' {
			begins = line
		}
		if begins > 0 {
			part = append(part, l...)
		}
	}
	flush()
	return out
}

// values are the JSON values of a document, or nil if it is not made of such.
func (d document) values() []document {
	if !bytes.HasPrefix(bytes.TrimSpace(d.text), []byte("{")) {
		return nil
	}
	var out []document
	for dec := json.NewDecoder(bytes.NewReader(d.text)); dec.More(); {
		begins := d.line + bytes.Count(d.text[:dec.InputOffset()], []byte("\n"))
		var v json.RawMessage
		if dec.Decode(&v) != nil {
			return nil
		}
		ends := d.line + bytes.Count(d.text[:dec.InputOffset()], []byte("\n"))
		begins = max(begins, ends-bytes.Count(v, []byte("\n"))) // without the space before it
		out = append(out, document{place{d.document + len(out), begins}, v, true})
	}
	return out
}

// objects decodes a document: one object, or those of a list.
func (d document) objects() ([]object, error) {
	text := d.text
	if !d.json {
		var err error
		// With as many lines before it as in the file, errors name the file's own.
		whole := append(bytes.Repeat([]byte("\n"), d.line-1), d.text...)
		if text, err = yaml.YAMLToJSONStrict(whole); err != nil {
			return nil, d.syntax(err)
		}
	}
	o := &unstructured.Unstructured{}
	if err := utiljson.Unmarshal(text, &o.Object); err != nil || o.Object == nil {
		return nil, fmt.Errorf("%s: this is not an object, which has apiVersion, kind and metadata", d.place)
	}
	if !strings.HasSuffix(o.GetKind(), "List") || !o.IsList() {
		return []object{{o, d.place}}, d.complete(o)
	}
	list, err := o.ToList()
	if err != nil {
		return nil, fmt.Errorf("%s: %s: an item is not an object: %w", d.place, o.GetKind(), err)
	}
	var out []object
	for i := range list.Items {
		if err := d.complete(&list.Items[i]); err != nil {
			return nil, err
		}
		out = append(out, object{&list.Items[i], d.place})
	}
	return out, nil
}

// complete refuses an object that cannot be told from others.
func (d document) complete(o *unstructured.Unstructured) error {
	for _, f := range []struct{ name, value string }{{"apiVersion", o.GetAPIVersion()}, {"kind", o.GetKind()}, {"metadata.name", o.GetName()}} {
		if f.value == "" {
			return fmt.Errorf("%s: an object needs %s, and that as text", d.place, f.name)
		}
	}
	return nil
}

// syntax gives an error of the YAML parser its place.
func (d document) syntax(err error) error {
	p, text := d.place, strings.TrimPrefix(err.Error(), "yaml: ")
	if m := regexp.MustCompile(`line (\d+): ([^\n]*)`).FindStringSubmatch(text); m != nil {
		p.line, _ = strconv.Atoi(m[1])
		text = m[2]
		if strings.HasPrefix(text, "did not find expected") {
			p.line++ // of what its upper half finds it counts the lines from 0
		}
	}
	return fmt.Errorf("%s: %s", p, text)
}

// expand fills in each ${NAME}. A name without a value is an error.
func expand(text []byte, values map[string]string) ([]byte, error) {
	var out bytes.Buffer
	for {
		before, rest, found := bytes.Cut(text, []byte("${"))
		out.Write(before)
		if !found {
			return out.Bytes(), nil
		}
		name, after, closed := bytes.Cut(rest, []byte("}"))
		value, known := values[string(name)]
		if !closed || !known {
			return nil, fmt.Errorf("no value for ${%s}", strings.TrimSpace(string(name)))
		}
		out.WriteString(value)
		text = after
	}
}
