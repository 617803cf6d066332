// Package configfile reads configuration files as config.Settings.
//
// A file is a flat mapping from setting names to values. Reading is strict: what
// cannot be meant is a mistake, named with its file and line, and all mistakes are
// reported together. The package knows no setting by name; config.Apply does.
package configfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/podo-dev/podo/pkg/config"
)

// MaxSize is the size of the largest file that is read, and MaxSettings how many
// settings may be in it: a multiple of those there are.
const (
	MaxSize     = 1 << 20
	MaxSettings = 500
)

// Read returns the settings in path and then those in path.d/*.yaml and *.yml by name,
// so that later ones are stronger. It is no mistake if path does not exist, unless
// somebody named it: then named says who, such as "--config".
func Read(path, named string) ([]config.Setting, error) {
	var errs []error
	out, err := readFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && named == "":
		// The default file is there for those who want one.
	case err != nil && named != "" && isPathError(err):
		errs = append(errs, fmt.Errorf("%s: %w", named, err))
	case err != nil:
		errs = append(errs, err)
	}
	dropins, err := Dropins(path)
	if err != nil {
		errs = append(errs, err)
	}
	for _, d := range dropins {
		more, err := readFile(d)
		if err != nil {
			errs = append(errs, err)
		}
		out = append(out, more...)
	}
	return out, errors.Join(errs...)
}

// Dropins lists the files that Read reads after path, in order. Files whose names
// start with a dot are passed over, as editors leave them.
func Dropins(path string) ([]string, error) {
	entries, err := os.ReadDir(path + ".d")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		name := e.Name()
		if ext := filepath.Ext(name); (ext == ".yaml" || ext == ".yml") && !strings.HasPrefix(name, ".") {
			out = append(out, filepath.Join(path+".d", name))
		}
	}
	slices.Sort(out)
	return out, nil
}

func isPathError(err error) bool {
	var pe *fs.PathError
	return errors.As(err, &pe)
}

func readFile(path string) ([]config.Setting, error) {
	info, err := os.Stat(path) // before opening, which waits for ever on a named pipe
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, fmt.Errorf("%s: is a folder, not a file; drop-in files go into %s.d", path, path)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, err
	}
	if len(text) > MaxSize {
		return nil, fmt.Errorf("%s: is larger than 1 MiB, so it cannot be a podo configuration; settings take a few lines", path)
	}
	return Parse(path, text)
}

// Parse reads the text of a file. Origins are path:line.
func Parse(path string, text []byte) ([]config.Setting, error) {
	p := parser{path: path}
	if root := p.document(text); root != nil {
		p.mapping(root)
	}
	return p.out, errors.Join(p.errs...)
}

type parser struct {
	path string
	out  []config.Setting
	errs []error
}

func (p *parser) failf(line int, format string, args ...any) {
	p.errs = append(p.errs, fmt.Errorf("%s:%d: "+format, append([]any{p.path, line}, args...)...))
}

// document returns the one mapping in text, or nil if there is none to read.
func (p *parser) document(text []byte) *yaml.Node {
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	for i, line := range bytes.Split(text, []byte("\n")) {
		if !utf8.Valid(line) {
			p.failf(i+1, "is not UTF-8 text; save the file as UTF-8")
			return nil
		}
		if bytes.IndexByte(line, 0) >= 0 {
			p.failf(i+1, "holds a NUL byte; this is not a text file")
			return nil
		}
		if rest := bytes.TrimLeft(line, " "); len(rest) > 0 && rest[0] == '\t' && len(bytes.TrimSpace(rest)) > 0 {
			p.failf(i+1, "starts with a tab; YAML is indented with spaces")
			return nil
		}
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc, more yaml.Node
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return nil // empty, or comments alone
	}
	if err != nil {
		p.syntax(err)
		return nil
	}
	switch err := dec.Decode(&more); {
	case err == nil:
		p.failf(max(more.Line, 1), "a second document begins here; write all settings into one, or into a drop-in file")
		return nil
	case !errors.Is(err, io.EOF):
		p.syntax(err)
		return nil
	}
	root := resolve(doc.Content[0])
	switch {
	case root.Kind == yaml.ScalarNode && root.Tag == "!!null":
		return nil
	case root.Kind != yaml.MappingNode:
		p.failf(root.Line, "is %s; settings are written as name: value", kind(root))
		return nil
	}
	return root
}

// syntax blames the line that the YAML parser names in its text.
func (p *parser) syntax(err error) {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	var line int
	if n, _ := fmt.Sscanf(text, "line %d:", &line); n == 1 {
		_, text, _ = strings.Cut(text, ": ")
	}
	p.failf(max(line, 1), "not valid YAML: %s", text)
}

func (p *parser) mapping(root *yaml.Node) {
	if n := len(root.Content) / 2; n > MaxSettings {
		p.failf(root.Line, "holds %d settings, far more than there are; this is not a podo configuration", n)
		return
	}
	first := map[string]int{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], resolve(root.Content[i+1])
		if key.Kind != yaml.ScalarNode || key.Tag != "!!str" && key.Tag != "!!bool" {
			p.failf(key.Line, "the name of a setting is %s; write name: value", kind(resolve(key)))
			continue
		}
		name := strings.TrimLeft(key.Value, "-")
		plain, add := strings.CutSuffix(name, "+")
		if f, ok := config.Lookup(plain); ok {
			plain = f.Name
		}
		if plain == "config" {
			p.failf(key.Line, "config: a file cannot name another; use a drop-in file, --config or $PODO_CONFIG_FILE")
			continue
		}
		id := plain
		if add {
			id += "+"
		}
		if at, twice := first[id]; twice {
			p.failf(key.Line, "%s is here again, after line %d; write a list, or remove one", key.Value, at)
			continue
		}
		first[id] = key.Line
		if values, ok := p.values(name, value); ok {
			p.out = append(p.out, config.Setting{Name: name, Values: values, Origin: fmt.Sprintf("%s:%d", p.path, key.Line)})
		}
	}
}

func (p *parser) values(name string, n *yaml.Node) ([]string, bool) {
	switch n.Kind {
	case yaml.ScalarNode:
		if n.Tag == "!!null" {
			p.failf(n.Line, "%s: has no value; remove the line, or write \"\" for an empty one", name)
			return nil, false
		}
		return []string{n.Value}, true
	case yaml.SequenceNode:
		out, ok := []string{}, true
		for _, item := range n.Content {
			item = resolve(item)
			if item.Kind != yaml.ScalarNode || item.Tag == "!!null" {
				p.failf(item.Line, "%s: an entry is %s; write plain values%s", name, kind(item), hint(item))
				ok = false
				continue
			}
			out = append(out, item.Value)
		}
		return out, ok
	case yaml.MappingNode:
		return p.pairs(name, n)
	}
	p.failf(n.Line, "%s: is %s", name, kind(n))
	return nil, false
}

// pairs reads a mapping below a setting that takes NAME=VALUE.
func (p *parser) pairs(name string, n *yaml.Node) ([]string, bool) {
	f, known := config.Lookup(strings.TrimSuffix(name, "+"))
	if known && !f.IsMap() && f.Placeholder != "KEY=VALUE" {
		p.failf(n.Line, "%s: is a mapping; it takes %s%s", name, f.Kind(), hint(n))
		return nil, false
	}
	out, ok := []string{}, true
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := resolve(n.Content[i]), resolve(n.Content[i+1])
		switch {
		case k.Kind != yaml.ScalarNode || v.Kind != yaml.ScalarNode:
			p.failf(k.Line, "%s: values below it must be plain", name)
			ok = false
		case seen[k.Value]:
			p.failf(k.Line, "%s: %s is here twice", name, k.Value)
			ok = false
		case v.Tag == "!!null":
			out = append(out, k.Value+"=")
		default:
			out = append(out, k.Value+"="+v.Value)
		}
		seen[k.Value] = true
	}
	return out, ok
}

// hint shows how a small mapping would be written as an argument.
func hint(n *yaml.Node) string {
	if n.Kind == yaml.MappingNode && len(n.Content) >= 2 && n.Content[1].Kind == yaml.ScalarNode {
		return fmt.Sprintf(", such as - %s=%s", n.Content[0].Value, n.Content[1].Value)
	}
	return ""
}

func resolve(n *yaml.Node) *yaml.Node {
	for range 10 {
		if n.Kind != yaml.AliasNode || n.Alias == nil {
			break
		}
		n = n.Alias
	}
	return n
}

func kind(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Tag == "!!null":
		return "empty"
	case n.Kind == yaml.ScalarNode:
		return fmt.Sprintf("the plain value %q", n.Value)
	}
	return "something else"
}
