// Package manifests holds the YAML that every cluster starts with.
//
// The files are plain Kubernetes YAML with ${NAME} where a value depends on the
// cluster. Package deploy fills those in and applies them; a file's name without
// its ending is what --disable calls it.
package manifests

import "embed"

// FS is the folder as compiled in.
//
//go:embed *.yaml
var FS embed.FS
