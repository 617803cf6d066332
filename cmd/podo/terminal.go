package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"text/tabwriter"
	"time"

	"golang.org/x/term"
)

// isTerminal reports whether a person is likely to read w as it is written.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// wantsColour reports whether w is a terminal whose owner has not refused colour.
func wantsColour(w any) bool {
	return isTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// paint is a way to write text that stands out; plain paint writes it as it is.
type paint string

const (
	plain  paint = ""
	dim    paint = "2"
	red    paint = "31"
	green  paint = "32"
	yellow paint = "33"
)

func (p paint) on(text string, colour bool) string {
	if p == plain || !colour {
		return text
	}
	return "\x1b[" + string(p) + "m" + text + "\x1b[0m"
}

// steps prints one line for each step of a longer undertaking, with the time since
// it began: a progress report that reads equally well in a file.
type steps struct {
	log *slog.Logger // instead of w, if set

	began  time.Time
	colour bool

	mu   sync.Mutex
	w    io.Writer
	done map[string]bool
}

func newSteps(w io.Writer, began time.Time, colour bool) *steps {
	return &steps{began: began, colour: colour, w: w, done: map[string]bool{}}
}

// Done prints words, such as "datastore ready (SQLite)", for the step called name.
// A step is printed once, however often it is reported.
func (s *steps) Done(name, words string) { s.print(name, words, plain) }

// Failed prints words for a step that went wrong.
func (s *steps) Failed(name, words string) { s.print("failed "+name, words, red) }

func (s *steps) print(name, words string, p paint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done[name] {
		return
	}
	s.done[name] = true
	if s.log != nil {
		s.log.Info("start", "component", "podo", "step", name, "done", words)
		return
	}
	at := fmt.Sprintf("%6.1fs", time.Since(s.began).Seconds())
	fmt.Fprintf(s.w, "%s  %s\n", dim.on(at, s.colour), p.on(words, s.colour))
}

// table prints aligned columns. Cells hold no colour, which would spoil the widths.
func table(w io.Writer, head []string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	for _, row := range append([][]string{head}, rows...) {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(t, "\t")
			}
			fmt.Fprint(t, cell)
		}
		fmt.Fprintln(t)
	}
	return t.Flush()
}

// roughly is d in its largest unit or two: 4s, 3m10s, 5h, 2d4h.
func roughly(d time.Duration) string {
	const day = 24 * time.Hour
	pair := func(big, small time.Duration, b, s string) string {
		if rest := d % big / small; rest > 0 && d/big < 10 {
			return fmt.Sprintf("%d%s%d%s", d/big, b, rest, s)
		}
		return fmt.Sprintf("%d%s", d/big, b)
	}
	switch {
	case d < time.Second:
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return pair(time.Minute, time.Second, "m", "s")
	case d < day:
		return pair(time.Hour, time.Minute, "h", "m")
	}
	return pair(day, time.Hour, "d", "h")
}

// size is n bytes in a unit that keeps it short.
func size(n int64) string {
	const unit = 1000
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	v, prefix := float64(n)/unit, 0
	for v >= unit && prefix < 3 {
		v, prefix = v/unit, prefix+1
	}
	return fmt.Sprintf("%.1f %cB", v, "kMGT"[prefix])
}
