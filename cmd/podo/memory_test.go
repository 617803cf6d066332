package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestProgramIsUnmapped: most of what a program touched is out of its memory afterwards,
// and the program goes on.
func TestProgramIsUnmapped(t *testing.T) {
	mapped := func() int {
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(status), "\nRssFile:")
		var kB int
		if _, err := fmt.Sscan(rest, &kB); err != nil {
			t.Fatal(err)
		}
		return kB
	}
	before := mapped()
	if err := unmapProgram(); err != nil {
		t.Fatal(err)
	}
	after := mapped()
	t.Logf("%d kB of files in memory, %d before", after, before)
	if after > before*2/3 {
		t.Error("most of the program is still in memory")
	}
}
