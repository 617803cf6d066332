// Package images brings image archives into the container engine.
//
// Archives come with the payload, and from a folder that people may fill. Each is
// imported once: an image remembers the archive it came from in a label, so a
// warm start only lists. Imported images are pinned, and thus never collected as
// garbage, since there may be no network to get them back from.
package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	streamingapi "github.com/containerd/containerd/api/services/streaming/v1"
	transferapi "github.com/containerd/containerd/api/services/transfer/v1"
	"github.com/containerd/containerd/v2/core/streaming/proxy"
	"github.com/containerd/containerd/v2/core/transfer/archive"
	"github.com/containerd/containerd/v2/core/transfer/image"
	transferproxy "github.com/containerd/containerd/v2/core/transfer/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/platforms"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/podo-dev/podo/pkg/lifecycle"
)

// Namespace is where Kubernetes looks for images in containerd.
const Namespace = "k8s.io"

// Labels on imported images. The first is containerd's own: such images are left
// alone by the kubelet's garbage collection.
const (
	pinnedLabel  = "io.cri-containerd.pinned"
	archiveLabel = "podo.dev/archive"
)

// Import returns a component that imports every archive of dirs and then idles.
// A folder that does not exist holds none. An archive that cannot be read is
// logged and left out; the others are imported. Root is the folder where the engine
// keeps them.
func Import(socket, snapshotter, root string, dirs []string, log *slog.Logger) lifecycle.Component {
	return lifecycle.Task("images", func(ctx context.Context) error {
		files, err := archives(dirs)
		if err != nil || len(files) == 0 {
			return err
		}
		conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		defer conn.Close()
		e := engine{conn: conn, snapshotter: snapshotter}
		ctx = namespaces.WithNamespace(ctx, Namespace)
		known, err := e.imported(ctx)
		if ctx.Err() != nil {
			return nil // gRPC's own word for that is no context.Canceled
		}
		if err != nil {
			return fmt.Errorf("list images: %w", err)
		}
		changed := false
		for _, file := range files {
			id, err := identity(file)
			if err == nil && !slices.Contains(known, id) {
				changed = true
				err = e.persist(ctx, file, id)
			}
			if err != nil {
				if ctx.Err() != nil {
					return nil
				}
				log.Error("image archive left out", "path", file, "err", err)
			}
		}
		if changed {
			return settle(root)
		}
		return nil
	})
}

// settle waits until what the engine unpacked is on disk. It does not do that itself,
// and a layer that a power cut left empty would stay so: its image counts as there.
func settle(root string) error {
	dir, err := os.Open(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", root, err)
	}
	return nil
}

// archives lists the image archives directly in dirs, in name order.
func archives(dirs []string) ([]string, error) {
	var out []string
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.Type().IsRegular() && slices.ContainsFunc([]string{".tar", ".tar.gz", ".tgz", ".tar.zst"}, func(end string) bool {
				return strings.HasSuffix(e.Name(), end)
			}) {
				out = append(out, filepath.Join(dir, e.Name()))
			}
		}
	}
	return out, nil
}

// identity is the hash of an archive's content, as a label's value may hold it.
func identity(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

type engine struct {
	conn        *grpc.ClientConn
	snapshotter string
}

// imported lists the archives that images now in the engine came from.
func (e engine) imported(ctx context.Context) ([]string, error) {
	res, err := imagesapi.NewImagesClient(e.conn).List(ctx, &imagesapi.ListImagesRequest{})
	if err != nil {
		return nil, err
	}
	var out []string
	for _, i := range res.Images {
		if id := i.Labels[archiveLabel]; id != "" {
			out = append(out, id)
		}
	}
	return out, nil
}

// persist is load with a few more tries: the engine's garbage collector, at work after a
// crash, has been seen to take a layer from under an import (containerd 2.3).
func (e engine) persist(ctx context.Context, file, id string) error {
	var err error
	for pause := 100 * time.Millisecond; pause < 2*time.Second; pause *= 2 {
		if err = e.load(ctx, file, id); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
	return err
}

// load imports one archive, docker's format or OCI's, compressed or not.
func (e engine) load(ctx context.Context, file, id string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	labels := map[string]string{pinnedLabel: "pinned", archiveLabel: id}
	source := archive.NewImageImportStream(f, "")
	target := image.NewStore("",
		image.WithNamedPrefix("import", true), // images take the names that the archive gives them
		image.WithImageLabels(labels),
		image.WithUnpack(platforms.DefaultSpec(), e.snapshotter))
	transfer := transferproxy.NewTransferrer(transferapi.NewTransferClient(e.conn),
		proxy.NewStreamCreator(streamingapi.NewStreamingClient(e.conn)))
	return transfer.Transfer(ctx, source, target)
}
