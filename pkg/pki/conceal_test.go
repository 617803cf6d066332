package pki

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/podo-dev/podo/pkg/paths"
)

func TestConceal(t *testing.T) {
	one, other := paths.Paths{Data: t.TempDir()}, paths.Paths{Data: t.TempDir()}
	for _, p := range []paths.Paths{one, other} {
		if _, err := EnsureCAs(p, time.Now); err != nil {
			t.Fatal(err)
		}
	}
	text := []byte("the new token")
	a, err := Conceal(one, text)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Reveal(one, a); err != nil || !bytes.Equal(got, text) {
		t.Errorf("Reveal = %q, %v; want %q", got, err, text)
	}
	if b, err := Conceal(one, text); err != nil || bytes.Equal(a, b) || bytes.Contains(a, text) {
		t.Errorf("the same text is concealed alike, or shows: %v", err)
	}
	if _, err := Reveal(other, a); !errors.Is(err, ErrConcealed) {
		t.Errorf("another cluster reads it: %v, want ErrConcealed", err)
	}
	a[len(a)/2] ^= 1
	if _, err := Reveal(one, a); !errors.Is(err, ErrConcealed) {
		t.Errorf("a changed one is read: %v, want ErrConcealed", err)
	}
	if _, err := Reveal(one, nil); !errors.Is(err, ErrConcealed) {
		t.Errorf("an empty one is read: %v, want ErrConcealed", err)
	}
}
