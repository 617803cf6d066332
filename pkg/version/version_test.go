package version

import (
	"regexp"
	"testing"
)

func TestUnstamped(t *testing.T) {
	if got := Podo(); !regexp.MustCompile(`^\d+\.\d+\.\d+-dev$`).MatchString(got) {
		t.Errorf("Podo() = %q, want a development version", got)
	}
	if got := Kubernetes(); got != "unknown" {
		t.Errorf("Kubernetes() = %q in a binary without Kubernetes, want unknown", got)
	}
	if got := Module("example.org/absent"); got != "" {
		t.Errorf("Module of an absent module = %q, want empty", got)
	}
}

func TestMinor(t *testing.T) {
	order := []string{"unknown", "v1.9.0", "v1.36.4+podo1", "v1.100.0", "v2.0.0-rc.1"}
	for i, v := range order[1:] {
		if Minor(order[i]) >= Minor(v) {
			t.Errorf("Minor(%q) = %d, Minor(%q) = %d", order[i], Minor(order[i]), v, Minor(v))
		}
	}
	if a, b := Minor("v1.36.4+podo1"), Minor("1.36.11"); a != b {
		t.Errorf("patch releases differ: %d, %d", a, b)
	}
}
