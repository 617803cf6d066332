// Package images brings images into the container engine, out of it, and into registries.
//
// The images that podo brings stay in the payload's archives until a pod asks for one: the
// engine pulls them from a registry that reads these (Own).
//
// Archives of other images come from a folder that people may fill, which is watched. Each
// is read through before any of it reaches the engine, and imported once: what became of
// it is noted, so a warm start only lists, and an image that is lost is imported again.
// Imported images are pinned, and thus never collected as garbage, since there may be no
// network to get them back from.
package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	eventsapi "github.com/containerd/containerd/api/services/events/v1"
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
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/kubernetes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/inbox"
	"github.com/podo-dev/podo/pkg/lifecycle"
)

// Namespace is where Kubernetes looks for images in containerd.
const Namespace = "k8s.io"

// Labels on imported images. Two are containerd's own: pinned images are left alone by the
// kubelet's garbage collection, and managed ones are those that the kubelet is shown.
const (
	pinnedLabel  = "io.cri-containerd.pinned"
	pinned       = "pinned"
	managedLabel = "io.cri-containerd.image"
	archiveLabel = "podo.dev/archive"
)

// Sources are where a node has images from, other than registries.
type Sources struct {
	Folder string // that people put archives and lists into
	Note   string // file with what became of archives

	// Node is told of what is left out, by events.
	Node   string
	Client func() (kubernetes.Interface, error)
}

// Import returns a component that keeps the images of these sources in the engine. It is
// ready once it has dealt with every archive that was there at the start. Nothing needs
// to wait for that: the kubelet tries again to start a pod whose image was not there. A
// file that cannot be used is told of, once for each change of it, and holds up no other.
func Import(store Store, snapshotter string, from Sources, log *slog.Logger) lifecycle.Component {
	return lifecycle.Func("images", func(ctx context.Context, ready func()) error {
		conn, err := store.dial()
		if err != nil {
			return err
		}
		defer conn.Close()
		log := log.With("component", "images")
		t := &teller{node: from.Node, client: from.Client, log: log, queue: make(chan string, 100)}
		e := engine{conn, snapshotter}
		c := &crate{engine: e, root: store.Root, from: from, log: log, faults: newFaults(t.about)}
		l := &lists{engine: e, store: store, folder: from.Folder, log: log, faults: newFaults(t.about)}
		c.readNote()
		archives, named := make(chan struct{}, 1), make(chan struct{}, 1)
		changed := func() {
			for _, ch := range []chan struct{}{archives, named} {
				select {
				case ch <- struct{}{}:
				default:
				}
			}
		}
		var (
			helpers   sync.WaitGroup
			importing sync.Mutex
		)
		defer helpers.Wait()
		ctx, end := context.WithCancel(ctx)
		defer end()
		helpers.Go(func() { e.losses(ctx, changed) })
		helpers.Go(func() {
			inbox.Watch(ctx, from.Folder, func() error { return atomicfile.EnsureDir(from.Folder, 0o755) }, changed, log)
		})
		helpers.Go(func() { t.run(ctx) })
		// Registries may be slow to answer, or never do: lists keep no archive waiting. But
		// what an archive beside a list brings need not be pulled.
		helpers.Go(func() {
			repeat(ctx, named, func(ctx context.Context) (time.Duration, error) {
				wait(ctx, inbox.Settle)
				importing.Lock()
				//lint:ignore SA2001 only the wait is wanted
				importing.Unlock()
				return l.pass(ctx)
			}, log)
		})
		supply := c.pass(ready)
		repeat(ctx, archives, func(ctx context.Context) (time.Duration, error) {
			importing.Lock()
			defer importing.Unlock()
			return supply(ctx)
		}, log)
		return nil
	})
}

// repeat makes passes until ctx ends: whenever something changed, and after the time that
// the last one asked for, if any.
func repeat(ctx context.Context, changed <-chan struct{}, pass func(context.Context) (next time.Duration, err error), log *slog.Logger) {
	ctx = namespaces.WithNamespace(ctx, Namespace)
	for pause := time.Second; ; {
		next, err := pass(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			log.Warn("images not looked after, trying again", "in", pause, "err", err)
			next, pause = pause, min(2*pause, 30*time.Second)
		default:
			pause = time.Second
		}
		var again <-chan time.Time
		if next > 0 {
			again = time.After(next)
		}
		select {
		case <-ctx.Done():
			return
		case <-again:
		case <-changed:
			wait(ctx, inbox.Settle/5) // changes come in swarms
		}
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
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

type engine struct {
	conn        *grpc.ClientConn
	snapshotter string
}

// images lists what the engine has, by name.
func (e engine) images(ctx context.Context) (map[string]*imagesapi.Image, error) {
	res, err := imagesapi.NewImagesClient(e.conn).List(ctx, &imagesapi.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	out := map[string]*imagesapi.Image{}
	for _, i := range res.Images {
		out[i.Name] = i
	}
	return out, nil
}

// losses calls changed whenever an image leaves the engine, and when one may have.
func (e engine) losses(ctx context.Context, changed func()) {
	for ctx.Err() == nil {
		s, err := eventsapi.NewEventsClient(e.conn).Subscribe(ctx, &eventsapi.SubscribeRequest{
			Filters: []string{`topic=="/images/delete",namespace==` + Namespace},
		}, grpc.WaitForReady(true))
		for err == nil {
			if _, err = s.Recv(); err == nil {
				changed()
			}
		}
		wait(ctx, time.Second)
		changed()
	}
}

// persist is load with a few more tries: the engine's garbage collector, at work after a
// crash, has been seen to take a layer from under an import (containerd 2.3). It returns
// the names of what it loaded.
func (e engine) persist(ctx context.Context, f *os.File, id string) (names []string, err error) {
	for pause := 100 * time.Millisecond; ; pause *= 2 {
		err := e.load(ctx, f, id)
		if err == nil {
			return e.named(ctx, id)
		}
		if ctx.Err() != nil || pause > time.Second {
			return nil, judge(err)
		}
		wait(ctx, pause)
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
	}
}

// nameless precedes what an archive calls an image by if that is only a tag.
const nameless = "nameless.invalid/podo"

// named gives the images of an archive the whole names by which the kubelet asks for them,
// and returns these. The engine takes what the archive says as it is; of an image that
// has no name in it, only a tag or nothing, nobody could make use.
func (e engine) named(ctx context.Context, id string) ([]string, error) {
	all, err := e.images(ctx)
	if err != nil {
		return nil, err
	}
	var names, useless []string
	for _, said := range namesOf(id, all) {
		full, err := fullName(said)
		switch {
		case err != nil:
			useless = append(useless, fmt.Sprintf(", %q is none", said))
			err = e.rename(ctx, said, "")
		case strings.HasPrefix(full, nameless):
			err = e.forget(ctx, full)
		case full != said:
			err = e.rename(ctx, said, full)
			fallthrough
		default:
			names = append(names, full)
		}
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", said, err)
		}
	}
	if len(names) == 0 {
		return nil, bad("its images have no names that one could ask for them by%s; save them by name, such as example.org/app:1, not by ID or by a tag alone", strings.Join(useless, ""))
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// rename gives an image of the engine's store another name, or takes it its name if there is
// none: garbage to the kubelet. Before, the part of the engine that the kubelet asks has to
// have made the image its own: a name that is removed earlier it may put back.
func (e engine) rename(ctx context.Context, from, to string) error {
	const patience = 20 * time.Second
	client := imagesapi.NewImagesClient(e.conn)
	for end := time.Now().Add(patience); time.Now().Before(end); wait(ctx, 10*time.Millisecond) {
		res, err := client.Get(ctx, &imagesapi.GetImageRequest{Name: from})
		if err != nil {
			return err
		}
		if _, ok := res.Image.Labels[managedLabel]; !ok {
			continue
		}
		if to != "" {
			res.Image.Name = to
			if err := put(ctx, client, res.Image); err != nil {
				return err
			}
		}
		_, err = client.Delete(ctx, &imagesapi.DeleteImageRequest{Name: from})
		return err
	}
	return fmt.Errorf("the container engine has it, but after %s does not show it to the kubelet", patience)
}

// forget takes an image a name that nobody asks for it by, and all of it if it has no other.
func (e engine) forget(ctx context.Context, name string) error {
	has := func(want bool) func([]*runtimeapi.Image) bool {
		return func(list []*runtimeapi.Image) bool { return shown(list, name, false) == want }
	}
	if err := agree(ctx, e.conn, has(true)); err != nil {
		return err
	}
	client := runtimeapi.NewImageServiceClient(e.conn)
	st, err := client.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
	if err != nil || st.Image == nil {
		return err
	}
	if _, err := imagesapi.NewImagesClient(e.conn).Delete(ctx, &imagesapi.DeleteImageRequest{Name: name}); err != nil {
		return err
	}
	if err := agree(ctx, e.conn, has(false)); err != nil {
		return err
	}
	// Other names of it may have come meanwhile.
	st, err = client.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: st.Image.Id}})
	if err != nil || st.Image == nil || len(st.Image.RepoTags)+len(st.Image.RepoDigests) > 0 {
		return err
	}
	_, err = client.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: st.Image.Id}})
	return err
}

// put makes an image in the engine's store, or changes the one of its name.
func put(ctx context.Context, client imagesapi.ImagesClient, image *imagesapi.Image) error {
	_, err := client.Create(ctx, &imagesapi.CreateImageRequest{Image: image})
	if status.Code(err) == codes.AlreadyExists {
		_, err = client.Update(ctx, &imagesapi.UpdateImageRequest{Image: image})
	}
	return err
}

// load imports one archive, docker's format or OCI's, compressed or not.
func (e engine) load(ctx context.Context, f io.Reader, id string) error {
	plain, err := inflated(f)
	if err != nil {
		return err
	}
	defer plain.Close()
	// What sends the stream outlives a transfer that fails, and plain must not.
	r, w := io.Pipe()
	var feeder sync.WaitGroup
	defer feeder.Wait()
	defer r.Close()
	feeder.Go(func() {
		_, err := io.Copy(w, plain)
		w.CloseWithError(err)
	})
	ctx, end := context.WithCancel(ctx)
	defer end()
	labels := map[string]string{pinnedLabel: pinned, archiveLabel: id}
	source := archive.NewImageImportStream(r, "")
	target := image.NewStore("",
		image.WithNamedPrefix(nameless, true), // images take the names that the archive gives them
		image.WithImageLabels(labels),
		image.WithPlatforms(platforms.DefaultSpec()), // archives may name others that they leave out
		image.WithUnpack(platforms.DefaultSpec(), e.snapshotter))
	transfer := transferproxy.NewTransferrer(transferapi.NewTransferClient(e.conn),
		proxy.NewStreamCreator(streamingapi.NewStreamingClient(e.conn)))
	return transfer.Transfer(ctx, source, target)
}
