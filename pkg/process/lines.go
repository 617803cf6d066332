package process

import (
	"bytes"
	"io"
	"strings"
	"sync"
)

// longest is where a line without end is cut.
const longest = 64 << 10

// lines joins two streams into whole lines and remembers the last one.
type lines struct {
	mu       sync.Mutex
	to       io.Writer
	streams  [2]stream // output, errors
	lastLine [2]string
}

func newLines(to io.Writer) *lines {
	l := &lines{to: to}
	for i := range l.streams {
		l.streams[i] = stream{lines: l, index: i}
	}
	return l
}

type stream struct {
	lines *lines
	index int
	rest  []byte
}

func (l *lines) stream(errors bool) io.Writer {
	if errors {
		return &l.streams[1]
	}
	return &l.streams[0]
}

// Write never fails: a full log must not block or kill the child.
func (s *stream) Write(p []byte) (int, error) {
	s.lines.mu.Lock()
	defer s.lines.mu.Unlock()
	s.rest = append(s.rest, p...)
	for {
		end := bytes.IndexByte(s.rest, '\n')
		if end < 0 && len(s.rest) < longest {
			return len(p), nil
		}
		if end < 0 {
			end = longest
			s.emit(append(bytes.Clone(s.rest[:end]), '\n'))
			s.rest = s.rest[end:]
			continue
		}
		s.emit(s.rest[:end+1])
		s.rest = s.rest[end+1:]
	}
}

func (s *stream) emit(line []byte) {
	if text := strings.TrimSpace(string(line)); text != "" {
		s.lines.lastLine[s.index] = text
	}
	if s.lines.to != nil {
		s.lines.to.Write(line)
	}
}

// flush emits what came without a newline.
func (l *lines) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.streams {
		if s := &l.streams[i]; len(s.rest) > 0 {
			s.emit(append(s.rest, '\n'))
			s.rest = nil
		}
	}
}

// last is the last line of the error stream, or of the other if that is silent.
func (l *lines) last() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lastLine[1] != "" {
		return l.lastLine[1]
	}
	return l.lastLine[0]
}
