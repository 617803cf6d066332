package logging

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Child returns a writer for the output of a child process that writes logfmt, as
// containerd does. Each line becomes one record of component, at the line's own
// level; a line that is not logfmt is a warning, since it is the text of a crash
// more often than not. Close hands on what the child left without a newline.
func Child(l *slog.Logger, component string) io.WriteCloser {
	up := newUpstream(l.Handler(), 0)
	if l.Enabled(context.TODO(), slog.LevelDebug) {
		up.verbose, up.verbosity = true, allLevels
	}
	up.component = component
	up.next = up.next.WithAttrs([]slog.Attr{slog.String("component", component)})
	up.repeats.next = up.next
	return &child{to: up}
}

// longest is where a line without end is cut.
const longest = 64 << 10

type child struct {
	mu   sync.Mutex
	rest []byte
	to   *upstream
}

func (c *child) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rest = append(c.rest, p...)
	for {
		i := bytes.IndexByte(c.rest, '\n')
		if i < 0 && len(c.rest) < longest {
			break
		}
		if i < 0 {
			i = longest - 1
		}
		c.line(string(c.rest[:i]))
		c.rest = c.rest[i+1:]
	}
	c.rest = bytes.Clone(c.rest)
	return len(p), nil
}

func (c *child) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.rest) > 0 {
		c.line(string(c.rest))
		c.rest = nil
	}
	return nil
}

func (c *child) line(text string) {
	if strings.TrimSpace(text) == "" {
		return
	}
	pairs, ok := logfmt(text)
	level, message := slog.LevelWarn, ""
	r := slog.NewRecord(time.Now(), 0, "", 0)
	for _, p := range pairs {
		switch p.key {
		case "time":
		case "level":
			level = levelOf(p.value)
		case "msg":
			message = p.value
		case "error":
			r.AddAttrs(slog.String("err", p.value))
		default:
			r.AddAttrs(slog.String(p.key, p.value))
		}
	}
	if !ok || message == "" {
		r = slog.NewRecord(r.Time, 0, "", 0)
		level, message = slog.LevelWarn, text
	}
	r.Level, r.Message = level, message
	c.to.Handle(context.TODO(), r)
}

func levelOf(name string) slog.Level {
	switch name {
	case "panic", "fatal", "error":
		return slog.LevelError
	case "warning", "warn":
		return slog.LevelWarn
	case "info":
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

type pair struct{ key, value string }

// logfmt reads key=value pairs, where a value may be quoted as Go does it.
func logfmt(text string) (out []pair, ok bool) {
	for text = strings.TrimSpace(text); text != ""; text = strings.TrimLeft(text, " ") {
		key, rest, found := strings.Cut(text, "=")
		if !found || key == "" || strings.ContainsAny(key, " \"") {
			return out, false
		}
		if strings.HasPrefix(rest, `"`) {
			quoted, err := strconv.QuotedPrefix(rest)
			if err != nil {
				return out, false
			}
			value, _ := strconv.Unquote(quoted)
			out = append(out, pair{key, value})
			text = rest[len(quoted):]
			continue
		}
		value, after, _ := strings.Cut(rest, " ")
		out = append(out, pair{key, value})
		text = after
	}
	return out, len(out) > 0
}
