package server

import (
	"net/http"
	"os"
	"strings"
)

// static serves the files of a folder below a path, to everyone. It lists none, and
// leads nowhere else.
func static(path, folder string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, ok := strings.CutPrefix(r.URL.Path, path)
		switch {
		case !ok:
			next.ServeHTTP(w, r)
			return
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "files can only be read here", http.StatusMethodNotAllowed)
			return
		}
		f, err := os.OpenInRoot(folder, name)
		if err != nil {
			http.NotFound(w, r)
			return
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil || !info.Mode().IsRegular() {
			http.NotFound(w, r)
			return
		}
		http.ServeContent(w, r, info.Name(), info.ModTime(), f)
	})
}
