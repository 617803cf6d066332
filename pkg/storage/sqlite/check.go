package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// ErrDamaged means that the file cannot be what the cluster left there. Nothing
// has been written to it.
var ErrDamaged = errors.New("datastore damaged")

// thorough is the size up to which every page is checked at start. That takes
// about a millisecond a megabyte; larger files get their header checked.
const thorough = 256 << 20

// check reads the file at path without changing it. Known says that the file held
// a cluster once.
func check(ctx context.Context, path string, known bool) error {
	damaged := func(why string) error {
		return fmt.Errorf("%w: %s %s: keep a copy of it, then put back a good one from a backup (and remove the -wal and -shm files beside it), or try sqlite3's .recover on the copy", ErrDamaged, path, why)
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
	if pages := int64(binary.BigEndian.Uint32(header[28:])); page < 512 || info.Size() < pages*page {
		return damaged(fmt.Sprintf("is cut off: %d bytes of %d", info.Size(), pages*page))
	}
	if info.Size() > thorough {
		return nil
	}
	db, err := sql.Open("sqlite3", path+"?_busy_timeout=5000")
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
	return nil
}
