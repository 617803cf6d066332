package apiserver

import (
	_ "unsafe" // for go:linkname

	"go.uber.org/zap"
)

// The API server's etcd client writes each of its retries to stderr as JSON, past
// every logger, and its level cannot be set (Kubernetes 1.36 turns any value of
// ETCD_CLIENT_DEBUG into the default). The datastore reports its troubles itself.
//
//go:linkname etcdClientLogger k8s.io/apiserver/pkg/storage/storagebackend/factory.etcd3ClientLogger
var etcdClientLogger *zap.Logger

// quiet silences it. It is called before the first client is made.
func quiet() { etcdClientLogger = zap.NewNop() }
