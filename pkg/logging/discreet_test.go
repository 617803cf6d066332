package logging

import (
	"errors"
	"testing"
)

func TestDiscreet(t *testing.T) {
	for text, want := range map[string]string{
		"it is full": "it is full",
		"s.yaml: .stringData.pin: expected string, got &value.valueUnstructured{Value:98765432}": "s.yaml: .stringData.pin: expected string, got something else",
		"errors:\n  .stringData.a: expected string, got &value.valueUnstructured{Value:map[string]interface {}{\"b\":\"98765432\"}}\n" +
			"  .stringData.c: expected string, got &value.valueUnstructured{Value:98765432} (and 1 more)": "errors:\n  .stringData.a: expected string, got something else (and 1 more)",
		".stringData: expected map, got &{98}76\n5432}": ".stringData: expected map, got something else",
	} {
		if got := Discreet(errors.New(text)); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
