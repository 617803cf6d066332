package migrate

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/podo-dev/podo/pkg/storage/vault"
)

// keys is a datastore that is reached by the etcd protocol.
type keys struct {
	client *clientv3.Client
	real   bool // an etcd: kine has no leases, but notes their length

	mu     sync.Mutex
	leases map[int64]clientv3.LeaseID // by length
}

// page is how many keys are read at a time.
const page = 500

func (k *keys) revision(ctx context.Context) (int64, error) {
	res, err := k.client.Get(ctx, health)
	if err != nil {
		return 0, err
	}
	return res.Header.Revision, nil
}

func (k *keys) each(ctx context.Context, yield func(Record) error) error {
	lengths := map[int64]int64{}
	from := first
	for {
		res, err := k.client.Get(ctx, from, clientv3.WithRange(beyond), clientv3.WithLimit(page))
		if err != nil {
			return err
		}
		for _, kv := range res.Kvs {
			from = string(kv.Key) + "\x00"
			if ours(string(kv.Key)) {
				continue
			}
			r := Record{Key: string(kv.Key), Value: kv.Value, TTL: kv.Lease}
			if k.real && kv.Lease != 0 {
				length, known := lengths[kv.Lease]
				if !known {
					left, err := k.client.TimeToLive(ctx, clientv3.LeaseID(kv.Lease))
					if err != nil {
						return err
					}
					length = max(left.TTL, 1)
					lengths[kv.Lease] = length
				}
				r.TTL = length
			}
			if err := yield(r); err != nil {
				return err
			}
		}
		if !res.More {
			return nil
		}
	}
}

// marked fills a datastore elsewhere, which bears the mark of an unfinished one until
// it is whole. One that bears it already was cut off, and is filled anew.
func marked(ctx context.Context, k *keys, src source, after int64, o Options) (Tally, error) {
	partial, err := k.client.Get(ctx, vault.PartialKey)
	if err != nil {
		return Tally{}, err
	}
	if len(partial.Kvs) == 0 {
		err := k.each(ctx, func(r Record) error {
			return fmt.Errorf("it %w, such as %s; empty it first, or name another", ErrNotEmpty, r.Key)
		})
		if err != nil {
			return Tally{}, err
		}
		if err := vault.Begin(ctx, k.client); err != nil {
			return Tally{}, err
		}
	}
	tell := pacer(func(text string) { o.Tell("revision " + text) })
	if err := k.raise(ctx, after, func(at int64) { tell(int(at)) }); err != nil {
		return Tally{}, fmt.Errorf("raise its revision: %w", err)
	}
	done, err := copyAll(ctx, k, src, o)
	if err != nil {
		return done, err
	}
	return done, vault.Finish(ctx, k.client)
}

// raise writes the mark until the datastore's revision is beyond after, and calls tell
// now and then with the revision so far. Only a real etcd takes many writes at a time.
func (k *keys) raise(ctx context.Context, after int64, tell func(int64)) error {
	writers, write := 1, k.raiseOne
	if k.real {
		writers, write = 64, func(ctx context.Context, _ int64) (int64, error) {
			res, err := k.client.Put(ctx, vault.PartialKey, "")
			if err != nil {
				return 0, err
			}
			return res.Header.Revision, nil
		}
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	var group sync.WaitGroup
	for i := range writers {
		group.Go(func() {
			for at, n := int64(0), 0; at <= after; n++ {
				var err error
				if at, err = write(ctx, at); err != nil {
					end(err)
					return
				}
				if i == 0 && n%100 == 0 {
					tell(at)
				}
			}
		})
	}
	group.Wait()
	return context.Cause(ctx)
}

// raiseOne writes once, given the revision of the last write or 0.
func (k *keys) raiseOne(ctx context.Context, at int64) (int64, error) {
	if at == 0 {
		now, err := k.client.Get(ctx, vault.PartialKey)
		if err != nil {
			return 0, err
		}
		if len(now.Kvs) == 0 {
			return 0, errors.New("the mark of a datastore that is being filled is gone")
		}
		at = now.Kvs[0].ModRevision
	}
	res, err := k.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(vault.PartialKey), "=", at)).
		Then(clientv3.OpPut(vault.PartialKey, "")).Else(clientv3.OpGet(vault.PartialKey)).Commit()
	if err != nil {
		return 0, err
	}
	if !res.Succeeded {
		return 0, errors.New("somebody else writes to the datastore")
	}
	return res.Header.Revision, nil
}

// writers is how many keys are written at a time.
const writers = 32

// copyAll writes all that src yields, reads it again and compares.
func copyAll(ctx context.Context, k *keys, src source, o Options) (Tally, error) {
	work := make(chan Record, writers)
	life, end := context.WithCancelCause(ctx)
	defer end(nil)
	var group sync.WaitGroup
	for range writers {
		group.Go(func() {
			for r := range work {
				if err := k.put(life, r); err != nil {
					end(fmt.Errorf("%s: %w", r.Key, err))
				}
			}
		})
	}
	var done Tally
	progress := pacer(o.Tell)
	err := src.each(ctx, func(r Record) error {
		done.add(r)
		progress(done.Keys)
		select {
		case work <- r:
			return nil
		case <-life.Done():
			return context.Cause(life)
		}
	})
	close(work)
	group.Wait()
	if cause := context.Cause(life); cause != nil {
		err = cause
	}
	if err != nil {
		return done, err
	}
	var found Tally
	if err := k.each(ctx, func(r Record) error { found.add(r); return nil }); err != nil {
		return done, err
	}
	if done.Revision, err = k.revision(ctx); err != nil {
		return done, err
	}
	return done, done.equal(found)
}

// put writes a record whether or not its key is there, by transactions that kine
// knows.
func (k *keys) put(ctx context.Context, r Record) error {
	lease, err := k.lease(ctx, r.TTL)
	if err != nil {
		return err
	}
	put := clientv3.OpPut(r.Key, string(r.Value), clientv3.WithLease(lease))
	res, err := k.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(r.Key), "=", 0)).Then(put).Commit()
	if err != nil || res.Succeeded {
		return err
	}
	now, err := k.client.Get(ctx, r.Key)
	if err != nil {
		return err
	}
	if len(now.Kvs) == 0 {
		return errDiffers
	}
	res, err = k.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(r.Key), "=", now.Kvs[0].ModRevision)).
		Then(put).Else(clientv3.OpGet(r.Key)).Commit()
	if err == nil && !res.Succeeded {
		err = errDiffers
	}
	return err
}

// lease is one of a length, shared by all records that live as long.
func (k *keys) lease(ctx context.Context, ttl int64) (clientv3.LeaseID, error) {
	if ttl <= 0 {
		return clientv3.NoLease, nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if id, ok := k.leases[ttl]; ok {
		return id, nil
	}
	res, err := k.client.Grant(ctx, ttl)
	if err != nil {
		return 0, err
	}
	if k.leases == nil {
		k.leases = map[int64]clientv3.LeaseID{}
	}
	k.leases[ttl] = res.ID
	return res.ID, nil
}

// pacer tells a number every other second.
func pacer(tell func(string)) func(n int) {
	last := time.Now()
	return func(n int) {
		if time.Since(last) > 2*time.Second {
			last = time.Now()
			tell(fmt.Sprint(n))
		}
	}
}
