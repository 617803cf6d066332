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
