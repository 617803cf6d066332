// Command mkimage makes a container image, as an OCI layout in a tar file, from a
// folder that is its file system.
//
// The same folder always gives the same bytes: files are sorted, owned by root and
// dated 1970. The one layer is compressed with zstd, so that a node writes it out
// only once: where it is unpacked to be run.
package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []descriptor `json:"manifests"`
}

type image struct {
	Created      time.Time `json:"created"`
	Architecture string    `json:"architecture"`
	OS           string    `json:"os"`
	Config       runConfig `json:"config"`
	RootFS       rootFS    `json:"rootfs"`
}

type runConfig struct {
	User       string            `json:"User,omitempty"`
	Env        []string          `json:"Env,omitempty"`
	Entrypoint []string          `json:"Entrypoint,omitempty"`
	Cmd        []string          `json:"Cmd,omitempty"`
	WorkingDir string            `json:"WorkingDir,omitempty"`
	Labels     map[string]string `json:"Labels,omitempty"`
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

func main() {
	name := flag.String("name", "", "full name of the image, with its tag")
	out := flag.String("out", "", "tar file to write")
	user := flag.String("user", "", "user, or user:group, to run as")
	entrypoint := flag.String("entrypoint", "", "program to run, words separated by spaces")
	cmd := flag.String("cmd", "", "arguments if none are given, words separated by spaces")
	level := flag.Int("level", 19, "how hard to compress, 1 to 19")
	arch := flag.String("arch", runtime.GOARCH, "what it is to run on, as Go calls it")
	license := flag.String("license", "", "SPDX expression for the label")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: mkimage -name NAME:TAG -out FILE [flags] FOLDER")
		flag.PrintDefaults()
	}
	flag.Parse()
	if *name == "" || *out == "" || flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	config := runConfig{
		User: *user, Entrypoint: strings.Fields(*entrypoint), Cmd: strings.Fields(*cmd), WorkingDir: "/",
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
	}
	if *license != "" {
		config.Labels = map[string]string{"org.opencontainers.image.licenses": *license}
	}
	if err := build(*name, *arch, *out, flag.Arg(0), *level, config); err != nil {
		fmt.Fprintf(os.Stderr, "mkimage: %s: %v\n", *name, err)
		os.Exit(1)
	}
}

func build(name, arch, out, folder string, level int, config runConfig) error {
	layer, err := pack(folder)
	if err != nil {
		return err
	}
	small, err := compress(layer, level)
	if err != nil {
		return err
	}
	files := map[string][]byte{}
	var order []string
	blob := func(mediaType string, content []byte) descriptor {
		d := descriptor{MediaType: mediaType, Digest: digest(content), Size: len(content)}
		path := "blobs/" + strings.Replace(d.Digest, ":", "/", 1)
		files[path] = content
		order = append(order, path)
		return d
	}
	layers := blob("application/vnd.oci.image.layer.v1.tar+zstd", small)
	configured := blob("application/vnd.oci.image.config.v1+json", encode(image{
		Created: time.Unix(0, 0).UTC(), Architecture: arch, OS: "linux",
		Config: config, RootFS: rootFS{Type: "layers", DiffIDs: []string{digest(layer)}},
	}))
	top := blob("application/vnd.oci.image.manifest.v1+json", encode(manifest{
		SchemaVersion: 2, MediaType: "application/vnd.oci.image.manifest.v1+json",
		Config: configured, Layers: []descriptor{layers},
	}))
	_, tag, _ := strings.Cut(name[strings.LastIndex(name, "/")+1:], ":")
	top.Annotations = map[string]string{
		"io.containerd.image.name":          name,
		"org.opencontainers.image.ref.name": tag,
	}
	files["oci-layout"] = []byte(`{"imageLayoutVersion":"1.0.0"}`)
	files["index.json"] = encode(index{
		SchemaVersion: 2, MediaType: "application/vnd.oci.image.index.v1+json", Manifests: []descriptor{top},
	})

	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, path := range append([]string{"oci-layout", "index.json"}, order...) {
		if err := add(w, tar.Header{Typeflag: tar.TypeReg, Name: path, Mode: 0o644}, files[path]); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return os.WriteFile(out, buf.Bytes(), 0o644)
}

func digest(content []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(content)) }

func compress(content []byte, level int) ([]byte, error) {
	cmd := exec.Command("zstd", fmt.Sprintf("-%d", level), "--quiet", "--check", "--stdout", "--single-thread",
		fmt.Sprintf("--stream-size=%d", len(content)))
	cmd.Stdin, cmd.Stderr = bytes.NewReader(content), os.Stderr
	small, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return small, nil
}

// pack makes a layer of a folder. WalkDir goes in the order of names.
func pack(folder string) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == folder {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(folder, path)
		if err != nil {
			return err
		}
		h := tar.Header{Name: filepath.ToSlash(name), Mode: int64(info.Mode().Perm())}
		if info.Mode()&fs.ModeSticky != 0 {
			h.Mode |= 0o1000
		}
		switch {
		case d.IsDir():
			h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
			return add(w, h, nil)
		case info.Mode()&fs.ModeSymlink != 0:
			h.Typeflag, h.Mode = tar.TypeSymlink, 0o777
			if h.Linkname, err = os.Readlink(path); err != nil {
				return err
			}
			return add(w, h, nil)
		case info.Mode().IsRegular():
			h.Typeflag = tar.TypeReg
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return add(w, h, content)
		}
		return fmt.Errorf("%s: neither a file, a folder nor a link", path)
	})
	if err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

func add(w *tar.Writer, h tar.Header, content []byte) error {
	h.Size = int64(len(content))
	h.ModTime = time.Unix(0, 0)
	if err := w.WriteHeader(&h); err != nil {
		return err
	}
	_, err := io.Copy(w, bytes.NewReader(content))
	return err
}

// encode cannot fail: what it is given holds only strings, numbers and times.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
