package registries

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/podo-dev/podo/pkg/atomicfile"
	"github.com/podo-dev/podo/pkg/config"
)

// A File is what registries.yaml says.
type File struct {
	Mirrors map[string]Mirror // by registry, or "*" for those that have no entry
	Configs map[string]Config // by host of an endpoint, or "*"
}

// A Mirror is where the images of a registry are looked for first.
type Mirror struct {
	Endpoints []*url.URL
	Rewrites  []Rewrite // of the repository's name; the first that changes it counts
}

// A Rewrite replaces what matches.
type Rewrite struct {
	From *regexp.Regexp
	To   string
}

// A Config is how an endpoint is spoken to.
type Config struct {
	Auth auth.Credential
	TLS  *tls.Config // nil: as the machine speaks to anybody
}

func (c Config) empty() bool { return c.Auth == auth.EmptyCredential && c.TLS == nil }

// maxSize is the size of the largest file that is read.
const maxSize = 1 << 20

// Read reads the file at path. Every mistake is in the error, with the place it was made.
func Read(path string) (File, error) {
	text, err := atomicfile.Read(path, maxSize)
	if err != nil {
		return File{}, err
	}
	return Parse(path, text)
}

// Parse reads the text of a file, and the certificates that it names.
func Parse(path string, text []byte) (File, error) {
	p := parser{path: path}
	out := File{Mirrors: map[string]Mirror{}, Configs: map[string]Config{}}
	p.known(p.document(text), "registries.yaml", map[string]func(*yaml.Node){
		"mirrors": func(n *yaml.Node) {
			p.hosts(n, func(host string, n *yaml.Node) { out.Mirrors[host] = p.mirror(n) })
		},
		"configs": func(n *yaml.Node) {
			p.hosts(n, func(host string, n *yaml.Node) { out.Configs[host] = p.config(n) })
		},
	})
	return out, errors.Join(p.errs...)
}

type parser struct {
	path    string
	errs    []error
	merging []*yaml.Node
	merges  int
}

// maxMerges is how many << are followed: each may double what is to be read.
const maxMerges = 1000

func (p *parser) failf(n *yaml.Node, format string, args ...any) {
	p.errs = append(p.errs, fmt.Errorf("%s:%d: "+format, append([]any{p.path, n.Line}, args...)...))
}

// document returns what the file holds, or nil if that is nothing.
func (p *parser) document(text []byte) *yaml.Node {
	var doc, more yaml.Node
	read := yaml.NewDecoder(bytes.NewReader(text))
	err := read.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err == nil {
		switch err = read.Decode(&more); {
		case err == nil:
			p.failf(&more, "a second document begins here; write all into one")
		case errors.Is(err, io.EOF):
			err = nil
		}
	}
	if err != nil {
		p.errs = append(p.errs, fmt.Errorf("%s: not valid YAML: %s", p.path, strings.TrimPrefix(err.Error(), "yaml: ")))
		return nil
	}
	return doc.Content[0]
}

// fields hands each name and value of a mapping to read. Nothing is an empty one.
func (p *parser) fields(n *yaml.Node, read func(key, value *yaml.Node)) {
	n = resolve(n)
	if n == nil || n.Tag == "!!null" {
		return
	}
	if n.Kind != yaml.MappingNode {
		p.failf(n, "names with values are wanted here; write name: value")
		return
	}
	seen := map[string]int{}
	var merged []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if key.Tag == "!!merge" {
			merged = append(merged, resolve(n.Content[i+1]))
			continue
		}
		if at := seen[key.Value]; at > 0 {
			p.failf(key, "%q is here again, after line %d; remove one", key.Value, at)
			continue
		}
		seen[key.Value] = key.Line
		read(key, resolve(n.Content[i+1]))
	}
	for _, from := range merged {
		p.merge(from, func(key, value *yaml.Node) {
			if seen[key.Value] == 0 {
				seen[key.Value] = key.Line
				read(key, value)
			}
		})
	}
}

// merge is fields for what "<<" names: a mapping or a list of them.
func (p *parser) merge(from *yaml.Node, read func(key, value *yaml.Node)) {
	if slices.Contains(p.merging, from) {
		p.failf(from, "this is merged into itself; remove the << in it")
		return
	}
	if p.merges++; p.merges >= maxMerges {
		if p.merges == maxMerges {
			p.failf(from, "more than %d << are too many; write out what they name", maxMerges)
		}
		return
	}
	p.merging = append(p.merging, from)
	defer func() { p.merging = p.merging[:len(p.merging)-1] }()
	if from.Kind != yaml.SequenceNode {
		p.fields(from, read)
		return
	}
	for _, item := range from.Content {
		p.merge(resolve(item), read)
	}
}

// known is fields for names that are not free.
func (p *parser) known(n *yaml.Node, where string, names map[string]func(*yaml.Node)) {
	p.fields(n, func(key, value *yaml.Node) {
		if read, ok := names[key.Value]; ok {
			read(value)
			return
		}
		var all []string
		for name := range names {
			all = append(all, name)
		}
		slices.Sort(all)
		if near := config.Closest(key.Value, all); near != "" {
			p.failf(key, "unknown field %q of %s; did you mean %s?", key.Value, where, near)
			return
		}
		p.failf(key, "unknown field %q of %s; it has %s", key.Value, where, strings.Join(all, ", "))
	})
}

// hosts is fields for names of registries.
func (p *parser) hosts(n *yaml.Node, read func(host string, value *yaml.Node)) {
	p.fields(n, func(key, value *yaml.Node) {
		host := key.Value
		if u, err := url.Parse("//" + host); host != "*" && (err != nil || u.Host != host || u.Hostname() == "" || u.User != nil) {
			p.failf(key, "%q is not a registry: write its host, such as docker.io or registry.example.com:5000, or \"*\" for all others", host)
			return
		}
		read(host, value)
	})
}

func (p *parser) mirror(n *yaml.Node) Mirror {
	var m Mirror
	p.known(n, "a mirror", map[string]func(*yaml.Node){
		"endpoint": func(n *yaml.Node) { m.Endpoints = p.endpoints(n) },
		"rewrite":  func(n *yaml.Node) { m.Rewrites = p.rewrites(n) },
	})
	if len(m.Rewrites) > 0 && len(m.Endpoints) == 0 {
		p.failf(n, "rewrite: there is no endpoint whose names it would change; add endpoint: [...], or remove it")
	}
	return m
}

func (p *parser) endpoints(n *yaml.Node) []*url.URL {
	if n.Tag == "!!null" {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		p.failf(n, "endpoint: a list is wanted; write [%q]", n.Value)
		return nil
	}
	var out []*url.URL
	for _, item := range n.Content {
		item = resolve(item)
		u, err := endpointURL(item.Value)
		if err != nil {
			p.failf(item, "endpoint %q: %w", concealed(item.Value), err)
			continue
		}
		if !slices.ContainsFunc(out, func(o *url.URL) bool { return *o == *u }) {
			out = append(out, u)
		}
	}
	return out
}

func (p *parser) rewrites(n *yaml.Node) []Rewrite {
	var out []Rewrite
	p.fields(n, func(key, value *yaml.Node) {
		re, err := regexp.Compile(key.Value)
		if err != nil {
			p.failf(key, "rewrite %q: not a regular expression: %w", key.Value, err)
			return
		}
		out = append(out, Rewrite{re, p.text(value)})
	})
	return out
}

func (p *parser) config(n *yaml.Node) Config {
	var c Config
	p.known(n, "a config", map[string]func(*yaml.Node){
		"auth": func(n *yaml.Node) { c.Auth = p.auth(n) },
		"tls":  func(n *yaml.Node) { c.TLS = p.tls(n) },
	})
	return c
}

func (p *parser) auth(n *yaml.Node) auth.Credential {
	var c auth.Credential
	var both string
	p.known(n, "auth", map[string]func(*yaml.Node){
		"username":       func(n *yaml.Node) { c.Username = p.text(n) },
		"password":       func(n *yaml.Node) { c.Password = p.text(n) },
		"identity_token": func(n *yaml.Node) { c.RefreshToken = p.text(n) },
		"auth":           func(n *yaml.Node) { both = p.text(n) },
	})
	if both != "" && c.Username == "" {
		text, err := base64.StdEncoding.DecodeString(both)
		user, password, ok := strings.Cut(strings.TrimRight(string(text), "\x00\n"), ":")
		if err != nil || !ok {
			p.failf(n, "auth: is not USERNAME:PASSWORD in base64; make it with printf %%s 'USERNAME:PASSWORD' | base64 -w0")
		}
		c.Username, c.Password = user, password
	}
	if (c.Username == "") != (c.Password == "") {
		p.failf(n, "auth: username and password go together; write both")
	}
	if c.Username != "" {
		c.RefreshToken = "" // as the engine ranks them
	}
	return c
}

func (p *parser) tls(n *yaml.Node) *tls.Config {
	c := &tls.Config{}
	var ca, cert, key string
	p.known(n, "tls", map[string]func(*yaml.Node){
		"ca_file":   func(n *yaml.Node) { ca = p.text(n) },
		"cert_file": func(n *yaml.Node) { cert = p.text(n) },
		"key_file":  func(n *yaml.Node) { key = p.text(n) },
		"insecure_skip_verify": func(n *yaml.Node) {
			if err := n.Decode(&c.InsecureSkipVerify); err != nil {
				p.failf(n, "insecure_skip_verify: %q is neither true nor false", n.Value)
			}
		},
	})
	if ca != "" {
		var err error
		if c.RootCAs, err = pool(ca); err != nil {
			p.failf(n, "ca_file: %w", err)
		}
	}
	switch {
	case cert == "" && key == "":
	case cert == "" || key == "":
		p.failf(n, "tls: cert_file and key_file go together; name both")
	default:
		load := func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(cert, key)
			return &pair, err
		}
		if _, err := load(); err != nil {
			p.failf(n, "cert_file, key_file: %w", err)
		}
		// Read for each connection: certificates are renewed by others.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return c
}

// pool is the certificates of a file, and those that the machine trusts.
func pool(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	all, err := x509.SystemCertPool()
	if err != nil {
		return nil, err
	}
	if !all.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s holds no certificate in PEM form", file)
	}
	return all, nil
}

func (p *parser) text(n *yaml.Node) string {
	if n.Kind != yaml.ScalarNode {
		p.failf(n, "a plain value is wanted here; write name: value")
		return ""
	}
	if n.Tag == "!!null" {
		return ""
	}
	return n.Value
}

// resolve is what an alias stands for.
func resolve(n *yaml.Node) *yaml.Node {
	if n != nil && n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// concealed is an endpoint as it may be shown: without what comes before the last @.
func concealed(endpoint string) string {
	scheme, rest, ok := strings.Cut(endpoint, "://")
	if !ok {
		scheme, rest = "", endpoint
	}
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		rest = "xxxxx" + rest[i:]
	}
	if ok {
		return scheme + "://" + rest
	}
	return rest
}

// endpointURL is what is written as an endpoint, with all that it leaves out.
func endpointURL(text string) (*url.URL, error) {
	if !strings.Contains(text, "://") {
		text = "//" + text
	}
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	if u.Scheme == "" {
		u.Scheme = "https"
		if loopback(u.Hostname()) && u.Port() != "" && u.Port() != "443" {
			u.Scheme = "http"
		}
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("%s is not spoken by registries; write https:// or http://", u.Scheme)
	case u.Hostname() == "":
		return nil, errors.New("names no host; write it as https://registry.example.com:5000")
	case u.User != nil:
		return nil, fmt.Errorf("holds credentials; write them below configs, as auth of %q", u.Host)
	case u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("ends in a query; write the address alone")
	}
	if u.Path = strings.TrimRight(u.Path, "/"); u.Path == "" {
		u.Path = "/v2"
	}
	if u.Host == dockerIO {
		u.Host = dockerHub
	}
	return u, nil
}

// The registry that images have by default is reached by another name.
const (
	dockerIO  = "docker.io"
	dockerHub = "registry-1.docker.io"
)

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
