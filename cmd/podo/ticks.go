package main

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// ticks tells of steps, one line each: with a spinner while a step lasts if a person
// watches, and with a tick when it is done.
type ticks struct {
	w      io.Writer
	live   bool
	colour bool
}

func newTicks(w io.Writer) ticks {
	return ticks{w: w, live: wantsColour(w), colour: wantsColour(w)}
}

// step begins a step, which ends when done is called.
func (t ticks) step(words string) (done func(error)) {
	began := time.Now()
	end := make(chan struct{})
	var spinner sync.WaitGroup
	if t.live {
		spinner.Go(func() { t.spin(words, end) })
	}
	return func(err error) {
		close(end)
		spinner.Wait()
		mark, p := "✓", green
		if err != nil {
			mark, p = "✗", red
		}
		fmt.Fprintf(t.w, " %s %s %s\n", p.on(mark, t.colour), words, dim.on(fmt.Sprintf("(%.1fs)", time.Since(began).Seconds()), t.colour))
	}
}

func (t ticks) spin(words string, end <-chan struct{}) {
	frames := []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
	for i := 0; ; i++ {
		fmt.Fprintf(t.w, "\r %c %s ", frames[i%len(frames)], words)
		select {
		case <-end:
			fmt.Fprint(t.w, "\r\x1b[K")
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}
