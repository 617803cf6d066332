package apiserver

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"k8s.io/client-go/rest"
)

// uneasy is how long a start takes at most on machines that are well. Then, and as long
// again, people are told what it waits for.
const uneasy = 15 * time.Second

// waitReady returns when /readyz answers 200, or with ctx's error.
func waitReady(ctx context.Context, loopback *rest.Config, log *slog.Logger) error {
	transport, err := rest.TransportFor(loopback)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: transport, Timeout: 2 * time.Second}
	began := time.Now()
	for told := began; ; {
		why, err := lacks(ctx, client, loopback.Host+"/readyz")
		if err != nil || why == "" {
			return err
		}
		if time.Since(told) > uneasy {
			told = time.Now()
			log.Warn("API server is not ready yet", "after", told.Sub(began).Round(time.Second).String(), "waits_for", why)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(probePause):
		}
	}
}

// lacks names the checks that an API server does not pass yet, or says why it does not
// answer. It is empty if the server is ready.
func lacks(ctx context.Context, client *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	res, err := client.Do(req)
	if err != nil {
		return err.Error(), nil
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusOK {
		return "", nil
	}
	text, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	var failing []string
	for line := range strings.Lines(string(text)) {
		if check, ok := strings.CutPrefix(line, "[-]"); ok {
			name, _, _ := strings.Cut(check, " ")
			failing = append(failing, name)
		}
	}
	if len(failing) == 0 {
		return "a better answer than " + res.Status, nil
	}
	return strings.Join(failing, ", "), nil
}
