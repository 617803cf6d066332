package deploy

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	typed "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
)

const (
	secretType       = "podo.dev/manifest"
	serverAnnotation = "podo.dev/server"

	// A Secret holds a mebibyte, names included.
	maxCompressed = 1000 << 10
	maxContent    = 32 << 20
)

// A file is one of the folder that servers share.
type file struct {
	path    string // from the folder
	server  string // that changed it last
	content []byte
	problem string // why there is no content
	gone    bool   // it was deleted

	secret *corev1.Secret // that holds it
}

// sum tells one content from another. It is empty for a file that is gone.
func (f file) sum() string {
	if f.gone || f.path == "" {
		return ""
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s\x00", f.problem)
	h.Write(f.content)
	return hex.EncodeToString(h.Sum(nil))
}

// key is the name of the Secret of a path, which may have letters that a name may not.
func key(path string) string {
	sum := sha256.Sum256([]byte(path))
	return "podo-manifest-" + hex.EncodeToString(sum[:10])
}

// shared is the folder as the cluster keeps it.
type shared struct{ secrets typed.SecretInterface }

func newShared(rc *rest.Config) (shared, error) {
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return shared{}, err
	}
	return shared{client.CoreV1().Secrets(metav1.NamespaceSystem)}, nil
}

func selected() metav1.ListOptions { return metav1.ListOptions{FieldSelector: "type=" + secretType} }

// list returns every file by its key. One that somebody spoilt has no path.
func (s shared) list(ctx context.Context) (map[string]file, error) {
	list, err := s.secrets.List(ctx, selected())
	if err != nil {
		return nil, fmt.Errorf("list the manifests that servers share: %w", err)
	}
	out := map[string]file{}
	for i := range list.Items {
		secret := &list.Items[i]
		f, err := unpack(secret)
		if err != nil || key(f.path) != secret.Name {
			f = file{}
		}
		f.secret = secret
		out[secret.Name] = f
	}
	return out, nil
}

// put makes the cluster's copy f, if it is still the one that was seen, or none.
func (s shared) put(ctx context.Context, f file, seen *corev1.Secret) error {
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: key(f.path), Annotations: map[string]string{serverAnnotation: f.server}},
		Type:       secretType,
		Data:       map[string][]byte{"path": []byte(f.path)},
	}
	switch {
	case f.gone:
	case f.problem != "":
		secret.Data["problem"] = []byte(f.problem)
	default:
		secret.Data["content"] = compress(f.content)
	}
	var err error
	if seen == nil {
		_, err = s.secrets.Create(ctx, secret, metav1.CreateOptions{})
	} else {
		secret.ResourceVersion = seen.ResourceVersion
		_, err = s.secrets.Update(ctx, secret, metav1.UpdateOptions{})
	}
	return err
}

// follow calls changed for each change, and whenever one may have been missed.
func (s shared) follow(ctx context.Context, changed func()) {
	for ctx.Err() == nil {
		from := selected()
		from.ResourceVersion = "0" // whatever is known: all of it is listed again anyway
		if w, err := s.secrets.Watch(ctx, from); err == nil {
			changed()
			for range w.ResultChan() {
				changed()
			}
			w.Stop()
		}
		pauseFor(ctx, time.Second)
	}
}

// pauseFor lets d pass, or less if ctx ends.
func pauseFor(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func unpack(s *corev1.Secret) (file, error) {
	f := file{path: string(s.Data["path"]), server: cmp.Or(s.Annotations[serverAnnotation], "unknown"), problem: string(s.Data["problem"])}
	packed, ok := s.Data["content"]
	if !ok {
		f.gone = f.problem == ""
		return f, nil
	}
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return file{}, err
	}
	f.content, err = io.ReadAll(io.LimitReader(r, maxContent+1))
	if err == nil && len(f.content) > maxContent {
		err = errors.New("it unpacks to more than a manifest may have")
	}
	return f, err
}

func compress(text []byte) []byte {
	var b bytes.Buffer
	w, _ := gzip.NewWriterLevel(&b, gzip.BestCompression) // the level is one there is
	w.Write(text)                                         // to memory: neither can fail
	w.Close()
	return b.Bytes()
}
