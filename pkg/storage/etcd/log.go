package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// newLogger returns a logger for etcd that writes to log: everything if that takes
// debug lines, otherwise warnings, each once a minute, until ctx ends. A line
// that would end the process ends its goroutine instead, and goes to fatal.
func newLogger(ctx context.Context, log *slog.Logger, fatal chan<- error) *zap.Logger {
	last := &lastWords{fatal}
	return zap.New(&core{log: log, verbose: log.Enabled(ctx, slog.LevelDebug), quiet: ctx.Done(), said: &said{at: map[string]time.Time{}}},
		zap.WithFatalHook(last), zap.WithPanicHook(last), zap.ErrorOutput(zapcore.AddSync(nothing{})))
}

type nothing struct{}

func (nothing) Write(p []byte) (int, error) { return len(p), nil }

// lastWords takes the place of os.Exit and panic.
type lastWords struct{ fatal chan<- error }

func (l *lastWords) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	text := e.Message
	for _, f := range fields {
		if err, ok := f.Interface.(error); ok && f.Key == "error" {
			text += ": " + err.Error()
		}
	}
	select {
	case l.fatal <- errors.New(text):
	default:
	}
	runtime.Goexit()
}

type core struct {
	log     *slog.Logger
	verbose bool
	quiet   <-chan struct{}
	said    *said
	fields  []zapcore.Field
}

// said remembers when a message was last written.
type said struct {
	mu sync.Mutex
	at map[string]time.Time
}

func (s *said) lately(message string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if last, ok := s.at[message]; ok && now.Sub(last) < time.Minute {
		return true
	}
	s.at[message] = now
	return false
}

func (c *core) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel || c.verbose }

func (c *core) With(fields []zapcore.Field) zapcore.Core {
	out := *c
	out.fields = append(slices.Clip(c.fields), fields...)
	return &out
}

func (c *core) Check(e zapcore.Entry, to *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return to.AddCore(e, c)
	}
	return to
}

func (c *core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	say := c.log.Debug
	if !c.verbose {
		select {
		case <-c.quiet:
			return nil
		default:
		}
		if harmless(e.Message) || c.said.lately(e.Message, e.Time) {
			return nil
		}
	}
	// What etcd calls an error is mostly a peer that is away. An end of etcd itself
	// comes back as an error, and is told by whoever receives that.
	if e.Level >= zapcore.WarnLevel && e.Level <= zapcore.ErrorLevel {
		say = c.log.Warn
	}
	values := zapcore.NewMapObjectEncoder()
	for _, f := range append(slices.Clip(c.fields), fields...) {
		f.AddTo(values)
	}
	var attrs []any
	for _, key := range slices.Sorted(maps.Keys(values.Fields)) {
		value := values.Fields[key]
		switch key {
		case "error":
			key = "err"
		case "errorVerbose", "stacktrace":
			continue
		}
		attrs = append(attrs, slog.String(key, fmt.Sprint(value)))
	}
	say("etcd: "+e.Message, attrs...)
	return nil
}

func (c *core) Sync() error { return nil }

// harmless reports whether a line is said by a member that is well, or of others in
// a way that podo says better.
func harmless(message string) bool {
	return slices.ContainsFunc([]string{
		"Running http and grpc server on single port",  // not where it matters
		"simple token is not cryptographically signed", // authentication is by certificate
		"scheme is http or unix while key and cert files are present",
		"scheme is http or unix while --client-cert-auth is enabled",
		"Detected that checkpointing is enabled without persistence",
		"request stats",
		"failed to promote a member",
		"rejecting promote learner",                    // it is asked until the answer is yes
		"data-dir used by this member must be removed", // podo sets it aside
		"server error",                                 // followed by the end of the server, with its reason
		"leadership transfer failed",
		"stopped publish because server is stopping",
		"skipped leadership transfer",
		// Of a peer that is away; the number of members that answer is told once.
		"prober detected unhealthy status",
		"failed to reach the peer URL",
		"failed to get version",
		"failed to get cluster response",
		"lost TCP streaming connection with remote peer",
		"established TCP streaming connection with remote peer",
		"peer became inactive",
		"closed TCP streaming connection",
		"stopped stream",
		"dropped internal Raft message since sending buffer is full",
		"rejected connection on peer endpoint",
		"rejected connection on client endpoint",
		"waiting for ReadIndex response took too long",
		"timed out waiting for read index response",
		"ignored out-of-date read index response",
		"failed to publish local member to cluster through raft",
		"failed to find remote peer in cluster",
		"failed to process Raft message",
		"rejected Raft message from removed member",
		"rejected stream from remote peer because it was removed",
		"skipped attributes update of removed member",
		"skipped removing already removed peer",
		// Of a member that joins.
		"Validation on configuration change failed", // two asked at once
		"Failed to detect schema version",
		"failed to update storage version",
		"rejecting member add request", // whoever asked is told why
		"rejecting member remove request",
		"setting up serving from embedded etcd failed", // comes back as an error
	}, func(begin string) bool { return strings.HasPrefix(message, begin) }) ||
		strings.HasSuffix(message, "stepped down to follower since quorum is not active")
}
