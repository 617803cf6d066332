// Package logging makes the one slog handler that everything writes through.
//
// Our own lines are shown from Info up. Lines of the programs that run inside this
// process, or as its children, are adopted: they are attributed to a component, known
// start-up noise is dropped, repetitions are counted, and only warnings remain unless
// more is asked for. Only cmd calls New, Open and Adopt; all others are given a logger.
package logging

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

// Options says how much is written, and in what form.
type Options struct {
	Debug    bool                  // write everything
	Levels   map[string]slog.Level // least level by component, instead of the general one
	Terminal bool                  // w is read by a person: time of day, no date
	Colour   bool                  // w shows colours
	Journal  bool                  // w is the systemd journal: priorities, no time

	File string // for Open: append here instead
	Also bool   // for Open: with File, write to stderr too
}

// Open returns a logger that writes to stderr, or to o.File, or to both. The file is
// made if need be and readable by its owner alone. Closing the closer closes the file.
func Open(stderr io.Writer, o Options) (*slog.Logger, io.Closer, error) {
	if o.File == "" {
		return New(stderr, o), io.NopCloser(nil), nil
	}
	f, err := os.OpenFile(o.File, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, nil, err
	}
	plain := o
	plain.Terminal, plain.Colour, plain.Journal = false, false, false
	if !o.Also {
		return New(f, plain), f, nil
	}
	return slog.New(both{newOutput(f, plain), newOutput(stderr, o)}), f, nil
}

// New returns a logger that writes one line a record to w, each in one Write.
func New(w io.Writer, o Options) *slog.Logger { return slog.New(newOutput(w, o)) }

// both writes to two handlers. Unlike slog.MultiHandler it does not ask them whether
// they want a record: adopted lines below Info have been judged before.
type both [2]slog.Handler

func (b both) Enabled(ctx context.Context, l slog.Level) bool { return b[0].Enabled(ctx, l) }

func (b both) WithGroup(name string) slog.Handler {
	return both{b[0].WithGroup(name), b[1].WithGroup(name)}
}

func (b both) WithAttrs(attrs []slog.Attr) slog.Handler {
	return both{b[0].WithAttrs(attrs), b[1].WithAttrs(attrs)}
}

func (b both) Handle(ctx context.Context, r slog.Record) error {
	return errors.Join(b[0].Handle(ctx, r.Clone()), b[1].Handle(ctx, r))
}

// output is the handler that formats.
type output struct {
	w  io.Writer
	mu *sync.Mutex
	o  Options

	component string
	prefix    string // group names, each with a dot
	attrs     []byte // formatted already
	long      []byte // values of several lines, formatted already
}

func newOutput(w io.Writer, o Options) *output {
	return &output{w: w, mu: new(sync.Mutex), o: o}
}

// allLevels is below any level, klog's V(10) included.
const allLevels slog.Level = -100

func (h *output) least(component string) slog.Level {
	if l, ok := h.o.Levels[component]; ok {
		return l
	}
	if h.o.Debug {
		return allLevels
	}
	return slog.LevelInfo
}

// Enabled answers for our own lines. Adopted lines are judged before they get here.
func (h *output) Enabled(_ context.Context, l slog.Level) bool { return l >= h.least(h.component) }

func (h *output) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	c := *h
	c.prefix += name + "."
	return &c
}

func (h *output) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	line := line{attrs: bytes.Clone(h.attrs), long: bytes.Clone(h.long), component: h.component}
	for _, a := range attrs {
		line.add(h.prefix, a)
	}
	c.attrs, c.long, c.component = line.attrs, line.long, line.component
	return &c
}

func (h *output) Handle(_ context.Context, r slog.Record) error {
	line := line{attrs: bytes.Clone(h.attrs), long: bytes.Clone(h.long), component: h.component}
	r.Attrs(func(a slog.Attr) bool {
		line.add(h.prefix, a)
		return true
	})
	// A logger does not know a component that comes with the record; ask once more.
	if l, ok := h.o.Levels[line.component]; ok && r.Level < l {
		return nil
	}

	var b bytes.Buffer
	switch {
	case h.o.Journal:
		b.WriteString(priority(r.Level))
	case h.o.Terminal:
		b.WriteString(r.Time.Format("15:04:05.000 "))
	default:
		b.WriteString(r.Time.Format("2006-01-02T15:04:05.000Z07:00 "))
	}
	if !h.o.Journal || r.Level != slog.LevelInfo {
		h.writeLevel(&b, r.Level)
	}
	if line.component != "" {
		b.WriteString(line.component + ": ")
	}
	b.WriteString(flat(r.Message))
	b.Write(line.attrs)
	b.WriteByte('\n')
	for text := range strings.Lines(string(line.long)) {
		if h.o.Journal {
			b.WriteString(priority(r.Level))
		}
		b.WriteString("    " + strings.TrimRight(text, "\n") + "\n")
	}

	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := h.w.Write(b.Bytes())
	return err
}

func (h *output) writeLevel(b *bytes.Buffer, l slog.Level) {
	name, colour := "DEBUG", "\x1b[2m"
	switch {
	case l >= slog.LevelError:
		name, colour = "ERROR", "\x1b[31m"
	case l >= slog.LevelWarn:
		name, colour = "WARN", "\x1b[33m"
	case l >= slog.LevelInfo:
		name, colour = "INFO", ""
	}
	if h.o.Colour && colour != "" {
		fmt.Fprintf(b, "%s%-5s\x1b[0m ", colour, name)
		return
	}
	fmt.Fprintf(b, "%-5s ", name)
}

// priority is the prefix by which the journal knows how grave a line is, sd-daemon(3).
func priority(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "<3>"
	case l >= slog.LevelWarn:
		return "<4>"
	case l >= slog.LevelInfo:
		return "<6>"
	}
	return "<7>"
}

// line collects what follows the message.
type line struct {
	component string
	attrs     []byte
	long      []byte
}

func (l *line) add(prefix string, a slog.Attr) {
	if a.Equal(slog.Attr{}) {
		return
	}
	if object, ok := a.Value.Any().(klog.ObjectRef); ok { // resolves to a group, but reads better as namespace/name
		a.Value = slog.StringValue(object.String())
	}
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, g := range v.Group() {
			l.add(prefix, g)
		}
		return
	}
	text := valueText(v)
	switch {
	case prefix+a.Key == "component":
		l.component = text
		return
	case strings.Contains(strings.TrimSpace(text), "\n"):
		l.long = append(l.long, prefix+a.Key+":\n"...)
		for part := range strings.Lines(strings.TrimSpace(text)) {
			l.long = append(l.long, "  "+printable(strings.TrimRight(part, "\r\n"))+"\n"...)
		}
		return
	}
	l.attrs = append(l.attrs, ' ')
	l.attrs = append(l.attrs, prefix+a.Key+"="...)
	if bare(text) {
		l.attrs = append(l.attrs, text...)
	} else {
		l.attrs = strconv.AppendQuote(l.attrs, text)
	}
}

func valueText(v slog.Value) (text string) {
	defer func() {
		if p := recover(); p != nil { // a nil pointer whose String method does not expect it
			text = fmt.Sprintf("!PANIC: %v", p)
		}
	}()
	switch v.Kind() {
	case slog.KindString:
		return v.String()
	case slog.KindTime:
		return v.Time().Format(time.RFC3339Nano)
	case slog.KindDuration:
		return shorten(v.Duration()).String()
	case slog.KindAny:
		switch x := v.Any().(type) {
		case error:
			return x.Error()
		case []byte:
			return string(x)
		}
		return fmt.Sprintf("%+v", v.Any())
	}
	return v.String()
}

// shorten drops digits of a duration that nobody reads.
func shorten(d time.Duration) time.Duration {
	switch a := d.Abs(); {
	case a >= time.Minute:
		return d.Round(time.Second)
	case a >= time.Second:
		return d.Round(10 * time.Millisecond)
	case a >= time.Millisecond:
		return d.Round(100 * time.Microsecond)
	}
	return d
}

func bare(s string) bool {
	if s == "" {
		return false
	}
	for _, r := range s {
		if r <= ' ' || r == '"' || r == '=' || r == '\x7f' || !strconv.IsPrint(r) {
			return false
		}
	}
	return true
}

// flat puts a message on one line: some libraries end theirs with a newline, and
// some write several.
func flat(s string) string {
	return printable(strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; "))
}

// printable keeps control characters, which come from the outside, off terminals.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\t' && (r < ' ' || r == '\x7f') {
			return '?'
		}
		return r
	}, s)
}
