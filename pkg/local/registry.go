package local

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/machine"
)

// RegistryPort is where a cluster's registry listens if that is free: where kind's users
// have theirs.
const RegistryPort = 5000

// A store is a registry of images that keeps what it is given in a folder. The library
// keeps blobs there, once they are whole; manifests, which it has in memory alone, are kept
// as they were put, and put again when the process starts.
type store struct {
	dir    string // of manifests
	within http.Handler
	log    *slog.Logger
}

// A put is a manifest as it was pushed.
type put struct {
	Path string
	Type string
	Body []byte
}

func openStore(dir string, log *slog.Logger) (*store, error) {
	s := &store{dir: filepath.Join(dir, "manifests"), log: log}
	blobs, parts := filepath.Join(dir, "blobs"), filepath.Join(dir, "uploads")
	if err := errors.Join(os.RemoveAll(parts), os.MkdirAll(s.dir, 0o700), os.MkdirAll(blobs, 0o700), os.MkdirAll(parts, 0o700)); err != nil {
		return nil, err
	}
	torn, err := filepath.Glob(filepath.Join(blobs, "upload-*")) // what the library began and did not end
	if err != nil {
		return nil, err
	}
	for _, file := range torn {
		if err := os.Remove(file); err != nil {
			return nil, err
		}
	}
	s.within = uploads{parts, blobs, registry.New(registry.WithBlobHandler(registry.NewDiskBlobHandler(blobs)), registry.Logger(slog.NewLogLogger(log.Handler(), slog.LevelDebug)))}
	return s, s.restore()
}

// restore puts manifests again. An index is refused until what it refers to is there, so
// those that are refused are tried again for as long as others are not. A file that cannot
// be read must not keep the cluster from starting: what was in it can be pushed again.
func (s *store) restore() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	var all []put
	for _, e := range entries {
		file := filepath.Join(s.dir, e.Name())
		if strings.HasPrefix(e.Name(), ".") { // what a write that was killed left
			if err := os.Remove(file); err != nil {
				return err
			}
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var p put
		if err := json.Unmarshal(text, &p); err != nil {
			s.log.Warn("manifest cannot be read and is left out; push it again", "file", file, "err", err)
			continue
		}
		all = append(all, p)
	}
	for tried := 0; tried != len(all); {
		tried = len(all)
		all = slices.DeleteFunc(all, s.again)
	}
	for _, p := range all {
		s.log.Warn("manifest is no longer complete", "path", p.Path)
	}
	return nil
}

// again puts a manifest that was put before, and reports whether it is one yet.
func (s *store) again(p put) bool {
	req, err := http.NewRequest(http.MethodPut, p.Path, bytes.NewReader(p.Body))
	if err != nil {
		return false
	}
	req.Header.Set("Content-Type", p.Type)
	answer := &verdict{header: http.Header{}}
	s.within.ServeHTTP(answer, req)
	return answer.code == http.StatusCreated
}

func (s *store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.Contains(r.URL.Path, "/manifests/") || r.Method != http.MethodPut && r.Method != http.MethodDelete {
		s.within.ServeHTTP(w, r)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 8<<20))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	answer := &verdict{header: http.Header{}}
	s.within.ServeHTTP(answer, r)
	if answer.code < http.StatusMultipleChoices { // nobody is told so before the disk knows
		if err := s.keep(r, body); err != nil {
			s.log.Error("manifest is not kept", "path", r.URL.Path, "err", err)
			http.Error(w, "manifest is not kept: "+err.Error(), http.StatusInternalServerError)
			return
		}
	}
	answer.pass(w)
}

// keep has the disk know what the registry now does: a manifest by the name that it was put
// under, and by its digest, under which it stays when that name is given to another.
func (s *store) keep(r *http.Request, body []byte) error {
	if r.Method == http.MethodDelete {
		if err := os.Remove(s.file(r.URL.Path)); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	digest := fmt.Sprintf("%s/sha256:%x", path.Dir(r.URL.Path), sha256.Sum256(body))
	for _, at := range slices.Compact([]string{digest, r.URL.Path}) {
		text, err := json.Marshal(put{at, r.Header.Get("Content-Type"), body})
		if err != nil {
			return err
		}
		if err := atomicfile.Write(s.file(at), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// file is where a manifest is kept that was put at a path.
func (s *store) file(at string) string {
	return filepath.Join(s.dir, fmt.Sprintf("%x", sha256.Sum256([]byte(at))))
}

// A verdict is what a handler answers, held back.
type verdict struct {
	header http.Header
	code   int
	text   bytes.Buffer
}

func (v *verdict) Header() http.Header { return v.header }

func (v *verdict) WriteHeader(code int) { v.code = code }

func (v *verdict) Write(b []byte) (int, error) { return v.text.Write(b) }

// pass gives the answer to whoever asked.
func (v *verdict) pass(w http.ResponseWriter) {
	maps.Copy(w.Header(), v.header)
	w.WriteHeader(cmp.Or(v.code, http.StatusOK))
	_, _ = w.Write(v.text.Bytes())
}

// A registryServer serves a store to the host, on loopback, and to the nodes.
type registryServer struct {
	dir    string
	listen []netip.AddrPort
	log    *slog.Logger
}

func (r registryServer) Name() string { return "registry" }

func (r registryServer) Run(ctx context.Context, ready func()) error {
	handler, err := openStore(r.dir, r.log)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	var all sync.WaitGroup
	for _, at := range r.listen {
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
		if err != nil {
			return taken(at, "tcp", err)
		}
		all.Go(func() { _ = server.Serve(l) }) // until it is closed
	}
	ready()
	<-ctx.Done()
	// What is being pushed may come to its end; whoever stops the process waits a little longer.
	ending, end := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer end()
	if err = server.Shutdown(ending); err != nil {
		err = server.Close()
	}
	all.Wait()
	return err
}

// doors are where the cluster's registry listens.
func (c Cluster) doors() []netip.AddrPort {
	out := []netip.AddrPort{c.registryAt()}
	for _, r := range c.Ranges {
		out = append(out, netip.AddrPortFrom(machine.Nth(r, 1), c.Registry))
	}
	return out
}

// mirrors are the registries that nodes find elsewhere than by their names: the cluster's
// own is localhost to the host, and the bridge's address to them.
func (c Cluster) mirrors() []Registry {
	if c.Registry == 0 {
		return c.Registries
	}
	at := netip.AddrPortFrom(machine.Nth(c.Ranges[0], 1), c.Registry).String()
	own := []string{"http://" + at}
	return append([]Registry{
		{Host: fmt.Sprintf("localhost:%d", c.Registry), Endpoints: own},
		{Host: fmt.Sprintf("127.0.0.1:%d", c.Registry), Endpoints: own},
		{Host: at, Endpoints: own},
	}, c.Registries...)
}

// announce tells tools of the cluster's registry, where they look for one
// (https://github.com/kubernetes/enhancements/tree/master/keps/sig-cluster-lifecycle/generic/1755-communicating-a-local-registry).
func (s Site) announce(ctx context.Context, c Cluster) error {
	if c.Registry == 0 {
		return nil
	}
	client, err := s.client(c)
	if err != nil {
		return err
	}
	note := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "local-registry-hosting"},
		Data:       map[string]string{"localRegistryHosting.v1": fmt.Sprintf("host: localhost:%d\n", c.Registry)},
	}
	for {
		_, err := client.CoreV1().ConfigMaps(metav1.NamespacePublic).Create(ctx, note, metav1.CreateOptions{})
		switch {
		case err == nil, apierrors.IsAlreadyExists(err):
			return nil
		case !apierrors.IsNotFound(err): // the namespace is made a moment after the API is ready
			return fmt.Errorf("announce the registry: %w", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}
