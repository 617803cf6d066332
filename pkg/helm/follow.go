package helm

import (
	"context"
	"maps"
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	toolscache "k8s.io/client-go/tools/cache"
)

// A follower tells when one of the Secrets changes that HelmCharts take values from. It
// watches those alone, each by its name.
type follower struct {
	ctx  context.Context
	meta metadata.Interface
	tell func(key string)

	mu      sync.Mutex
	wanted  map[[2]string]map[string]bool // which HelmCharts want a Secret
	watched map[[2]string]context.CancelFunc
}

func newFollower(ctx context.Context, meta metadata.Interface, tell func(key string)) *follower {
	return &follower{ctx: ctx, meta: meta, tell: tell, wanted: map[[2]string]map[string]bool{}, watched: map[[2]string]context.CancelFunc{}}
}

// follow has the HelmChart of a key told about these Secrets of a namespace, and no others.
func (f *follower) follow(key, namespace string, names []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range names {
		secret := [2]string{namespace, n}
		if f.wanted[secret] == nil {
			f.wanted[secret] = map[string]bool{}
			f.watched[secret] = f.watch(secret)
		}
		f.wanted[secret][key] = true
	}
	for secret, keys := range f.wanted {
		if keys[key] && (secret[0] != namespace || !slices.Contains(names, secret[1])) {
			delete(keys, key)
		}
		if len(keys) == 0 {
			f.watched[secret]()
			delete(f.watched, secret)
			delete(f.wanted, secret)
		}
	}
}

func (f *follower) watch(secret [2]string) context.CancelFunc {
	ctx, cancel := context.WithCancel(f.ctx)
	only := func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, secret[1]).String()
	}
	changed := func() {
		f.mu.Lock()
		keys := slices.Collect(maps.Keys(f.wanted[secret]))
		f.mu.Unlock()
		for _, k := range keys {
			f.tell(k)
		}
	}
	i := metadatainformer.NewFilteredMetadataInformer(f.meta, schema.GroupVersionResource{Version: "v1", Resource: "secrets"}, secret[0], 0, toolscache.Indexers{}, only).Informer()
	_, err := i.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { changed() },
		UpdateFunc: func(_, _ any) { changed() },
		DeleteFunc: func(any) { changed() },
	})
	if err == nil { // it is only refused once an informer has stopped
		go i.RunWithContext(ctx)
	}
	return cancel
}
