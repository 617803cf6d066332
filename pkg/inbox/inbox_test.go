package inbox

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

func TestWatch(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "above", "box")
	changes := make(chan struct{}, 100)
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	ensure := func() error { return os.MkdirAll(dir, 0o755) }
	watching.Go(func() { Watch(ctx, dir, ensure, func() { changes <- struct{}{} }, slog.New(slog.DiscardHandler)) })
	told := func(what string) {
		t.Helper()
		select {
		case <-changes:
		case <-time.After(10 * time.Second):
			t.Fatalf("not told of %s", what)
		}
		for quiet := false; !quiet; { // one thing that is done may be several changes
			select {
			case <-changes:
			case <-time.After(2 * Settle):
				quiet = true
			}
		}
	}
	told("the begin")
	file := filepath.Join(dir, "below", "file")
	if err := os.Mkdir(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	told("a folder")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	told("a file in it")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	told("the folder's end")
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err) // it has been made again
	}
	told("a file in the new folder")
}

func TestUnsettled(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-time.Hour)
	if err := os.Chtimes(file, long, long); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if !Unsettled(info) {
		t.Error("a program's word is taken for when a file was changed")
	}
	time.Sleep(Settle)
	if Unsettled(info) {
		t.Error("it does not settle")
	}
}

func TestWritten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	w, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	r, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if !Written(r) {
		t.Error("open to be written, and taken for whole")
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if Written(r) {
		t.Error("closed, and still taken for written")
	}
	if w, err = os.OpenFile(file, os.O_WRONLY, 0); err != nil { // nothing is left that would keep writers waiting
		t.Fatal(err)
	}
	w.Close()
}
