package kubelet

import (
	"bytes"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// starting keeps to itself what a kubelet says of its first moments: that the node is not
// ready, since it has not looked at everything yet. Said of a node whose pods run on, that
// takes these out of their Services until the kubelet speaks again, ten seconds later.
// The kubelet is given the node as it is instead, and goes on.
type starting struct {
	next http.RoundTripper
	node string
	from atomic.Int64 // when it first had something to keep, in nanoseconds since 1970
}

// moments is how long that may go on.
const moments = 30 * time.Second

// premature is what such reports say: of runtime.go, errors.go, pleg/generic.go and
// volume/csi/csi_plugin.go in upstream's kubelet.
func premature() [][]byte {
	return [][]byte{
		[]byte("container runtime status check may not have completed yet"), []byte("network state unknown"),
		[]byte("pleg has yet to be successful"), []byte("CSINode is not yet initialized"), []byte("failed to initialize CSINode"),
	}
}

func (s *starting) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method != http.MethodPatch || req.URL.Path != "/api/v1/nodes/"+s.node+"/status" || req.Body == nil {
		return s.next.RoundTrip(req)
	}
	text, err := io.ReadAll(req.Body)
	req.Body.Close()
	if err != nil {
		return nil, err
	}
	again := req.Clone(req.Context())
	if slices.ContainsFunc(premature(), func(words []byte) bool { return bytes.Contains(text, words) }) && s.early() {
		again.Method, again.Body, again.GetBody, again.ContentLength = http.MethodGet, nil, nil, 0
		again.URL.Path = strings.TrimSuffix(again.URL.Path, "/status")
		again.URL.RawQuery = ""
		again.Header.Del("Content-Type")
		return s.next.RoundTrip(again)
	}
	again.Body = io.NopCloser(bytes.NewReader(text))
	return s.next.RoundTrip(again)
}

func (s *starting) early() bool {
	now := time.Now().UnixNano()
	s.from.CompareAndSwap(0, now)
	return now-s.from.Load() < int64(moments)
}
