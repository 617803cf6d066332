// Package metrics serves the resource metrics API, metrics.k8s.io, in this process.
//
// It asks every kubelet four times a minute what its node and its containers use, and
// keeps the last two answers, since what they use of a CPU is the difference between
// them. The API that tells is part of the API server of the same process, so nothing
// listens, nothing runs in a pod, and every server answers for itself.
//
// Whatever else is asked for, such as a pod's labels, is read from the cluster at the
// moment of the question: memory goes by containers, and not by objects.
package metrics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"github.com/prometheus/common/expfmt"

	"github.com/podo-dev/podo/pkg/gate"
)

// How often kubelets are asked, how long one may take, and how many are at once.
const (
	interval = 15 * time.Second
	patience = 10 * time.Second
	atOnce   = 32
)

// Options are what a Server needs of its surroundings.
type Options struct {
	// Client is for reading nodes and pods.
	Client func() (*rest.Config, error)

	// Kubelets say how kubelets are asked: who we are, whom we trust, and a Dial that
	// finds a node by its name.
	Kubelets *rest.Config

	// Nodes lists the nodes with their names and the ports of their kubelets.
	Nodes func() ([]*corev1.Node, error)

	Gate *gate.Gate
	Log  *slog.Logger
}

// Server asks kubelets, and answers who asks it.
type Server struct {
	options Options
	store   store

	mu      sync.Mutex
	objects metadata.Interface // nil until Run
	silent  map[string]bool    // nodes whose kubelets did not answer the last time
}

// New returns a server. Install makes it part of an API server, and Run has it know
// something.
func New(o Options) *Server {
	o.Log = o.Log.With("component", "metrics-server")
	return &Server{options: o, store: store{nodes: map[string]*node{}}, silent: map[string]bool{}}
}

// Name is the component's name.
func (s *Server) Name() string { return "metrics-server" }

// Run asks kubelets until ctx ends. It is ready once the API is.
func (s *Server) Run(ctx context.Context, ready func()) error {
	rc, err := s.options.Client()
	if err != nil {
		return err
	}
	objects, err := metadata.NewForConfig(rc)
	if err != nil {
		return err
	}
	kubelets, err := rest.HTTPClientFor(s.options.Kubelets)
	if err != nil {
		return err
	}
	defer kubelets.CloseIdleConnections()
	s.mu.Lock()
	s.objects = objects
	s.mu.Unlock()
	if !s.options.Gate.Pass(ctx) {
		return nil
	}
	ready()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		s.round(ctx, kubelets)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// round asks each kubelet once.
func (s *Server) round(ctx context.Context, kubelets *http.Client) {
	nodes, err := s.options.Nodes()
	if err != nil {
		return // the list is not there yet
	}
	var wg sync.WaitGroup
	room := make(chan struct{}, atOnce)
	names := map[string]bool{}
	for _, n := range nodes {
		names[n.Name] = true
		wg.Go(func() {
			room <- struct{}{}
			defer func() { <-room }()
			r, err := ask(ctx, kubelets, n)
			if err == nil {
				s.store.add(n.Name, r)
			}
			s.note(ctx, n.Name, err)
		})
	}
	wg.Wait()
	s.store.keep(names)
}

// note says once that a kubelet does not answer, and once that it does again.
func (s *Server) note(ctx context.Context, node string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case ctx.Err() != nil:
	case err != nil && !s.silent[node]:
		s.silent[node] = true
		s.options.Log.Debug("kubelet does not say what is used", "node", node, "err", err)
	case err == nil && s.silent[node]:
		delete(s.silent, node)
		s.options.Log.Debug("kubelet says again what is used", "node", node)
	}
}

// ask has one kubelet say what is used.
func ask(ctx context.Context, kubelets *http.Client, n *corev1.Node) (reading, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	at := url.URL{Scheme: "https", Host: n.Name + ":" + strconv.Itoa(int(n.Status.DaemonEndpoints.KubeletEndpoint.Port)), Path: "/metrics/resource"}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return reading{}, err
	}
	req.Header.Set("Accept", string(expfmt.NewFormat(expfmt.TypeProtoDelim)))
	res, err := kubelets.Do(req)
	if err != nil {
		return reading{}, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return reading{}, fmt.Errorf("%s: %s", at.String(), res.Status)
	}
	return read(res.Body, expfmt.ResponseFormat(res.Header))
}

// errEarly says that nothing can be answered before Run.
var errEarly = errors.New("metrics are not there yet: the server is starting")

func (s *Server) client() (metadata.Interface, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.objects == nil {
		return nil, errEarly
	}
	return s.objects, nil
}
