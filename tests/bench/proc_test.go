package main

import (
	"os"
	"testing"
	"time"
)

func TestCPUOf(t *testing.T) {
	tests := map[string]struct {
		stat string
		want time.Duration
		bad  bool
	}{
		"with children":                 {"12 (kubelet) S 1 12 12 0 -1 4194560 100 200 0 0 150 50 30 20 20 0 9 0 500 0", 2500 * time.Millisecond, false},
		"a name with parentheses in it": {"12 (a) b (c)) S 1 12 12 0 -1 4194560 100 200 0 0 1 2 3 4 20 0 9 0 500 0", 100 * time.Millisecond, false},
		"cut off":                       {"12 (kubelet) S 1 12", 0, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := cpuOf([]byte(tt.stat))
			if got != tt.want || (err != nil) != tt.bad {
				t.Errorf("cpuOf(%q) = %s, %v; want %s", tt.stat, got, err, tt.want)
			}
		})
	}
}

func TestOurselves(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := product{programs: []string{self}}
	for began := time.Now(); time.Since(began) < 50*time.Millisecond; {
		// burn what a tick of the kernel's can show
	}
	spent, err := used(p.owns)
	if err != nil || spent.cpu <= 0 {
		t.Errorf("used() = %+v, %v; want this test's own CPU time", spent, err)
	}
	now, err := held(p.owns)
	if err != nil || now.pss < now.anonymous || now.anonymous < 1<<20 {
		t.Errorf("held() = %+v, %v; want this test's own memory", now, err)
	}
}
