package join

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// holderPrefix marks a subject's serial number as the hash of an identity. Kubernetes
// has no revocation; by this a node's certificate ends with the claim to its name.
const holderPrefix = "podo:"

func holder(key []byte) string {
	sum := sha256.Sum256(key)
	return holderPrefix + hex.EncodeToString(sum[:])
}

// Owners follows which identities own a name.
type Owners struct {
	informer cache.SharedIndexInformer
	asking   *asking
}

// asking is what goes on in the names of holders: watches and tunnels last for hours.
type asking struct {
	mu    sync.Mutex
	holds map[*hold]struct{}
}

type hold struct {
	who string
	end context.CancelFunc
}

const byHolder = "holder"

// WatchOwners returns the owners as they are, and then as they become until ctx ends.
func WatchOwners(ctx context.Context, client kubernetes.Interface) (Owners, error) {
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0,
		informers.WithNamespace(metav1.NamespaceSystem), informers.WithTweakListOptions(identities))
	o, err := newOwners(factory)
	if err != nil {
		return o, err
	}
	factory.StartWithContext(ctx)
	factory.WaitForCacheSyncWithContext(ctx)
	return o, ctx.Err()
}

func newOwners(f informers.SharedInformerFactory) (Owners, error) {
	o := Owners{f.Core().V1().Secrets().Informer(), &asking{holds: map[*hold]struct{}{}}}
	if _, err := o.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		UpdateFunc: func(old, _ any) { o.lost(old) },
		DeleteFunc: o.lost,
	}); err != nil {
		return o, err
	}
	return o, o.informer.AddIndexers(cache.Indexers{byHolder: func(object any) ([]string, error) {
		return []string{holder(object.(*corev1.Secret).Data[identityKey])}, nil
	}})
}

// while returns a context that ends with ctx, with done, or as soon as who loses its name.
func (o Owners) while(ctx context.Context, who string) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancel(ctx)
	h := &hold{who, cancel}
	o.asking.mu.Lock()
	defer o.asking.mu.Unlock()
	o.asking.holds[h] = struct{}{}
	return ctx, func() {
		cancel()
		o.asking.mu.Lock()
		defer o.asking.mu.Unlock()
		delete(o.asking.holds, h)
	}
}

// lost ends what the holder of a name asks for if the name is not its own any more.
func (o Owners) lost(was any) {
	if gone, ok := was.(cache.DeletedFinalStateUnknown); ok {
		was = gone.Obj
	}
	s, ok := was.(*corev1.Secret)
	if !ok {
		return
	}
	who := holder(s.Data[identityKey])
	if o.have(who) {
		return
	}
	o.asking.mu.Lock()
	defer o.asking.mu.Unlock()
	for h := range o.asking.holds {
		if h.who == who {
			h.end()
		}
	}
}

func (o Owners) have(holder string) bool {
	found, err := o.informer.GetIndexer().ByIndex(byHolder, holder)
	return err == nil && len(found) > 0
}

func identities(o *metav1.ListOptions) {
	o.FieldSelector = fields.OneTermEqualSelector("type", identityType).String()
}

// owns asks the datastore itself whether an identity owns a name.
func (r *Records) owns(ctx context.Context, who string) (bool, error) {
	var o metav1.ListOptions
	identities(&o)
	list, err := r.secrets.List(ctx, o)
	if err != nil {
		return false, err
	}
	for _, s := range list.Items {
		if holder(s.Data[identityKey]) == who {
			return true, nil
		}
	}
	return false, nil
}

// held passes on what is asked with a certificate whose holder still owns its name, for
// as long as it does, or with none that says who holds it.
func (s *server) held(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who := presents(r)
		if who == "" {
			next.ServeHTTP(w, r)
			return
		}
		no := refuse(Unavailable, "the server is starting")
		if owners, err := s.Owners(); err == nil {
			ctx, done := owners.while(r.Context(), who) // before the judgement, lest a loss between go unseen
			defer done()
			if no = s.judge(r, owners, who); no == nil {
				next.ServeHTTP(w, r.WithContext(ctx))
				return
			}
		}
		// In the form that clients of Kubernetes tell their users.
		status := metav1.Status{
			TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
			Reason: metav1.StatusReasonUnauthorized, Message: no.Message, Code: int32(no.status()),
		}
		if !no.Final() {
			status.Reason = metav1.StatusReasonServiceUnavailable
			w.Header().Set("Retry-After", "1")
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(no.status())
		if err := json.NewEncoder(w).Encode(status); err != nil {
			s.Log.Debug("answer not sent", "component", "join", "err", err)
		}
	})
}

// presents is the holder that a request's certificate names, or nothing.
func presents(r *http.Request) string {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return ""
	}
	if who := r.TLS.PeerCertificates[0].Subject.SerialNumber; strings.HasPrefix(who, holderPrefix) {
		return who
	}
	return ""
}

func (s *server) judge(r *http.Request, owners Owners, who string) *Refusal {
	if owners.have(who) {
		return nil
	}
	// Another server may have let it in a moment ago.
	from := remote(r)
	if !s.lookups.allow(from, 1, s.Now()) {
		return tooMany(from)
	}
	records, err := s.Records()
	if err != nil {
		return refuse(Unavailable, "the server is starting")
	}
	known, err := records.owns(r.Context(), who)
	if err != nil {
		s.complain("owner of a certificate not known now", "addr", from, "err", err)
		return refuse(Unavailable, "the server cannot answer now, and its log says why")
	}
	if !known {
		s.complain("certificate refused: its holder owns no node's name any more", "addr", from, "subject", clip(r.TLS.PeerCertificates[0].Subject.CommonName))
		return refuse(BadToken, "the certificate is of a machine that owns no node's name any more: another has replaced it, or its identity was deleted; to join again, start it with --token")
	}
	return nil
}

// clip is what a stranger said, fit for one line of a log.
func clip(text string) string { return strconv.QuoteToASCII(text[:min(len(text), 200)]) }
