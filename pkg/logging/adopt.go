package logging

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"path"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc/grpclog"
	"k8s.io/klog/v2"
)

// Adopt sends what other loggers of this process write to l: klog, logrus, the
// standard library's log and slog. It changes those packages for the whole process,
// so it is called once, before anything that might use them is started.
//
// verbosity and vmodule are klog's; asking for either, or a logger that writes
// debug lines, shows adopted lines of every level instead of warnings alone. Once
// ctx has ended the warnings are dropped as well: programs that are being stopped
// complain about the connections that were taken from them.
//
// logrus ends the process at its Fatal (kine does, when a disk that is full fails a
// commit). Instead fatal is told why, and the goroutine ends; fatal must not return
// before it has seen to it that the process will stop.
func Adopt(ctx context.Context, l *slog.Logger, verbosity int, vmodule string, fatal func(reason string)) error {
	all := l.Enabled(context.TODO(), slog.LevelDebug)
	if all {
		verbosity = max(verbosity, 2) // what Kubernetes recommends for daily use
	}
	up := newUpstream(l.Handler(), verbosity)
	up.life = ctx.Done()
	if err := up.watch(vmodule); err != nil {
		return err
	}

	flags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(flags)
	for name, value := range map[string]string{"v": strconv.Itoa(verbosity), "vmodule": vmodule} {
		if err := flags.Set(name, value); err != nil {
			return fmt.Errorf("vmodule: %w", err)
		}
	}
	klog.SetSlogLogger(slog.New(up))

	logrus.SetOutput(io.Discard)
	logrus.SetReportCaller(true)
	logrus.SetLevel(logrus.WarnLevel)
	if up.verbose {
		logrus.SetLevel(logrus.DebugLevel)
	}
	hooks := logrus.LevelHooks{}
	hooks.Add(logrusHook{up, fatal})
	logrus.StandardLogger().ExitFunc = func(int) { runtime.Goexit() }
	logrus.StandardLogger().ReplaceHooks(hooks)

	// gRPC reports each broken connection twice, and its callers report it too.
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))

	slog.SetDefault(slog.New(up))
	log.SetFlags(0)
	log.SetOutput(&stdWriter{up})
	return nil
}

// upstream stands before an output and judges lines that are not ours.
type upstream struct {
	next      slog.Handler
	life      <-chan struct{} // closed while stopping; nil if that is never told
	verbosity slog.Level      // least level that passes if verbose
	verbose   bool            // every level passes, and nothing is filtered
	modules   []module
	least     slog.Level // of modules
	repeats   *repeats
	component string // set if the logger was given one
	trouble   string // the logger's own err attribute
}

// module is one pattern of vmodule.
type module struct {
	pattern string
	level   slog.Level
}

func newUpstream(next slog.Handler, verbosity int) *upstream {
	return &upstream{
		next:      next,
		verbosity: slog.Level(-verbosity),
		verbose:   verbosity > 0,
		repeats:   &repeats{seen: map[string]*repeated{}, next: next},
	}
}

func (u *upstream) watch(vmodule string) error {
	for part := range strings.SplitSeq(vmodule, ",") {
		if part == "" {
			continue
		}
		pattern, level, ok := strings.Cut(part, "=")
		n, err := strconv.Atoi(level)
		if !ok || err != nil || n < 0 {
			return fmt.Errorf("vmodule: %q is not FILE=N", part)
		}
		u.modules = append(u.modules, module{pattern, slog.Level(-n)})
		u.least = min(u.least, slog.Level(-n))
	}
	return nil
}

// Enabled lets Info through even when it is not shown: klog's warnings come as Info.
func (u *upstream) Enabled(_ context.Context, l slog.Level) bool {
	return l >= min(u.verbosity, u.least, slog.LevelInfo)
}

func (u *upstream) WithGroup(name string) slog.Handler {
	c := *u
	c.next = u.next.WithGroup(name)
	return &c
}

func (u *upstream) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *u
	for _, a := range attrs {
		switch a.Key {
		case "component":
			c.component = a.Value.String()
		case "err", "error":
			c.trouble = valueText(a.Value.Resolve())
		}
	}
	c.next = u.next.WithAttrs(attrs)
	return &c
}

func (u *upstream) Handle(ctx context.Context, r slog.Record) error {
	if r.Level == slog.LevelInfo && warned() {
		r.Level = slog.LevelWarn
	}
	pass := r.Level >= slog.LevelWarn || u.verbose && r.Level >= u.verbosity
	if !pass && len(u.modules) > 0 {
		pass = u.inModule(r)
	}
	if !pass {
		return nil
	}
	component, trouble := u.component, u.trouble
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "component":
			component = a.Value.String()
		case "err", "error":
			trouble = valueText(a.Value.Resolve())
		}
		return true
	})
	if component == "" {
		component = origin(r.PC)
		r = r.Clone()
		r.AddAttrs(slog.String("component", component))
	}
	if !u.verbose {
		select {
		case <-u.life:
			return nil
		default:
		}
		if harmless(r.Message, trouble) {
			return nil
		}
		if r.Level >= slog.LevelWarn && !u.repeats.first(component, trouble, r) {
			return nil
		}
	}
	return u.next.Handle(ctx, r)
}

func (u *upstream) inModule(r slog.Record) bool {
	f, _ := runtime.CallersFrames([]uintptr{r.PC}).Next()
	file := strings.TrimSuffix(path.Base(f.File), ".go")
	for _, m := range u.modules {
		if ok, _ := path.Match(m.pattern, file); ok && r.Level >= m.level {
			return true
		}
	}
	return false
}

// warned reports whether the record being handled comes from one of klog's Warning
// functions. Their severity is lost between klog and slog (klog 2.140: warnings are
// passed to logr as Info), so the call stack is the only witness.
func warned() bool {
	var pcs [24]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	for {
		f, more := frames.Next()
		if strings.HasPrefix(f.Function, "k8s.io/klog/v2.Warning") {
			return true
		}
		if !more {
			return false
		}
	}
}

// logrusHook passes logrus entries on.
type logrusHook struct {
	to    *upstream
	fatal func(reason string)
}

func (h logrusHook) Levels() []logrus.Level { return logrus.AllLevels }

func (h logrusHook) Fire(e *logrus.Entry) error {
	if holdsObject(e.Message) || ordinary(e.Message) {
		return nil
	}
	level := slog.LevelDebug
	switch {
	case e.Level == logrus.FatalLevel:
		h.fatal(e.Message)
		return nil
	case e.Level <= logrus.ErrorLevel:
		level = slog.LevelError
	case e.Level == logrus.WarnLevel:
		level = slog.LevelWarn
	case e.Level == logrus.InfoLevel:
		level = slog.LevelInfo
	}
	r := slog.NewRecord(e.Time, level, e.Message, 0)
	if e.Caller != nil && e.Data["component"] == nil { // its PC would lead to an inlined function
		r.AddAttrs(slog.String("component", componentOf(packageOf(e.Caller.Function))))
	}
	for k, v := range e.Data {
		if k == logrus.ErrorKey {
			k = "err"
		}
		r.AddAttrs(slog.Any(k, v))
	}
	return h.to.Handle(context.TODO(), r)
}

// holdsObject reports whether a line of kine's (0.16) quotes a whole request, and so
// an object that may be a Secret. The datastore reports such failures itself.
func holdsObject(message string) bool {
	return strings.HasPrefix(message, "error in txn ") || strings.HasPrefix(message, "error in put ")
}

// ordinary reports whether a line of kine's (0.16) is about two writers of one key on
// PostgreSQL. The later one is told, and tries again.
func ordinary(message string) bool {
	return strings.HasPrefix(message, "Insert error for key ") && strings.Contains(message, "SQLSTATE 23505")
}

// stdWriter takes lines of the standard library's log, which have no level. Most
// are complaints of net/http, so they are shown as warnings.
type stdWriter struct{ to *upstream }

func (w *stdWriter) Write(p []byte) (int, error) {
	var pcs [1]uintptr
	runtime.Callers(4, pcs[:]) // over Callers, Write and two frames of log
	r := slog.NewRecord(time.Now(), slog.LevelWarn, string(bytes.TrimSpace(p)), pcs[0])
	return len(p), w.to.Handle(context.TODO(), r)
}

// repeats holds back lines that say again what was said within the last window.
type repeats struct {
	mu   sync.Mutex
	seen map[string]*repeated
	next slog.Handler
}

type repeated struct {
	count int
	last  slog.Record
}

// window is how long a line keeps the like of it back.
const window = time.Minute

// first reports whether r is news. If it is not, r is counted, and its count is
// written when the window ends.
func (s *repeats) first(component, trouble string, r slog.Record) bool {
	key := component + "\x00" + gist(r.Message) + "\x00" + gist(trouble[strings.LastIndex(trouble, ": ")+1:])
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.seen[key]; known != nil {
		known.count++
		known.last = r.Clone()
		return false
	}
	s.seen[key] = &repeated{}
	time.AfterFunc(window, func() { s.report(key) })
	return true
}

func (s *repeats) report(key string) {
	s.mu.Lock()
	known := s.seen[key]
	delete(s.seen, key)
	s.mu.Unlock()
	if known == nil || known.count == 0 {
		return
	}
	r := known.last
	times := "times"
	if known.count == 1 {
		times = "time"
	}
	r.Message = fmt.Sprintf("%s (repeated %d %s)", flat(r.Message), known.count, times)
	s.next.Handle(context.TODO(), r)
}

// gist is what remains of a text without numbers and quoted names, so that lines
// which differ in those alone count as one.
func gist(s string) string {
	var b strings.Builder
	quoted := false
	for _, r := range s {
		if r == '"' {
			quoted = !quoted
		}
		if quoted || r >= '0' && r <= '9' {
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}
