package pki

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/podo-dev/podo/pkg/config"
)

// cheap makes tests fast. It is no weaker in what it must detect.
func cheap() cost { return cost{passes: 1, lanes: 1, memory: 8} }

func sealed(t *testing.T) ([]byte, Bundle) {
	t.Helper()
	b := exported(t, founder(t))
	text, err := seal(b, "s3cret", cheap())
	if err != nil {
		t.Fatal(err)
	}
	return text, b
}

func TestSealedBundlesOpen(t *testing.T) {
	b := exported(t, founder(t))
	start := time.Now()
	text, err := Seal(b, "s3cret")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes sealed in %s", len(text), time.Since(start))
	for name, body := range b.files() {
		if bytes.Contains(text, body) {
			t.Errorf("%s is in the clear", name)
		}
	}
	got, err := Open(text, "s3cret")
	if err != nil || !reflect.DeepEqual(got.files(), b.files()) || !maps.Equal(got.Settings, b.Settings) {
		t.Errorf("another bundle came out: %v", err)
	}
	if again, _ := Seal(b, "s3cret"); bytes.Equal(again[saltAt:lengthAt], text[saltAt:lengthAt]) || bytes.Equal(again[bodyAt:], text[bodyAt:]) {
		t.Error("sealed twice alike")
	}
}

func TestSealedBundlesStayShut(t *testing.T) {
	text, b := sealed(t)
	for _, password := range []config.Secret{"", "s3cre", "s3cret ", "S3cret", "s3cret\x00"} {
		if _, err := Open(text, password); !errors.Is(err, ErrSealed) {
			t.Errorf("password %q: %v, want ErrSealed", string(password), err)
		}
	}
	if _, err := Seal(b, ""); err == nil {
		t.Error("sealed with no password")
	}
	if _, err := Seal(Bundle{}, "s3cret"); err == nil {
		t.Error("sealed nothing")
	}
}

func TestEveryByteCounts(t *testing.T) {
	text, _ := sealed(t)
	for i := range text {
		changed := bytes.Clone(text)
		changed[i] ^= 0x80
		b, err := Open(changed, "s3cret")
		if err == nil || b.files != nil {
			t.Fatalf("opened with byte %d changed", i)
		}
		cost := i > 8 && i < saltAt // refused if it is out of bounds, otherwise it derives another key
		if within := i >= saltAt && i < lengthAt || i >= bodyAt; !cost && within != errors.Is(err, ErrSealed) {
			t.Errorf("byte %d changed: %v", i, err)
		}
		if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q shows a secret", err)
		}
	}
	// Parameters that would do, and are not those it was sealed with.
	for i, to := range map[int]byte{9: 2, 14: 16} {
		changed := bytes.Clone(text)
		changed[i] = to
		if _, err := Open(changed, "s3cret"); !errors.Is(err, ErrSealed) {
			t.Errorf("byte %d set to %d: %v, want ErrSealed", i, to, err)
		}
	}
}

func TestTruncatedBundlesAreToldFromSealedOnes(t *testing.T) {
	text, _ := sealed(t)
	for n := range text {
		if _, err := Open(text[:n], "s3cret"); err == nil || errors.Is(err, ErrSealed) || !strings.Contains(err.Error(), "malformed") {
			t.Fatalf("cut off after %d of %d bytes: %v", n, len(text), err)
		}
	}
	if _, err := Open(append(bytes.Clone(text), 0), "s3cret"); err == nil || errors.Is(err, ErrSealed) {
		t.Errorf("a byte too many: %v", err)
	}
	if _, err := Open(append(bytes.Clone(text), make([]byte, maxSealed)...), "s3cret"); err == nil || errors.Is(err, ErrSealed) {
		t.Errorf("a megabyte too many: %v", err)
	}
}

func TestHostileParametersAreRefusedAtOnce(t *testing.T) {
	text, b := sealed(t)
	tests := map[string]cost{
		"no passes":       {0, 1, 8},
		"many passes":     {255, 1, 8},
		"no lanes":        {1, 0, 8},
		"many lanes":      {1, 255, 8 * 255},
		"no memory":       {1, 1, 0},
		"little memory":   {1, 2, 15},
		"much memory":     {1, 1, 256<<10 + 1},
		"all memory":      {1, 1, math.MaxUint32},
		"all of anything": {255, 255, math.MaxUint32},
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			changed := bytes.Clone(text)
			changed[9], changed[10] = c.passes, c.lanes
			for i := range 4 {
				changed[11+i] = byte(c.memory >> (24 - 8*i))
			}
			start := time.Now()
			_, err := Open(changed, "s3cret")
			if err == nil || errors.Is(err, ErrSealed) || !strings.Contains(err.Error(), "malformed") {
				t.Errorf("got %v", err)
			}
			if took := time.Since(start); took > 100*time.Millisecond {
				t.Errorf("took %s", took)
			}
		})
	}
	if err := usualCost().check(); err != nil || usualCost().memory > 64<<10 {
		t.Errorf("%+v: %v", usualCost(), err)
	}
	b.Settings["long"] = strings.Repeat("x", maxSealed)
	if _, err := seal(b, "s3cret", cheap()); err == nil {
		t.Error("sealed what cannot be opened again")
	}
}

func TestNewerBundlesSayWhatToDo(t *testing.T) {
	text, b := sealed(t)
	text[8] = sealFormat + 1
	if _, err := Open(text, "s3cret"); err == nil || errors.Is(err, ErrSealed) || !strings.Contains(err.Error(), "upgrade podo") {
		t.Errorf("newer format: %v", err)
	}
	tests := map[string]struct {
		in   any
		says string
	}{
		"newer":         {map[string]any{"version": bundleVersion + 1, "files": []string{"s3cret"}}, "upgrade podo"},
		"no version":    {map[string]any{"files": b.files()}, "malformed"},
		"another type":  {map[string]any{"version": bundleVersion, "files": []string{"s3cret"}}, "malformed"},
		"no object":     {[]string{"s3cret"}, "malformed"},
		"no files":      {map[string]any{"version": bundleVersion}, "does not hold"},
		"a file more":   {map[string]any{"version": bundleVersion, "files": with(b.files(), "../../etc/passwd", "s3cret")}, "does not hold"},
		"another file":  {map[string]any{"version": bundleVersion, "files": with(without(b.files(), "agent-token"), "s3cret", "x")}, "agent-token"},
		"a file less":   {map[string]any{"version": bundleVersion, "files": without(b.files(), "ca/etcd.key")}, "does not hold"},
		"another's key": {map[string]any{"version": bundleVersion, "files": with(b.files(), "ca/etcd.key", string(b.files()["ca/client.key"]))}, "ca/etcd"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			raw, err := json.Marshal(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := parseContents(raw); err == nil || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("got %v, want %q", err, tt.says)
			}
		})
	}
}

func with(files secrets, name, text string) secrets {
	out := secrets{}
	for k, v := range files {
		out[k] = v
	}
	out[name] = []byte(text)
	return out
}

func without(files secrets, name string) secrets {
	out := with(files, name, "")
	delete(out, name)
	return out
}
