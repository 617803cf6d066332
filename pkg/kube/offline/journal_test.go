package offline

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func openTest(t *testing.T, path string) *journal {
	t.Helper()
	j, err := openJournal(path, quiet(), func() {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(j.close)
	return j
}

func TestJournalSurvivesReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	j := openTest(t, path)
	j.put("a", []byte("1"))
	j.put("b", []byte("2"))
	j.flush()
	j.put("a", []byte("3"))
	j.forget("b")
	j.put("c", []byte{})
	if got := j.keys(""); !slices.Equal(got, []string{"a", "c"}) {
		t.Errorf("keys before they are written: %q", got)
	}
	j.close()

	j = openTest(t, path)
	if got := j.keys(""); !slices.Equal(got, []string{"a", "c"}) {
		t.Errorf("keys: %q, want a and c", got)
	}
	if got := j.get("a"); string(got) != "3" {
		t.Errorf("a is %q, want 3", got)
	}
	if got := j.get("c"); got == nil || len(got) != 0 {
		t.Errorf("c is %v, want nothing in it", got)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestWhatIsKnownCostsNothing(t *testing.T) {
	j := openTest(t, filepath.Join(t.TempDir(), "j"))
	j.put("a", []byte("1"))
	j.flush()
	size := j.size
	j.put("a", []byte("1"))
	j.forget("never")
	if j.timer != nil || len(j.pending) > 0 {
		t.Error("a write is due")
	}
	j.flush()
	if j.size != size {
		t.Errorf("the file grew by %d", j.size-size)
	}
}

// TestEveryCutServes cuts the file at every byte: what is before the cut is read, and
// the journal can be written on.
func TestEveryCutServes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	j := openTest(t, path)
	var ends []int64
	for i := range 3 {
		j.put(fmt.Sprint("key", i), bytes.Repeat([]byte{byte(i)}, 5))
		j.flush()
		ends = append(ends, j.size)
	}
	j.close()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(text) + 1 {
		want := 0
		for _, end := range ends {
			if int64(n) >= end {
				want++
			}
		}
		if err := os.WriteFile(path, text[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		j := openTest(t, path)
		if got := j.keys(""); len(got) != want {
			t.Errorf("cut at %d: %q, want %d", n, got, want)
		}
		j.put("more", []byte("x"))
		j.close()
		if j = openTest(t, path); string(j.get("more")) != "x" {
			t.Errorf("cut at %d: not written on", n)
		}
		j.close()
	}
}

func TestDamageEndsWhatIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	j := openTest(t, path)
	j.put("a", []byte("1"))
	j.flush()
	at := j.size
	j.put("b", []byte("2"))
	j.close()
	text, _ := os.ReadFile(path)
	text[at] ^= 1
	os.WriteFile(path, text, 0o600)
	if got := openTest(t, path).keys(""); !slices.Equal(got, []string{"a"}) {
		t.Errorf("keys: %q, want a", got)
	}
}

func TestJournalStaysSmall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	j := openTest(t, path)
	j.put("still", []byte("here"))
	for i := range 100 {
		j.put("busy", bytes.Repeat([]byte{byte(i)}, 100<<10))
		j.flush()
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() > 3<<20 || info.Size() != j.size {
		t.Errorf("size %d, journal says %d: %v", info.Size(), j.size, err)
	}
	j.close()
	j = openTest(t, path)
	if string(j.get("still")) != "here" || !bytes.Equal(j.get("busy"), bytes.Repeat([]byte{99}, 100<<10)) {
		t.Error("a value is lost")
	}
}
