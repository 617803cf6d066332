package apiserver

import (
	"context"
	"net/http"
	"time"

	"k8s.io/client-go/rest"
)

// waitReady returns when /readyz answers 200, or with ctx's error.
func waitReady(ctx context.Context, loopback *rest.Config) error {
	transport, err := rest.TransportFor(loopback)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: transport, Timeout: 2 * time.Second}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, loopback.Host+"/readyz", nil)
		if err != nil {
			return err
		}
		if res, err := client.Do(req); err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(probePause):
		}
	}
}
