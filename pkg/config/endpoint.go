package config

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// An Endpoint is an external datastore, as --datastore-endpoint names it.
type Endpoint struct {
	Kind  string // etcd, postgres, mysql or nats
	Where string // its hosts, for people: nothing of it is secret
	URL   Secret // as the client of this kind takes it
}

// Product is what people call the kind.
func (e Endpoint) Product() string {
	switch e.Kind {
	case "postgres":
		return "PostgreSQL"
	case "mysql":
		return "MySQL"
	case "nats":
		return "NATS"
	}
	return "etcd"
}

// ParseEndpoint takes an endpoint apart. No error quotes it, since it may hold a
// password.
func ParseEndpoint(text Secret) (Endpoint, error) {
	scheme, rest, ok := strings.Cut(string(text), "://")
	if !ok {
		return Endpoint{}, errors.New("has no scheme; write https://HOST:2379,… for etcd, postgres://USER:PASSWORD@HOST/DATABASE, mysql://USER:PASSWORD@tcp(HOST:3306)/DATABASE or nats://HOST")
	}
	switch scheme {
	case "http", "https":
		return etcdEndpoint(text, scheme)
	case "postgres", "postgresql":
		u, err := parseURL("postgres://" + rest)
		if err != nil {
			return Endpoint{}, err
		}
		where := u.Host
		if where == "" {
			where = u.Query().Get("host")
		}
		if where == "" {
			return Endpoint{}, errors.New("names no host; write postgres://USER:PASSWORD@HOST:5432/DATABASE")
		}
		return Endpoint{Kind: "postgres", Where: where, URL: Secret("postgres://" + rest)}, nil
	case "mysql":
		return mysqlEndpoint(rest)
	case "nats":
		var hosts []string
		for one := range strings.SplitSeq(string(text), ",") {
			u, err := parseURL(one)
			if err != nil {
				return Endpoint{}, err
			}
			if u.Scheme != "nats" || u.Host == "" && u.Query().Get("contextFile") == "" {
				return Endpoint{}, errors.New("is not a list of nats://HOST:4222")
			}
			hosts = append(hosts, u.Host)
		}
		return Endpoint{Kind: "nats", Where: strings.Join(hosts, ", "), URL: text}, nil
	}
	return Endpoint{}, fmt.Errorf("%q is no kind of datastore; there are https (etcd), postgres, mysql and nats", scheme)
}

// etcdEndpoint takes one URL a member, all of one scheme.
func etcdEndpoint(text Secret, scheme string) (Endpoint, error) {
	var hosts []string
	for one := range strings.SplitSeq(string(text), ",") {
		u, err := parseURL(strings.TrimSpace(one))
		switch {
		case err != nil:
			return Endpoint{}, err
		case u.Scheme != scheme || u.Host == "":
			return Endpoint{}, fmt.Errorf("is not a list of %s://HOST:2379", scheme)
		case u.User != nil:
			return Endpoint{}, errors.New("holds a user; etcd knows podo by --datastore-certfile and --datastore-keyfile")
		case strings.Trim(u.Path, "/") != "":
			return Endpoint{}, errors.New("holds more than hosts and ports")
		}
		hosts = append(hosts, u.Host)
	}
	return Endpoint{Kind: "etcd", Where: strings.Join(hosts, ", "), URL: Secret(scheme + "://" + strings.Join(hosts, ","+scheme+"://"))}, nil
}

// mysqlEndpoint takes the form of MySQL's driver, which is no URL, and hosts without
// the parentheses that it wants.
func mysqlEndpoint(rest string) (Endpoint, error) {
	user, place := "", rest
	if at := strings.LastIndex(rest, "@"); at >= 0 {
		user, place = rest[:at+1], rest[at+1:]
	}
	const shape = "write mysql://USER:PASSWORD@tcp(HOST:3306)/DATABASE"
	if open := strings.IndexByte(place, '('); open >= 0 {
		end := strings.IndexByte(place, ')')
		if end < open || !strings.HasPrefix(place[end+1:], "/") {
			return Endpoint{}, errors.New("is malformed after the user; " + shape)
		}
		return Endpoint{Kind: "mysql", Where: place[open+1 : end], URL: Secret(user + place)}, nil
	}
	host, database, _ := strings.Cut(place, "/")
	if host == "" {
		return Endpoint{}, errors.New("names no host; " + shape)
	}
	return Endpoint{Kind: "mysql", Where: host, URL: Secret(user + "tcp(" + host + ")/" + database)}, nil
}

// parseURL is url.Parse without its errors, which quote what they met.
func parseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("is not a URL; characters such as / # ? % in a user or password are written %2F %23 %3F %25")
	}
	return u, nil
}
