package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
)

// ErrDamaged means that the file cannot be what the cluster left there. Nothing
// has been written to it.
var ErrDamaged = errors.New("datastore damaged")

// thorough is the size up to which every page is checked at start. That takes
// about a millisecond a megabyte; of larger files the header and the log are checked.
const thorough = 256 << 20

// What the user_version of a file says, which SQLite leaves to its users: a file that was
// marked is whole only together with the log beside it. The mark is in the file itself, so
// that one from a backup brings its own.
const (
	whole  = 0
	marked = 0x706f646f // podo
)

// Check judges the file of a store that does not run, and held a cluster, for who only reads
// it: SQLite would leave out what it cannot read of the log beside it.
func Check(ctx context.Context, path string) error { return check(ctx, path, true) }

// check reads the file at path without changing it. Known says that the file held
// a cluster once.
func check(ctx context.Context, path string, known bool) error {
	damaged := func(why string) error {
		return fmt.Errorf("%w: %s %s: keep a copy of it, then put back a good one from a backup (and remove the -wal and -shm files beside it), or try sqlite3's .recover on the copy", ErrDamaged, path, why)
	}
	lost := func(why, remedy string) error {
		return fmt.Errorf("%w: %s-wal %s: put back a good %[2]s from a backup (and remove the -wal and -shm files beside it), or keep a copy of what is there, then %[4]s", ErrDamaged, path, why, remedy)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return damaged("is not a file")
	}
	if info.Size() == 0 {
		if !known {
			return nil // killed right after the file was made
		}
		return damaged("is empty")
	}
	header := make([]byte, 100) // https://www.sqlite.org/fileformat.html#the_database_header
	if _, err := io.ReadFull(f, header); err != nil {
		return damaged("is cut off in its header")
	}
	if !bytes.HasPrefix(header, []byte("SQLite format 3\x00")) {
		return damaged("is not a SQLite file")
	}
	page := int64(binary.BigEndian.Uint16(header[16:]))
	if page == 1 {
		page = 65536
	}
	if page < 512 || page&(page-1) != 0 {
		return damaged(fmt.Sprintf("has a header that makes no sense: pages of %d bytes", page))
	}
	// Writing the log back into the file begins with the first page, which tells the
	// new size. A file that was killed in the middle is whole together with its log.
	wal, err := os.Stat(path + "-wal")
	alone := err != nil || wal.Size() == 0
	if pages := int64(binary.BigEndian.Uint32(header[28:])); alone && info.Size() < pages*page {
		return damaged(fmt.Sprintf("is cut off: %d bytes of %d", info.Size(), pages*page))
	}
	if errors.Is(err, fs.ErrNotExist) && binary.BigEndian.Uint32(header[60:]) == marked {
		return lost("is missing, and the latest writes with it unless a program such as sqlite3 has moved them into the file",
			fmt.Sprintf("go on with the file as it is: truncate --size=0 %s-wal", path))
	}
	at, err := brokenAt(path+"-wal", page)
	if err != nil {
		return err
	}
	if at >= 0 {
		// How much of the log was in the file already was only noted in memory.
		return lost(fmt.Sprintf("is damaged at byte %d, before writes that were acknowledged", at),
			fmt.Sprintf("go on without some of them: on copies try truncate --size=0 %s-wal, which is right if the log was in the file already, and truncate --size=%d %[1]s-wal, if it was not; use the one that sqlite3 calls ok (PRAGMA integrity_check) and that has more (SELECT count(*) FROM kine)", path, at))
	}
	if info.Size() > thorough {
		return nil
	}
	// Closing a writable database would write the log back, damaged or not.
	db, err := sql.Open("sqlite3", (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: "mode=ro&_busy_timeout=5000"}).String())
	if err != nil {
		return err
	}
	defer db.Close()
	var verdict string
	if err := db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&verdict); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return damaged("cannot be read: " + err.Error())
	}
	if verdict != "ok" {
		return damaged("fails its check: " + verdict)
	}
	if !known {
		return nil
	}
	var filled bool // kine writes a row before podo notes that there is a file
	if err := db.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM kine)").Scan(&filled); err != nil || !filled {
		return damaged("holds nothing of the cluster that it held")
	}
	return nil
}
