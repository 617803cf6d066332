package offline

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
)

var (
	errAway   = errors.New("no server answers")
	errSilent = errors.New("the server does not begin to answer")
)

// notReady is the answer of something that stands before servers, or of one that
// starts or stops.
type notReady struct{ status string }

func (e *notReady) Error() string { return "the server says " + e.status }

const (
	protobuf       = "application/vnd.kubernetes.protobuf"
	protobufStream = protobuf + ";stream=watch"
)

type kind int

const (
	other  kind = iota // nothing to remember
	list               // a whole view
	watch              // a whole view, and what happens to it
	follow             // what happens to a view after a version of it
	get                // one object
	token              // a service-account token for a pod
)

// A question is what a request asks for.
type question struct {
	kind kind
	path string
	view string // of list, watch and follow: path and selectors
	key  string // of get and token: in the journal
}

// Keys in the journal. A pod's UID precedes the rest of a token's key, so that they
// can be forgotten with it.
func markKey(view string) string         { return "view " + view }
func objectKey(view, name string) string { return "object " + view + " " + name }
func getKey(path string) string          { return "get " + path }
func tokenKey(uid, digest string) string { return "token " + uid + " " + digest }

func viewOf(path string, selectors url.Values) string {
	if len(selectors) == 0 {
		return path
	}
	return path + "?" + selectors.Encode()
}

// understand says what a request asks for.
func understand(r *http.Request) question {
	q := question{path: r.URL.Path}
	base, namespace, resource, name, sub := parse(r.URL.Path)
	if resource == "" || resource == "events" || resource == "leases" {
		return q
	}
	if r.Method == http.MethodPost && resource == "serviceaccounts" && sub == "token" {
		q.key = tokenOf(r)
		if q.key != "" {
			q.kind = token
		}
		return q
	}
	if r.Method != http.MethodGet || sub != "" {
		return q
	}
	ask := r.URL.Query()
	if name != "" {
		collection := base + "/" + resource
		if namespace != "" {
			collection = base + "/namespaces/" + namespace + "/" + resource
		}
		view := viewOf(collection, url.Values{"fieldSelector": {"metadata.name=" + name}})
		switch resource {
		case "nodes", "secrets", "configmaps": // kept only as far as they are watched
			q.kind, q.key = get, objectKey(view, namespace+"/"+name)
		case "persistentvolumeclaims", "persistentvolumes":
			q.kind, q.key = get, getKey(r.URL.Path)
		}
		return q
	}
	selectors := url.Values{}
	for _, s := range []string{"fieldSelector", "labelSelector"} {
		if v := ask.Get(s); v != "" {
			selectors.Set(s, v)
		}
	}
	q.view = viewOf(r.URL.Path, selectors)
	version := ask.Get("resourceVersion")
	switch watching := ask.Get("watch"); {
	case watching != "true" && watching != "1":
		if ask.Get("continue") == "" {
			q.kind = list
		}
	case ask.Get("sendInitialEvents") == "true":
		q.kind = watch
	case version != "" && version != "0":
		q.kind = follow
	}
	return q
}

// parse takes a path of the API apart. Base ends with the version.
func parse(path string) (base, namespace, resource, name, sub string) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	skip := 0
	switch {
	case parts[0] == "api" && len(parts) > 2:
		skip = 2
	case parts[0] == "apis" && len(parts) > 3:
		skip = 3
	default:
		return
	}
	base, parts = "/"+strings.Join(parts[:skip], "/"), parts[skip:]
	if parts[0] == "namespaces" && len(parts) > 2 {
		namespace, parts = parts[1], parts[2:]
	}
	parts = append(slices.Clone(parts), "", "")
	return base, namespace, parts[0], parts[1], parts[2]
}

// tokenOf is the key of the token that a request asks for, or empty if it is not for
// a pod.
func tokenOf(r *http.Request) string {
	if r.GetBody == nil {
		return ""
	}
	body, err := r.GetBody()
	if err != nil {
		return ""
	}
	defer body.Close()
	text, err := io.ReadAll(io.LimitReader(body, 1<<20))
	if err != nil {
		return ""
	}
	object, err := open(text)
	if err != nil {
		return ""
	}
	var asked authenticationv1.TokenRequest
	if asked.Unmarshal(object.Raw) != nil || asked.Spec.BoundObjectRef == nil || asked.Spec.BoundObjectRef.Kind != "Pod" {
		return ""
	}
	sum := sha256.Sum256(append([]byte(r.URL.Path+"\n"), text...))
	return tokenKey(string(asked.Spec.BoundObjectRef.UID), hex.EncodeToString(sum[:]))
}
