package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	ctrimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	leasesproxy "github.com/containerd/containerd/v2/core/leases/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A Store is a container engine, as seen from the machine that holds its files.
type Store struct {
	Socket string // where it listens
	Root   string // where its files are
}

// blob is the file that holds a piece of an image. What is in it never changes.
func (s Store) blob(d digest.Digest) string {
	return filepath.Join(s.Root, "io.containerd.content.v1.content", "blobs", d.Algorithm().String(), d.Encoded())
}

func (s Store) dial() (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+s.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// Load imports an archive into the first of several engines on one disk, and returns the
// names of its images. The other engines are given the same files, by links, and unpack
// them when a container is first made of them. Without a snapshotter the engine has its
// usual one.
func Load(ctx context.Context, file, snapshotter string, stores ...Store) (names []string, err error) {
	ctx = namespaces.WithNamespace(ctx, Namespace)
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	id, err := inspectFile(ctx, f, stores[0].Root)
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", file, err)
	}
	first, err := stores[0].dial()
	if err != nil {
		return nil, err
	}
	defer first.Close()
	if _, err := (engine{first, snapshotter}).persist(ctx, f, id); err != nil {
		return nil, fmt.Errorf("import %s: %w", file, err)
	}
	if names, err = stores[0].share(ctx, first, func(archive string) bool { return archive == id }, stores[1:]...); err != nil {
		return names, err
	}
	err = agree(ctx, first, func(has []*runtimeapi.Image) bool {
		return !slices.ContainsFunc(names, func(name string) bool { return !shown(has, name, true) })
	})
	return names, errors.Join(err, settle(stores[0].Root))
}

// Share gives other engines on one disk every image that came to this one from an archive.
func (s Store) Share(ctx context.Context, with ...Store) error {
	conn, err := s.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = s.share(namespaces.WithNamespace(ctx, Namespace), conn, func(archive string) bool { return archive != "" }, with...)
	return err
}

// share gives others the images whose archive is wanted, and returns their names.
func (s Store) share(ctx context.Context, conn *grpc.ClientConn, wanted func(archive string) bool, with ...Store) (names []string, err error) {
	res, err := imagesapi.NewImagesClient(conn).List(ctx, &imagesapi.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	from := contentproxy.NewContentStore(conn)
	for _, image := range res.Images {
		if !wanted(image.Labels[archiveLabel]) {
			continue
		}
		names = append(names, image.Name)
		blobs, err := pieces(ctx, from, image)
		if err != nil {
			return nil, fmt.Errorf("read image %s: %w", image.Name, err)
		}
		for _, to := range with {
			if err := to.adopt(ctx, s, image, blobs); err != nil {
				return nil, fmt.Errorf("share image %s: %w", image.Name, err)
			}
		}
	}
	return names, nil
}

// pieces are the blobs of an image that are there, those that others refer to first.
func pieces(ctx context.Context, from content.Store, image *imagesapi.Image) ([]content.Info, error) {
	var out []content.Info
	top := ocispec.Descriptor{MediaType: image.Target.MediaType, Digest: digest.Digest(image.Target.Digest), Size: image.Target.Size}
	err := ctrimages.Walk(ctx, ctrimages.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		info, err := from.Info(ctx, d.Digest)
		if errdefs.IsNotFound(err) {
			return nil, ctrimages.ErrSkipDesc // of a platform that the archive leaves out
		}
		if err != nil {
			return nil, err
		}
		out = append([]content.Info{info}, out...)
		return ctrimages.Children(ctx, from, d)
	}), top)
	return out, err
}

// adopt gives an engine an image of another.
func (s Store) adopt(ctx context.Context, from Store, image *imagesapi.Image, blobs []content.Info) error {
	conn, err := s.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	// Until the image holds them, a lease keeps its blobs from the garbage collector.
	manager := leasesproxy.NewLeaseManager(leasesapi.NewLeasesClient(conn))
	lease, err := manager.Create(ctx, leases.WithRandomID())
	if err != nil {
		return err
	}
	held := leases.WithLease(ctx, lease.ID)
	store := contentproxy.NewContentStore(conn)
	for _, b := range blobs {
		if err := s.take(held, from, store, b); err != nil {
			return errors.Join(err, manager.Delete(ctx, lease))
		}
	}
	err = put(ctx, imagesapi.NewImagesClient(conn), image)
	if err == nil {
		err = agree(ctx, conn, func(has []*runtimeapi.Image) bool { return shown(has, image.Name, true) })
	}
	return errors.Join(err, manager.Delete(ctx, lease))
}

// take links one blob, and lets the engine know that it has it.
func (s Store) take(ctx context.Context, from Store, store content.Store, b content.Info) error {
	if err := os.MkdirAll(filepath.Dir(s.blob(b.Digest)), 0o755); err != nil {
		return err
	}
	if err := os.Link(from.blob(b.Digest), s.blob(b.Digest)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	w, err := store.Writer(ctx, content.WithRef("share-"+b.Digest.String()), content.WithDescriptor(ocispec.Descriptor{Digest: b.Digest, Size: b.Size}))
	if err == nil {
		err = w.Commit(ctx, b.Size, b.Digest, content.WithLabels(b.Labels))
		w.Close()
	}
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	return err
}
