// Package vault keeps what the servers of a cluster share inside its datastore, sealed,
// so that whoever holds the servers' token can make a server of nothing else.
//
// It speaks the etcd protocol, as every datastore here does. What it holds is outside
// of what Kubernetes reads, and is only ever replaced by whoever has seen it last.
package vault

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/podo-dev/podo/pkg/plan"
)

// The keys of a vault. They are podo's own, beside all that Kubernetes reads.
const (
	// SealedKey holds the servers' secrets.
	SealedKey = "/podo/sealed"
	// PartialKey is there while the datastore is being filled from another one.
	PartialKey = "/podo/partial"
)

// ErrPartial means that the datastore was to be filled from another one, and that this
// came to no end.
var ErrPartial = errors.New("holds part of a cluster: podo datastore migrate was cut off while it copied")

// Dial returns a client of a datastore. It connects when it is used.
func Dial(ctx context.Context, at plan.EtcdClient) (*clientv3.Client, error) {
	c := clientv3.Config{Context: ctx, Endpoints: at.URLs, Logger: zap.NewNop(), DialTimeout: 3 * time.Second,
		DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 5 * time.Second, MaxCallSendMsgSize: 16 << 20, MaxCallRecvMsgSize: 1 << 30}
	if strings.HasPrefix(at.URLs[0], "https://") {
		config, err := transport.TLSInfo{CertFile: at.Files.Cert, KeyFile: at.Files.Key, TrustedCAFile: at.CA}.ClientConfig()
		if err != nil {
			return nil, fmt.Errorf("datastore: %w", err)
		}
		c.TLS = config
	}
	client, err := clientv3.New(c)
	if err != nil {
		return nil, fmt.Errorf("datastore: %w", err)
	}
	return client, nil
}

// A Vault is open until Close.
type Vault struct{ client *clientv3.Client }

// Open returns the vault of a datastore, which need not answer yet.
func Open(ctx context.Context, at plan.EtcdClient) (*Vault, error) {
	c, err := Dial(ctx, at)
	return &Vault{c}, err
}

// Close ends the connection.
func (v *Vault) Close() error { return v.client.Close() }

// A Sealed is what the datastore holds. Its revision is 0 if that is nothing.
type Sealed struct {
	Cluster string // hash of the cluster's CA, as tokens have it; no secret
	Tokens  []byte // what servers tell each other of their tokens; see pki.Conceal
	Bundle  []byte // what makes a server; see pki.Seal

	Revision int64 // of the last change
	At       int64 // of the datastore when it was read
}

// Encode is the form in which a datastore holds it: a line that says whose it is
// without opening it, one of tokens, and the bundle.
func (s Sealed) Encode() []byte {
	return fmt.Appendf(nil, "%s\n%s\n%s", s.Cluster, base64.StdEncoding.EncodeToString(s.Tokens), s.Bundle)
}

func decode(text []byte) (s Sealed, err error) {
	parts := bytes.SplitN(text, []byte("\n"), 3)
	if len(parts) != 3 {
		return s, errors.New("read the cluster's secrets: the datastore holds something else under " + SealedKey)
	}
	s.Cluster, s.Bundle = string(parts[0]), parts[2]
	if s.Tokens, err = base64.StdEncoding.DecodeString(string(parts[1])); err != nil {
		return s, fmt.Errorf("read the cluster's secrets: %w", err)
	}
	return s, nil
}

// patience is how long the datastore has to answer.
const patience = 10 * time.Second

// Read returns what the datastore holds, or ErrPartial.
func (v *Vault) Read(ctx context.Context) (Sealed, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	partial, err := v.client.Get(ctx, PartialKey)
	if err != nil {
		return Sealed{}, fmt.Errorf("read the cluster's secrets: %w", err)
	}
	if len(partial.Kvs) > 0 {
		return Sealed{}, ErrPartial
	}
	res, err := v.client.Get(ctx, SealedKey)
	if err != nil {
		return Sealed{}, fmt.Errorf("read the cluster's secrets: %w", err)
	}
	if len(res.Kvs) == 0 {
		return Sealed{At: res.Header.Revision}, nil
	}
	s, err := decode(res.Kvs[0].Value)
	s.Revision, s.At = res.Kvs[0].ModRevision, res.Header.Revision
	return s, err
}

// Write puts next in the place of what was read. It reports false if somebody was
// faster.
func (v *Vault) Write(ctx context.Context, before, next Sealed) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	// Both forms are the API server's own; kine knows no others.
	txn := v.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(SealedKey), "=", before.Revision)).Then(clientv3.OpPut(SealedKey, string(next.Encode())))
	if before.Revision != 0 {
		txn = txn.Else(clientv3.OpGet(SealedKey))
	}
	res, err := txn.Commit()
	if err != nil {
		return false, fmt.Errorf("keep the cluster's secrets: %w", err)
	}
	return res.Succeeded, nil
}

// Changed is closed when what was read is replaced, or when the datastore cannot be
// watched any longer.
func (v *Vault) Changed(ctx context.Context, read Sealed) <-chan struct{} {
	changed := make(chan struct{})
	go func() {
		defer close(changed)
		ctx, end := context.WithCancel(ctx)
		defer end()
		for res := range v.client.Watch(clientv3.WithRequireLeader(ctx), SealedKey, clientv3.WithRev(read.At+1)) {
			if len(res.Events) > 0 || res.Err() != nil {
				return
			}
		}
	}()
	return changed
}

// Begin marks a datastore as one that is being filled.
func Begin(ctx context.Context, c *clientv3.Client) error {
	res, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(PartialKey), "=", 0)).Then(clientv3.OpPut(PartialKey, "")).Commit()
	if err == nil && !res.Succeeded {
		err = ErrPartial
	}
	return err
}

// Finish takes the mark of Begin away.
func Finish(ctx context.Context, c *clientv3.Client) error {
	for {
		now, err := c.Get(ctx, PartialKey)
		if err != nil || len(now.Kvs) == 0 {
			return err
		}
		res, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(PartialKey), "=", now.Kvs[0].ModRevision)).
			Then(clientv3.OpDelete(PartialKey)).Else(clientv3.OpGet(PartialKey)).Commit()
		if err != nil || res.Succeeded {
			return err
		}
	}
}
