package main

import (
	"strings"
	"testing"
)

func TestSpread(t *testing.T) {
	tests := map[string]struct {
		values []float64
		want   string
	}{
		"nothing measured":        {nil, "-"},
		"one run":                 {[]float64{1.234}, "1.23"},
		"odd":                     {[]float64{3, 1, 2}, "2.00 (1.00 to 3.00)"},
		"even":                    {[]float64{4, 1, 2, 3}, "2.50 (1.00 to 4.00)"},
		"same to three digits":    {[]float64{341.2, 341.4}, "341"},
		"large numbers are whole": {[]float64{99.96, 567.4}, "334 (100.0 to 567)"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := spreadOf(tt.values).String(); got != tt.want {
				t.Errorf("spreadOf(%v) = %q, want %q", tt.values, got, tt.want)
			}
		})
	}
}

func TestTable(t *testing.T) {
	r := report{Pods: 100, Runs: []result{
		{Product: "podo", Load: 0.5, Figures: map[string]float64{apiReady: 1, size: 200}},
		{Product: "baseline", Load: 0.25, Figures: map[string]float64{apiReady: 4}},
		{Product: "podo", Load: 1, Figures: map[string]float64{apiReady: 3, scaleUp: 20}},
	}}
	var out strings.Builder
	if err := r.table(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"load before each run: 0.50 0.25 1.00",
		"cold start: API ready, s   2.00 (1.00 to 3.00)   4.00       0.50",
		"scale-up to 100 pods, s    20.0                  -          -",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("table lacks %q:\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), "restart") {
		t.Errorf("table has rows that nobody measured:\n%s", &out)
	}
}

func TestParse(t *testing.T) {
	tests := map[string]struct {
		args   string
		rounds int
		settle string
		err    string
	}{
		"ordinary":               {"", 3, "1m0s", ""},
		"quick":                  {"-quick", 1, "10s", ""},
		"given beats quick":      {"-quick -n 5 -settle 2s", 5, "2s", ""},
		"unknown product":        {"-only k3s", 0, "", "want podo or baseline"},
		"no rounds":              {"-n 0", 0, "", "at least one"},
		"more pods than allowed": {"-pods 250", 0, "", "want 0 to 240"},
		"stray word":             {"quick", 0, "", `unexpected argument "quick"`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o, err := parse(strings.Fields(tt.args), &strings.Builder{})
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("parse(%q): error %v, want %q", tt.args, err, tt.err)
				}
				return
			}
			if err != nil || o.rounds != tt.rounds || o.settle.String() != tt.settle {
				t.Errorf("parse(%q) = %d rounds, settle %s, %v; want %d, %s", tt.args, o.rounds, o.settle, err, tt.rounds, tt.settle)
			}
		})
	}
}
