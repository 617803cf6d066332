package datadir_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/podo-dev/podo/pkg/datadir"
	"github.com/podo-dev/podo/pkg/paths"
)

func somewhere(t *testing.T) paths.Paths {
	dir := t.TempDir()
	return paths.Paths{Etc: filepath.Join(dir, "etc"), Data: filepath.Join(dir, "data"), Run: filepath.Join(dir, "run")}
}

func TestClaimOnce(t *testing.T) {
	p := somewhere(t)
	release, err := datadir.Claim(p)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := datadir.Claim(p); !errors.Is(err, datadir.ErrHeld) {
		t.Errorf("second claim: err = %v, want ErrHeld", err)
	}
	elsewhere := p
	elsewhere.Data = filepath.Join(t.TempDir(), "data")
	if _, err := datadir.Claim(elsewhere); !errors.Is(err, datadir.ErrHeld) {
		t.Errorf("claim with the same run directory: err = %v, want ErrHeld", err)
	}
	release()
	release, err = datadir.Claim(p)
	if err != nil {
		t.Fatalf("claim after release: %v", err)
	}
	release()
}

func TestLayout(t *testing.T) {
	tests := map[string]struct {
		layout string
		want   string
		newer  bool
	}{
		"ours":    {layout: "1\n"},
		"newer":   {layout: "2\n", want: "layout 2", newer: true},
		"garbage": {layout: "one", want: "not a layout number"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := somewhere(t)
			if err := os.MkdirAll(p.Data, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(p.Layout(), []byte(tt.layout), 0o644); err != nil {
				t.Fatal(err)
			}
			release, err := datadir.Claim(p)
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				release()
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, datadir.ErrNewer) != tt.newer {
				t.Errorf("err = %v, want %q in it, newer %v", err, tt.want, tt.newer)
			}
		})
	}
}

func TestPin(t *testing.T) {
	p := somewhere(t)
	if err := datadir.Pin(p, map[string]string{"service-cidr": "10.43.0.0/16", "cluster-domain": "cluster.local"}); err != nil {
		t.Fatal(err)
	}
	if err := datadir.Pin(p, map[string]string{"service-cidr": "10.43.0.0/16", "cluster-domain": "cluster.local"}); err != nil {
		t.Errorf("the same shape: %v", err)
	}
	err := datadir.Pin(p, map[string]string{"service-cidr": "10.60.0.0/16", "cluster-domain": "other"})
	if !errors.Is(err, datadir.ErrShape) {
		t.Fatalf("another shape: err = %v, want ErrShape", err)
	}
	for _, want := range []string{"service-cidr", "10.43.0.0/16", "10.60.0.0/16", "cluster-domain"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	if err := os.WriteFile(p.Shape(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := datadir.Pin(p, nil); err == nil || !strings.Contains(err.Error(), p.Shape()) {
		t.Errorf("damaged file: err = %v, want its path in it", err)
	}
}
