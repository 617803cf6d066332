// Package ext is what Traefik's dynamic configuration leaves room for: a module of its
// own that its archive does not contain. Nothing is in it.
package ext

// HTTP is embedded in the configuration of HTTP.
type HTTP struct{}

// Router is embedded in that of each router.
type Router struct{}
