package images

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	streamingapi "github.com/containerd/containerd/api/services/streaming/v1"
	transferapi "github.com/containerd/containerd/api/services/transfer/v1"
	streamproxy "github.com/containerd/containerd/v2/core/streaming/proxy"
	"github.com/containerd/containerd/v2/core/transfer/archive"
	ctrimage "github.com/containerd/containerd/v2/core/transfer/image"
	transferproxy "github.com/containerd/containerd/v2/core/transfer/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// An Image is one that the engine has.
type Image struct {
	ID     string   `json:"id"`
	Names  []string `json:"names"`
	Size   uint64   `json:"size"` // in bytes, compressed
	Pinned bool     `json:"pinned"`
	Used   bool     `json:"used"` // by a container, running or not
}

// List returns the images of the engine, by name.
func (s Store) List(ctx context.Context) ([]Image, error) {
	var out []Image
	err := s.ask(func(conn *grpc.ClientConn) error {
		res, err := runtimeapi.NewImageServiceClient(conn).ListImages(ctx, &runtimeapi.ListImagesRequest{})
		if err != nil {
			return err
		}
		containers, err := runtimeapi.NewRuntimeServiceClient(conn).ListContainers(ctx, &runtimeapi.ListContainersRequest{})
		if err != nil {
			return err
		}
		used := map[string]bool{}
		for _, c := range containers.Containers {
			used[c.ImageRef], used[c.ImageId] = true, true
			if c.Image != nil {
				used[c.Image.Image] = true
			}
		}
		for _, i := range res.Images {
			names := i.RepoTags
			if len(names) == 0 {
				names = i.RepoDigests
			}
			all := append(slices.Concat(i.RepoTags, i.RepoDigests), i.Id)
			out = append(out, Image{
				ID: i.Id, Names: names, Size: i.Size, Pinned: i.Pinned,
				Used: slices.ContainsFunc(all, func(name string) bool { return used[name] }),
			})
		}
		return nil
	})
	slices.SortFunc(out, func(a, b Image) int { return strings.Compare(a.String(), b.String()) })
	return out, err
}

// String is the first of the image's names, or what it is known by without one.
func (i Image) String() string {
	if len(i.Names) == 0 {
		return i.ID
	}
	return i.Names[0]
}

// Pull fetches an image as pods would have it fetched, and returns what it is known by.
func (s Store) Pull(ctx context.Context, name string) (id string, err error) {
	name, err = fullName(name)
	if err != nil {
		return "", err
	}
	err = s.ask(func(conn *grpc.ClientConn) error {
		res, err := runtimeapi.NewImageServiceClient(conn).PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: name}})
		if err == nil {
			id = res.ImageRef
		}
		return err
	})
	if err != nil {
		return "", err
	}
	return id, settle(s.Root)
}

// Pin has the engine keep an image that it has: it is never collected as garbage.
func (s Store) Pin(ctx context.Context, name string) error {
	name, err := fullName(name)
	if err != nil {
		return err
	}
	return s.ask(func(conn *grpc.ClientConn) error {
		ctx, client := namespaces.WithNamespace(ctx, Namespace), imagesapi.NewImagesClient(conn)
		res, err := client.Get(ctx, &imagesapi.GetImageRequest{Name: name})
		if err != nil {
			return err
		}
		// An image without its target would end the engine (containerd 2.3), whatever the mask.
		_, err = client.Update(ctx, &imagesapi.UpdateImageRequest{
			Image:      &imagesapi.Image{Name: name, Target: res.Image.Target, Labels: map[string]string{pinnedLabel: pinned}},
			UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels." + pinnedLabel}},
		})
		if err != nil {
			return err
		}
		return agree(ctx, conn, func(has []*runtimeapi.Image) bool { return shown(has, name, true) })
	})
}

// Export writes an archive with images that the engine has: OCI's layout, which docker
// reads too, of this machine's platform.
func (s Store) Export(ctx context.Context, w io.Writer, names ...string) error {
	ctx, end := context.WithCancel(namespaces.WithNamespace(ctx, Namespace))
	defer end()
	var opts []ctrimage.StoreOpt
	for _, name := range names {
		full, err := fullName(name)
		if err != nil {
			return err
		}
		opts = append(opts, ctrimage.WithExtraReference(full))
	}
	// The engine does not say where its stream ends: the archive does.
	from, to := io.Pipe()
	defer from.Close()
	whole := make(chan error, 1)
	go func() { whole <- readThrough(tar.NewReader(io.TeeReader(from, w))) }()
	return s.ask(func(conn *grpc.ClientConn) error {
		transfer := transferproxy.NewTransferrer(transferapi.NewTransferClient(conn), streamproxy.NewStreamCreator(streamingapi.NewStreamingClient(conn)))
		err := transfer.Transfer(ctx, ctrimage.NewStore("", opts...), archive.NewImageExportStream(to, "", archive.WithPlatform(platforms.DefaultSpec())))
		if err != nil {
			return err
		}
		select { // what was sent last may still be on its way
		case err := <-whole:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Minute):
			return errors.New("the container engine did not finish the archive")
		}
	})
}

// readThrough reads an archive to its end.
func readThrough(r *tar.Reader) error {
	for {
		switch _, err := r.Next(); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// Remove takes images away, by name or by ID. An image that has other names keeps those.
// One that is not there is an error.
func (s Store) Remove(ctx context.Context, names ...string) error {
	return s.ask(func(conn *grpc.ClientConn) error {
		for _, name := range names {
			if err := remove(ctx, conn, name); err != nil {
				return err
			}
		}
		return nil
	})
}

func remove(ctx context.Context, conn *grpc.ClientConn, name string) error {
	client := runtimeapi.NewImageServiceClient(conn)
	spec := &runtimeapi.ImageSpec{Image: name}
	st, err := client.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec})
	if err != nil {
		return err
	}
	if st.Image == nil {
		return fmt.Errorf("there is no image %q on this node", name)
	}
	full, err := fullName(name)
	called := slices.Concat(st.Image.RepoTags, st.Image.RepoDigests)
	if err != nil || !slices.Contains(called, full) || len(st.Image.RepoTags) == 0 || slices.Equal(st.Image.RepoTags, []string{full}) {
		_, err := client.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: spec}) // all of it
		return err
	}
	if _, err = imagesapi.NewImagesClient(conn).Delete(namespaces.WithNamespace(ctx, Namespace), &imagesapi.DeleteImageRequest{Name: full}); err != nil {
		return err
	}
	return agree(ctx, conn, func(has []*runtimeapi.Image) bool { return !shown(has, full, false) })
}

// agree waits, but not for ever, until the engine shows the kubelet, and who lists images,
// what its store has: that part of it learns of changes by events.
func agree(ctx context.Context, conn *grpc.ClientConn, is func([]*runtimeapi.Image) bool) error {
	const patience = 20 * time.Second
	client := runtimeapi.NewImageServiceClient(conn)
	for end := time.Now().Add(patience); time.Now().Before(end); wait(ctx, 10*time.Millisecond) {
		res, err := client.ListImages(ctx, &runtimeapi.ListImagesRequest{})
		if err != nil || is(res.Images) {
			return err
		}
	}
	return fmt.Errorf("the container engine has changed its images, but after %s does not show it to the kubelet", patience)
}

// shown reports whether an image is among those, by a whole name, and pinned if it is to be.
func shown(has []*runtimeapi.Image, name string, pinned bool) bool {
	return slices.ContainsFunc(has, func(i *runtimeapi.Image) bool {
		return (slices.Contains(i.RepoTags, name) || slices.Contains(i.RepoDigests, name)) && (i.Pinned || !pinned)
	})
}

// fullName is a name with the registry and the tag that it means.
func fullName(name string) (string, error) {
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return "", fmt.Errorf("%q is not the name of an image: %w", name, err)
	}
	return ref.String(), nil
}

// ask does something with a connection to the engine.
func (s Store) ask(do func(*grpc.ClientConn) error) error {
	conn, err := s.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	err = do(conn)
	st, ok := status.FromError(err)
	switch {
	case err == nil || !ok:
		return err
	case st.Code() == codes.Unavailable:
		return fmt.Errorf("no container engine answers at %s; is podo running on this machine?", s.Socket)
	}
	return errors.New(st.Message()) // gRPC's own words help nobody
}
