package images

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/podo-dev/podo/pkg/plan"
)

// Own is the registry of the images that podo brings: it answers the engine out of the
// payload's archives, OCI layouts whose index comes before their blobs. So a node unpacks
// the images of the pods that it runs, and no others.
func Own(dir string) http.Handler {
	path := regexp.MustCompile(`^/v2/(.+)/(manifests|blobs)/([^/]+)$`)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		parts := path.FindStringSubmatch(r.URL.Path)
		if parts == nil {
			http.NotFound(w, r)
			return
		}
		archives, err := filepath.Glob(filepath.Join(dir, "*.tar"))
		for _, archive := range archives {
			if err = serve(w, r, archive, parts[1], parts[2] == "manifests", parts[3]); !errors.Is(err, fs.ErrNotExist) {
				break
			}
		}
		switch {
		case len(archives) == 0 || errors.Is(err, fs.ErrNotExist):
			http.NotFound(w, r)
		case err != nil:
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
}

// serve answers with a manifest or a blob, or the part of it that is asked for. That an
// archive does not have it is fs.ErrNotExist, and no answer.
func serve(w http.ResponseWriter, r *http.Request, archive, repo string, manifest bool, ref string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	what := ocispec.Descriptor{Digest: digest.Digest(ref), MediaType: "application/octet-stream"}
	for in := tar.NewReader(f); ; {
		h, err := in.Next()
		switch {
		case errors.Is(err, io.EOF):
			return fs.ErrNotExist
		case err != nil:
			return fmt.Errorf("read %s: %w", archive, err)
		case h.Name == ocispec.ImageIndexFile && manifest:
			var index ocispec.Index
			if err := json.NewDecoder(in).Decode(&index); err != nil {
				return fmt.Errorf("read %s: %s: %w", archive, h.Name, err)
			}
			i := slices.IndexFunc(index.Manifests, func(d ocispec.Descriptor) bool {
				name := plan.OwnRegistry + "/" + repo + ":" + ref
				return d.Digest == digest.Digest(ref) || d.Annotations["io.containerd.image.name"] == name
			})
			if i < 0 {
				return fs.ErrNotExist
			}
			what = index.Manifests[i]
		case h.Name == "blobs/"+strings.Replace(what.Digest.String(), ":", "/", 1):
			at, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return err
			}
			w.Header().Set("Content-Type", what.MediaType)
			w.Header().Set("Docker-Content-Digest", what.Digest.String())
			w.Header().Set("Etag", strconv.Quote(what.Digest.String()))
			http.ServeContent(w, r, "", time.Time{}, io.NewSectionReader(f, at, h.Size))
			return nil
		}
	}
}
