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

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	streamingapi "github.com/containerd/containerd/api/services/streaming/v1"
	transferapi "github.com/containerd/containerd/api/services/transfer/v1"
	transfertypes "github.com/containerd/containerd/api/types/transfer"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

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

func TestArchives(t *testing.T) {
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	for _, name := range []string{"b.tar", "a.tar.gz", "c.tgz", "d.tar.zst", "notes.txt", "e.tar.part", "tar", "below/f.tar"} {
		write(t, filepath.Join(one, name), name)
	}
	write(t, filepath.Join(two, "a.tar"), "x")
	if err := os.Mkdir(filepath.Join(two, "folder.tar"), 0o755); err != nil {
		t.Fatal(err)
	}
	got, err := archives([]string{one, filepath.Join(dir, "none"), two})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{one + "/a.tar.gz", one + "/b.tar", one + "/c.tgz", one + "/d.tar.zst", two + "/a.tar"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if _, err := archives([]string{write(t, filepath.Join(dir, "file"), "")}); err == nil {
		t.Error("a file was taken for a folder")
	}
}

func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	a, same, other := write(t, dir+"/a.tar", "grape"), write(t, dir+"/b.tar", "grape"), write(t, dir+"/c.tar", "raisin")
	id := func(path string) string {
		s, err := identity(path)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if id(a) != id(same) || id(a) == id(other) {
		t.Errorf("identities %s %s %s: they must follow the content, not the name", id(a), id(same), id(other))
	}
	if len(archiveLabel)+len(id(a)) > 4096 { // containerd's limit for a label
		t.Error("too long for a label")
	}
	if _, err := identity(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("err = %v, want os.ErrNotExist", err)
	}
}

// engineStub is the part of containerd that an import talks to. It fails archives
// whose content is in bad.
type engineStub struct {
	imagesapi.UnimplementedImagesServer
	transferapi.UnimplementedTransferServer

	known []string // identities of archives
	bad   string

	mu     sync.Mutex
	stores []*transfertypes.ImageStore
	spaces []string
}

func (e *engineStub) List(ctx context.Context, _ *imagesapi.ListImagesRequest) (*imagesapi.ListImagesResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	space, _ := namespaces.Namespace(ctx)
	e.spaces = append(e.spaces, space)
	res := &imagesapi.ListImagesResponse{Images: []*imagesapi.Image{{Name: "by hand"}}}
	for _, id := range e.known {
		res.Images = append(res.Images, &imagesapi.Image{Name: id, Labels: map[string]string{archiveLabel: id}})
	}
	return res, nil
}

func (e *engineStub) Transfer(ctx context.Context, r *transferapi.TransferRequest) (*emptypb.Empty, error) {
	var store transfertypes.ImageStore
	if err := typeurl.UnmarshalTo(r.Destination, &store); err != nil {
		return nil, err
	}
	if store.Labels[archiveLabel] == e.bad {
		return nil, errors.New("no such format")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stores = append(e.stores, &store)
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
	transferapi.RegisterTransferServer(s, e)
	streamingapi.RegisterStreamingServer(s, stream{})
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return socket
}

// importAll runs the component until it is ready and returns what it logged.
func importAll(t *testing.T, socket string, dirs ...string) string {
	t.Helper()
	var log bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ready := false
	err := Import(socket, "native", t.TempDir(), dirs, slog.New(slog.NewTextHandler(&log, nil))).Run(ctx, func() { ready = true; cancel() })
	if err != nil || !ready {
		t.Fatalf("ready %v, err %v\n%s", ready, err, log.String())
	}
	return log.String()
}

func TestImport(t *testing.T) {
	dir := t.TempDir()
	seen, bad, fresh := write(t, dir+"/a-seen.tar", "seen"), write(t, dir+"/b-bad.tar", "bad"), write(t, dir+"/c-fresh.tar", "fresh")
	var ids []string
	for _, path := range []string{seen, bad, fresh} {
		id, err := identity(path)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	e := &engineStub{known: ids[:1], bad: ids[1]}
	log := importAll(t, e.serve(t), dir)

	if len(e.stores) != 1 {
		t.Fatalf("imported %d archives, want the fresh one alone", len(e.stores))
	}
	if got, want := fmt.Sprint(e.stores[0].Labels), fmt.Sprint(map[string]string{pinnedLabel: "pinned", archiveLabel: ids[2]}); got != want {
		t.Errorf("labels = %s, want %s", got, want)
	}
	if u := e.stores[0].Unpacks; len(u) != 1 || u[0].Snapshotter != "native" {
		t.Errorf("unpacks = %v, want one into native", u)
	}
	if !slices.Equal(e.spaces, []string{"k8s.io"}) {
		t.Errorf("namespaces = %v, want that of Kubernetes", e.spaces)
	}
	if strings.Count(log, "image archive left out") != 1 || !strings.Contains(log, bad) {
		t.Errorf("log = %s, want one line about %s", log, bad)
	}
}

func TestImportOfNothingAsksNobody(t *testing.T) {
	lifecycletest.Check(t, Import(filepath.Join(t.TempDir(), "none.sock"), "overlayfs", t.TempDir(), []string{t.TempDir()}, slog.New(slog.DiscardHandler)))
}
