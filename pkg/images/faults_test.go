package images

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []string
		f := newFaults(func(path string, err error) { told = append(told, path+": "+err.Error()) })
		a, b, c := source{path: "a", stamp: stamp{Size: 1}}, source{path: "b"}, source{path: "c"}
		changed := source{path: "a", stamp: stamp{Size: 2}}
		if !f.due(a, 0) || f.next() != 0 {
			t.Error("what has not been tried is not due")
		}
		f.note(a, 0, bad("damaged"))
		f.note(b, 800, errFull)
		if f.due(a, 1e6) || !f.due(changed, 0) {
			t.Error("what is damaged is due when it changes, and only then")
		}
		if f.due(b, 850) || !f.due(b, 1000) {
			t.Error("what took too much room is due when there is a good deal more, and only then")
		}
		if f.next() != 0 {
			t.Errorf("time alone would mend one of them in %s", f.next())
		}
		for want := firstPause; want < 2*lastPause; want *= 2 {
			f.note(c, 0, errors.New("no answer"))
			if got := f.next(); got != min(want, lastPause) || f.due(c, 0) {
				t.Errorf("the next try is in %s, due %v; want %s", got, f.due(c, 0), min(want, lastPause))
			}
			time.Sleep(f.next())
			if !f.due(c, 0) {
				t.Error("it is not tried again")
			}
		}
		f.note(c, 0, errors.New("another answer"))
		f.note(changed, 0, bad("damaged"))
		if len(told) != 5 {
			t.Errorf("told of %q, want each file once for each change and each reason", told)
		}
		f.note(c, 0, nil)
		f.forget(func(path string) bool { return path == "a" })
		if !f.due(c, 0) || !f.due(b, 0) || f.due(changed, 0) {
			t.Error("it remembers what is mended or gone, or forgets what is not")
		}
	})
}
