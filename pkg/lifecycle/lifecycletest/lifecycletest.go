// Package lifecycletest checks that a Component keeps its contract.
//
// Every package that implements lifecycle.Component calls Check once from a test.
package lifecycletest

import (
	"context"
	"testing"
	"time"

	"github.com/podo-dev/podo/pkg/lifecycle"
)

// Check runs c until it is ready, cancels it, and requires a prompt nil.
func Check(t *testing.T, c lifecycle.Component) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ready, done := make(chan struct{}, 1), make(chan error, 1)
	go func() { done <- c.Run(ctx, func() { ready <- struct{}{} }) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("%s: returned %v before it was ready", c.Name(), err)
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: never ready", c.Name())
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("%s: stop returned %v, want nil", c.Name(), err)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: ignores its context", c.Name())
	}
}
