package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"
)

// ErrNotRunning means that no podo serves the socket.
var ErrNotRunning = errors.New("podo is not running")

// ErrFailed means that a part of podo died, so waiting longer is of no use.
var ErrFailed = errors.New("podo failed")

// ErrSilent means that a podo has the socket and does not answer within ten seconds.
var ErrSilent = errors.New("podo does not answer, so it hangs or the machine is very busy; podo kill stops it and its pods")

// ErrCutOff means that not all pods ended in time.
var ErrCutOff = errors.New("pods did not end in time")

// Fetch asks the podo behind socket how it stands.
func Fetch(ctx context.Context, socket string) (Report, error) {
	ctx, end := context.WithTimeoutCause(ctx, 10*time.Second, ErrSilent)
	defer end()
	resp, err := ask(ctx, socket, http.MethodGet, "/status")
	if err != nil {
		return Report{}, err
	}
	defer resp.Body.Close()
	var r Report
	if err := json.NewDecoder(resp.Body).Decode(&r); err != nil {
		return Report{}, fmt.Errorf("read the answer of %s: %w", socket, err)
	}
	return r, nil
}

// EndPods has the podo behind socket end its pods, hooks included, and take no others. It
// returns when they have ended, or ErrCutOff when they have not within that time. With any
// other error they may not have begun to. If ctx ends before, podo takes pods again.
func EndPods(ctx context.Context, socket string, within time.Duration) error {
	if _, err := Fetch(ctx, socket); err != nil {
		return err
	}
	ctx, end := context.WithTimeoutCause(ctx, within+2*time.Second, ErrCutOff) // podo looks at the time itself
	defer end()
	resp, err := ask(ctx, socket, http.MethodPost, "/end-pods?within="+within.String())
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// ask sends a question to podo. An answer that is an error is an error.
func ask(ctx context.Context, socket, method, path string) (*http.Response, error) {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://podo"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w: nothing answers on %s; start it with `podo server`", ErrNotRunning, socket)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("ask podo on %s: permission denied; only root may ask, try with sudo", socket)
	case err != nil && (errors.Is(context.Cause(ctx), ErrSilent) || errors.Is(context.Cause(ctx), ErrCutOff)):
		return nil, fmt.Errorf("ask podo on %s: %w", socket, context.Cause(ctx))
	case err != nil:
		return nil, fmt.Errorf("ask podo on %s: %w", socket, unwrapURL(err))
	case resp.StatusCode == http.StatusOK:
		return resp, nil
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusGatewayTimeout {
		return nil, ErrCutOff
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 512))
	return nil, fmt.Errorf("ask podo on %s: %s: %s", socket, resp.Status, strings.TrimSpace(string(text)))
}

// Wait asks until podo is ready and returns its last report. Each answer is passed
// to tell. A podo that is not running yet is waited for too; the first report of a
// failed part ends the wait with ErrFailed, the end of ctx with its cause.
func Wait(ctx context.Context, socket string, tell func(Report)) (Report, error) {
	var last Report
	why := error(ErrNotRunning)
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second/2) {
		r, err := Fetch(ctx, socket)
		switch {
		case err == nil:
			last, why = r, nil
			tell(r)
			if r.Ready() {
				return r, nil
			}
			if c, ok := r.failed(); ok {
				return r, fmt.Errorf("%w: %s: %s", ErrFailed, c.Name, c.Error)
			}
		case ctx.Err() == nil && !passing(err):
			return last, err
		case ctx.Err() == nil:
			why = err
		}
		select {
		case <-ctx.Done():
			if why != nil {
				return last, fmt.Errorf("%w: %w", context.Cause(ctx), why)
			}
			return last, fmt.Errorf("%w: %s", context.Cause(ctx), strings.Join(last.Missing(), "; "))
		case <-time.After(pause):
		}
	}
}

// passing reports whether err may go away by itself: podo starting, stopping or
// being restarted while it is asked.
func passing(err error) bool {
	return errors.Is(err, ErrNotRunning) || errors.Is(err, ErrSilent) || errors.Is(err, syscall.ECONNRESET) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// unwrapURL drops the made-up URL that net/http puts before every error.
func unwrapURL(err error) error {
	if inner := errors.Unwrap(err); inner != nil {
		return inner
	}
	return err
}
