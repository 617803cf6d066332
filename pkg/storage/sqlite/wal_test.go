package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	logPage   = 4096
	frameSize = frameHeader + logPage
)

// logged is a file with a log beside it, as a kill leaves the two: rows transactions, of
// several frames each if they are large, whose ends are the offsets where each is over.
func logged(t *testing.T, rows, size int) (files folder, ends []int) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state.db")
	db := opened(path)
	defer db.Close()
	must(db.Exec("CREATE TABLE kine (id INTEGER PRIMARY KEY, name TEXT, value TEXT); INSERT INTO kine VALUES (0, '', ''); PRAGMA wal_checkpoint(TRUNCATE)"))
	for i := range rows {
		must(db.Exec("INSERT INTO kine VALUES (?, ?, ?)", i+1, i, strings.Repeat(fmt.Sprint(i), size)))
		ends = append(ends, int(must(os.Stat(path+"-wal")).Size()))
	}
	return collect(t, path), ends
}

func opened(path string) *sql.DB {
	db := must(sql.Open("sqlite3", path+"?_journal_mode=WAL&_synchronous=FULL"))
	db.SetMaxOpenConns(1)
	return db
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// rowsIn counts what SQLite itself finds.
func rowsIn(t *testing.T, path string) (n int) {
	t.Helper()
	db := must(sql.Open("sqlite3", path))
	defer db.Close()
	if err := db.QueryRow("SELECT count(*) - 1 FROM kine").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func flipped(text []byte, at int) []byte { return overwrite(text, at, []byte{text[at] ^ 0x10}) }

func TestDamagedLog(t *testing.T) {
	good, ends := logged(t, 8, 2*logPage)
	log := good["-wal"]
	if frames := (ends[1] - ends[0]) / frameSize; frames < 3 || (len(log)-logHeader)%frameSize != 0 {
		t.Fatalf("a transaction has %d frames, the log %d bytes; the cases below assume otherwise", frames, len(log))
	}
	zeros := make([]byte, logPage)
	last := ends[6] // where the last transaction begins
	tests := map[string]struct {
		log []byte
		at  int // where it is damaged; -1: it is accepted
	}{
		"whole":                                           {log, -1},
		"empty":                                           {nil, -1},
		"a byte of the header":                            {flipped(log, 5), 0},
		"a byte of the header's salts":                    {flipped(log, 18), 0},
		"a byte of the header's sums":                     {flipped(log, 25), 0},
		"a byte of the first page":                        {flipped(log, logHeader+frameHeader+100), logHeader},
		"a byte of a page":                                {flipped(log, ends[3]+frameHeader+7), ends[3]},
		"a byte of a frame's number":                      {flipped(log, ends[3]+3), ends[3]},
		"a byte of a frame's salts":                       {flipped(log, ends[3]+9), ends[3]},
		"a byte of a frame's sums":                        {flipped(log, ends[3]+18), ends[3]},
		"a byte of a transaction's last page":             {flipped(log, ends[3]-7), ends[3] - frameSize},
		"a page of zeros":                                 {overwrite(log, ends[3]+frameHeader, zeros), ends[3]},
		"the last transaction but one":                    {flipped(log, last-3*frameSize/2), last - 2*frameSize},
		"the end of the last transaction but one":         {flipped(log, last-1), last - frameSize},
		"a page cut out":                                  {append(bytes.Clone(log[:ends[3]]), log[ends[3]+frameSize:]...), ends[3]},
		"cut off in the header":                           {log[:20], -1},
		"cut off after the header":                        {log[:logHeader], -1},
		"the last transaction, of which the end is there": {overwrite(log, last+frameHeader, zeros), -1},
		"the last transaction, whose end is not there":    {overwrite(log, len(log)-logPage, zeros), -1},
		"nothing of the last transaction but room for it": {overwrite(log, last, make([]byte, len(log)-last)), -1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			path := folder{"": good[""], "-wal": tt.log}.lay(t)
			err := check(t.Context(), path, true)
			if tt.at < 0 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("err = %v, want ErrDamaged; SQLite finds %d rows of 8", err, rowsIn(t, path))
			}
			remedy := fmt.Sprintf("truncate --size=%d %s-wal", tt.at, path)
			for _, part := range []string{fmt.Sprintf("at byte %d,", tt.at), "backup", remedy, "truncate --size=0 " + path + "-wal"} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not say %q", err, part)
				}
			}
			// The remedy is one.
			if err := os.Truncate(path+"-wal", int64(tt.at)); err != nil {
				t.Fatal(err)
			}
			if err := check(t.Context(), path, true); err != nil {
				t.Errorf("%s does not help: %v", remedy, err)
			}
		})
	}
}

// TestTornLog has the power go during the last transaction: the log ends anywhere in it,
// and of what is there any sectors may be as they were, which is nothing or an earlier log.
func TestTornLog(t *testing.T) {
	good, ends := logged(t, 25, 2*logPage)
	alike, _ := logged(t, 25, 2*logPage)
	small, _ := logged(t, 150, 1) // whose transactions end elsewhere
	log := good["-wal"]
	if len(log) > len(alike["-wal"]) || len(log) > len(small["-wal"]) {
		t.Fatalf("logs of %d, %d and %d bytes", len(log), len(alike["-wal"]), len(small["-wal"]))
	}
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	accepted := func(torn []byte, what string) {
		t.Helper()
		if at, err := brokenIn(bytes.NewReader(torn), logPage); at >= 0 || err != nil {
			t.Fatalf("seed %d: %s: damaged at byte %d, %v", seed, what, at, err)
		}
	}
	for range 1000 {
		cut := r.IntN(len(log) + 1)
		accepted(log[:cut], fmt.Sprint("cut off at byte ", cut))
		cut = max(cut, logHeader) // within one sector: it is the new one or the old
		accepted(append(bytes.Clone(log[:cut]), alike["-wal"][cut:]...), fmt.Sprintf("cut off at byte %d, with an earlier log behind it", cut))
	}
	for i := range 6000 {
		n := r.IntN(len(ends)-1) + 1
		torn, old := bytes.Clone(log[:ends[n]]), make([]byte, ends[n])
		switch i % 3 {
		case 0:
			copy(old, alike["-wal"])
		case 1:
			copy(old, small["-wal"])
		}
		for at := ends[n-1] &^ 511; at < len(torn); at += 512 {
			if r.IntN(3) == 0 {
				from, to := max(at, ends[n-1]), min(at+512, len(torn))
				copy(torn[from:to], old[from:to])
			}
		}
		accepted(torn, fmt.Sprintf("transaction %d torn", n))
	}
}

// TestTornAgain has the power go twice: the transaction that is written over the beginning of
// one that was cut off is cut off as well, and the end of that other is still behind it.
func TestTornAgain(t *testing.T) {
	good, ends := logged(t, 5, 2*logPage)
	last := ends[3]
	torn := good["-wal"]
	path := folder{"": good[""], "-wal": torn[:last]}.lay(t)
	db := opened(path)
	defer db.Close()
	must(db.Exec("PRAGMA user_version = 7"))
	log := must(os.ReadFile(path + "-wal"))
	if len(log) != last+frameSize {
		t.Fatalf("the log has %d bytes after one frame more, and had %d", len(log), last)
	}
	for _, written := range []int{frameHeader, frameHeader + 2048, frameSize} {
		both := overwrite(torn, last, log[last:last+written])
		if at, err := brokenIn(bytes.NewReader(both), logPage); at >= 0 || err != nil {
			t.Errorf("%d bytes of the frame written: damaged at byte %d, %v", written, at, err)
		}
	}
}

// TestLogUsedAgain: behind the frames of a log lie those of the time before, which check
// among themselves.
func TestLogUsedAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	db := must(sql.Open("sqlite3", path+"?_journal_mode=WAL"))
	defer db.Close()
	db.SetMaxOpenConns(1)
	must(db.Exec("CREATE TABLE kine (id INTEGER PRIMARY KEY, value TEXT)"))
	for round := range 3 {
		for i := range 10 {
			must(db.Exec("INSERT INTO kine VALUES (?, ?)", 100*round+i, strings.Repeat("x", 3*logPage)))
			if at, err := brokenAt(path+"-wal", logPage); at >= 0 || err != nil {
				t.Fatalf("round %d: damaged at byte %d, %v", round, at, err)
			}
		}
		must(db.Exec("PRAGMA wal_checkpoint(RESTART)"))
	}
}

// TestLostLog deletes the log of a store that was killed, and of one that stopped.
func TestLostLog(t *testing.T) {
	killed, stopped := databases(t)
	if binary.BigEndian.Uint32(stopped[""][60:]) != whole || len(killed["-wal"]) == 0 {
		t.Fatalf("the file says of itself %x after a stop, and the log has %d bytes after a kill", stopped[""][60:64], len(killed["-wal"]))
	}
	path := folder{"": stopped[""]}.lay(t)
	if err := check(t.Context(), path, true); err != nil {
		t.Errorf("after a stop: %v", err)
	}
	path = folder{"": killed[""], "-shm": killed["-shm"]}.lay(t)
	err := check(t.Context(), path, true)
	remedy := "truncate --size=0 " + path + "-wal"
	if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), path+"-wal is missing") || !strings.Contains(err.Error(), remedy) {
		t.Fatalf("after a kill: err = %v, want ErrDamaged and %q", err, remedy)
	}
	// The remedy is one, and the next kill is told from a stop again.
	if err := os.WriteFile(path+"-wal", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(filepath.Dir(path))
	s := start(t, dir)
	s.put(t, "/registry/again", "1")
	again := collect(t, path)
	s.stop(t)
	delete(again, "-wal")
	if err := check(context.Background(), again.lay(t), true); !errors.Is(err, ErrDamaged) {
		t.Errorf("after another kill: err = %v, want ErrDamaged", err)
	}
}

// TestStopThatCannotWrite: a stop that cannot say in the file that it is whole, as on a full
// disk, leaves the log there.
func TestStopThatCannotWrite(t *testing.T) {
	killed, _ := databases(t)
	path := killed.lay(t)
	s := newStore(filepath.Dir(filepath.Dir(path)))
	db := must(sql.Open("sqlite3", source(path)+"&_query_only=1"))
	s.settle(t.Context(), db, whole)
	if err := errors.Join(db.Close(), check(t.Context(), path, true)); err != nil {
		t.Error(err)
	}
}

// TestSyncsEachTransaction asks a connection like those of the store.
func TestSyncsEachTransaction(t *testing.T) {
	db := must(sql.Open("sqlite3", source(filepath.Join(t.TempDir(), "state.db"))))
	defer db.Close()
	var journal string
	var sync int
	if err := errors.Join(db.QueryRow("PRAGMA journal_mode").Scan(&journal), db.QueryRow("PRAGMA synchronous").Scan(&sync)); err != nil {
		t.Fatal(err)
	}
	if journal != "wal" || sync != 2 { // https://www.sqlite.org/pragma.html#pragma_synchronous
		t.Errorf("journal %s, synchronous %d; want wal and 2, which is FULL", journal, sync)
	}
}
