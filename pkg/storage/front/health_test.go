package front

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
)

func TestHealthSaysEachChangeOnce(t *testing.T) {
	var out bytes.Buffer
	h := &health{log: slog.New(slog.NewTextHandler(&out, nil))}
	write := &grpc.UnaryServerInfo{FullMethod: "/etcdserverpb.KV/Txn"}
	call := func(ctx context.Context, info *grpc.UnaryServerInfo, err error) {
		t.Helper()
		if _, got := h.note(ctx, nil, info, func(context.Context, any) (any, error) { return nil, err }); got != err {
			t.Fatalf("err = %v, want %v unchanged", got, err)
		}
	}
	left, leave := context.WithCancel(t.Context())
	leave()
	full := errors.New("database or disk is full")

	call(t.Context(), write, rpctypes.ErrGRPCCompacted)
	call(left, write, full)
	if out.Len() > 0 {
		t.Fatalf("said %q of a healthy store", out.String())
	}
	for range 3 {
		call(t.Context(), write, full)
		call(t.Context(), &grpc.UnaryServerInfo{FullMethod: "/etcdserverpb.KV/Range"}, nil)
	}
	call(t.Context(), write, nil)
	call(t.Context(), write, nil)
	if n := strings.Count(out.String(), "disk is full"); n != 1 {
		t.Errorf("failure said %d times:\n%s", n, out.String())
	}
	if n := strings.Count(out.String(), "writes again"); n != 1 {
		t.Errorf("recovery said %d times:\n%s", n, out.String())
	}
}
