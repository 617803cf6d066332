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
)

// Uploads are layers on their way into a registry, a file for each, where the library would
// hold them in memory. What was never finished goes when the registry starts.
type uploads struct {
	dir    string
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

// more adds a part to an upload. One that does not begin where the last one ended is
// refused, and so is one that breaks off: what it brought is forgotten.
func (u uploads) more(w http.ResponseWriter, r *http.Request, file string) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if given := r.Header.Get("Content-Range"); given != "" {
		var from, to int64
		if _, err := fmt.Sscanf(given, "%d-%d", &from, &to); err != nil || from != size {
			w.Header().Set("Range", fmt.Sprintf("0-%d", max(size-1, 0)))
			http.Error(w, fmt.Sprintf("Content-Range: %q does not begin at %d, where this upload ends", given, size), http.StatusRequestedRangeNotSatisfiable)
			return
		}
	}
	n, err := io.Copy(f, r.Body)
	if err != nil {
		http.Error(w, errors.Join(err, f.Truncate(size)).Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Location", r.URL.Path)
	w.Header().Set("Range", fmt.Sprintf("0-%d", max(size+n-1, 0)))
	w.WriteHeader(http.StatusAccepted)
}

// last hands an upload over, with the part that this request brings.
func (u uploads) last(w http.ResponseWriter, r *http.Request, file string) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) { // all of it comes now
		u.within.ServeHTTP(w, r)
		return
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer f.Close()
	r.Body = io.NopCloser(io.MultiReader(f, r.Body))
	r.ContentLength = -1 // its digest tells whether it is whole
	answer := &verdict{ResponseWriter: w}
	u.within.ServeHTTP(answer, r)
	if answer.code == http.StatusCreated {
		_ = os.Remove(file)
	}
}
