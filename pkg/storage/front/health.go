package front

import (
	"context"
	"log/slog"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// health says once that writes have begun to fail, and once that they work again.
// Reads say little: they need no room on the disk. kine would log every request
// that failed, with the object in it.
type health struct {
	log     *slog.Logger
	failing atomic.Bool
}

// note is a gRPC interceptor.
func (h *health) note(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	res, err := handle(ctx, req)
	switch {
	case info.FullMethod != "/etcdserverpb.KV/Txn": // every write is one
	case ctx.Err() != nil: // the caller left; that says nothing about the store
	case broken(err):
		if !h.failing.Swap(true) {
			h.log.Error("datastore takes no writes", "component", "datastore", "err", err)
		}
	case err == nil && h.failing.CompareAndSwap(true, false):
		h.log.Info("datastore takes writes again", "component", "datastore")
	}
	return res, err
}

// broken tells trouble with the file from answers that the protocol provides for,
// such as a revision that is compacted.
func broken(err error) bool {
	switch status.Code(err) {
	case codes.Unknown, codes.Internal, codes.DataLoss:
		return true
	}
	return false
}
