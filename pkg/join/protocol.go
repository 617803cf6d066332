// Package join lets machines into a cluster: both halves of podo's own protocol.
//
// A machine that wants to join pins the cluster's CA by its token before it sends
// anything secret, proves with each request that it holds its identity key, and is
// given certificates for its own name and no other. DESIGN.md says what each secret
// can do. The package speaks HTTP and knows tokens, keys and certificates; what a
// node then runs is none of its business.
package join

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/podo-dev/podo/pkg/plan"
)

// The paths that podo serves beside the Kubernetes API, on the same port.
const (
	PathCAs    = "/cacerts"        // the CA that signs API servers, in PEM; no credentials
	PathPing   = "/ping"           // answers pong; no credentials
	PathNode   = "/v1-podo/node"   // join, and renewal of certificates
	PathPeer   = "/v1-podo/server" // join as one more server
	PathTunnel = "/v1-podo/tunnel" // the way from API servers to a node
)

// A Request asks for a node's certificates. Its JSON form crosses the wire between
// podos of different versions: fields are added, never renamed.
type Request struct {
	Name       string       `json:"name"`
	Kubernetes string       `json:"kubernetes"` // version inside the joining podo
	Addresses  []netip.Addr `json:"addresses"`  // by which API servers may reach the node
	Time       time.Time    `json:"time"`       // by the joiner's clock

	// Requests are certificate requests in PEM by leaf name. Only their keys count.
	Requests map[string][]byte `json:"requests"`
}

// A Membership is what a node has been given.
type Membership struct {
	Name         string            `json:"name"`
	Certificates map[string][]byte `json:"certificates,omitempty"` // PEM by leaf name
	CAs          map[string][]byte `json:"cas"`                    // PEM by name
	Cluster      plan.Cluster      `json:"cluster"`
	Servers      []string          `json:"servers"` // host:port of every API server
}

// Reason says which of the known mistakes a refusal is.
type Reason string

// The reasons of refusals. Each has its remedy in the message.
const (
	BadRequest  Reason = "bad-request"
	BadToken    Reason = "bad-token"    // unknown, wrong, expired or used
	NameTaken   Reason = "name-taken"   // another machine's identity owns the name
	BadVersion  Reason = "bad-version"  // the versions must not meet
	BadSettings Reason = "bad-settings" // servers would disagree
	BadClock    Reason = "bad-clock"    // the clocks are too far apart
	TooMany     Reason = "too-many"     // come again later
	Unavailable Reason = "unavailable"  // the server is starting, or its datastore is away
	WrongPin    Reason = "wrong-pin"    // found by the joiner: the token names another CA
	NotPinned   Reason = "not-pinned"   // found by the joiner: the token names no CA
)

// A Refusal is an answer other than yes.
type Refusal struct {
	Reason  Reason `json:"reason"`
	Message string `json:"message"`
}

func (r *Refusal) Error() string { return r.Message }

// Final reports whether asking again, unchanged, must fail again.
func (r *Refusal) Final() bool { return r.Reason != TooMany && r.Reason != Unavailable }

func refuse(why Reason, format string, args ...any) *Refusal {
	return &Refusal{Reason: why, Message: fmt.Sprintf(format, args...)}
}

// maxSkew is how far the clocks of two machines may be apart: more than networks of
// machines without a time service drift, less than what certificates' start and the
// ends of short-lived tokens bear.
const maxSkew = 10 * time.Minute

// clock is how times are told.
const clock = "2006-01-02 15:04:05 MST"

// skewed refuses a clock that is too far off. Both times are told, since only a
// person knows which is right.
func skewed(joiner, server time.Time) *Refusal {
	off := joiner.Sub(server)
	if off.Abs() <= maxSkew {
		return nil
	}
	direction := "ahead of"
	if off < 0 {
		direction = "behind"
	}
	return refuse(BadClock, "this machine's clock (%s) is %s %s the server's (%s); set the one that is wrong, then start again",
		joiner.UTC().Format(clock), off.Abs().Round(time.Second), direction, server.UTC().Format(clock))
}

// oldest is how many minor versions a node may be behind its servers: Kubernetes
// supports a kubelet that is three behind, and none that is ahead.
const oldest = 3

// skew refuses versions that Kubernetes does not let meet.
func skew(joiner, server string) *Refusal {
	theirs, err1 := minor(joiner)
	ours, err2 := minor(server)
	switch {
	case err2 != nil: // a binary without Kubernetes serves nobody
		return refuse(BadVersion, "server version: %v", err2)
	case err1 != nil:
		return refuse(BadVersion, "version: %v", err1)
	case theirs > ours:
		return refuse(BadVersion, "this podo has Kubernetes %s, and the cluster's servers %s: a node must not be newer than its servers; upgrade the servers first, or install their version here", joiner, server)
	case theirs < ours-oldest:
		return refuse(BadVersion, "this podo has Kubernetes %s, and the cluster's servers %s: a node may be %d minor versions behind at most; install a newer podo here", joiner, server, oldest)
	}
	return nil
}

// minor is the minor version in a text such as v1.36.4+podo1.
func minor(v string) (int, error) {
	var major, minor, patch int
	if _, err := fmt.Sscanf(v, "v%d.%d.%d", &major, &minor, &patch); err != nil || major != 1 {
		return 0, fmt.Errorf("%q is no version of Kubernetes", v)
	}
	return minor, nil
}
