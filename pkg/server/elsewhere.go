package server

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"github.com/podo-dev/podo/pkg/balancer"
	"github.com/podo-dev/podo/pkg/gate"
	"github.com/podo-dev/podo/pkg/join"
	"github.com/podo-dev/podo/pkg/kube/apiserver"
	"github.com/podo-dev/podo/pkg/kubeconfig"
	"github.com/podo-dev/podo/pkg/lifecycle"
	"github.com/podo-dev/podo/pkg/plan"
	"github.com/podo-dev/podo/pkg/storage/etcd"
)

// elsewhere is what a server does that runs etcd and no API server: it lets machines
// join at its port, and reaches the API servers of others by a balancer.
type elsewhere struct {
	plan     plan.Server
	super    *supervisor
	gate     *gate.Gate
	balancer *balancer.Balancer
	log      *slog.Logger
}

func newElsewhere(p plan.Server, super *supervisor, d Deps) *elsewhere {
	e := &elsewhere{plan: p, super: super, gate: d.Gate, log: d.Log}
	e.balancer = balancer.New(balancer.Options{
		Listen: p.Elsewhere.Balancer, File: p.Paths.Servers(), First: p.Elsewhere.First, Healthy: e.healthy, Log: d.Log,
	})
	return e
}

// port serves podo's own paths, where an API server would do so too.
func (e *elsewhere) port() lifecycle.Component {
	return lifecycle.Func("port", func(ctx context.Context, ready func()) error {
		x, leaf := e.plan.Elsewhere, e.plan.Paths.ServerLeaf("kube-apiserver")
		l, err := apiserver.Listen(ctx, x.Bind, x.Port)
		if err != nil {
			return err
		}
		s := &http.Server{
			Handler: e.super.front(http.HandlerFunc(noAPI)),
			TLSConfig: &tls.Config{
				MinVersion: tls.VersionTLS12,
				ClientAuth: tls.RequestClientCert, // a machine that joins shows an identity of its own making
				GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
					cert, err := tls.LoadX509KeyPair(leaf.Cert, leaf.Key) // it is renewed while podo runs
					return &cert, err
				},
			},
			ReadHeaderTimeout: 10 * time.Second,
			IdleTimeout:       time.Minute,
			ErrorLog:          slog.NewLogLogger(e.log.With("component", "port").Handler(), slog.LevelDebug),
		}
		defer context.AfterFunc(ctx, func() { s.Close() })()
		ready()
		if err := s.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
}

// noAPI answers what only an API server could.
func noAPI(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusServiceUnavailable)
	_ = json.NewEncoder(w).Encode(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure,
		Reason:   metav1.StatusReasonServiceUnavailable,
		Code:     http.StatusServiceUnavailable,
		Message:  "this server runs no API server (disable-apiserver); ask one that does",
	})
}

// servers keeps the balancer's list as the API servers publish it. It is read from the
// datastore itself: no API server need answer, and the first is found as it appears.
func (e *elsewhere) servers() lifecycle.Component {
	const published = "/registry/endpointslices/default/kubernetes"
	return lifecycle.Func("servers", func(ctx context.Context, ready func()) error {
		ready()
		return e.super.store.(*etcd.Store).Follow(ctx, published, func(objects [][]byte) {
			var list []discoveryv1.EndpointSlice
			for _, text := range objects {
				var slice discoveryv1.EndpointSlice
				if _, _, err := scheme.Codecs.UniversalDeserializer().Decode(text, nil, &slice); err != nil {
					e.log.Warn("list of API servers not readable", "component", "servers", "err", err)
					return
				}
				list = append(list, slice)
			}
			e.balancer.Set(join.Addresses(list)) // none at all changes nothing
		})
	})
}

// api is ready once some API server answers.
func (e *elsewhere) api() lifecycle.Component {
	return lifecycle.Func("api", func(ctx context.Context, ready func()) error {
		for !e.answers(ctx) {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(250 * time.Millisecond):
			}
		}
		e.gate.Open()
		ready()
		<-ctx.Done()
		e.gate.Close()
		return nil
	})
}

// answers reports whether the API can be reached the way that every part does.
func (e *elsewhere) answers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	return Healthy(ctx, e.plan) == nil
}

// healthy asks one API server whether it is ready.
func (e *elsewhere) healthy(ctx context.Context, addr string) error {
	rc, err := kubeconfig.Client(e.plan.Paths.ServerKubeconfig("podo"), nil)
	if err != nil {
		return err
	}
	trust, err := rest.TLSConfigFor(rc)
	if err != nil {
		return err
	}
	// A connection kept from the last time may lead to a machine that is gone.
	return ask(ctx, &http.Transport{TLSClientConfig: trust, DisableKeepAlives: true}, "https://"+addr)
}
