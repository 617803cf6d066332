package migrate

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strings"

	_ "github.com/mattn/go-sqlite3" // for the name sqlite3
)

// table is kine's, in a SQL database.
type table struct {
	db       *sql.DB
	numbered bool // parameters are $1, $2
}

func openSQLite(path string) (*sql.DB, error) { return openFile(path, "mode=ro&_busy_timeout=5000") }

func openToWrite(path string) (*sql.DB, error) {
	return openFile(path, "mode=rw&_busy_timeout=5000&_txlock=immediate&_synchronous=FULL")
}

func openFile(path, how string) (*sql.DB, error) {
	return sql.Open("sqlite3", (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: how}).String())
}

// text is a statement as the database takes it.
func (t table) text(statement string) string {
	if !t.numbered {
		return statement
	}
	var b strings.Builder
	n := 0
	for _, r := range statement {
		if r == '?' {
			n++
			fmt.Fprintf(&b, "$%d", n)
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

func (t table) revision(ctx context.Context) (int64, error) {
	var at sql.NullInt64
	err := t.db.QueryRowContext(ctx, "SELECT MAX(id) FROM kine").Scan(&at)
	return at.Int64, err
}

func (t table) each(ctx context.Context, yield func(Record) error) error {
	return t.scan(ctx, t.db, yield)
}

type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// scan yields what is in the table at its newest revision.
func (t table) scan(ctx context.Context, in querier, yield func(Record) error) error {
	rows, err := in.QueryContext(ctx, t.text(`SELECT kv.name, kv.value, kv.lease FROM kine AS kv
		INNER JOIN (SELECT MAX(id) AS id FROM kine WHERE name >= ? AND name < ? GROUP BY name) AS newest ON newest.id = kv.id
		WHERE kv.deleted = 0 ORDER BY kv.name`), first, beyond)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var r Record
		var ttl sql.NullInt64
		if err := rows.Scan(&r.Key, &r.Value, &ttl); err != nil {
			return err
		}
		r.TTL = ttl.Int64
		if ours(r.Key) {
			continue
		}
		if err := yield(r); err != nil {
			return err
		}
	}
	return rows.Err()
}

// fill writes all that src yields in one transaction: a copy that is cut off leaves
// nothing.
func fill(ctx context.Context, t table, src source, after int64, o Options) (Tally, error) {
	tx, err := t.db.BeginTx(ctx, nil)
	if err != nil {
		return Tally{}, err
	}
	defer tx.Rollback()
	err = t.scan(ctx, tx, func(r Record) error {
		return fmt.Errorf("it %w, such as %s; empty it first, or name another database", ErrNotEmpty, r.Key)
	})
	if err != nil {
		return Tally{}, err
	}
	var top sql.NullInt64
	if err := tx.QueryRowContext(ctx, "SELECT MAX(id) FROM kine").Scan(&top); err != nil {
		return Tally{}, err
	}
	before := max(after, top.Int64) + 1
	if _, err := tx.ExecContext(ctx, "DELETE FROM kine WHERE name <> 'compact_rev_key'"); err != nil {
		return Tally{}, err
	}
	// What is older than the copy is gone.
	if _, err := tx.ExecContext(ctx, t.text("UPDATE kine SET prev_revision = ? WHERE name = 'compact_rev_key'"), before); err != nil {
		return Tally{}, err
	}
	insert, err := tx.PrepareContext(ctx, t.text("INSERT INTO kine(id, name, created, deleted, create_revision, prev_revision, lease, value, old_value) VALUES (?, ?, 1, 0, 0, 0, ?, ?, NULL)"))
	if err != nil {
		return Tally{}, err
	}
	defer insert.Close()
	done := Tally{Revision: before}
	progress := pacer(o.Tell)
	err = src.each(ctx, func(r Record) error {
		done.add(r)
		done.Revision++
		progress(done.Keys)
		if _, err := insert.ExecContext(ctx, done.Revision, r.Key, r.TTL, r.Value); err != nil {
			return fmt.Errorf("%s: %w", r.Key, err)
		}
		return nil
	})
	if err != nil {
		return done, err
	}
	if t.numbered {
		if _, err := tx.ExecContext(ctx, "SELECT setval('kine_id_seq', $1)", done.Revision); err != nil {
			return done, err
		}
	}
	found := Tally{}
	if err := t.scan(ctx, tx, func(r Record) error { found.add(r); return nil }); err != nil {
		return done, err
	}
	if err := done.equal(found); err != nil {
		return done, err
	}
	return done, tx.Commit()
}

// equal compares what was written with what is there.
func (t Tally) equal(found Tally) error {
	if t.Keys == 0 {
		return errors.New("the source holds no key at all")
	}
	if t.Keys != found.Keys || t.sum != found.sum {
		return fmt.Errorf("%w: %d keys were written, %d are there", errDiffers, t.Keys, found.Keys)
	}
	return nil
}
