package images

import (
	"archive/tar"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/match"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// A Target is a registry and how to speak to it.
type Target struct {
	Name      string // of the image there
	PlainHTTP bool   // a registry of this machine is spoken to without TLS anyway
	CAFile    string // certificates that it may have, besides those that the system trusts
	Username  string // empty for what docker login and podman login have left
	Password  string
}

// Push sends an image of an archive, docker's layout or OCI's, plain or compressed,
// to a registry, and returns what it can be pulled by. Image is its name in the archive, which
// may be left out if there is only one.
func Push(ctx context.Context, file, image string, to Target) (string, error) {
	ref, options, err := to.open(ctx)
	if err != nil {
		return "", err
	}
	scratch, err := os.MkdirTemp("/var/tmp", "podo-push-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(scratch)
	plain, isLayout, err := unfold(ctx, file, scratch)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", file, err)
	}
	if isLayout {
		return pushLayout(scratch, image, ref, options)
	}
	var tag *name.Tag
	if image != "" {
		t, err := name.NewTag(image)
		if err != nil {
			return "", err
		}
		tag = &t
	}
	img, err := tarball.ImageFromPath(plain, tag)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", file, err)
	}
	return pushed(ref, img.Digest, remote.Write(ref, img, options...))
}

func pushed(ref name.Reference, digest func() (v1.Hash, error), err error) (string, error) {
	if err != nil {
		return "", err
	}
	d, err := digest()
	return ref.Context().Digest(d.String()).String(), err
}

// open makes the target's name and what to speak to it with.
func (t Target) open(ctx context.Context) (name.Reference, []remote.Option, error) {
	var how []name.Option
	if t.PlainHTTP {
		how = append(how, name.Insecure)
	}
	ref, err := name.ParseReference(t.Name, how...)
	if err != nil {
		return nil, nil, err
	}
	options := []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)}
	if t.Username != "" {
		options[1] = remote.WithAuth(&authn.Basic{Username: t.Username, Password: t.Password})
	}
	if t.CAFile == "" {
		return ref, options, nil
	}
	text, err := os.ReadFile(t.CAFile)
	if err != nil {
		return nil, nil, err
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, nil, err
	}
	if !pool.AppendCertsFromPEM(text) {
		return nil, nil, fmt.Errorf("%s holds no certificate", t.CAFile)
	}
	transport := remote.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: pool}
	return ref, append(options, remote.WithTransport(transport)), nil
}

// unfold brings an archive into the form that it is read in: a layout of OCI becomes a
// folder, anything else a plain tar.
func unfold(ctx context.Context, file, scratch string) (plain string, isLayout bool, err error) {
	in, err := os.Open(file)
	if err != nil {
		return "", false, err
	}
	defer in.Close()
	r, err := inflated(in)
	if err != nil {
		return "", false, err
	}
	defer r.Close()
	plain = filepath.Join(scratch, "archive.tar")
	out, err := os.Create(plain)
	if err != nil {
		return "", false, err
	}
	defer out.Close()
	root, err := os.OpenRoot(scratch) // names in an archive lead nowhere else
	if err != nil {
		return "", false, err
	}
	defer root.Close()
	entries := tar.NewReader(io.TeeReader(r, out))
	for {
		h, err := entries.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return "", false, err
		}
		p := path.Clean(h.Name)
		if h.Typeflag != tar.TypeReg || p != "oci-layout" && p != "index.json" && !strings.HasPrefix(p, "blobs/") {
			continue
		}
		isLayout = isLayout || p == "oci-layout"
		if err := place(root, p, entries); err != nil {
			return "", false, err
		}
	}
	_, err = io.Copy(out, r) // what is after the last entry
	return plain, isLayout, errors.Join(err, out.Close())
}

func place(root *os.Root, p string, from io.Reader) error {
	if err := root.MkdirAll(path.Dir(p), 0o755); err != nil {
		return err
	}
	f, err := root.Create(p)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close())
}

// pushLayout sends one of the images of a folder. Platforms that the folder does not hold
// are left out.
func pushLayout(dir, image string, ref name.Reference, options []remote.Option) (string, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return "", err
	}
	d, err := choose(index, image)
	if err != nil {
		return "", err
	}
	if d.MediaType.IsImage() {
		return pushImage(index, d.Digest, ref, options)
	}
	all, err := index.ImageIndex(d.Digest)
	if err != nil {
		return "", err
	}
	list, err := all.IndexManifest()
	if err != nil {
		return "", err
	}
	var there, absent []v1.Hash
	for _, m := range list.Manifests {
		_, err := os.Stat(filepath.Join(dir, "blobs", m.Digest.Algorithm, m.Digest.Hex))
		switch {
		case err == nil:
			there = append(there, m.Digest)
		case errors.Is(err, fs.ErrNotExist):
			absent = append(absent, m.Digest)
		default:
			return "", err
		}
	}
	switch {
	case len(there) == 0:
		return "", errors.New("the archive holds no platform of the image")
	case len(there) == 1:
		return pushImage(all, there[0], ref, options)
	case len(absent) > 0:
		all = mutate.RemoveManifests(all, match.Digests(absent...))
	}
	return pushed(ref, all.Digest, remote.WriteIndex(ref, all, options...))
}

func pushImage(in v1.ImageIndex, digest v1.Hash, ref name.Reference, options []remote.Option) (string, error) {
	img, err := in.Image(digest)
	if err != nil {
		return "", err
	}
	return pushed(ref, img.Digest, remote.Write(ref, img, options...))
}

// choose finds an image in an archive by name, or the only one.
func choose(index v1.ImageIndex, image string) (v1.Descriptor, error) {
	list, err := index.IndexManifest()
	if err != nil {
		return v1.Descriptor{}, err
	}
	var names []string
	for _, m := range list.Manifests {
		for _, key := range []string{"io.containerd.image.name", "org.opencontainers.image.ref.name"} {
			if called := m.Annotations[key]; called != "" {
				if called == image {
					return m, nil
				}
				names = append(names, called)
				break
			}
		}
	}
	if image == "" && len(list.Manifests) == 1 {
		return list.Manifests[0], nil
	}
	what := fmt.Sprintf("the archive does not hold %q", image)
	if image == "" {
		what = fmt.Sprintf("the archive holds %d images: say which with --image", len(list.Manifests))
	}
	return v1.Descriptor{}, fmt.Errorf("%s; it has: %s", what, strings.Join(names, ", "))
}
