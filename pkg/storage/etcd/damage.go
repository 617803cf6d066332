package etcd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// sound walks through the file of a member as etcd's own library does when it opens it. That
// panics over what is damaged, in a goroutine of its own: the process would end with nothing
// but that. What a value holds has no sum, and nobody here can tell that it was another.
func sound(ctx context.Context, dir string) (err error) {
	file := filepath.Join(dir, "member", "snap", "db")
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return nil // the log makes it anew
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // it is mapped, and may be cut off
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
		if err != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w: %s: %w", ErrDamaged, file, err)
		}
	}()
	db, err := bbolt.Open(file, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil // another has it open still, which etcd waits for
	}
	if err != nil {
		return err
	}
	defer db.Close()
	return db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
			var last []byte
			way := b.Cursor() // by the pages above, which the walk makes no use of
			return b.ForEach(func(k, _ []byte) error {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if found, _ := way.Seek(k); !bytes.Equal(found, k) {
					return fmt.Errorf("key %x of %q is not where it is looked for", k, name)
				}
				if last != nil && bytes.Compare(last, k) >= 0 {
					return fmt.Errorf("keys of %q are out of order: %x before %x", name, last, k)
				}
				last = k
				return nil
			})
		})
	})
}
