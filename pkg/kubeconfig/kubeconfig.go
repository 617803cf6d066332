// Package kubeconfig writes the files that tell a client where a cluster is and
// who it is to it, and adds a cluster to, or takes it from, a file of a person's own.
//
// A file that podo writes is wholly podo's. A file that it merges into stays the
// person's: other entries, their order and comments are kept as they are.
package kubeconfig

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/podo-dev/podo/pkg/atomicfile"
)

// Config is one cluster and one user of it. Certificates are given either whole,
// in PEM, or by absolute path; the content wins.
type Config struct {
	Name   string // of cluster, user and context
	Server string // URL

	CA, Cert, Key             []byte
	CAFile, CertFile, KeyFile string
}

// DefaultMode keeps a kubeconfig to its owner.
const DefaultMode fs.FileMode = 0o600

// Write makes path a kubeconfig for c and nothing else, if it is not already. Its
// folder is made if it is missing. Options say who owns it.
func Write(path string, c Config, mode fs.FileMode, opts ...atomicfile.Option) error {
	text, err := Render(c)
	if err != nil {
		return fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	if err := atomicfile.EnsureDir(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("kubeconfig: %w", err)
	}
	if _, err := atomicfile.WriteIfChanged(path, text, mode, opts...); err != nil {
		return fmt.Errorf("kubeconfig: %w", err)
	}
	return nil
}

// Render returns the text of a kubeconfig for c.
func Render(c Config) ([]byte, error) {
	if c.Name == "" || c.Server == "" {
		return nil, fmt.Errorf("needs a name and a server, has %q and %q", c.Name, c.Server)
	}
	// JSON strings are YAML strings, whatever they hold.
	quote := func(s string) string {
		q, _ := json.Marshal(s) // a string always marshals
		return string(q)
	}
	name := quote(c.Name)
	out := "apiVersion: v1\nkind: Config\n" +
		"clusters:\n- name: " + name + "\n  cluster:\n"
	for _, f := range c.cluster() {
		out += "    " + f.key + ": " + quote(f.value) + "\n"
	}
	out += "users:\n- name: " + name + "\n  user:\n"
	for _, f := range c.user() {
		out += "    " + f.key + ": " + quote(f.value) + "\n"
	}
	out += "contexts:\n- name: " + name + "\n  context:\n" +
		"    cluster: " + name + "\n    user: " + name + "\n" +
		"current-context: " + name + "\n"
	return []byte(out), nil
}

type field struct{ key, value string }

func (c Config) cluster() []field {
	return append([]field{{"server", c.Server}}, either("certificate-authority", c.CA, c.CAFile)...)
}

func (c Config) user() []field {
	return append(either("client-certificate", c.Cert, c.CertFile), either("client-key", c.Key, c.KeyFile)...)
}

// either names content inline, or else a file, or nothing.
func either(key string, content []byte, file string) []field {
	switch {
	case len(content) > 0:
		return []field{{key + "-data", base64.StdEncoding.EncodeToString(content)}}
	case file != "":
		return []field{{key, file}}
	}
	return nil
}
