package logging

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	"k8s.io/klog/v2"
)

// buffer is a bytes.Buffer for many goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// untimed replaces the time that starts each line.
func untimed(s string) string {
	return regexp.MustCompile(`(?m)^[0-9T:.+Z-]{12,} `).ReplaceAllString(s, "")
}

type secret string

func (secret) LogValue() slog.Value { return slog.StringValue("[redacted]") }

func TestFormat(t *testing.T) {
	tests := map[string]struct {
		o    Options
		log  func(*slog.Logger)
		want string
	}{
		"component leads":     {log: func(l *slog.Logger) { l.With("component", "kubelet").Info("node registered", "node", "vm") }, want: "INFO  kubelet: node registered node=vm\n"},
		"component in record": {log: func(l *slog.Logger) { l.Warn("slow", "component", "kine", "took", 1234567*time.Microsecond) }, want: "WARN  kine: slow took=1.23s\n"},
		"quotes what needs it": {
			log:  func(l *slog.Logger) { l.Info("x", "a", "b c", "d", `e"f`, "g", "", "h", "i=j", "k", "\x1b[31m") },
			want: `INFO  x a="b c" d="e\"f" g="" h="i=j" k="\x1b[31m"` + "\n",
		},
		"groups":              {log: func(l *slog.Logger) { l.WithGroup("g").With("a", 1).Info("x", slog.Group("h", "b", 2)) }, want: "INFO  x g.a=1 g.h.b=2\n"},
		"error of many lines": {log: func(l *slog.Logger) { l.Error("x", "err", errors.Join(io.EOF, io.ErrNoProgress)) }, want: "ERROR x\n    err:\n      EOF\n      multiple Read calls return no data or error\n"},
		"secret":              {log: func(l *slog.Logger) { l.Info("x", "token", secret("s3cret")) }, want: "INFO  x token=[redacted]\n"},
		"debug is off":        {log: func(l *slog.Logger) { l.Debug("x") }, want: ""},
		"debug is on":         {o: Options{Debug: true}, log: func(l *slog.Logger) { l.Debug("x") }, want: "DEBUG x\n"},
		"journal has priorities and no time": {
			o:    Options{Journal: true},
			log:  func(l *slog.Logger) { l.Info("i"); l.Warn("w"); l.Error("e", "err", "a\nb") },
			want: "<6>i\n<4>WARN  w\n<3>ERROR e\n<3>    err:\n<3>      a\n<3>      b\n",
		},
		"level of a component": {
			o: Options{Levels: map[string]slog.Level{"a": slog.LevelError, "b": slog.LevelDebug}},
			log: func(l *slog.Logger) {
				l.With("component", "a").Warn("no")
				l.Warn("no", "component", "a")
				l.With("component", "b").Debug("yes")
			},
			want: "DEBUG b: yes\n",
		},
		"message with newline and escape": {log: func(l *slog.Logger) { l.Info("one\ntwo\x1b\n") }, want: "INFO  one; two?\n"},
		"nil pointer in an attribute":     {log: func(l *slog.Logger) { l.Info("x", "d", (*time.Time)(nil)) }, want: "INFO  x d=<nil>\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var b buffer
			tt.log(New(&b, tt.o))
			if got := untimed(b.String()); got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

func TestOpenAppendsToPrivateFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "podo.log")
	for i := range 2 {
		var stderr buffer
		l, c, err := Open(&stderr, Options{File: path, Also: i == 1})
		if err != nil {
			t.Fatal(err)
		}
		l.Info("hello", "n", i)
		c.Close()
		if got, want := stderr.String() != "", i == 1; got != want {
			t.Errorf("wrote to stderr: %v, want %v", got, want)
		}
	}
	text, err := os.ReadFile(path)
	if got, want := untimed(string(text)), "INFO  hello n=0\nINFO  hello n=1\n"; err != nil || got != want {
		t.Errorf("file holds %q, %v; want %q", got, err, want)
	}
	if info, _ := os.Stat(path); info.Mode() != 0o600 {
		t.Errorf("mode %v, want 0600", info.Mode())
	}
	if _, _, err := Open(io.Discard, Options{File: filepath.Join(path, "x")}); err == nil {
		t.Error("opened a file below a file")
	}
}

func adopt(t *testing.T, o Options, v int, vmodule string) *buffer {
	t.Helper()
	var b buffer
	if err := Adopt(t.Context(), New(&b, o), v, vmodule, func(reason string) { t.Errorf("fatal: %s", reason) }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { Adopt(context.Background(), New(io.Discard, Options{}), 0, "", nil) })
	return &b
}

func sayEverything() {
	klog.Info("klog info")
	klog.V(2).Info("klog v2")
	klog.V(4).InfoS("klog v4")
	klog.Warning("klog warning ", 1)
	klog.Warningf("klog warning %d", 2)
	klog.Errorf("klog error\n")
	klog.ErrorS(io.EOF, "klog errors", "pod", klog.KRef("ns", "name"))
	ctx := klog.NewContext(context.TODO(), klog.LoggerWithValues(klog.Background(), "component", "kubelet"))
	klog.FromContext(ctx).Info("contextual info")
	klog.FromContext(ctx).Error(io.EOF, "contextual error")
	logrus.Info("logrus info")
	logrus.Errorf("error in txn %s: disk is full", `success:<request_put:<key:"/registry/secrets/a" value:"c2VjcmV0" > >`)
	logrus.WithError(io.EOF).Warn("logrus warning")
	log.Print("http: TLS handshake error from 10.0.0.1:1: EOF")
	log.Print("std line")
	slog.Info("slog info")
	slog.Warn("slog warning")
}

func TestAdoptShowsWarningsOnly(t *testing.T) {
	b := adopt(t, Options{}, 0, "")
	sayEverything()
	want := `WARN  logging: klog warning 1
WARN  logging: klog warning 2
ERROR logging: klog error
ERROR logging: klog errors err=EOF pod=ns/name
ERROR kubelet: contextual error err=EOF
WARN  logging: logrus warning err=EOF
WARN  logging: std line
WARN  logging: slog warning
`
	// The second klog warning differs from the first in its number alone.
	want = strings.Replace(want, "WARN  logging: klog warning 2\n", "", 1)
	if got := untimed(b.String()); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestAdoptShowsAllWithDebug(t *testing.T) {
	b := adopt(t, Options{Debug: true}, 0, "")
	sayEverything()
	for _, want := range []string{"INFO  logging: klog info", "DEBUG logging: klog v2", "WARN  logging: klog warning 2", "INFO  kubelet: contextual info", "INFO  logging: logrus info", "TLS handshake", "INFO  logging: slog info"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is missing in\n%s", want, b)
		}
	}
	if strings.Contains(b.String(), "c2VjcmV0") {
		t.Errorf("a Secret is shown:\n%s", b)
	}
	if strings.Contains(b.String(), "klog v4") {
		t.Errorf("V(4) is shown without -v 4:\n%s", b)
	}
}

func TestAdoptVerbosity(t *testing.T) {
	b := adopt(t, Options{}, 4, "")
	sayEverything()
	if !strings.Contains(b.String(), "klog v4") || !strings.Contains(b.String(), "klog info") {
		t.Errorf("-v 4 does not show V(4):\n%s", b)
	}
}

func TestAdoptVModule(t *testing.T) {
	b := adopt(t, Options{}, 0, "logging_*=4")
	sayEverything()
	if !strings.Contains(b.String(), "klog v4") {
		t.Errorf("vmodule does not show V(4):\n%s", b)
	}
	b = adopt(t, Options{}, 0, "other=4")
	sayEverything()
	if strings.Contains(b.String(), "klog v") || strings.Contains(b.String(), "klog info") {
		t.Errorf("vmodule of another file shows lines of this one:\n%s", b)
	}
	if err := Adopt(t.Context(), New(io.Discard, Options{}), 0, "nonsense", nil); err == nil || !strings.Contains(err.Error(), "vmodule") {
		t.Errorf("vmodule=nonsense: %v", err)
	}
}

func TestAdoptWithFileAndTerminal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	var b buffer
	l, c, err := Open(&b, Options{File: path, Also: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := Adopt(t.Context(), l, 3, "", nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { Adopt(context.Background(), New(io.Discard, Options{}), 0, "", nil) })
	klog.V(3).Info("deep")
	text, _ := os.ReadFile(path)
	if !strings.Contains(b.String(), "deep") || !strings.Contains(string(text), "deep") {
		t.Errorf("terminal %q, file %q", b.String(), text)
	}
}

func TestRepetitionsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b buffer
		l := slog.New(newUpstream(New(&b, Options{}).Handler(), 0)).With("component", "client-go")
		storm := func() {
			for i := range 20 {
				l.Error("watch ended", "err", fmt.Errorf("get /api/%c: dial 127.0.0.1:%d: connection refused", 'a'+i, 6443+i))
			}
		}
		storm()
		l.Error("watch ended", "err", fmt.Errorf("get /api: forbidden"))
		if n := strings.Count(b.String(), "\n"); n != 2 {
			t.Errorf("a storm of one kind and one line of another gave %d lines:\n%s", n, &b)
		}
		time.Sleep(window + time.Second)
		synctest.Wait()
		if got := b.String(); !strings.Contains(got, "watch ended (repeated 19 times)") || strings.Count(got, "\n") != 3 {
			t.Errorf("no count after the window:\n%s", got)
		}
		storm()
		if n := strings.Count(b.String(), "\n"); n != 4 {
			t.Errorf("a new storm is not news: %d lines\n%s", n, &b)
		}
		time.Sleep(window + time.Second)
	})
}

func TestNoiseIsDroppedUnlessDebugging(t *testing.T) {
	for _, debug := range []bool{false, true} {
		var b buffer
		v := 0
		if debug {
			v = 2
		}
		l := slog.New(newUpstream(New(&b, Options{Debug: debug}).Handler(), v))
		for _, n := range knownNoise() {
			if n.reason == "" {
				t.Errorf("%q is dropped without a reason", n.message)
			}
			l.Warn(n.message+" and so on", "err", n.trouble)
		}
		if got := b.String() != ""; got != debug {
			t.Errorf("debug %v: noise shown %v:\n%s", debug, got, &b)
		}
	}
}

// A node that is refused a range for any other reason than that it has one is told of.
func TestNodeWithoutRangeIsTold(t *testing.T) {
	for trouble, told := range map[string]bool{
		`failed to patch node CIDR: Node "two" is invalid: [spec.podCIDRs: Forbidden: node updates may not change podCIDR except from "" to valid]`: false,
		"failed to patch node CIDR: etcdserver: no leader": true,
	} {
		var b buffer
		l := slog.New(newUpstream(New(&b, Options{}).Handler(), 0))
		l.Error("Failed to update node PodCIDR after multiple attempts", "err", errors.New(trouble), "node", "two")
		l.Error("CIDR assignment for node failed. Releasing allocated CIDR", "err", errors.New(trouble), "node", "two")
		l.Error("Error processing node work item", "logger", "UnhandledError", "err", fmt.Errorf("error syncing 'two': %s, requeuing", trouble))
		if got := strings.Count(b.String(), "\n"); got != map[bool]int{true: 3}[told] {
			t.Errorf("%s: told in %d lines:\n%s", trouble, got, &b)
		}
	}
}

func TestChildLines(t *testing.T) {
	const text = `time="2026-01-02T03:04:05Z" level=info msg="starting containerd" version=2.3.7
time="2026-01-02T03:04:05Z" level=warning msg="cgroup v1 is old" error="a \"b\"" id=x

panic: runtime error
time="2026-01-02T03:04:05Z" level=error msg=gone`
	var b buffer
	w := Child(New(&b, Options{}), "containerd")
	for i := range len(text) { // however the pipe cuts it
		w.Write([]byte{text[i]})
	}
	w.Close()
	want := "WARN  containerd: cgroup v1 is old err=\"a \\\"b\\\"\" id=x\nWARN  containerd: panic: runtime error\nERROR containerd: gone\n"
	if got := untimed(b.String()); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}

	b = buffer{}
	w = Child(New(&b, Options{Debug: true}), "containerd")
	io.WriteString(w, text+"\n"+strings.Repeat("x", 3*longest))
	w.Close()
	if got := untimed(b.String()); !strings.HasPrefix(got, "INFO  containerd: starting containerd version=2.3.7\n") {
		t.Errorf("debug drops info: %.200q", got)
	}
}

func TestComponentOf(t *testing.T) {
	for function, want := range map[string]string{
		"k8s.io/kubernetes/pkg/kubelet/cm.(*containerManagerImpl).Start": "kubelet",
		"k8s.io/kubernetes/pkg/proxy/nftables.NewProxier.func1":          "kube-proxy",
		"k8s.io/kubernetes/pkg/controller/nodelifecycle.New":             "kube-controller-manager",
		"k8s.io/kubernetes/pkg/controlplane.X":                           "kube-apiserver",
		"k8s.io/client-go/tools/cache.(*Reflector).Run":                  "client-go",
		"github.com/k3s-io/kine/pkg/server.(*KVServerBridge).Put":        "kine",
		"example.org/thing/v2.Do":                                        "thing",
		"example.org/thing.Do":                                           "thing",
		"main.main":                                                      "main",
	} {
		if got := componentOf(packageOf(function)); got != want {
			t.Errorf("%s is %q, want %q", function, got, want)
		}
	}
}

func TestManyWritersKeepLinesWhole(t *testing.T) {
	var b buffer
	l := New(&b, Options{})
	up := slog.New(newUpstream(l.Handler(), 1))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			w := Child(l, "child")
			mine := l.With("component", fmt.Sprint("c", i))
			for j := range 50 {
				mine.Info("x", "j", j)
				up.Warn("storm", "j", j)
				fmt.Fprintf(w, "level=error msg=%c%c\n", 'a'+i, 'a'+j%26)
			}
			w.Close()
		})
	}
	wg.Wait()
	for line := range strings.Lines(b.String()) {
		if !regexp.MustCompile(`^\d{4}-\S+ (INFO|WARN|ERROR) `).MatchString(line) {
			t.Fatalf("broken line %q", line)
		}
	}
}

// A library that wants to end the process ends its goroutine, and podo hears why.
func TestAdoptFatal(t *testing.T) {
	var why string
	if err := Adopt(t.Context(), New(io.Discard, Options{}), 0, "", func(reason string) { why = reason }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { Adopt(context.Background(), New(io.Discard, Options{}), 0, "", nil) })
	done, survived := make(chan struct{}), false
	go func() {
		defer close(done)
		logrus.Fatalf("commit failed: %v", io.EOF)
		survived = true
	}()
	<-done
	if why != "commit failed: EOF" || survived {
		t.Errorf("told %q, goroutine went on: %v", why, survived)
	}
}
