package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestIsOfPodo(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config")
	for text, want := range map[string]bool{
		"current-context: podo\n": true, "current-context: podo-ci\n": true, "current-context: work\n": false,
		"current-context: podolia\n": false, "kind: Config\n": false, "[": false,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := isOfPodo(file); got != want {
			t.Errorf("%q: %t, want %t", text, got, want)
		}
	}
	if isOfPodo(file + ".none") {
		t.Error("a missing file is podo's")
	}
}
