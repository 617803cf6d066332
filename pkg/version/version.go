// Package version says what this binary is: podo's own version, and Kubernetes'.
//
// The build stamps podo's; Kubernetes' is read from the module list that Go writes
// into every binary, so that go.mod alone decides it. An unstamped build is a
// development version, and says so.
package version

import "runtime/debug"

// Set by the linker: see scripts/stamps.
var (
	podo   string
	commit string
)

// revision counts podo's releases of one Kubernetes version. It is read by
// scripts/stamps too.
const revision = "+podo1"

// Podo is podo's own version, such as "0.1.0".
func Podo() string {
	if podo == "" {
		return "0.1.0-dev"
	}
	return podo
}

// Commit is the source commit of a stamped build, or empty.
func Commit() string { return commit }

// Kubernetes is the version of the Kubernetes inside, such as "v1.36.4+podo1", or
// "unknown" in a binary that holds none.
func Kubernetes() string {
	if v := Module("k8s.io/kubernetes"); v != "" {
		return v + revision
	}
	return "unknown"
}

// Module is the version of a Go module that is linked in, or empty.
func Module(path string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, m := range info.Deps {
		if m.Path == path {
			return m.Version
		}
	}
	return ""
}
