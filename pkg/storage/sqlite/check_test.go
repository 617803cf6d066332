package sqlite

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// folder is the files of a datastore, by the end of their name: "", "-wal", "-shm".
type folder map[string][]byte

// lay writes f below a new directory and returns the path of the database file.
func (f folder) lay(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db", "state.db")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	for end, text := range f {
		if err := os.WriteFile(path+end, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func collect(t *testing.T, path string) folder {
	t.Helper()
	out := folder{}
	for _, end := range []string{"", "-wal", "-shm"} {
		text, err := os.ReadFile(path + end)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		out[end] = text
	}
	return out
}

// databases makes a datastore with some objects in it and returns it twice: as a
// killed process leaves it, and after an orderly stop.
func databases(t *testing.T) (killed, stopped folder) {
	t.Helper()
	s := start(t, filepath.Join(t.TempDir(), "server"))
	for i := range 60 {
		s.put(t, fmt.Sprintf("/registry/pods/default/%d", i), strings.Repeat("grape", 1000))
	}
	killed = collect(t, s.plan.DB)
	s.stop(t)
	return killed, collect(t, s.plan.DB)
}

// overwrite returns text with b laid over it at offset.
func overwrite(text []byte, offset int, b []byte) []byte {
	out := bytes.Clone(text)
	copy(out[offset:], b)
	return out
}

func TestCheck(t *testing.T) {
	killed, stopped := databases(t)
	if len(killed["-wal"]) == 0 || len(stopped["-wal"]) != 0 {
		t.Fatalf("the write-ahead log is %d bytes long after a kill and %d after a stop; the cases below assume otherwise", len(killed["-wal"]), len(stopped["-wal"]))
	}
	good := stopped[""]
	// A file whose log holds only a few of its pages.
	later := start(t, filepath.Dir(filepath.Dir(stopped.lay(t))))
	later.put(t, "/registry/later", "1")
	short := collect(t, later.plan.DB)
	later.stop(t)
	blank := filepath.Join(t.TempDir(), "blank.db")
	db, err := sql.Open("sqlite3", blank)
	if err == nil {
		_, err = db.Exec("PRAGMA user_version = 1; CREATE TABLE kine (id INTEGER)")
		db.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	nothing := collect(t, blank)[""]
	const page = pageSize
	junk := bytes.Repeat([]byte{0xa5}, page)

	tests := map[string]struct {
		files folder
		known bool
		want  string // empty: the file is accepted
	}{
		"stopped in order":           {files: folder{"": good}, known: true},
		"killed":                     {files: killed, known: true},
		"killed, shared memory lost": {files: folder{"": killed[""], "-wal": killed["-wal"]}, known: true},
		// The first page, with the new size, goes from the log to the file first.
		"killed while the log was written back": {files: folder{"": overwrite(killed[""], 0, good[:page]), "-wal": killed["-wal"]}, known: true},
		"last frame of the log cut off":         {files: folder{"": killed[""], "-wal": killed["-wal"][:len(killed["-wal"])-page/2]}, known: true},
		"empty, first start":                    {files: folder{"": {}}},
		"empty, had a cluster":                  {files: folder{"": {}}, known: true, want: "is empty"},
		"cut off in its header":                 {files: folder{"": good[:50]}, known: true, want: "cut off in its header"},
		"cut off in the middle":                 {files: folder{"": good[:len(good)/2]}, known: true, want: "cut off"},
		"last page missing":                     {files: folder{"": good[:len(good)-page]}, known: true, want: "cut off"},
		"garbage":                               {files: folder{"": bytes.Repeat([]byte("garbage!"), page)}, known: true, want: "not a SQLite file"},
		"zeros":                                 {files: folder{"": make([]byte, len(good))}, known: true, want: "not a SQLite file"},
		"header alone":                          {files: folder{"": append(bytes.Clone(good[:100]), make([]byte, len(good)-100)...)}, known: true, want: "damaged"},
		"a page overwritten":                    {files: folder{"": overwrite(good, 2*page, junk)}, known: true, want: "damaged"},
		"a later page overwritten":              {files: folder{"": overwrite(good, len(good)/page/2*page, junk)}, known: true, want: "damaged"},
		"a page overwritten, with a log":        {files: folder{"": overwrite(short[""], len(good)/page/3*page, junk), "-wal": short["-wal"]}, known: true, want: "damaged"},
		"nothing in it":                         {files: folder{"": nothing}, known: true, want: "holds nothing of the cluster"},
		"nothing in it, first start":            {files: folder{"": nothing}},
		"page size impossible":                  {files: folder{"": overwrite(good, 16, []byte{0, 3})}, known: true, want: "damaged"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			path := tt.files.lay(t)
			err := check(t.Context(), path, tt.known)
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errors.Is(err, ErrDamaged) || !strings.Contains(fmt.Sprint(err), tt.want) {
				t.Fatalf("err = %v, want ErrDamaged and %q in it", err, tt.want)
			}
			for _, part := range []string{path, "backup"} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not name %q", err, part)
				}
			}
			for end, text := range tt.files {
				now, err := os.ReadFile(path + end)
				if err != nil || sha256.Sum256(now) != sha256.Sum256(text) {
					t.Errorf("state.db%s was changed (%v)", end, err)
				}
			}
		})
	}
}

// TestCheckLosesNothing opens what a kill left behind after it was checked.
func TestCheckLosesNothing(t *testing.T) {
	killed, _ := databases(t)
	path := killed.lay(t)
	if err := check(t.Context(), path, true); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var n int
	if err := db.QueryRow("SELECT count(*) FROM kine WHERE name LIKE '/registry/pods/%'").Scan(&n); err != nil || n != 60 {
		t.Errorf("%d objects, want 60 (%v)", n, err)
	}
}

func TestCheckOfWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	if err := check(t.Context(), dir, true); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "is not a file") {
		t.Errorf("a directory: err = %v, want ErrDamaged", err)
	}
	if err := check(t.Context(), filepath.Join(dir, "none"), true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing there: err = %v, want fs.ErrNotExist", err)
	}
}

func TestPrepareRefusesToStartEmptyBesideACluster(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "server")
	s := start(t, dir)
	s.put(t, "/registry/a", "1")
	s.stop(t)
	if err := os.RemoveAll(filepath.Dir(s.plan.DB)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := newStore(dir).Run(ctx, cancel) // ready without its file would be wrong, too
	if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), s.plan.DB+" is missing") || !strings.Contains(err.Error(), "backup") {
		t.Errorf("err = %v, want ErrDamaged that names the file and the remedy", err)
	}
	if _, err := os.Stat(s.plan.DB); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file was made: %v", err)
	}
}
