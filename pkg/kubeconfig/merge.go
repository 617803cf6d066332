package kubeconfig

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/podo-dev/podo/pkg/atomicfile"
)

// extension is where Merge remembers which context was current before.
const (
	extension = "podo.dev"
	previous  = "previous-context"
)

// Merge puts c into the kubeconfig at path, under c.Name, replacing what has that
// name, and makes it current. A missing file is made, mode 0600; an existing one
// keeps its mode, its owner and everything else in it. A link is followed.
func Merge(path string, c Config, opts ...atomicfile.Option) error {
	own, err := Render(c)
	if err != nil {
		return fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	if err := atomicfile.EnsureDir(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("kubeconfig: %w", err)
	}
	release, err := lock(path)
	if err != nil {
		return err
	}
	defer release()
	real, text, mode, err := open(path)
	if err != nil {
		return err
	}
	opts = append(opts, atomicfile.KeepOwner())
	if text == nil {
		return save(real, own, mode, opts...)
	}
	doc, err := parse(path, text)
	if err != nil {
		return err
	}
	ours, err := parse(path, own)
	if err != nil {
		return err
	}
	unquote(ours)
	merge(doc, ours, c.Name)
	return store(real, doc, mode, opts...)
}

// Has reports whether the kubeconfig at path has anything called name.
func Has(path, name string) (bool, error) {
	_, text, _, err := open(path)
	if err != nil || text == nil {
		return false, err
	}
	doc, err := parse(path, text)
	return err == nil && has(doc, name), err
}

// Remove takes everything called name from the kubeconfig at path, and reports
// whether there was anything. The context that was current before Merge is current
// again. A file that then holds no entry at all is removed.
func Remove(path, name string) (bool, error) {
	if there, err := Has(path, name); err != nil || !there {
		return false, err
	}
	release, err := lock(path)
	if err != nil {
		return false, err
	}
	defer release()
	real, text, mode, err := open(path)
	if err != nil || text == nil {
		return false, err
	}
	doc, err := parse(path, text)
	if err != nil {
		return false, err
	}
	before := remembered(find(list(doc, "contexts"), name))
	removed, left := false, 0
	for _, kind := range []string{"clusters", "users", "contexts"} {
		entries := list(doc, kind)
		removed = drop(entries, name) || removed
		if entries != nil {
			left += len(entries.Content)
		}
	}
	if !removed {
		return false, nil
	}
	if left == 0 {
		if err := os.Remove(real); err != nil {
			return false, fmt.Errorf("kubeconfig: %w", err)
		}
		return true, nil
	}
	if current := value(doc, "current-context"); current != nil && current.Value == name {
		if find(list(doc, "contexts"), before) == nil {
			before = ""
		}
		*current = yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: before, LineComment: current.LineComment}
	}
	return true, store(real, doc, mode, atomicfile.KeepOwner())
}

// has reports whether anything in a kubeconfig is called name.
func has(doc *yaml.Node, name string) bool {
	return slices.ContainsFunc([]string{"clusters", "users", "contexts"}, func(kind string) bool { return find(list(doc, kind), name) != nil })
}

// Check reports why nothing could be merged into the kubeconfig at path.
func Check(path string) error {
	real, text, _, err := open(path)
	if err == nil && text != nil {
		_, err = parse(path, text)
	}
	if err != nil {
		return err
	}
	for _, file := range []string{path, real} { // beside the one is the lock, beside the other what takes its place
		if err := takesFiles(filepath.Dir(file)); err != nil {
			return fmt.Errorf("kubeconfig %s: it cannot be written: %w; name another file with --kubeconfig or in KUBECONFIG", path, err)
		}
	}
	if info, err := os.Lstat(lockOf(path)); err == nil && time.Since(info.ModTime()) > patience {
		return locked(path)
	}
	return nil
}

// takesFiles reports why no file can be made in a folder, which need not be there.
func takesFiles(dir string) error {
	err := unix.Access(dir, unix.W_OK|unix.X_OK)
	if parent := filepath.Dir(dir); errors.Is(err, fs.ErrNotExist) && parent != dir {
		return takesFiles(parent)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	return nil
}

// patience is how long others may take to write the file.
const patience = 20 * time.Second

func lockOf(path string) string { return path + ".lock" }

func locked(path string) error {
	return fmt.Errorf("kubeconfig %s: another program is writing it; if none is, remove %s", path, lockOf(path))
}

// lock keeps others from writing the file meanwhile: kubectl makes the same one, as client-go
// does in tools/clientcmd. It waits for some seconds until they have ended.
func lock(path string) (release func(), err error) {
	name := lockOf(path)
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL, 0)
		switch {
		case err == nil:
			f.Close()
			return func() { os.Remove(name) }, nil
		case !errors.Is(err, fs.ErrExist):
			return nil, fmt.Errorf("kubeconfig: %w", err)
		case time.Now().After(deadline):
			return nil, locked(path)
		}
	}
}

// open reads the file that path leads to. Text is nil if there is none, or none
// with anything in it.
func open(path string) (real string, text []byte, mode fs.FileMode, err error) {
	real, err = filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		if link, lerr := os.Readlink(path); lerr == nil {
			return "", nil, 0, fmt.Errorf("kubeconfig: %s is a link to %s, which does not exist; make that or remove the link", path, link)
		}
		return path, nil, DefaultMode, nil
	}
	if err != nil {
		return "", nil, 0, fmt.Errorf("kubeconfig: %w", err)
	}
	info, err := os.Stat(real)
	if err != nil {
		return "", nil, 0, fmt.Errorf("kubeconfig: %w", err)
	}
	if text, err = os.ReadFile(real); err != nil {
		return "", nil, 0, fmt.Errorf("kubeconfig: %w", err)
	}
	if len(bytes.TrimSpace(text)) == 0 {
		text = nil
	}
	return real, text, info.Mode().Perm(), nil
}

// parse returns the top mapping of a kubeconfig's only document.
func parse(path string, text []byte) (*yaml.Node, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w; repair it or move it away", path, err)
	}
	if len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, fmt.Errorf("kubeconfig %s: it is not a mapping; repair it or move it away", path)
	}
	top := doc.Content[0]
	if kind := value(top, "kind"); kind != nil && kind.Value != "Config" {
		return nil, fmt.Errorf("kubeconfig %s: it is of kind %q, want Config", path, kind.Value)
	}
	for _, kind := range []string{"clusters", "users", "contexts"} {
		if v := value(top, kind); v != nil && v.Kind != yaml.SequenceNode && v.Tag != "!!null" {
			return nil, fmt.Errorf("kubeconfig %s:%d: %s is not a list; repair it or move it away", path, v.Line, kind)
		}
	}
	// Comments may hang on the document rather than on its mapping.
	top.HeadComment = joinComments(doc.HeadComment, top.HeadComment)
	top.FootComment = joinComments(top.FootComment, doc.FootComment)
	return top, nil
}

func merge(doc, ours *yaml.Node, name string) {
	before := ""
	if current := value(doc, "current-context"); current != nil {
		before = current.Value
	}
	if before == name { // merged before: what was current then still counts
		before = remembered(find(list(doc, "contexts"), name))
	}
	for _, kind := range []string{"clusters", "users", "contexts"} {
		entry := list(ours, kind).Content[0]
		if kind == "contexts" && before != "" {
			remember(entry, before)
		}
		entries := list(doc, kind)
		if entries == nil {
			entries = set(doc, kind, &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"})
		}
		if old := find(entries, name); old != nil {
			*old = *entry
		} else {
			entries.Style = 0 // [] written in flow style would stay on one line
			entries.Content = append(entries.Content, entry)
		}
	}
	for _, key := range []string{"apiVersion", "kind"} {
		if value(doc, key) == nil {
			set(doc, key, value(ours, key))
		}
	}
	set(doc, "current-context", value(ours, "current-context"))
}

// remember notes in a context what was current before it. kubectl keeps such
// extensions when it rewrites the file.
func remember(context *yaml.Node, before string) {
	text := func(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s} }
	mapping := func(pairs ...*yaml.Node) *yaml.Node {
		return &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Content: pairs}
	}
	note := mapping(text("name"), text(extension), text("extension"), mapping(text(previous), text(before)))
	set(value(context, "context"), "extensions", &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Content: []*yaml.Node{note}})
}

func remembered(context *yaml.Node) string {
	note := find(list(value(context, "context"), "extensions"), extension)
	if v := value(value(note, "extension"), previous); v != nil {
		return v.Value
	}
	return ""
}

// unquote lets the encoder choose quotes, where there is need of any.
func unquote(n *yaml.Node) {
	n.Style = 0
	for _, below := range n.Content {
		unquote(below)
	}
}

// value returns the value of a key of a mapping, or nil.
func value(mapping *yaml.Node, key string) *yaml.Node {
	if mapping == nil || mapping.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			return mapping.Content[i+1]
		}
	}
	return nil
}

// set gives a key of a mapping a value and returns it.
func set(mapping *yaml.Node, key string, v *yaml.Node) *yaml.Node {
	if old := value(mapping, key); old != nil {
		*old = *v
		return old
	}
	mapping.Content = append(mapping.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: key}, v)
	return v
}

// list returns the sequence under a key, or nil.
func list(mapping *yaml.Node, key string) *yaml.Node {
	if v := value(mapping, key); v != nil && v.Kind == yaml.SequenceNode {
		return v
	}
	return nil
}

// find returns the entry called name, or nil.
func find(entries *yaml.Node, name string) *yaml.Node {
	if entries == nil || name == "" {
		return nil
	}
	for _, e := range entries.Content {
		if v := value(e, "name"); v != nil && v.Value == name {
			return e
		}
	}
	return nil
}

func drop(entries *yaml.Node, name string) bool {
	if entries == nil {
		return false
	}
	var kept []*yaml.Node
	for _, e := range entries.Content {
		if v := value(e, "name"); v == nil || v.Value != name {
			kept = append(kept, e)
		}
	}
	dropped := len(kept) < len(entries.Content)
	entries.Content = kept
	return dropped
}

func store(path string, doc *yaml.Node, mode fs.FileMode, opts ...atomicfile.Option) error {
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	enc.CompactSeqIndent() // as kubectl writes it
	if err := enc.Encode(doc); err != nil {
		return fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	return save(path, out.Bytes(), mode, opts...)
}

func save(path string, text []byte, mode fs.FileMode, opts ...atomicfile.Option) error {
	if _, err := atomicfile.WriteIfChanged(path, text, mode, opts...); err != nil {
		return fmt.Errorf("kubeconfig: %w", err)
	}
	return nil
}

func joinComments(a, b string) string { return strings.Trim(a+"\n"+b, "\n") }
