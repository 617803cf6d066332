// Command mkbundle makes one archive of several, each an OCI layout in a tar file as
// mkimage makes it, and prints the names of the images.
//
// The same archives always give the same bytes, in whatever order they are named.
package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: mkbundle OUT ARCHIVE...")
		os.Exit(2)
	}
	if err := bundle(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "mkbundle:", err)
		os.Exit(1)
	}
}

type index struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Manifests     []json.RawMessage `json:"manifests"`
}

func bundle(out string, archives []string) error {
	files := map[string][]byte{}
	images := map[string]json.RawMessage{}
	whole := index{}
	for _, archive := range archives {
		if err := read(archive, files); err != nil {
			return fmt.Errorf("read %s: %w", archive, err)
		}
		one := index{}
		if err := json.Unmarshal(files["index.json"], &one); err != nil {
			return fmt.Errorf("read index.json of %s: %w", archive, err)
		}
		for _, m := range one.Manifests {
			var named struct{ Annotations map[string]string }
			if err := json.Unmarshal(m, &named); err != nil {
				return err
			}
			images[named.Annotations["io.containerd.image.name"]] = m
		}
		whole.SchemaVersion, whole.MediaType = one.SchemaVersion, one.MediaType
	}
	for _, name := range slices.Sorted(maps.Keys(images)) {
		fmt.Println(name)
		whole.Manifests = append(whole.Manifests, images[name])
	}
	var err error
	if files["index.json"], err = json.Marshal(whole); err != nil {
		return err
	}
	return write(out, files)
}

// read adds the files of an archive to those that there are.
func read(archive string, files map[string][]byte) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			files[h.Name], err = io.ReadAll(r)
		}
		if err != nil {
			return err
		}
	}
}

// write makes an archive, with what says what it is before the blobs.
func write(out string, files map[string][]byte) error {
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	names := slices.SortedFunc(maps.Keys(files), func(a, b string) int {
		if first := strings.HasPrefix(b, "blobs/"); first != strings.HasPrefix(a, "blobs/") {
			if first {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	for _, name := range names {
		h := tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(files[name])), ModTime: time.Unix(0, 0)}
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		if _, err := w.Write(files[name]); err != nil {
			return err
		}
	}
	return errors.Join(w.Close(), f.Close())
}
