package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	streamingapi "github.com/containerd/containerd/api/services/streaming/v1"
	transferapi "github.com/containerd/containerd/api/services/transfer/v1"
	apitypes "github.com/containerd/containerd/api/types"
	transfertypes "github.com/containerd/containerd/api/types/transfer"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"k8s.io/client-go/kubernetes"

	"github.com/podo-dev/podo/pkg/inbox"
	"github.com/podo-dev/podo/pkg/lifecycle/lifecycletest"
)

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestScan(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"b.tar", "a.tar.gz", "c.tgz", "d.tar.zst", "g.tar.lz4", "notes.txt", "e.tar.part", "tar", ".hidden.tar", "below/f.tar"} {
		write(t, filepath.Join(dir, name), name)
	}
	if err := os.Mkdir(filepath.Join(dir, "folder.tar"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"h.tar": "below/f.tar", "dangling.tar": "nowhere"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	look := func(dir string, endings ...string) (names []string, busy bool) {
		t.Helper()
		found, busy, err := scan(dir, endings)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range found {
			names = append(names, filepath.Base(s.path))
		}
		return names, busy
	}
	if got, busy := look(dir, archiveEndings()...); got != nil || !busy {
		t.Errorf("%v are taken for whole a moment after they were written", got)
	}
	time.Sleep(inbox.Settle + 50*time.Millisecond)
	if got, busy := look(dir, archiveEndings()...); busy || !slices.Equal(got, []string{"a.tar.gz", "b.tar", "c.tgz", "d.tar.zst", "g.tar.lz4", "h.tar"}) {
		t.Errorf("archives are %v, busy %v", got, busy)
	}
	if got, _ := look(dir, listEnding); !slices.Equal(got, []string{"notes.txt"}) {
		t.Errorf("lists are %v", got)
	}
	f, err := os.OpenFile(filepath.Join(dir, "b.tar"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, busy := look(dir, ".tar"); !busy || slices.Contains(got, "b.tar") {
		t.Errorf("archives are %v, busy %v, while one is open to be written", got, busy)
	}
	if got, busy := look(filepath.Join(dir, "none"), ".tar"); got != nil || busy {
		t.Errorf("a folder that is not there has %v", got)
	}
	if _, _, err := scan(filepath.Join(dir, "b.tar"), nil); err == nil {
		t.Error("a file was taken for a folder")
	}
}

// engineStub is the part of containerd that an import talks to. It fails archives
// whose content is in bad.
type engineStub struct {
	imagesapi.UnimplementedImagesServer
	transferapi.UnimplementedTransferServer
	eventsapi.UnimplementedEventsServer

	bad string // identity of an archive

	mu     sync.Mutex
	known  []*imagesapi.Image
	stores []*transfertypes.ImageStore
	spaces []string
	losses []chan struct{}
}

func (e *engineStub) add(name, id string) {
	e.known = append(e.known, &imagesapi.Image{Name: name, Labels: map[string]string{pinnedLabel: pinned, archiveLabel: id}})
}

// archives are those that were imported.
func (e *engineStub) archives() (ids []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.stores {
		ids = append(ids, s.Labels[archiveLabel])
	}
	return ids
}

// lose forgets every image, and tells of it.
func (e *engineStub) lose() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.known = nil
	for _, ch := range e.losses {
		ch <- struct{}{}
	}
}

func (e *engineStub) Subscribe(_ *eventsapi.SubscribeRequest, s eventsapi.Events_SubscribeServer) error {
	lost := make(chan struct{}, 10)
	e.mu.Lock()
	e.losses = append(e.losses, lost)
	e.mu.Unlock()
	for {
		select {
		case <-s.Context().Done():
			return s.Context().Err()
		case <-lost:
			if err := s.Send(&apitypes.Envelope{Topic: "/images/delete"}); err != nil {
				return err
			}
		}
	}
}

func (e *engineStub) List(ctx context.Context, _ *imagesapi.ListImagesRequest) (*imagesapi.ListImagesResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	space, _ := namespaces.Namespace(ctx)
	e.spaces = append(e.spaces, space)
	return &imagesapi.ListImagesResponse{Images: append([]*imagesapi.Image{{Name: "by hand"}}, e.known...)}, nil
}

func (e *engineStub) Transfer(ctx context.Context, r *transferapi.TransferRequest) (*emptypb.Empty, error) {
	var store transfertypes.ImageStore
	if err := typeurl.UnmarshalTo(r.Destination, &store); err != nil {
		return nil, err
	}
	id := store.Labels[archiveLabel]
	if id == e.bad {
		return nil, status.Error(codes.InvalidArgument, "no such format")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stores = append(e.stores, &store)
	e.add("example.com/of:"+id, id)
	return &emptypb.Empty{}, nil
}

// stream takes whatever is sent.
type stream struct {
	streamingapi.UnimplementedStreamingServer
}

func (stream) Stream(s streamingapi.Streaming_StreamServer) error {
	first := true
	for {
		if _, err := s.Recv(); err != nil {
			return nil
		}
		if first { // containerd acknowledges the stream itself
			first = false
			ack, err := typeurl.MarshalAnyToProto(&emptypb.Empty{})
			if err != nil {
				return err
			}
			if err := s.Send(ack); err != nil {
				return err
			}
		}
	}
}

func (e *engineStub) serve(t *testing.T) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "podo") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "c.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	imagesapi.RegisterImagesServer(s, e)
	eventsapi.RegisterEventsServer(s, e)
	transferapi.RegisterTransferServer(s, e)
	streamingapi.RegisterStreamingServer(s, stream{})
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return socket
}

// started runs the component until the end of the test and waits until it is ready.
func started(t *testing.T, e *engineStub, from Sources) (log func() string) {
	t.Helper()
	var (
		mu   sync.Mutex
		text bytes.Buffer
	)
	ctx, cancel := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	c := Import(Store{Socket: e.serve(t), Root: t.TempDir()}, "native", from, slog.New(slog.NewTextHandler(writer(func(b []byte) {
		mu.Lock()
		defer mu.Unlock()
		text.Write(b)
	}), nil)))
	go func() { ended <- c.Run(ctx, sync.OnceFunc(func() { close(ready) })) }()
	log = func() string {
		mu.Lock()
		defer mu.Unlock()
		return text.String()
	}
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("it ended with %v", err)
		}
	})
	select {
	case <-ready:
	case <-time.After(20 * time.Second):
		t.Fatalf("not ready within 20 s\n%s", log())
	}
	return log
}

type writer func([]byte)

func (w writer) Write(b []byte) (int, error) { w(b); return len(b), nil }

// sources are a folder in dir with archives that have been there for long, and a note.
func sources(t *testing.T, dir string, archives map[string][]byte) Sources {
	t.Helper()
	from := Sources{Folder: dir + "/images", Note: dir + "/note", Client: func() (kubernetes.Interface, error) { return nil, errors.New("none") }}
	for name, content := range archives {
		write(t, filepath.Join(from.Folder, name), string(content))
	}
	time.Sleep(inbox.Settle + 50*time.Millisecond)
	return from
}

func TestImport(t *testing.T) {
	seen, fresh, refused := ociArchive(t, "example.com/seen:1"), ociArchive(t, "example.com/fresh:1"), ociArchive(t, "example.com/refused:1")
	from := sources(t, t.TempDir(), map[string][]byte{
		"a-seen.tar": seen, "b-bad.tar": []byte("bad"), "c-refused.tar": refused, "d-fresh.tar": fresh,
	})
	e := &engineStub{bad: sum(refused)}
	e.add("example.com/seen:1", sum(seen))
	log := started(t, e, from)

	if got, want := e.archives(), []string{sum(fresh)}; !slices.Equal(got, want) {
		t.Fatalf("imported %v, want the fresh one alone: %v", got, want)
	}
	if got, want := fmt.Sprint(e.stores[0].Labels), fmt.Sprint(map[string]string{pinnedLabel: "pinned", archiveLabel: sum(fresh)}); got != want {
		t.Errorf("labels = %s, want %s", got, want)
	}
	if u := e.stores[0].Unpacks; len(u) != 1 || u[0].Snapshotter != "native" {
		t.Errorf("unpacks = %v, want one into native", u)
	}
	if slices.ContainsFunc(e.spaces, func(s string) bool { return s != "k8s.io" }) {
		t.Errorf("namespaces = %v, want that of Kubernetes", e.spaces)
	}
	if strings.Count(log(), "images left out") != 2 || !strings.Contains(log(), "b-bad.tar") || !strings.Contains(log(), "c-refused.tar") {
		t.Errorf("log = %s, want one line about each of the two that are of no use", log())
	}
}

func TestImportOnce(t *testing.T) {
	content := ociArchive(t, "example.com/grape:1")
	dir := t.TempDir()
	from := sources(t, dir, map[string][]byte{"grape.tar": content})
	e := &engineStub{}
	t.Run("first start", func(t *testing.T) { started(t, e, from) })
	t.Run("later start", func(t *testing.T) { started(t, e, from) })
	if got := e.archives(); len(got) != 1 {
		t.Fatalf("imported %d times, want once", len(got))
	}
	if text, err := os.ReadFile(from.Note); err != nil || !strings.Contains(string(text), sum(content)) {
		t.Errorf("the note is %s, %v", text, err)
	}
	t.Run("start after a crash", func(t *testing.T) {
		write(t, from.Note, fmt.Sprintf(`{%q: {}}`, from.Folder+"/grape.tar"))
		started(t, e, from)
	})
	if got := e.archives(); len(got) != 2 {
		t.Errorf("what was half imported was imported %d times more, want once", len(got)-1)
	}
	t.Run("lost", func(t *testing.T) {
		started(t, e, from)
		e.lose()
		eventually(t, "what was lost is imported again", func() bool { return len(e.archives()) == 3 })
		write(t, from.Folder+"/other.tar", string(ociArchive(t, "example.com/other:1")))
		eventually(t, "what is added is imported", func() bool { return len(e.archives()) == 4 })
	})
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}

func TestImportOfNothingWritesNothing(t *testing.T) {
	from := Sources{Folder: filepath.Join(t.TempDir(), "none"), Note: filepath.Join(t.TempDir(), "note")}
	e := &engineStub{}
	lifecycletest.Check(t, Import(Store{Socket: e.serve(t), Root: t.TempDir()}, "overlayfs", from, slog.New(slog.DiscardHandler)))
	if got := e.archives(); len(got) != 0 {
		t.Errorf("imported %v", got)
	}
}
