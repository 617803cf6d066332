package local

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Uploads are layers on their way into a registry, a file for each, where the library would
// hold them in memory. What was never finished goes when the registry starts.
type uploads struct {
	dir    string
	blobs  string // where the library keeps those that are whole
	within http.Handler
}

// file is that of the upload which a request is about, if it is about one: what the library
// named it by is a number (distribution-spec: PATCH and PUT /v2/<name>/blobs/uploads/<id>).
func (u uploads) file(r *http.Request) (string, bool) {
	dir, id := path.Split(r.URL.Path)
	if path.Base(dir) != "uploads" || path.Base(path.Dir(path.Clean(dir))) != "blobs" {
		return "", false
	}
	_, err := strconv.ParseUint(id, 10, 64)
	return filepath.Join(u.dir, id), err == nil
}

func (u uploads) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	file, ok := u.file(r)
	switch {
	case ok && r.Method == http.MethodPatch:
		u.more(w, r, file)
	case ok && r.Method == http.MethodPut:
		u.last(w, r, file)
	default:
		u.within.ServeHTTP(w, r)
	}
}

// more adds a part to an upload.
func (u uploads) more(w http.ResponseWriter, r *http.Request, file string) {
	size, ok := u.add(w, r, file)
	if !ok {
		return
	}
	w.Header().Set("Location", r.URL.Path)
	w.Header().Set("Range", fmt.Sprintf("0-%d", max(size-1, 0)))
	w.WriteHeader(http.StatusAccepted)
}

// add writes what a request brings to the end of a file, and says how long that is now. A
// part that does not begin where the last one ended is refused, and so is one that breaks
// off: what it brought is forgotten.
func (u uploads) add(w http.ResponseWriter, r *http.Request, file string) (size int64, ok bool) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return 0, false
	}
	defer f.Close()
	if size, err = f.Seek(0, io.SeekEnd); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return 0, false
	}
	if given := r.Header.Get("Content-Range"); given != "" {
		var from, to int64
		if _, err := fmt.Sscanf(given, "%d-%d", &from, &to); err != nil || from != size {
			w.Header().Set("Range", fmt.Sprintf("0-%d", max(size-1, 0)))
			http.Error(w, fmt.Sprintf("Content-Range: %q does not begin at %d, where this upload ends", given, size), http.StatusRequestedRangeNotSatisfiable)
			return 0, false
		}
	}
	n, err := io.Copy(f, r.Body)
	if err != nil {
		code := http.StatusBadRequest
		if _, ours := errors.AsType[*fs.PathError](err); ours { // the file, and not the one who sends
			code = http.StatusInternalServerError
		}
		http.Error(w, errors.Join(err, f.Truncate(size)).Error(), code)
		return 0, false
	}
	return size + n, true
}

// last makes a blob of an upload and of the part that this request brings, if it is what it
// is said to be. The library would let all others wait meanwhile.
func (u uploads) last(w http.ResponseWriter, r *http.Request, file string) {
	want, err := v1.NewHash(r.URL.Query().Get("digest"))
	if err != nil {
		http.Error(w, "digest: "+err.Error(), http.StatusBadRequest)
		return
	}
	if _, ok := u.add(w, r, file); !ok {
		return
	}
	switch err := u.keep(file, want); {
	case errors.Is(err, errOther):
		_ = os.Remove(file)
		http.Error(w, err.Error(), http.StatusBadRequest)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		repo, _, _ := strings.Cut(r.URL.Path, "/blobs/uploads/")
		w.Header().Set("Location", repo+"/blobs/"+want.String())
		w.Header().Set("Docker-Content-Digest", want.String())
		w.WriteHeader(http.StatusCreated)
	}
}

var errOther = errors.New("digest: what came is not what it is said to be")

// keep puts a file where the library looks for the blob of that digest.
func (u uploads) keep(file string, want v1.Hash) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	is, _, err := v1.SHA256(f)
	if err != nil {
		return err
	}
	if is != want {
		return errOther
	}
	dir := filepath.Join(u.blobs, want.Algorithm)
	if err := errors.Join(f.Sync(), os.MkdirAll(dir, 0o700)); err != nil {
		return err
	}
	return os.Rename(file, filepath.Join(dir, want.Hex))
}
