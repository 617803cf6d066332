// Package version says what this binary is: podo's own version, and Kubernetes'.
//
// The build stamps podo's; Kubernetes' is read from the module list that Go writes
// into every binary, so that go.mod alone decides it. An unstamped build is a
// development version, and says so.
package version

import (
	"runtime/debug"
	"strconv"
	"strings"
)

// Set by the linker: see scripts/stamps.
var (
	podo   string
	commit string
	glibc  string
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

// Glibc is Debian's version of the C library in a stamped build, or empty.
func Glibc() string { return glibc }

// Kubernetes is the version of the Kubernetes inside, such as "v1.36.4+podo1", or
// "unknown" in a binary that holds none.
func Kubernetes() string {
	if v := Module("k8s.io/kubernetes"); v != "" {
		return v + revision
	}
	return "unknown"
}

// Minor is the first two numbers of a version such as "v1.36.4+podo1", as one that grows
// with them. It is 0 for what is no version.
func Minor(v string) int {
	major, rest, _ := strings.Cut(strings.TrimPrefix(v, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, errA := strconv.ParseUint(major, 10, 15)
	b, errB := strconv.ParseUint(minor, 10, 15)
	if errA != nil || errB != nil {
		return 0
	}
	return int(a<<15 + b)
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
